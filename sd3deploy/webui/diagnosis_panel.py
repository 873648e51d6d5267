"""The part of the panel that explains: what has failed, the checks with their progress, and the report."""

from __future__ import annotations

from typing import Any

import gradio as gr

from sd3deploy import messages
from sd3deploy.webui.reporting import Reporting
from sd3deploy.webui.said import said
from sd3deploy.webui.verifying import Verifying

__all__ = ["show"]


def show(script: Any, verifying: Verifying, reporting: Reporting) -> None:
    """Add it to the accordion that is being built. The page fills in findings and checks (javascript/sd3_deploy.js)."""
    gr.HTML('<div class="sd3-findings"></div><div class="sd3-checks"></div>', elem_id=script.elem_id("diagnosis"))
    with gr.Row():
        verify = gr.Button(messages.text("panel.verify"), elem_id=script.elem_id("verify"), elem_classes=["sd3-verify"])
        cancel = gr.Button(messages.text("panel.cancel"), elem_id=script.elem_id("cancel"))
        report = gr.Button(messages.text("panel.report"), elem_id=script.elem_id("report"))
        save = gr.Button(messages.text("panel.save"), elem_id=script.elem_id("save"), interactive=False)
    done = gr.HTML(elem_id=script.elem_id("diagnosis_done"))
    text = gr.Textbox(
        label=messages.text("panel.report.label"), lines=12, max_lines=24, visible=False, interactive=False, show_copy_button=True,
        autoscroll=False, elem_id=script.elem_id("report_text"), elem_classes=["sd3-report"],
    )  # fmt: skip
    file = gr.File(label=messages.text("panel.file"), visible=False, elem_id=script.elem_id("bundle"))
    verify.click(fn=lambda: said(verifying.begin), inputs=[], outputs=[done])
    cancel.click(fn=lambda: said(verifying.end), inputs=[], outputs=[done])
    report.click(fn=lambda: (gr.update(value=reporting.show(), visible=True), gr.update(interactive=True)), inputs=[], outputs=[text, save])
    save.click(fn=lambda: gr.update(value=str(reporting.save()), visible=True), inputs=[], outputs=[file])
