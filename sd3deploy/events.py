"""What happened, for whoever looks: the log, the toasts, the API. A bounded ring; each event has a number that only grows."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from sd3deploy import deps, messages
from sd3deploy.button import Button
from sd3deploy.diagnosis.finding import Finding
from sd3deploy.errors import Sd3Error

__all__ = ["Event", "Events", "Severity"]

Severity = Literal["info", "success", "warning", "error"]
_KEPT = 100


@dataclass(frozen=True)
class Event:
    """One thing to tell. id: of the sentence in messages/. seq: counts from 1. time: seconds since the epoch.

    job: whether it is about one job and over with it. action: what would help, as a finding of the diagnosis names it; "" where none does.
    buttons: what can be done about it with one press, by whoever has told it.
    """

    seq: int
    id: str
    severity: Severity
    message: str
    remedy: str
    time: float = field(default_factory=time.time)
    job: bool = False
    action: str = ""
    buttons: tuple[Button, ...] = ()


class Events:
    """The last hundred events. `listen` is called with each, on the thread where it happened."""

    def __init__(self, listen: Callable[[Event], None] = lambda event: None) -> None:
        self._listen = listen
        self.explain: Callable[[BaseException], Finding | None] = lambda error: None  # what is known about an unexpected error
        self._lock = threading.Lock()
        self._ring: deque[Event] = deque(maxlen=_KEPT)
        self._count = 0
        self._over = 0

    def tell(self, severity: Severity, id: str, **values: object) -> Event:
        """Record and announce the sentence `id`."""
        return self.add(severity, id, messages.text(id, **values), messages.remedy(id, **values))

    def fail(self, error: Exception, severity: Severity = "error", kept: str = "") -> Event:
        """Record and announce an error; one that is not of our tree is shown as unexpected, with its type. One that was told already is not
        told again: its event is returned. kept: a sentence on what is in use instead, behind one of ours.
        """
        if isinstance(error, Sd3Error) and error.told:
            return error.told
        if isinstance(error, Sd3Error):
            return self.add(severity, error.id, messages.joined(error.message, kept), error.remedy, buttons=error.buttons)
        if found := self.explain(error):
            return self.found(found, severity)
        return self.tell(severity, "unexpected", error=f"{type(error).__name__}: {error}")

    def found(self, found: Finding, severity: Severity = "error", *, job: bool = False) -> Event:
        """Record and announce an error that the diagnosis knows."""
        ours = {one.name for one in deps.requirements(deps.groups())}
        action = "" if found.action == "install" and found.package not in ours else found.action  # the host's packages are the host's
        return self.add(severity, f"rule.{found.rule}", found.message, found.remedy, job=job, action=action)

    def since(self, seq: int) -> list[Event]:
        """Events after number `seq`, oldest first."""
        with self._lock:
            return [event for event in self._ring if event.seq > seq]

    @property
    def over(self) -> int:
        """Number of the last event that says nothing about how things are any more: that of the latest success, at least."""
        return self._over

    @property
    def last_error(self) -> Event | None:
        """The latest error that is not over: no success has followed it. Those of single jobs are over with them."""
        with self._lock:
            for event in reversed(self._ring):
                if event.seq <= self._over:
                    return None
                if event.severity == "error" and not event.job:
                    return event
        return None

    def settle(self) -> None:
        """What is wanted is there, with nothing to be told about it: whatever has failed on the way is over."""
        with self._lock:
            self._over = self._count

    def add(
        self,
        severity: Severity,
        id: str,
        message: str,
        remedy: str,
        *,
        job: bool = False,
        action: str = "",
        buttons: tuple[Button, ...] = (),
    ) -> Event:
        """Record and announce something that has been put into words already."""
        with self._lock:
            self._count += 1
            event = Event(self._count, id, severity, message, remedy, job=job, action=action, buttons=buttons)
            self._ring.append(event)
            self._over = self._count if severity == "success" else self._over
        with contextlib.suppress(Exception):  # a log of the host's that fails costs nobody the event, nor what it is about
            self._listen(event)
        return event
