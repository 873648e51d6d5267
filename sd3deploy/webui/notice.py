"""The one sentence that is left of the extension where it does not fit the host, in the log and on the page.

It leans on as little of the host as it can: whatever is left to show it is tried alone, and nothing here raises.
"""

from __future__ import annotations

import html
import logging
from collections.abc import Callable
from typing import Any

from sd3deploy import messages

__all__ = ["TITLE", "leave", "notice_html", "section", "sentence"]

TITLE = "SD3 Deploy"
_KEY = "sd3_notice"
_SECTION = ("sd3_deploy", TITLE)


def sentence(id: str, **values: object) -> str:
    """What is the matter and what to do about it."""
    return messages.joined(messages.text(id, **values), messages.remedy(id, **values))


def notice_html(text: str) -> str:
    """`text` for a page on which nothing of ours works."""
    return f'<div class="sd3-notice" role="alert">{html.escape(text)}</div>'


def leave(id: str, **values: object) -> type | None:
    """Say it in the log, and on the page: in a section of the settings and in a panel. Called while the host loads scripts.

    Returns the script class with that panel, None where the host has no scripts of the kind.
    """
    _speak()
    text = sentence(id, **values)
    logging.getLogger("sd").error(f"{TITLE}: id={id} {text}")  # the host's own, wherever it keeps it
    _attempt(lambda: _announce(text))
    return _attempt(lambda: _script(text))


def _speak() -> None:
    def begin() -> None:
        from sd3deploy.webui.page import language

        language.begin()

    _attempt(begin)


def _announce(text: str) -> None:
    """Have the host ask for the section when it builds the settings."""
    from sd3deploy.webui.host.reach import sdnext

    sdnext.script_callbacks.on_ui_settings(lambda: section(text))


def section(text: str) -> None:
    """A section of the settings with nothing but the sentence, where the host has such; called when it builds them."""

    def add() -> None:
        import gradio as gr

        from sd3deploy.webui.host.reach import sdnext

        sdnext.shared.opts.add_option(_KEY, sdnext.shared.OptionInfo(notice_html(text), TITLE, gr.HTML, section=_SECTION))

    _attempt(add)


def _script(text: str) -> type:
    """A panel with nothing but the sentence, of the host's kind of script. No hook of it is ever called: it has no arguments."""
    import gradio as gr

    from sd3deploy.webui.host.reach import sdnext

    always = sdnext.scripts_manager.AlwaysVisible

    class SD3Deploy(sdnext.scripts_manager.Script):
        def title(self) -> str:
            return TITLE

        def show(self, is_img2img: bool) -> Any:
            return always

        def ui(self, is_img2img: bool) -> list[Any]:
            with gr.Accordion(TITLE, open=True, elem_classes=["sd3-panel"]):
                gr.HTML(notice_html(text))
            return []

    return SD3Deploy


def _attempt(work: Callable[[], Any]) -> Any:
    try:
        return work()
    except Exception:
        logging.getLogger("sd").debug(f"{TITLE}: the page can not show it", exc_info=True)
        return None
