"""Work that is asked for several times at once, and done once."""

from __future__ import annotations

import contextvars
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext

from sd3deploy.deployment.locks import PATIENCE_S
from sd3deploy.deployment.undertaking import Undertaking, Undertakings

__all__ = ["Later"]

QUIET = 0.5  # seconds without another question: a webui applies several settings one after the other


class Later:
    """work: is called on a thread of its own, in the language of whoever asked first, with what is under way since then; that may be
    cancelled already. What it raises it has told. doing: entered from the question until the work is done, to say what is under way.
    """

    def __init__(
        self,
        under_way: Undertakings,
        work: Callable[[Undertaking], object],
        doing: Callable[[Undertaking], AbstractContextManager[object]] = lambda under: nullcontext(),
    ) -> None:
        self._under_way, self._work, self._doing = under_way, work, doing
        self._lock = threading.Lock()
        self._until = 0.0
        self._waiting: tuple[threading.Thread, Undertaking] | None = None

    def ask(self) -> threading.Thread:
        """Soon, once nobody has asked for a moment; from now on it can be cancelled. Called with any lock held. Returns the thread that
        does it.
        """
        with self._lock:
            self._until = time.monotonic() + QUIET
            if self._waiting is None or self._waiting[1].cancelled():
                begun = ExitStack()
                under = begun.enter_context(self._under_way.begin())
                begun.enter_context(self._doing(under))
                speaking = contextvars.copy_context()
                thread = threading.Thread(target=speaking.run, args=(self._run, begun, under), name="sd3-later", daemon=True)
                self._waiting = thread, under
                thread.start()
            return self._waiting[0]

    def _run(self, begun: AbstractContextManager[object], under: Undertaking) -> None:
        with begun:
            while left := self._left(under):
                time.sleep(min(left, PATIENCE_S))
            self._work(under)

    def _left(self, under: Undertaking) -> float:
        """The seconds to wait; 0 once they are over or it was cancelled, and then whoever asks begins anew."""
        with self._lock:
            left = 0.0 if under.cancelled() else max(0.0, self._until - time.monotonic())
            if not left and self._waiting and self._waiting[1] is under:
                self._waiting = None
            return left
