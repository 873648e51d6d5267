"""The part of the panel that mends and explains: what is missing, the checks with their progress, what has failed, and the report."""

from __future__ import annotations

from typing import Any

import gradio as gr

from sd3deploy import messages
from sd3deploy.webui.jobs.override import AS_SET
from sd3deploy.webui.page.language import spoken
from sd3deploy.webui.page.outcome import findings_html, outcome_html
from sd3deploy.webui.services.reporting import Reporting
from sd3deploy.webui.services.verifying import Verifying

__all__ = ["buttons", "help"]


def buttons(script: Any, verifying: Verifying, encoder: Any) -> tuple[Any, Any]:
    """Add the row of buttons, and below it what they show. The page fills in state, findings, checks and the progress of installs, and
    wires the buttons of the classes sd3-install, sd3-cancel and sd3-copy (javascript/). encoder: the drop-down of this page, whose choice
    is checked: the next picture will have it. Returns the button that diagnoses and the place
    for its answer, for `help`.
    """
    with gr.Row(elem_classes=["sd3-row"]):
        _button(script, "install")
        verify, diagnose = _button(script, "verify"), _button(script, "diagnose")
        _button(script, "copy")
    _button(script, "cancel")
    gr.HTML('<div class="sd3-work"></div><div class="sd3-findings"></div>', elem_id=script.elem_id("diagnosis"))
    done = gr.HTML(elem_id=script.elem_id("diagnosis_done"))
    found = gr.HTML(elem_id=script.elem_id("found"))

    def check(chosen: Any) -> str:
        return outcome_html(lambda: verifying.begin("" if chosen in (None, AS_SET) else chosen))

    verify.click(fn=spoken(check), inputs=[encoder], outputs=[done])
    return diagnose, found


def help(script: Any, reporting: Reporting, diagnose: Any, found: Any) -> None:
    """Add what helps when something has failed: a place for the text of an error, and the report, to be looked at before it is saved."""
    with gr.Accordion(messages.text("panel.help"), open=False, elem_id=script.elem_id("help")):
        pasted = gr.Textbox(label=messages.text("panel.diagnose.label"), lines=3, max_lines=12, elem_id=script.elem_id("pasted"))
        with gr.Row(elem_classes=["sd3-row"]):
            report, save = _button(script, "report"), _button(script, "save", interactive=False)
        text = gr.Textbox(
            label=messages.text("panel.report.label"), lines=12, max_lines=24, visible=False, interactive=False, show_copy_button=True,
            autoscroll=False, elem_id=script.elem_id("report_text"), elem_classes=["sd3-report"],
        )  # fmt: skip
        file = gr.File(label=messages.text("panel.file"), visible=False, elem_id=script.elem_id("bundle"))
    diagnose.click(fn=spoken(lambda text: findings_html(*reporting.diagnosing.read(text))), inputs=[pasted], outputs=[found])
    report.click(
        fn=spoken(lambda: (gr.update(value=reporting.show(), visible=True), gr.update(interactive=True))), inputs=[], outputs=[text, save]
    )
    save.click(fn=spoken(lambda: gr.update(value=str(reporting.save()), visible=True)), inputs=[], outputs=[file])


def _button(script: Any, name: str, **words: Any) -> Any:
    return gr.Button(messages.text(f"panel.{name}"), size="sm", elem_id=script.elem_id(name), elem_classes=[f"sd3-{name}"], **words)
