"""The part of the panel about the next job and its memory, filled in by the page as the job is being described; and where the memory of
the last run went.
"""

from __future__ import annotations

from typing import Any

import gradio as gr

from sd3deploy import messages
from sd3deploy.webui.jobs.override import AS_SET
from sd3deploy.webui.jobs.watching import Watching
from sd3deploy.webui.page.language import spoken
from sd3deploy.webui.page.outcome import outcome_html
from sd3deploy.webui.services.measuring import Measuring

__all__ = ["job", "last", "recommendation"]


def job(script: Any) -> None:
    """What will happen to the next job, then what it takes, phase by phase."""
    gr.HTML('<div class="sd3-job"></div>', elem_id=script.elem_id("job"))
    gr.HTML('<div class="sd3-memory"></div>', elem_id=script.elem_id("memory"))


def recommendation(script: Any, watching: Watching, encoder: Any) -> None:
    """The button that takes the recommended text encoder into the settings, which then count for this page too, and what it has done.
    encoder: the drop-down of this page.
    """

    def take() -> tuple[str, Any]:
        done: list[str] = []
        said = outcome_html(lambda: done.append(watching.forecast.apply()) or done[0])
        return said, gr.update(value=AS_SET) if done else gr.update()

    apply = gr.Button(messages.text("panel.memory.apply"), size="sm", elem_id=script.elem_id("apply"))
    done = gr.HTML(elem_id=script.elem_id("done"))
    apply.click(fn=spoken(take), inputs=[], outputs=[done, encoder])


def last(script: Any, watching: Watching, measuring: Measuring) -> None:
    """The plot of the last run, which the page draws while it is open, and what is known of this machine."""
    with gr.Accordion(messages.text("panel.memory.last"), open=False, elem_id=script.elem_id("last")):
        gr.HTML('<div class="sd3-run"></div>', elem_id=script.elem_id("plot"))
        with gr.Row(elem_classes=["sd3-row"]):
            names = {"quality": "panel.quality", "forget": "panel.memory.forget"}
            quality, forget = (
                gr.Button(messages.text(id), size="sm", elem_id=script.elem_id(name), elem_classes=[f"sd3-{name}"])
                for name, id in names.items()
            )
        done = gr.HTML(elem_id=script.elem_id("last_done"))
    quality.click(fn=spoken(lambda: outcome_html(measuring.begin)), inputs=[], outputs=[done])
    forget.click(fn=spoken(lambda: outcome_html(watching.forecast.forget)), inputs=[], outputs=[done])
