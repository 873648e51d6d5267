"""The buttons of a message: what the page can do about it, where there is something that it can do."""

from __future__ import annotations

from sd3deploy import messages
from sd3deploy.button import Button
from sd3deploy.events import Event

__all__ = ["ACTIONS", "buttons"]

# What the page does (javascript/sd3_actions.js) → the ids of events, or how they begin, that it helps with. The first that fits is taken.
ACTIONS = {
    "restart": ("restart.needed", "deps.restart", "repair.restart", "deps.in_use", "deps.no_record"),
    "reload": ("encoder.without-t5",),
    # Where trying once more may help, once the remedy is followed. The others would end with the same words.
    "install": ("deps.bad_download", "deps.cancelled", "deps.disk_full", "deps.failed", "deps.interrupted", "deps.locked",
                "deps.no_network"),
    "report": ("unexpected", "host.changed", "rule.", "encoder.failed"),
}
_OF_FINDINGS = {"install": "install", "refresh": "reload", "restart": "restart"}


def buttons(event: Event) -> tuple[Button, ...]:
    """Those that came with it; else the one that helps with events of its kind. None for what is no failure, and for what only the user can
    do.
    """
    if event.buttons or event.severity not in ("warning", "error"):
        return event.buttons
    found = _OF_FINDINGS.get(event.action)
    if found is None:
        found = next((id for id, helped in ACTIONS.items() if event.id.startswith(helped)), None)
    return (Button(found, messages.text(f"action.{found}")),) if found else ()
