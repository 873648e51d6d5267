"""What a button has done or found, or why not, as HTML; everything in it is escaped."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable

from sd3deploy import messages
from sd3deploy.diagnosis.finding import Finding
from sd3deploy.errors import Sd3Error

__all__ = ["findings_html", "outcome_html"]


def outcome_html(work: Callable[[], str]) -> str:
    """Do it, and put its sentence, or that of its error, where a screen reader finds it."""
    try:
        text = work()
    except Sd3Error as error:
        text = str(error)
    return f'<div role="status">{html.escape(text)}</div>'


def findings_html(found: Iterable[Finding], note: str = "") -> str:
    """Each with its remedy, and the lines that show it on demand; then the note."""
    rows = [_finding(one) for one in found]
    if note or not rows:
        rows.append(f"<p>{html.escape(note or messages.text('panel.diagnose.nothing'))}</p>")
    return f'<div role="status">{"".join(rows)}</div>'


def _finding(found: Finding) -> str:
    message, remedy, lines = (html.escape(text) for text in (found.message, found.remedy, "\n".join(found.evidence)))
    return f'<details class="sd3-finding" open><summary>{message}</summary><p class="sd3-remedy">{remedy}</p><pre>{lines}</pre></details>'
