"""Packages that the webui installs by itself, such as gguf for a model in that format: the model stack learns of them at a quiet moment."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable

from sd3deploy import deps
from sd3deploy.deployment.locks import Busy, Lock, both
from sd3deploy.refresh import Verdict, forget, is_asked_about, is_loaded, refresh

__all__ = ["Newcomers"]

log = logging.getLogger(__name__)


class Newcomers:
    """Refreshes what is installed while the webui runs: on a thread of its own, with the webui's queue and then `busy` held.

    queue, busy: see locks.py. tell: called with each verdict, on that thread, with both
    locks held.
    """

    def __init__(self, queue: Callable[[], Lock], busy: Busy, tell: Callable[[Verdict], object]) -> None:
        self._queue, self._busy, self._tell = queue, busy, tell
        self._guard = threading.Lock()  # of the next two
        self._waiting: set[str] = set()
        self._thread: threading.Thread | None = None
        self._complained = False

    def add(self, distributions: Iterable[str]) -> threading.Thread | None:
        """Take note of distributions that were installed, replaced or upgraded. Called from any thread with any lock held; returns at once
        and raises nothing. Returns the thread that sees to them, None where there is nothing to do.
        """
        try:
            with self._guard:
                self._waiting.update(distributions)
                if self._waiting and self._thread is None:
                    thread = threading.Thread(target=self._run, name="sd3-newcomers", daemon=True)
                    thread.start()
                    self._thread = thread
                return self._thread
        except Exception as error:  # no thread can be started: the packages wait for a restart, as without us
            self._complain(error)
            return None

    def _run(self) -> None:
        while True:
            try:
                self._wait_and_work()
            except Exception as error:
                self._complain(error)
            with self._guard:
                if not self._waiting:
                    self._thread = None
                    return

    def _wait_and_work(self) -> None:
        with self._guard:
            names, self._waiting = sorted(self._waiting), set()
        names = [name for name in names if is_asked_about(name)]
        if not names:
            return
        with both(self._queue(), self._busy, lambda: False):
            self._work(names)

    def _work(self, names: list[str]) -> None:
        """What is ours is imported; of the rest only what somebody has imported already is made known to the libraries as a whole."""
        ours = {requirement.name for requirement in deps.requirements(deps.groups())}
        whole = [name for name in names if name in ours or is_loaded(name)]
        forget([name for name in names if name not in whole])
        if whole:
            self._tell(refresh(whole))

    def _complain(self, error: Exception) -> None:
        """Say it once: the webui can do without."""
        log.log(logging.DEBUG if self._complained else logging.WARNING, "what the web UI has installed is not made known", exc_info=error)
        self._complained = True
