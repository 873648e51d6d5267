"""In which language to speak: the one of the host's setting “UI locale”; where that is Auto, the one that the browser prefers."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import gradio as gr
from modules import shared

from sd3deploy import messages

__all__ = ["adopt", "begin", "built", "of_request", "spoken"]

_built = "en"


def begin() -> None:
    """The server has started: its log, its events and the page that is about to be built speak the language of the setting."""
    global _built
    messages.set_language(setting() or "en")
    _built = messages.language()


def built() -> str:
    """The language in which the page was built: gradio makes it once, for every browser."""
    return _built


def setting() -> str | None:
    """The code of the host's setting, such as "zh" for “zh: Chinese”; None where it leaves the choice to the browser."""
    chosen = str(getattr(shared.opts, "ui_locale", "Auto"))
    return None if chosen.lower() in ("", "auto") else chosen.partition(":")[0]


def of_request(header: str | None) -> str:
    """The language of an answer. header: Accept-Language, None where the request has none: then as the server was started."""
    return setting() or messages.preferred(header) or _built


def adopt() -> None:
    """A page has been opened, in the language that is spoken now: where the setting leaves it open, events are told in that one."""
    messages.set_language(setting() or messages.language())


def spoken(work: Callable[..., Any]) -> Callable[..., Any]:
    """`work` for an event of a gradio component, in the language of the page that it comes from. gradio hands over the request because of
    the annotation, which has to be a class and not its name.
    """

    def answer(request: gr.Request, *values: Any) -> Any:
        headers = request.headers if request else None  # an object of gradio's that has no get()
        header = next((value for name, value in headers.items() if name.lower() == "accept-language"), None) if headers else None
        with messages.speaking(of_request(header)):
            return work(*values)

    answer.__name__ = work.__name__
    answer.__annotations__ = {"request": gr.Request}
    given = [one.replace(kind=inspect.Parameter.POSITIONAL_OR_KEYWORD) for one in inspect.signature(work).parameters.values()]
    first = inspect.Parameter("request", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=gr.Request)
    answer.__signature__ = inspect.Signature([first, *given])  # type: ignore[attr-defined]
    return answer
