"""What happened, for whoever looks: the log, the toasts, the API. A bounded ring; each event has a number that only grows."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal

from sd3deploy import deps, messages
from sd3deploy.button import Button
from sd3deploy.diagnosis.finding import Finding
from sd3deploy.errors import Sd3Error

__all__ = ["About", "Event", "Events", "Severity"]

Severity = Literal["info", "success", "warning", "error"]
About = Literal["", "encoder", "install", "model", "quality"]  # what can be put right, which ends what was said of its failure
_KEPT = 100


@dataclass(frozen=True)
class Event:
    """One thing to tell. id: of the sentence in messages/. seq: counts from 1. time: seconds since the epoch.

    job: whether it is about one job and over with it. about: what is over when that is put right; "" where nothing can be. action: what
    would help, as a finding of the diagnosis names it; "" where none does.
    buttons: what can be done about it with one press, by whoever has told it.
    """

    seq: int
    id: str
    severity: Severity
    message: str
    remedy: str
    time: float = field(default_factory=time.time)
    job: bool = False
    about: About = ""
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
        self._over: set[int] = set()  # numbers of errors that are over
        self._settled: set[int] = set()  # and of those that say nothing about how things are, though somebody may still have to read them

    def tell(self, severity: Severity, id: str, **values: object) -> Event:
        """Record and announce the sentence `id`."""
        return self.add(severity, id, messages.text(id, **values), messages.remedy(id, **values))

    def fail(self, error: Exception, severity: Severity = "error", kept: str = "", *, job: bool = False, about: About = "") -> Event:
        """Record and announce an error; one that is not of our tree is shown as unexpected, with its type. One that was told already is not
        told again: its event is returned. kept: a sentence on what is in use instead, behind one of ours. job, about: see Event.
        """
        if isinstance(error, Sd3Error) and error.told:
            return error.told
        if isinstance(error, Sd3Error):
            text = messages.joined(error.message, kept)
            return self.add(severity, error.id, text, error.remedy, job=job, about=about, buttons=error.buttons)
        if found := self.explain(error):
            return self.found(found, severity, job=job, about=about)
        id, values = "unexpected", {"error": f"{type(error).__name__}: {error}"}
        return self.add(severity, id, messages.text(id, **values), messages.remedy(id, **values), job=job, about=about)

    def found(self, found: Finding, severity: Severity = "error", *, job: bool = False, about: About = "") -> Event:
        """Record and announce an error that the diagnosis knows."""
        ours = {one.name for one in deps.requirements(deps.groups())}
        action = "" if found.action == "install" and found.package not in ours else found.action  # the host's packages are the host's
        return self.add(severity, f"rule.{found.rule}", found.message, found.remedy, job=job, about=about, action=action)

    def since(self, seq: int) -> list[Event]:
        """Events after number `seq`, oldest first."""
        with self._lock:
            return [event for event in self._ring if event.seq > seq]

    @property
    def count(self) -> int:
        """The number of the latest event."""
        return self._count

    @property
    def over(self) -> list[int]:
        """The numbers of errors among the last hundred events that are over."""
        with self._lock:
            return [event.seq for event in self._ring if event.seq in self._over]

    @property
    def last_error(self) -> Event | None:
        """The latest error that says how things are. Those of single jobs are over with them, and those about nothing with any success."""
        succeeded = False
        with self._lock:
            for event in reversed(self._ring):
                succeeded = succeeded or event.severity == "success"
                stands = event.severity == "error" and not event.job and event.seq not in self._settled
                if stands and (event.about or not succeeded):
                    return event
        return None

    def errors(self, about: About, until: int) -> list[Event]:
        """Those about that, up to that number, of the last hundred events."""
        return [one for one in self.since(0) if one.about == about and one.severity == "error" and one.seq <= until]

    def settle(self, those: Iterable[Event]) -> None:
        """They say nothing about how things are any more. Whoever has them on the screen keeps them."""
        numbers = {event.seq for event in those}
        with self._lock:
            first = self._ring[0].seq if self._ring else 0
            self._settled = {number for number in self._settled | numbers if number >= first}

    def end(self, those: Iterable[Event]) -> None:
        """They are over, and nobody has to read them any more."""
        those = list(those)
        self.settle(those)
        with self._lock:
            self._over = (self._over | {event.seq for event in those}) & self._settled

    def add(
        self,
        severity: Severity,
        id: str,
        message: str,
        remedy: str,
        *,
        job: bool = False,
        about: About = "",
        action: str = "",
        buttons: tuple[Button, ...] = (),
    ) -> Event:
        """Record and announce something that has been put into words already. A success ends the errors about the same."""
        with self._lock:
            self._count += 1
            event = Event(self._count, id, severity, message, remedy, job=job, about=about, action=action, buttons=buttons)
            self._ring.append(event)
        if severity == "success" and about:
            self.end(self.errors(about, event.seq))
        with contextlib.suppress(Exception):  # a log of the host's that fails costs nobody the event, nor what it is about
            self._listen(event)
        return event
