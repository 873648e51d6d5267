"""The one button of a message: what the page can do about it, where there is something that it can do."""

from __future__ import annotations

from sd3deploy import messages
from sd3deploy.events import Event

__all__ = ["ACTIONS", "action"]

# What the page does (javascript/sd3_actions.js) → the ids of events, or how they begin, that it helps with. The first that fits is taken.
ACTIONS = {
    "restart": ("restart.needed", "deps.restart", "repair.restart"),
    "reload": ("encoder.without-t5",),
    "apply": ("memory.verdict.no", "memory.model", "memory.exhausted", "memory.encoder", "encoder.unsuitable"),
    "install": ("deps.",),
    "report": ("unexpected", "host.changed", "rule.", "encoder.failed"),
}
_OF_FINDINGS = {"install": "install", "refresh": "reload", "restart": "restart"}


def action(event: Event) -> dict[str, str] | None:
    """The id of the action and the label of its button; None for what is no failure, and for what only the user can do."""
    if event.severity not in ("warning", "error"):
        return None
    found = _OF_FINDINGS.get(event.action)
    if found is None:
        found = next((id for id, helped in ACTIONS.items() if event.id.startswith(helped)), None)
    return {"id": found, "label": messages.text(f"action.{found}")} if found else None
