"""The part of the panel that mends, measures and explains: what is missing, the checks and the measurement with their progress, what has
failed, and the report.
"""

from __future__ import annotations

from typing import Any

import gradio as gr

from sd3deploy import messages
from sd3deploy.webui.page.language import spoken
from sd3deploy.webui.page.outcome import findings_html, outcome_html
from sd3deploy.webui.services.measuring import Measuring
from sd3deploy.webui.services.reporting import Reporting
from sd3deploy.webui.services.verifying import Verifying

__all__ = ["show"]


def show(script: Any, verifying: Verifying, measuring: Measuring, reporting: Reporting) -> None:
    """Add it to the accordion that is being built. The page fills in findings, checks and the progress of installs, and wires the buttons
    of the classes sd3-install, sd3-cancel and sd3-copy (javascript/).
    """

    def button(name: str, **words: Any) -> Any:
        return gr.Button(messages.text(f"panel.{name}"), size="sm", elem_id=script.elem_id(name), elem_classes=[f"sd3-{name}"], **words)

    with gr.Row():
        button("install")
        verify, quality = button("verify"), button("quality")
        button("cancel")
    gr.HTML('<div class="sd3-work"></div><div class="sd3-findings"></div>', elem_id=script.elem_id("diagnosis"))
    done = gr.HTML(elem_id=script.elem_id("diagnosis_done"))
    with gr.Accordion(messages.text("panel.help"), open=False, elem_id=script.elem_id("help")):
        pasted = gr.Textbox(label=messages.text("panel.diagnose.label"), lines=3, max_lines=12, elem_id=script.elem_id("pasted"))
        with gr.Row():
            diagnose, report, _ = button("diagnose"), button("report"), button("copy")
            save = button("save", interactive=False)
        found = gr.HTML(elem_id=script.elem_id("found"))
        text = gr.Textbox(
            label=messages.text("panel.report.label"), lines=12, max_lines=24, visible=False, interactive=False, show_copy_button=True,
            autoscroll=False, elem_id=script.elem_id("report_text"), elem_classes=["sd3-report"],
        )  # fmt: skip
        file = gr.File(label=messages.text("panel.file"), visible=False, elem_id=script.elem_id("bundle"))
    verify.click(fn=spoken(lambda: outcome_html(verifying.begin)), inputs=[], outputs=[done])
    quality.click(fn=spoken(lambda: outcome_html(measuring.begin)), inputs=[], outputs=[done])
    diagnose.click(fn=spoken(lambda text: findings_html(*reporting.diagnosing.read(text))), inputs=[pasted], outputs=[found])
    report.click(
        fn=spoken(lambda: (gr.update(value=reporting.show(), visible=True), gr.update(interactive=True))), inputs=[], outputs=[text, save]
    )
    save.click(fn=spoken(lambda: gr.update(value=str(reporting.save()), visible=True)), inputs=[], outputs=[file])
