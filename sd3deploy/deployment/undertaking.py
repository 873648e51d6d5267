"""What is under way: each change of the encoder, and each load of one while a model is loaded. It can be asked how far it is, and ended."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sd3deploy import messages, units
from sd3deploy.deployment.wanted import Wanted
from sd3deploy.encoders.choices import Choice
from sd3deploy.encoders.stopping import Stopped
from sd3deploy.events import Events

__all__ = ["Progress", "Undertaking", "Undertakings"]


@dataclass(frozen=True)
class Progress:
    """How far an encoder has been read: bytes, and bytes in all. speed: bytes per second of what comes over the network; 0 where it does
    not, or it is not known yet.
    """

    done: int
    total: int
    speed: float = 0.0

    def report(self) -> dict[str, Any]:
        """As JSON-able values, with the words for it in the language that is spoken now."""
        fraction = min(1.0, self.done / self.total) if self.total > 0 else 0.0
        done, total = units.size(self.done, self.total), units.size(self.total)
        text = messages.text("encoder.progress", done=done, total=total)
        if self.speed > 0:
            left = _clock(max(0, self.total - self.done) / self.speed)
            text = messages.text("encoder.progress-network", done=done, total=total, speed=units.size(round(self.speed)), left=left)
        return {"done": self.done, "total": self.total, "fraction": round(fraction, 3), "text": text}


def _clock(seconds: float) -> str:
    """As in “3:05” or “1:02:30”."""
    minutes, rest = divmod(round(min(seconds, 359_999)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class Undertaking:
    """One change or load. progress: None while nothing is read. change: what a change of the settings brings. `cancel` is called from any
    thread, with any lock held.
    """

    def __init__(self, events: Events) -> None:
        self._events = events
        self._cancelled = threading.Event()
        self._insists = False
        self._stopped: Callable[[], bool] = lambda: False
        self._phases: list[tuple[str, bool]] = []  # the sentence, and whether it waits
        self.progress: Progress | None = None
        self.change: Wanted | None = None

    def cancel(self) -> None:
        """Ask it to end."""
        self._cancelled.set()

    def cancelled(self) -> bool:
        """Whether somebody has asked it to end, here or with the webui's own Stop."""
        return not self._insists and (self._cancelled.is_set() or self._stopped())

    def insist(self) -> None:
        """Not to be ended from here on: what was there before is put back."""
        self._insists = True

    @contextmanager
    def heeding(self, stopped: Callable[[], bool]) -> Iterator[None]:
        """For the time inside it ends when `stopped` answers True too."""
        self._stopped = stopped
        try:
            yield
        finally:
            self._stopped = lambda: False

    def check(self, choice: Choice) -> None:
        """Raise Stopped when it was cancelled."""
        if self.cancelled():
            raise Stopped("encoder.cancelled", name=choice.shown)

    @property
    def phase(self) -> str | None:
        """What is being done, as a sentence."""
        return next((text for text, _ in reversed([*self._phases])), None)

    @property
    def waits(self) -> bool:
        """Whether that is to wait for something else."""
        return next((waits for _, waits in reversed([*self._phases])), False)

    @contextmanager
    def doing(self, id: str, *, told: bool = True, waits: bool = False, **values: object) -> Iterator[None]:
        """For the time inside its phase is the sentence `id`. told: that is an event too. waits: something else goes on meanwhile."""
        text = self._events.tell("info", id, **values).message if told else messages.text(id, **values)
        self._phases.append((text, waits))
        try:
            yield
        finally:
            self._phases.pop()


class Undertakings:
    """All that are under way, in the order in which they began. Asked from any thread; nothing here waits."""

    def __init__(self, events: Events) -> None:
        self._events = events
        self._running: list[Undertaking] = []

    @contextmanager
    def begin(self) -> Iterator[Undertaking]:
        """One that is under way for the time inside."""
        one = Undertaking(self._events)
        self._running.append(one)
        try:
            yield one
        finally:
            self._running.remove(one)

    @property
    def latest(self) -> Undertaking | None:
        """The one that began last and has something to say about itself; one that waits only where all of them do."""
        speaking = [one for one in reversed([*self._running]) if one.phase]
        return next((one for one in speaking if not one.waits), next(iter(speaking), None))

    def has_change(self, wanted: Wanted, but: Undertaking) -> bool:
        """Whether a change other than `but` brings what is wanted, and is not asked to end unless `but` is too."""
        others = [one for one in [*self._running] if one is not but and one.change == wanted]
        return any(but.cancelled() or not one.cancelled() for one in others)

    @property
    def progress(self) -> Progress | None:
        """How far the encoder is that is being read, though others may wait for it; None where none is."""
        return next((one.progress for one in reversed([*self._running]) if one.progress), None)

    def __bool__(self) -> bool:
        return bool(self._running)

    def cancel(self) -> bool:
        """End all that are under way soon. Returns whether there was one."""
        running = [*self._running]
        for one in running:
            one.cancel()
        return bool(running)
