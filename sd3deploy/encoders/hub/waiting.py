"""Waits that end on Cancel: a call that hangs goes on in a thread of its own, and nobody waits for it any more."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable
from typing import Any, TypeVar, cast

from sd3deploy.encoders import stopping

__all__ = ["POLL", "abiding"]

POLL = 0.1  # seconds between two looks at whether it was cancelled

_T = TypeVar("_T")


def abiding(call: Callable[[], _T]) -> _T:
    """What `call` gives or raises. Raises Stopped soon after that was asked for; then what `call` still does has no effect."""
    stopping.check()
    asked, over = stopping.stopped(), threading.Event()
    result: list[Any] = [None, None]
    context = contextvars.copy_context()

    def run() -> None:
        try:
            result[0] = context.run(call)
        except BaseException as error:
            result[1] = error
        finally:
            over.set()

    threading.Thread(target=run, name="sd3-hub-wait", daemon=True).start()
    while not over.wait(POLL):
        if asked():
            raise stopping.Stopped("encoder.stopped")
    if result[1] is not None:
        raise result[1]
    return cast(_T, result[0])
