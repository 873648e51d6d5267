"""The panel in txt2img, img2img and Control: what is loaded, what will happen to the next job, and what can be done."""

from __future__ import annotations

from typing import Any

import gradio as gr

from sd3deploy import messages, units
from sd3deploy.deployment import Deployment
from sd3deploy.encoders import choices
from sd3deploy.webui.host import reach
from sd3deploy.webui.host.feature import Features
from sd3deploy.webui.host.reach import sdnext
from sd3deploy.webui.jobs import override
from sd3deploy.webui.jobs.guarding import Guarding
from sd3deploy.webui.jobs.metadata import record_encoder
from sd3deploy.webui.jobs.state import state_of
from sd3deploy.webui.jobs.watching import Watching
from sd3deploy.webui.notice import TITLE, notice_html
from sd3deploy.webui.page import diagnosis_panel, memory_panel
from sd3deploy.webui.services.measuring import Measuring
from sd3deploy.webui.services.reporting import Reporting
from sd3deploy.webui.services.verifying import Verifying

__all__ = ["TITLE", "allow_in_control", "leave_control", "script_class", "state_line"]

# Hook of the script → the part of the extension that it is, which fails alone.
_HOOKS = {"before_process": "note", "process": "process", "before_process_batch": "before-batch"}


def allow_in_control() -> None:
    """The Control tab, which is the main page of ModernUI, drops scripts of extensions that are not in this list of the host."""
    control_extensions = sdnext.installer.control_extensions
    if TITLE not in control_extensions:
        control_extensions.append(TITLE)


def leave_control() -> None:
    """Take back what `allow_in_control` did."""
    control_extensions = sdnext.installer.control_extensions
    while TITLE in control_extensions:
        control_extensions.remove(TITLE)


def script_class(
    deployment: Deployment,
    guarding: Guarding,
    watching: Watching,
    verifying: Verifying,
    measuring: Measuring,
    reporting: Reporting,
    features: Features,
) -> type:
    """The host's kind of script, bound to the services. The host makes three instances and calls ui() five times and more."""
    panel = features.get("panel")
    guard, check = features.shield("guard", guarding.guard), features.shield("forecast", watching.forecast.check)
    reconcile = features.shield("swap", lambda *asked, **words: deployment.reconcile(*asked, **words))

    class SD3Deploy(sdnext.scripts_manager.Script):
        built = False

        def title(self) -> str:
            return TITLE

        def show(self, is_img2img: bool) -> Any:
            return sdnext.scripts_manager.AlwaysVisible

        def ui(self, is_img2img: bool) -> list[Any]:
            if panel.active:
                try:
                    components = self._ui()
                    SD3Deploy.built = True
                    return components
                except Exception as error:
                    # The host also asks on threads of its API, to learn the default arguments, and gradio knows one page at a time: two of
                    # them fail. Only a panel that could never be built is off.
                    if SD3Deploy.built:
                        return override.hidden()
                    panel.fail(error)
            with gr.Accordion(TITLE, open=True, elem_classes=["sd3-panel"]):
                gr.HTML(notice_html(features.notice or panel.notice))
            return override.hidden()  # without a component the host would call no hook of the script

        def _ui(self) -> list[Any]:
            with gr.Accordion(TITLE, open=False, elem_id=self.elem_id("panel"), elem_classes=["sd3-panel"]):
                # A function, because the rest of the extension may fail after the panel was built; gradio asks it for every page.
                gr.HTML(lambda: notice_html(features.notice) if features.notice else "", elem_id=self.elem_id("notice"))
                gr.HTML('<div class="sd3-state"></div>', elem_id=self.elem_id("state"))  # the page has the sentence for its head here
                memory_panel.job(self)
                encoder = override.encoder(self, deployment.host.device())
                memory_panel.recommendation(self, watching, encoder)
                diagnosis = diagnosis_panel.buttons(self, verifying, encoder)
                with gr.Accordion(messages.text("panel.page"), open=False, elem_id=self.elem_id("page")):
                    gr.HTML('<p class="sd3-defaults"></p>', elem_id=self.elem_id("defaults"))  # filled in by the page
                    components = [encoder, *override.modes(self)]
                memory_panel.last(self, watching, measuring)
                diagnosis_panel.help(self, reporting, *diagnosis)
            self.infotext_fields = override.pasted(components)
            return components

        def process(self, p: Any, *values: Any, **_: Any) -> None:
            # The first hook at which the model, the styles and the overridden settings of a job are final; the queue is held.
            # The encoder comes first: some guards depend on it.
            state = state_of(p)
            state.override = wanted = override.read_override(values, lambda error: deployment.events.fail(error, job=True))
            state.press.page = wanted.page
            placed = reconcile(wanted.encoder, stopped=state.stop, page=wanted.page)
            if placed:
                record_encoder(p, deployment)
            p.extra_generation_params |= wanted.describe()
            guard(p)
            check(p)

        def before_process(self, p: Any, *_: Any, **__: Any) -> None:
            features.keep()
            reach.check_job(p)
            if not reach.state.lacks("note"):
                guarding.note(p)

        def before_process_batch(self, p: Any, *_: Any, **__: Any) -> None:
            # Whoever ends the load of an encoder wants no picture with another one; the host has forgotten an interrupt that came earlier.
            if state_of(p).stopped:
                sdnext.shared.state.interrupted = True

    for hook, part in _HOOKS.items():
        setattr(SD3Deploy, hook, features.shield(part, getattr(SD3Deploy, hook)))
    return SD3Deploy


def state_line(status: dict[str, Any]) -> str:
    """One line: model, encoder, and what is under way or went wrong."""
    if status["busy"]:
        return str(status["busy"])
    more = []
    if status["model"] is None:
        line = messages.text("panel.no-model", wanted=_shown(status["wanted"]))
    else:
        id = "panel.state" if status["t5_bytes"] else "panel.state.no-t5"
        line = messages.text(id, model=status["model"], encoder=_shown(status["encoder"]), size=units.size(status["t5_bytes"]))
        if status["quantized_before"]:
            more.append(messages.text("encoder.quantized-before", form=status["quantized_before"]))
        if status["emulates"]:
            more.append(messages.text("device.emulates"))
        if status["next"] != status["encoder"]:
            id = "panel.pending" if status["next"] == status["wanted"] else "panel.pending.before"
            more.append(messages.text(id, wanted=_shown(status["next"])))
        if status["encoder_warning"]:
            more.append(status["encoder_warning"]["message"])
    if status["last_error"]:
        more.append(status["last_error"]["message"])
    elif status["left"] or status["wanted"] in status["failed"]:  # it was told; something else has succeeded since
        id = "panel.failed.source" if status["wanted"] == status["encoder"] else "panel.failed"
        more.append(messages.text(id, name=_shown(status["wanted"])))
    return messages.joined(line, *more)


def _shown(name: str) -> str:
    return choices.find(name).shown
