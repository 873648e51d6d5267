"""The section "SD3 Deploy" of the settings. Own keys only: a foreign value in the host's sd_text_encoder breaks loading without us."""

from __future__ import annotations

import html
from collections.abc import Callable
from typing import Any

import gradio as gr

from sd3deploy import guards, messages
from sd3deploy.deployment import Deployment, Wanted
from sd3deploy.device import Device
from sd3deploy.encoders import choices, source
from sd3deploy.encoders.cache import DEFAULT_LIMIT
from sd3deploy.encoders.hub import spec
from sd3deploy.errors import SettingError
from sd3deploy.guards.number import number
from sd3deploy.webui.host.adapter import rejection
from sd3deploy.webui.host.feature import Features
from sd3deploy.webui.host.reach import sdnext, state
from sd3deploy.webui.jobs.forecast import DEFAULT_MODE, MODES, Forecast

__all__ = ["SECTION", "STATE", "mend", "register", "table"]

SECTION = ("sd3_deploy", "SD3 Deploy")
STATE = '<div class="sd3-state"></div>'  # filled in by the page, as in the panel
SOURCES = '<div class="sd3-sources" role="status"></div>'  # the same: it depends on what is being filled in
LIMITS = (3, 200)  # GB: room for the smallest encoder that is kept; several sources of all of them


def register(deployment: Deployment, forecast: Forecast, features: Features) -> None:
    """Add the options; called by the host when it builds the settings page. Raises what the host raises, with none of them added.

    The host applies changed settings in this order: what the load of an encoder depends on comes before the encoder. The page shows them
    in the order in which they are read (javascript/sd3_settings.js).
    """
    options: dict[str, Any] = {}
    checked = features.get("settings")

    def option(key: str, default: Any, component: Any, arguments: Any = None, onchange: Callable[[], None] | None = None) -> None:
        label = messages.text(f"setting.{key}")
        options[key] = sdnext.shared.OptionInfo(default, label, component, arguments, onchange=onchange, section=SECTION)

    def change() -> None:
        state.retry()
        if features.ended or state.lacks("swap"):  # then it comes with the next load of a model: that was told
            return
        asked = sdnext.shared.opts.data.get("sd3_text_encoder")

        def back(stood: Wanted | None) -> None:  # the host puts the old value back too, when the next picture may have read the new one
            if stood is not None and sdnext.shared.opts.data.get("sd3_text_encoder") == asked:  # else somebody has chosen again meanwhile
                sdnext.shared.opts.data["sd3_text_encoder"] = stood.choice.name

        try:
            deployment.change(forecast.allow, back)
        except Exception as error:
            if state.lacks("swap"):  # the host has just shown that it takes none while a model is loaded
                sdnext.shared.opts.data["sd3_text_encoder"] = asked
                return
            raise rejection(error) from error
        checked.shield(remember)()  # the encoder is in place: nothing may bring the old value back

    def remember() -> None:
        sdnext.shared.opts.data["sd3_text_encoder"] = deployment.wanted().choice.name  # "fp4" was understood, but no list shows it

    def refusing(check: Callable[[], None]) -> Callable[[], None]:
        """`check` as a callback: what it refuses is told, and the host puts the old value back; with a bug of it the new value stands."""
        shielded = checked.shield(check, (SettingError,))

        def changed() -> None:
            try:
                shielded()
            except SettingError as error:
                deployment.events.fail(error, "warning")
                raise rejection(error) from error

        return changed

    later = deployment.later(forecast.allow)

    def moved() -> None:
        """The source was changed: the encoder of the new one is loaded when all settings are applied, and told as any other."""
        if not features.ended and not state.lacks("swap"):
            later.ask()

    @refusing
    def modes() -> None:
        for name in guards.GUARDS:
            _mode(sdnext.shared.opts.data.get(f"sd3_guard_{name}", guards.DEFAULT_MODE))
        _memory_mode(sdnext.shared.opts.data.get("sd3_memory", DEFAULT_MODE))

    @refusing
    def cache() -> None:
        for key in ("sd3_cache", "sd3_cache_folder", "sd3_cache_limit"):
            if key in sdnext.shared.opts.data:
                valid[key](sdnext.shared.opts.data[key])

    valid = _valid()
    option("sd3_auto_install", True, gr.Checkbox)
    option("sd3_memory", DEFAULT_MODE, gr.Radio, {"choices": list(MODES)}, modes)
    option("sd3_memory_retry", False, gr.Checkbox)
    option("sd3_weights", source.KINDS[0], gr.Dropdown, lambda: {"choices": list(source.KINDS)}, checked.shield(moved))
    option("sd3_weights_file", "", gr.Textbox, None, checked.shield(moved))
    option("sd3_weights_repository", spec.DEFAULT, gr.Textbox, None, checked.shield(moved))
    option("sd3_weights_keep", False, gr.Checkbox)
    option("sd3_sources", SOURCES, gr.HTML)
    option("sd3_cache", True, gr.Checkbox, None, cache)
    option("sd3_cache_folder", "", gr.Textbox, None, cache)
    option("sd3_cache_limit", DEFAULT_LIMIT, gr.Slider, {"minimum": LIMITS[0], "maximum": LIMITS[1], "step": 1}, cache)
    option(
        "sd3_text_encoder",
        choices.HOST_DEFAULT.name,
        gr.Dropdown,
        lambda: {"choices": [choice.name for choice in choices.CHOICES]},
        change,
    )
    rows = features.shield("table", lambda: table(deployment.host.device()))() or ""
    option("sd3_choices", STATE + _loading() + rows, gr.HTML)
    for name in guards.GUARDS:
        option(f"sd3_guard_{name}", guards.DEFAULT_MODE, gr.Radio, {"choices": list(guards.MODES)}, modes)
    if place := getattr(sdnext.shared.opts.data_labels.get("sd_text_encoder"), "section", None):  # where somebody looks first
        option("sd3_pointer", f"<p>{html.escape(messages.text('setting.sd3_pointer'))}</p>", gr.HTML)
        options["sd3_pointer"].section = place
    for key, info in options.items():  # only here: what fails above has added nothing
        sdnext.shared.opts.add_option(key, info)
    checked.shield(mend)(deployment)


