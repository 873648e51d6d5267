"""The two locks, and the only place that takes them.

1. The queue is the webui's own lock, not re-entrant. The webui holds it around each of its jobs; we hold it around a change of the encoder
   and around whatever else must not happen beside a picture.
2. `Busy` says what is being done to the loaded model: loads by the webui, any number at a time, or one change of its text encoder.

The order is the queue, then `Busy`. Nobody takes the queue while it has `Busy`. Whoever has taken the queue here never waits for `Busy`:
it gives the queue back first, because a load may last for minutes and every picture would wait with it. Only a job of the webui, whose
queue is not ours to give back, waits for `Busy` with the queue held: in steps, and no longer than until somebody presses Cancel or Stop. No
wait is longer than `PATIENCE_S` without a look at that. The tests' double of the two locks (tests/contract/probe/sd3probe/locks.py) holds
the whole of it to these rules.

fasteners, which the webui ships, does not serve here: its reader-writer lock has no timeout, so that nobody who waits could be cancelled.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

__all__ = ["PATIENCE_S", "Busy", "Lock", "both", "in_use", "taken"]

PATIENCE_S = 0.2  # how soon whoever waits looks whether it was cancelled


class Lock(Protocol):
    """threading.Lock, as far as it is used."""

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool: ...
    def release(self) -> None: ...
    def locked(self) -> bool: ...


class Busy:
    """What is being done to the loaded model. `with busy:` is a load of a model by the webui; `acquire` and `release` surround a change of
    the encoder. Both are re-entrant, and a load may change the encoder of the model that it has just loaded.

    Loads do not wait for each other, as they do not in the webui alone. A load waits for a change that another thread makes outside of a
    load: whoever makes that one holds the queue, so that whoever waits can not.
    """

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._loads: Counter[int] = Counter()  # thread → how deep
        self._changing: list[int] = []  # the thread that changes the encoder, once for each time that it has entered

    def __enter__(self) -> None:
        me = threading.get_ident()
        with self._condition:
            while self._changing and self._changing[0] != me and not self._loads[self._changing[0]]:
                self._condition.wait(PATIENCE_S)
            self._loads[me] += 1

    def __exit__(self, *_: Any) -> None:
        with self._condition:
            self._loads[threading.get_ident()] -= 1
            self._loads += Counter()  # keeps what is above zero
            self._condition.notify_all()

    def acquire(self, timeout: float) -> bool:
        """Begin a change of the encoder, when no other thread makes one and, unless this thread is itself loading a model, none loads one.
        Waits for that `timeout` seconds at most. Returns whether it has begun; then `release` ends it.
        """
        me = threading.get_ident()
        with self._condition:
            free = self._condition.wait_for(lambda: self._is_free(me), timeout)
            if free:
                self._changing.append(me)
            return free

    def release(self) -> None:
        """End what `acquire` has begun, on the same thread."""
        with self._condition:
            self._changing.pop()
            self._condition.notify_all()

    @property
    def changing(self) -> bool:
        """Whether the encoder is being changed. Never waits."""
        return bool(self._changing)

    def _is_free(self, me: int) -> bool:
        changing = self._changing and self._changing[0] != me
        return not changing and (bool(self._loads[me]) or self._loads.total() == 0)


def in_use(queue: Lock) -> bool:
    """Whether anybody has it. Never waits, and takes it for no moment."""
    return queue.locked()


@contextmanager
def taken(
    queue: Lock, cancelled: Callable[[], bool], waiting: Callable[[], AbstractContextManager[Any]] = nullcontext
) -> Iterator[bool]:
    """The queue for the time inside. Gives whether it was taken; False where `cancelled` answered True before it was, and then the inside
    runs without it. Called with neither lock held. waiting: entered while somebody else has the queue, such as to say so. Raises nothing.
    """
    mine = _acquire(queue, 0)
    if not mine:
        with waiting():
            while not mine and not cancelled():
                mine = _acquire(queue, PATIENCE_S)
    try:
        yield mine
    finally:
        if mine:
            _release(queue)


@contextmanager
def both(
    queue: Lock, busy: Busy, cancelled: Callable[[], bool], waiting: Callable[[str], AbstractContextManager[Any]] = nullcontext
) -> Iterator[bool]:
    """The queue and `busy` for the time inside, for a change of the encoder. Gives whether they were taken, False where `cancelled`
    answered True before. Called with neither lock held; while a model is loaded the queue is free. waiting: entered while something else
    goes on, with "job" or "model". Raises nothing.
    """
    while not cancelled():
        with taken(queue, cancelled, lambda: waiting("job")) as mine:
            if not mine:
                break
            if busy.acquire(0):
                try:
                    yield True
                finally:
                    busy.release()
                return
        with waiting("model"):
            while not cancelled():
                if busy.acquire(PATIENCE_S):
                    busy.release()
                    break
    yield False


def _acquire(queue: Lock, seconds: float) -> bool:
    return queue.acquire(timeout=seconds) if seconds else queue.acquire(blocking=False)


def _release(queue: Lock) -> None:
    queue.release()
