"""What the panel sets for the jobs of its page alone goes into the metadata of their pictures, and comes back with the host's paste."""

from __future__ import annotations

import html
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import gradio as gr

from sd3deploy import guards, messages
from sd3deploy.device import Device
from sd3deploy.encoders import choices
from sd3deploy.errors import SettingError
from sd3deploy.webui.jobs.forecast import MODES

__all__ = ["AS_SET", "Override", "encoder", "hidden", "modes", "pasted", "read_override"]

AS_SET = "As in Settings"  # the value, in every language

# What it is about → its possible modes. The order is that of the script's arguments, after the encoder.
_MODES: dict[str, tuple[str, ...]] = {"size": guards.MODES, "memory": MODES, "sampling": guards.MODES}
# The same → how the metadata of pictures calls it: as the English screen does.
_KEYS = {"size": "SD3 size guard", "memory": "SD3 memory check", "sampling": "SD3 sampler guard"}
_COUNT = 2 + len(_MODES)  # the encoder before them, the page behind them


@dataclass(frozen=True)
class Override:
    """Another encoder, the name of its choice, and modes: of the guards "size" and "sampling", and of "memory". Settings for the rest.
    page: the id of the open page that it comes from; "" where that can not be told.
    """

    encoder: str | None = None
    modes: Mapping[str, str] = field(default_factory=dict)
    page: str = ""

    def describe(self) -> dict[str, str]:
        """Return key → value for the metadata of a picture."""
        return {_KEYS[name]: mode for name, mode in self.modes.items()}


def encoder(script: Any, device: Device) -> Any:
    """Make the drop-down of the text encoder. What its entries have to say besides their names is in a list of its own, which the page
    reads: gradio shows of an entry the value alone, and the value is what pictures and requests name.
    """
    lines = {AS_SET: messages.text("panel.as-set")} | {choice.name: choices.label(choice, device) for choice in choices.CHOICES}
    entries = "".join(f'<li data-name="{html.escape(name)}">{html.escape(line)}</li>' for name, line in lines.items())
    gr.HTML(f'<ul class="sd3-entries" hidden>{entries}</ul>', elem_id=script.elem_id("entries"), elem_classes=["sd3-unseen"])
    label, id = messages.text("panel.encoder"), script.elem_id("encoder")
    return gr.Dropdown(list(lines), value=AS_SET, label=label, elem_id=id, elem_classes=["sd3-encoder"])


def modes(script: Any) -> list[Any]:
    """Make the modes that can be chosen for a page, and what tells one page from another."""
    as_set = (messages.text("panel.as-set"), AS_SET)
    made = []
    for name, values in _MODES.items():
        named = [as_set, *((messages.text(f"panel.mode.{mode}"), mode) for mode in values)]
        label, info = messages.text(f"panel.{name}"), messages.text(f"panel.{name}.info")
        made.append(gr.Radio(named, value=AS_SET, label=label, info=info, elem_id=script.elem_id(name), elem_classes=["sd3-modes"]))
    # A function, which gradio asks for every page that is opened: no two have the same. Whoever asks for the default has no page.
    page = gr.Textbox(lambda: secrets.token_hex(8), visible=False, elem_id=script.elem_id("page-id"))
    page.value = ""
    return [*made, page]


def hidden() -> list[Any]:
    """As many components as `encoder` and `modes` give, with values that leave all as it is set, for where those can not be built."""
    return [gr.Textbox(value, visible=False) for value in (AS_SET, *[AS_SET] * len(_MODES), "")]


def pasted(components: list[Any]) -> list[tuple[Any, Callable[[Mapping[str, Any]], Any]]]:
    """Return (component, function of the metadata) for the host's paste: it takes what the metadata says where that means something."""
    first, *rest, _ = components
    fields: list[tuple[Any, Callable[[Mapping[str, Any]], Any]]] = [(first, lambda found: _encoder(found.get("T5")))]
    for component, (name, values) in zip(rest, _MODES.items(), strict=True):
        fields.append((component, lambda found, name=name, values=values: _known(_stored(found, name), values)))
    return fields


def read_override(values: tuple[Any, ...], complain: Callable[[SettingError], object]) -> Override:
    """Read the arguments of the script, of the page or of a request that gives fewer or something else. It calls `complain` for a mode
    that means nothing, and the settings count; what the encoder means is found out where it is loaded.
    """
    chosen, *given = values[-_COUNT:] or (None,)  # the last: a host may give something of its own before them
    found = {}
    for (name, known), mode in zip(_MODES.items(), given, strict=False):
        if mode in known:
            found[name] = mode
        elif mode not in ("", None, AS_SET):
            complain(SettingError("setting.guard-unknown", value=repr(mode)[:60], known=", ".join(known)))
    page = given[len(_MODES)] if len(given) > len(_MODES) else ""
    return Override(None if chosen in ("", None, AS_SET) else chosen, found, page if isinstance(page, str) else "")


def _stored(found: Mapping[str, Any], name: str) -> Any:
    return found.get(_KEYS[name], found.get(f"SD3 {name} check"))  # as pictures called all of them until 0.1


def _encoder(name: Any) -> Any:
    new = choices.successor(name)
    return _known(new.name if new else name, [choice.name for choice in choices.CHOICES])


def _known(value: Any, values: Any) -> Any:
    """Return None where the metadata has nothing to say: the host leaves the component as it is."""
    return gr.update(value=value) if value in values else None
