"""What a button has done, or why not, as HTML."""

from __future__ import annotations

import html
from collections.abc import Callable

from sd3deploy.errors import Sd3Error

__all__ = ["said"]


def said(work: Callable[[], str]) -> str:
    """Do it, and put its sentence, or that of its error, where a screen reader finds it."""
    try:
        text = work()
    except Sd3Error as error:
        text = str(error)
    return f'<div role="status">{html.escape(text)}</div>'
