"""The state of one job: one object for each call of the host's process_images_inner, found by the job and never copied with it.

The host reuses the object p that describes a job for the files of a folder and the frames of a video, copies it for the cells of a grid
and for a detailer, and calls process_images_inner inside of process_images_inner. Two p are equal to the host as soon as their classes
are, so that everything here compares identities. All of it runs on the thread of the job, which holds the host's queue.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Hashable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sd3deploy.webui.host.reach import sdnext

if TYPE_CHECKING:
    from sd3deploy.webui.jobs.override import Override

__all__ = ["JobState", "Press", "opened", "record_request", "state_of"]


@dataclass(eq=False)
class Press:
    """One press of Generate with all that is made because of it, or one request of the API.

    task: the host's own id of the press; None where it has none. by_hand: whether a person waits for it. reported: what has been said of
    it already. held: what was held back, until the person presses again. confirmed: whether this press was that. ended: when its latest
    job has ended, in seconds of time.monotonic. began: when its first job has begun. page: which open page it comes from; "" where that
    can not be told.
    """

    task: str | None
    by_hand: bool
    reported: set[Hashable] = field(default_factory=set)
    held: set[Hashable] = field(default_factory=set)
    confirmed: bool = False
    began: float = field(default_factory=time.monotonic)
    ended: float = 0.0
    page: str = ""


@dataclass(eq=False)
class JobState:
    """What this extension knows about one job `p`.

    requested: its width and height as they were before the host cut them to a multiple of 16. api: whether a request of the API waits
    for it. outer: the state of the job inside of which it runs. messages: the sentences for whoever sees the picture. exhausted: the
    sentence about memory that ran out, "" where it has not. stopped: whether somebody has ended the load of its encoder. undo: what is to
    be put back when the job ends.
    """

    p: Any
    requested: tuple[Any, Any]
    api: bool
    press: Press
    outer: JobState | None = None
    override: Override | None = None
    messages: list[str] = field(default_factory=list)
    exhausted: str = ""
    stopped: bool = False
    undo: ExitStack = field(default_factory=ExitStack)

    @property
    def nested(self) -> bool:
        """Return whether it runs inside of another job, whose picture is not to be lost because of it."""
        return self.outer is not None

    def record_size(self) -> None:
        """Remember the size that the guards have given the job: the host hands the next frame of it in with that size."""
        if request := _request_of(self.p):
            request.made = (self.p.width, self.p.height)

    def stop(self) -> None:
        """Remember that somebody has ended the load of the encoder: the job makes no picture with another one."""
        self.stopped = True

    def report(self, sentence: str) -> None:
        """Add a sentence for whoever sees the picture, once."""
        if sentence and sentence not in self.messages:
            self.messages.append(sentence)


@dataclass(eq=False)
class _Request:
    """What p was when the host began with it. made: its size after the guards. fresh: whether its job has still to be opened."""

    p: weakref.ref[Any]
    size: tuple[Any, Any]
    api: bool
    made: tuple[Any, Any] | None = None
    fresh: bool = True


_requests: dict[int, _Request] = {}  # id of p → its request; an entry goes with its p
_opened = threading.local()  # .states: those of the jobs that run on this thread, the innermost last
_press: tuple[Press, weakref.ref[Any]] | None = None  # the latest press, and the p of its latest job that was not inside of another


def record_request(p: Any) -> None:
    """Remember size and origin of a job; called from Script.before_process, before the host changes the size and begins jobs of its own."""
    key, size, before = id(p), (p.width, p.height), _request_of(p)
    made = before.made if before else None
    if before and size == made:  # the next frame of a job that the guards have changed
        size = before.size
    _requests[key] = _Request(weakref.ref(p, lambda _: _requests.pop(key, None)), size, _asked_by_api(), made)


@contextmanager
def opened(p: Any) -> Iterator[JobState]:
    """Give the job `p` a fresh state for one call of process_images_inner. The state of an outer job is there again afterwards, and gets
    what the inner one has to say.
    """
    outer = _states()[-1] if _states() else None
    state = _fresh(p, outer)
    if request := _request_of(p):
        request.fresh = False
    _states().append(state)
    try:
        yield state
    finally:
        _states().remove(state)
        state.undo.close()
        if outer is None:
            state.press.ended = time.monotonic()
        else:
            outer.exhausted = outer.exhausted or state.exhausted
            for sentence in (*state.messages, state.exhausted):
                outer.report(sentence)


def state_of(p: Any) -> JobState:
    """Return the state of the job `p`; of the innermost job that runs where `p` is none that was opened, and one that nobody keeps where
    none runs.
    """
    innermost = _states()[-1] if _states() else None
    return next((state for state in reversed(_states()) if state.p is p), innermost) or _fresh(p, None)


def _states() -> list[JobState]:
    if not hasattr(_opened, "states"):
        _opened.states = []
    return _opened.states


def _fresh(p: Any, outer: JobState | None) -> JobState:
    size, request = (p.width, p.height), _request_of(p)
    api = request.api if request and request.fresh else _asked_by_api()
    if request and (request.fresh or request.made == size):
        size = request.size
    if outer:
        return JobState(p, size, outer.api, outer.press, outer)
    return JobState(p, size, api, _press_of(p, api))


def _request_of(p: Any) -> _Request | None:
    found = _requests.get(id(p))
    return found if found and found.p() is p else None


def _press_of(p: Any, api: bool) -> Press:
    """The press that a job belongs to which is not inside of another. The host names a task for each press of Generate and holds the queue
    for the whole of it; where it names none, as with requests, a job is its own press, and so are all that use the same p.
    """
    global _press
    task = None if api else sdnext.progress.current_task or None
    if _press is None or task != _press[0].task or (task is None and _press[1]() is not p):
        _press = Press(task, by_hand=not api), weakref.ref(p)
    return _press[0]


def _asked_by_api() -> bool:
    # Later jobs within this one, such as the load of another model, overwrite the name; shared.state.api outlives its job on some hosts.
    return sdnext.shared.state.job.startswith("API")
