"""A reader of a remote file, without a buffer."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator
from typing import Any

from sd3deploy.encoders.hub.link import Link
from sd3deploy.encoders.hub.pages import Pages
from sd3deploy.encoders.hub.stream import Stream

__all__ = ["Reader"]

_SMALL = 1 << 20  # bytes: what is read in one go and is longer is read over several connections


class Reader(io.RawIOBase):
    """Raises EncoderError for what can not be had, and Stopped when that was asked for where it is read."""

    def __init__(self, link: Link, pages: Pages, size: int, name: str) -> None:
        super().__init__()
        self._link, self._pages, self._size, self.name = link, pages, size, name
        self._position = 0
        self._stream: Stream | None = None  # of what was announced
        self._aside: Stream | None = None  # of a long read that was not
        self._here: dict[int, memoryview] = {}  # parts of what was announced that were read before

    def expect(self, spans: Iterable[tuple[int, int]]) -> None:
        """These will be read, in this order: (offset, bytes). What of them is here already is not asked for again."""
        self._end(self._stream)
        self._here = {}
        self._stream = Stream(self._link, list(self._absent(spans)))

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise ValueError(f"a position of {base + offset}")
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any, /) -> int:
        view = memoryview(buffer).cast("B")
        view = view[: max(0, self._size - self._position)]
        if not view:
            return 0
        if (stream := self._covering()) is not None:
            count = stream.readinto(self._position, view)
        elif (held := self._here.get(self._position)) is not None:
            count = min(len(held), len(view))
            view[:count] = held[:count]
        elif len(view) <= _SMALL:
            self._pages.read(self._position, view)
            count = len(view)
        else:
            self._end(self._aside)
            self._aside = Stream(self._link, [(self._position, len(view))])
            count = self._aside.readinto(self._position, view)
        self._position += count
        return count

    def close(self) -> None:
        self._end(self._stream)
        self._end(self._aside)
        super().close()

    def _covering(self) -> Stream | None:
        return next((one for one in (self._stream, self._aside) if one is not None and one.covers(self._position)), None)

    @staticmethod
    def _end(stream: Stream | None) -> None:
        if stream is not None:
            stream.close()

    def _absent(self, spans: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
        """Spans without what is here already."""
        for offset, size in spans:
            while size:
                held = self._pages.held(offset, size)
                if held is None:
                    count = self._pages.until(offset, size)
                    yield offset, count
                else:
                    self._here[offset], count = held, len(held)
                offset, size = offset + count, size - count
