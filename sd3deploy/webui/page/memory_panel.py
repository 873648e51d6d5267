"""The part of the panel about the next job and its memory, filled in by the page as the job is being described; and where the memory of
the last run went.
"""

from __future__ import annotations

from typing import Any

import gradio as gr

from sd3deploy import messages
from sd3deploy.webui.jobs.watching import Watching
from sd3deploy.webui.page.language import spoken
from sd3deploy.webui.page.outcome import outcome_html

__all__ = ["show"]


def show(script: Any, watching: Watching) -> None:
    """Add it to the accordion that is being built."""
    gr.HTML('<div class="sd3-job"></div>', elem_id=script.elem_id("job"))
    gr.HTML('<div class="sd3-memory"></div>', elem_id=script.elem_id("memory"))
    apply = gr.Button(messages.text("panel.memory.apply"), size="sm", elem_id=script.elem_id("apply"))
    done = gr.HTML(elem_id=script.elem_id("done"))
    with gr.Accordion(messages.text("panel.memory.last"), open=False, elem_id=script.elem_id("last")):
        shown = gr.Plot(
            value=lambda: watching.figure() if watching.monitor.last else None,  # nothing is drawn while the page is built
            show_label=False,
            elem_id=script.elem_id("plot"),
            elem_classes=["sd3-plot"],
        )
        forget = gr.Button(messages.text("panel.memory.forget"), size="sm", elem_id=script.elem_id("forget"))
    # Pressed by the page when a run has ended: gradio lets nobody else change a plot.
    show = gr.Button(messages.text("panel.memory.show"), elem_id=script.elem_id("show"), elem_classes=["sd3-show"])
    apply.click(fn=spoken(lambda: outcome_html(watching.forecast.apply)), inputs=[], outputs=[done])
    forget.click(fn=spoken(lambda: outcome_html(watching.forecast.forget)), inputs=[], outputs=[done])
    show.click(fn=spoken(lambda: watching.figure()), inputs=[], outputs=[shown])
