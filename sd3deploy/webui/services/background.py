"""Long work on a thread of its own: one job at a time, which can be asked about and cancelled; the last one is kept."""

from __future__ import annotations

import contextvars
import itertools
import threading
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

__all__ = ["Background"]


class _Work(Protocol):
    state: str


_J = TypeVar("_J", bound=_Work)


class Background(Generic[_J]):
    """What is done lies in the subclasses: their jobs are "running" until they say something else, and look at `_cancelled`."""

    def __init__(self) -> None:
        self.job: _J | None = None
        self._numbers = itertools.count(1)
        self._cancelled = threading.Event()
        self._lock = threading.Lock()

    @property
    def running(self) -> bool:
        return self.job is not None and self.job.state == "running"

    def cancel(self) -> bool:
        """End the running job soon. Whether there was one."""
        running = self.running
        self._cancelled.set()
        return running

    def _begin(self, make: Callable[[int], _J], work: Callable[[_J], None]) -> _J:
        """Begin the job with the next number, in the language of whoever asks; where one runs already, that one."""
        with self._lock:
            if self.job is None or not self.running:
                self._cancelled.clear()
                self.job = make(next(self._numbers))
                speaking = contextvars.copy_context()
                threading.Thread(target=speaking.run, args=(work, self.job), name=f"sd3-{type(self).__name__.lower()}", daemon=True).start()
            return self.job
