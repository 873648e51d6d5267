"""How fast something comes."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

__all__ = ["Speed"]

_WINDOW = 20.0  # seconds that are looked back: what lies before says nothing about the time left
_LEAST = 2.0  # seconds: over less the number jumps


class Speed:
    """clock: gives seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: deque[tuple[float, int]] = deque()

    def add(self, done: int) -> float:
        """Bytes per second, now that `done` bytes are there in all; 0 as long as it is not known."""
        now = self._clock()
        self._seen.append((now, done))
        while len(self._seen) > 2 and now - self._seen[1][0] >= _WINDOW:
            self._seen.popleft()
        first, before = self._seen[0]
        return max(0, done - before) / (now - first) if now - first >= _LEAST else 0.0
