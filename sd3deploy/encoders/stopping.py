"""Ending the read of an encoder from outside: whoever starts one says when it is to stop, and everything that waits in it asks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from sd3deploy.errors import EncoderError

__all__ = ["Stopped", "check", "stoppable", "stopped"]

_asked: ContextVar[Callable[[], bool] | None] = ContextVar("sd3deploy_encoder_stopped", default=None)


class Stopped(EncoderError):
    """Somebody cancelled."""


@contextmanager
def stoppable(asked: Callable[[], bool]) -> Iterator[None]:
    """What is read inside, on this thread, ends with Stopped soon after `asked` says so, also while it waits for the network."""
    token = _asked.set(asked)
    try:
        yield
    finally:
        _asked.reset(token)


def stopped() -> Callable[[], bool]:
    """How to ask, for other threads too."""
    return _asked.get() or (lambda: False)


def check() -> None:
    """Raise Stopped where that was asked for."""
    if stopped()():
        raise Stopped("encoder.stopped")
