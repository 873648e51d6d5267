"""Ending an installation from outside: whoever starts one says when it is to stop, and everything that waits in it asks."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from sd3deploy.errors import DependencyError

__all__ = ["Stopped", "check", "end", "possible", "stoppable", "stopped"]

# pip and uv undo what they have begun when they are interrupted. Whoever has not ended by then is killed.
_GRACE = 2.0  # seconds

_asked: ContextVar[Callable[[], bool] | None] = ContextVar("sd3deploy_stopped", default=None)


class Stopped(DependencyError):
    """The installation was cancelled. Nothing has changed."""

    def __init__(self) -> None:
        super().__init__("deps.cancelled")


@contextmanager
def stoppable(asked: Callable[[], bool]) -> Iterator[None]:
    """What is installed inside, on this thread, ends soon after `asked` says so: with Stopped, and with the environment as before."""
    token = _asked.set(asked)
    try:
        yield
    finally:
        _asked.reset(token)


def possible() -> bool:
    """Whether somebody may end what is done here."""
    return _asked.get() is not None


def stopped() -> Callable[[], bool]:
    """How to ask, for other threads too."""
    return _asked.get() or (lambda: False)


def check() -> None:
    """Raise Stopped where that was asked for."""
    if stopped()():
        raise Stopped


def end(process: subprocess.Popen[str]) -> None:
    """End a process that leads a session of its own, and all of its children."""
    if os.name == "nt":
        subprocess.run(["taskkill", "/T", "/F", "/PID", str(process.pid)], capture_output=True)
        return
    _signal(process.pid, signal.SIGINT)
    try:
        process.wait(_GRACE)
    except subprocess.TimeoutExpired:
        pass
    _signal(process.pid, signal.SIGKILL)  # also for children that have outlived it


def _signal(group: int, number: int) -> None:
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):  # all of them have ended; macOS says it the second way
        pass
