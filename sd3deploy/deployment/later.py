"""Work that is asked for several times at once, and done once."""

from __future__ import annotations

import contextvars
import threading
import time
from collections.abc import Callable

__all__ = ["Later"]

QUIET = 0.5  # seconds without another question: a webui applies several settings one after the other


class Later:
    """work: is called on a thread of its own, in the language of whoever asked first; what it raises it has told."""

    def __init__(self, work: Callable[[], object]) -> None:
        self._work = work
        self._lock = threading.Lock()
        self._until = 0.0
        self._waiting: threading.Thread | None = None

    def ask(self) -> threading.Thread:
        """Soon, once nobody has asked for a moment. Called with any lock held. Returns the thread that will do it."""
        with self._lock:
            self._until = time.monotonic() + QUIET
            if self._waiting is None:
                speaking = contextvars.copy_context()
                self._waiting = threading.Thread(target=speaking.run, args=(self._run,), name="sd3-later", daemon=True)
                self._waiting.start()
            return self._waiting

    def _run(self) -> None:
        while True:
            with self._lock:
                left = self._until - time.monotonic()
                if left <= 0:
                    self._waiting = None
                    break
            time.sleep(left)
        self._work()