def mend(deployment: Deployment) -> None:
    """Answer stored values that mean nothing with a sentence and the default, and a former text encoder with the one that took its place:
    the host validates no extension's settings.
    """
    for key, check in _valid().items():
        if key not in sdnext.shared.opts.data:
            continue
        try:
            sdnext.shared.opts.data[key] = check(sdnext.shared.opts.data[key])
        except SettingError as error:
            if key == "sd3_text_encoder" and (new := choices.successor(sdnext.shared.opts.data[key])):
                sdnext.shared.opts.data[key] = new.name
                deployment.events.add("warning", error.id, error.message, "")  # nobody has to do anything about it
                continue
            del sdnext.shared.opts.data[key]
            deployment.events.fail(error, "warning")


def _valid() -> dict[str, Callable[[Any], Any]]:
    """Key → what gives back a stored value as it should be, and raises SettingError for one that means nothing."""
    return {
        "sd3_text_encoder": lambda value: choices.find(value).name,
        "sd3_weights": source.kind_of,
        "sd3_weights_file": lambda value: _instance(value, str),
        "sd3_weights_repository": lambda value: _instance(value, str),
        "sd3_weights_keep": lambda value: _instance(value, bool),
        "sd3_auto_install": lambda value: _instance(value, bool),
        "sd3_cache": lambda value: _instance(value, bool),
        "sd3_cache_folder": lambda value: _instance(value, str),
        "sd3_cache_limit": _limit,
        **{f"sd3_guard_{name}": _mode for name in guards.GUARDS},
        "sd3_memory": _memory_mode,
        "sd3_memory_retry": lambda value: _instance(value, bool),
    }


def _mode(value: Any) -> Any:
    if value not in guards.MODES:
        raise SettingError("setting.guard-unknown", value=repr(value)[:60], known=", ".join(guards.MODES))
    return value


def _memory_mode(value: Any) -> Any:
    if value not in MODES:
        raise SettingError("setting.memory-unknown", value=repr(value)[:60], known=", ".join(MODES))
    return value


def _limit(value: Any) -> Any:
    least, most = LIMITS
    size = None if isinstance(value, bool) else number(value)
    if size is None or not least <= size <= most:
        raise SettingError("setting.cache-limit", value=repr(value)[:60], least=least, most=most)
    return value


def _instance(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise SettingError("setting.wrong-type", value=repr(value)[:60])
    return value


def _loading() -> str:
    """How far an encoder is that is being loaded, and the button that ends it: filled in and shown by the page."""
    cancel = html.escape(messages.text("panel.cancel"))
    return f'<div class="sd3-loading"></div><button type="button" class="sd3-cancel sd3-end" hidden>{cancel}</button>'


def table(device: Device) -> str:
    """Every choice with its size and what to expect, or why this device can not run it, as an HTML table."""
    rows = []
    for choice in choices.CHOICES:
        reason = choices.unsuitable(choice, device)
        size = f"{choice.bytes / 1e9:.1f} GB" if choice.bytes else ""
        cells = "".join(f"<td>{html.escape(text)}</td>" for text in (choice.shown, size, reason or choice.sentence))
        kind = "sd3-unsuitable" if reason else "sd3-suitable"
        # The last cell says whether it fits here; the page asks for that, because it changes with the model.
        rows.append(f'<tr class="{kind}" data-choice="{choice.id}">{cells}<td class="sd3-verdict"></td></tr>')
    return f'<table class="sd3-choices"><tbody>{"".join(rows)}</tbody></table>'
