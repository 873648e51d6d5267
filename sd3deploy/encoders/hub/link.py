"""The requests for one file. Each answer is checked; what is broken goes on where it was."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

from sd3deploy.encoders.hub import failure, session
from sd3deploy.encoders.hub.patience import Patience
from sd3deploy.encoders.hub.session import Answer
from sd3deploy.encoders.stopping import Stopped
from sd3deploy.errors import EncoderError
from sd3deploy.lazy import lazy

__all__ = ["Link", "NoRanges", "Place"]

_LOOKS = 5  # tries to find a file: 7.5 seconds without an answer
_TIMEOUT = 10.0  # seconds for an answer without a body, as huggingface_hub has them
_EXPIRED = (401, 403, 404, 410)  # of an address that was good for an hour
_RANGE = lazy(r"bytes (\d+)-(\d+)/(\d+|\*)")


class NoRanges(Exception):
    """The server gives the file as a whole only, which is known before any of it was read. size: bytes, where it tells that."""

    def __init__(self, size: int | None) -> None:
        super().__init__()
        self.size = size


@dataclass(frozen=True)
class Place:
    """A file as the hub describes it. etag: the sha256 of the content for large files. location: where the bytes are, for about an hour."""

    etag: str | None
    commit: str | None
    size: int
    location: str


class Link:
    """The way to one file. Its methods are called by several threads."""

    def __init__(self, repository: str, path: str, revision: str | None) -> None:
        from huggingface_hub import constants, hf_hub_url

        self.repository, self.path, self.revision = repository, path, revision
        self.server = constants.ENDPOINT
        self.file = f"{repository}:{path}"
        self._address = hf_hub_url(repository, path, revision=revision, endpoint=self.server)
        self._lock = threading.Lock()
        self._tags: dict[str, str] = {}  # server → the tag it gives the file
        self._place: Place | None = None
        self._parts = False  # whether the server has given any

    def place(self) -> Place:
        """Where the file is. Raises EncoderError where it can not be had, NoRanges where its size is not told."""
        with self._lock:
            if self._place is None:
                self._place = self._look(threading.Event())
            return self._place

    def fill(self, offset: int, view: memoryview, ended: threading.Event, arrived: Callable[[int], None] = lambda count: None) -> None:
        """Bytes of the file from `offset` on. arrived: called with how many are there so far. Raises EncoderError where they can not be
        had or the file has changed, Stopped when `ended` is set, NoRanges as long as no part of the file has come.
        """
        try:
            self._fill(offset, view, ended, arrived)
        except NoRanges:
            if not self._parts:
                raise
            raise EncoderError("hub.range", server=failure.shown(self.server), file=self.file, start=offset) from None

    def _fill(self, offset: int, view: memoryview, ended: threading.Event, arrived: Callable[[int], None]) -> None:
        patience = Patience(ended, self.server, self.file)
        done, renewed = 0, False
        while done < len(view):
            if ended.is_set():
                raise Stopped("encoder.stopped")
            place, before = self.place(), done
            trouble: tuple[Exception | str, object] = "the connection was closed", None
            try:
                with session.get(place.location, self._headers(place, offset + done, offset + len(view))) as answer:
                    status = answer.status_code
                    if status in _EXPIRED and place.location != self._address and not renewed:
                        trouble = "", None
                    elif status in failure.PASSING:
                        trouble = f"HTTP {status}", answer.headers
                    else:
                        self._check(answer, place, offset + done)
                        for chunk in answer.chunks:
                            if ended.is_set():
                                raise Stopped("encoder.stopped")
                            count = min(len(chunk), len(view) - done)
                            view[done : done + count] = chunk[:count]
                            done += count
                            arrived(done)
                            if done == len(view):
                                break
            except (EncoderError, NoRanges):
                raise
            except Exception as error:
                trouble = error, None
            if done > before:
                patience.progress()
                renewed = False
            if done == len(view):
                return
            if trouble[0]:
                patience.bear(*trouble)  # pyright: ignore[reportArgumentType]
            else:
                renewed = True
                self._renew(place, ended)

    def _look(self, ended: threading.Event) -> Place:
        from huggingface_hub import get_hf_file_metadata

        # Before 1.x had that argument huggingface_hub tried it several times itself.
        own = "retry_on_errors" not in inspect.signature(get_hf_file_metadata).parameters
        patience = Patience(ended, self.server, self.file, 1 if own else _LOOKS)
        while True:
            try:
                found = get_hf_file_metadata(self._address, timeout=_TIMEOUT)
                break
            except Exception as error:
                patience.bear(error, failure.headers_of(error))
        if found.size is None:
            raise NoRanges(None)
        if not (found.etag or found.commit_hash):  # nothing tells whether it is still the same file
            raise EncoderError("hub.no-identity", server=failure.shown(self.server), file=self.file)
        return Place(found.etag, found.commit_hash, found.size, found.location)

    def _renew(self, old: Place, ended: threading.Event) -> None:
        """The address of the bytes has expired: ask the hub for another one."""
        with self._lock:
            if self._place is not old:  # another thread was quicker
                return
            new = self._look(ended)
            if (new.etag, new.size) != (old.etag, old.size):
                raise EncoderError("hub.changed", file=self.file)
            self._place = new

    def _headers(self, place: Place, start: int, end: int) -> dict[str, str]:
        from huggingface_hub.utils import build_hf_headers

        headers = {**build_hf_headers(), "Accept-Encoding": "identity", "Range": f"bytes={start}-{end - 1}"}
        if urlsplit(place.location).netloc != urlsplit(self.server).netloc:  # the token is for the hub alone
            headers = {name: value for name, value in headers.items() if name.lower() != "authorization"}
        return headers

    def _check(self, answer: Answer, place: Place, start: int) -> None:
        """Raise unless the answer has the bytes from `start` on, of the file that was found."""
        status = answer.status_code
        if status in (401, 403):
            raise failure.refused(status, self.server, self.file)
        if status == 404 or status == 410:
            raise EncoderError("hub.no-file", file=self.file, page=f"{failure.shown(self.server)}/{self.repository}")
        tag = answer.headers.get("ETag")
        if status in (200, 206) and tag and tag != self._tags.setdefault(urlsplit(place.location).netloc, tag):
            raise EncoderError("hub.changed", file=self.file)
        if status == 200:
            if answer.headers.get("Content-Length") not in (None, str(place.size)):
                raise EncoderError("hub.changed", file=self.file)
            raise NoRanges(place.size)
        found = _RANGE.fullmatch((answer.headers.get("Content-Range") or "").strip())
        if status == 412 or (status == 206 and found and found[3] not in ("*", str(place.size))):
            raise EncoderError("hub.changed", file=self.file)
        if status == 416:
            raise EncoderError("hub.range", server=failure.shown(self.server), file=self.file, start=start)
        if status != 206:
            raise EncoderError("hub.status", server=failure.shown(self.server), file=self.file, status=status)
        if found is None or int(found[1]) != start:
            raise EncoderError("hub.range", server=failure.shown(self.server), file=self.file, start=start)
        self._parts = True
