"""Small reads of a remote file: its header, its scales. They lie close to each other, so that one request answers many."""

from __future__ import annotations

import threading
from collections import OrderedDict

from sd3deploy.encoders.hub.link import Link
from sd3deploy.encoders.hub.waiting import abiding

__all__ = ["Pages"]

PAGE = 1 << 16  # bytes
_KEPT = 1 << 9  # pages: 32 MiB, more than the header of any encoder


class Pages:
    """What was read, the newest of it."""

    def __init__(self, link: Link, size: int) -> None:
        self._link, self._size = link, size
        self._pages: OrderedDict[int, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, offset: int, view: memoryview) -> None:
        """Fill `view`, which is at most 16 MiB, from `offset` on. Raises what Link.fill raises, Stopped."""
        with self._lock:
            numbers = range(offset // PAGE, -(-(offset + len(view)) // PAGE))
            missing = [number for number in numbers if number not in self._pages]
            if missing:
                self._fetch(missing[0], missing[-1])
            for number in numbers:
                page = self._pages[number]
                start = max(offset, number * PAGE)
                end = min(offset + len(view), number * PAGE + len(page))
                view[start - offset : end - offset] = page[start - number * PAGE : end - number * PAGE]
            for number in numbers:
                self._pages.move_to_end(number)
            while len(self._pages) > _KEPT:
                self._pages.popitem(last=False)

    def held(self, offset: int, size: int) -> memoryview | None:
        """Bytes from `offset` on that are here, as far as they are in one page."""
        page = self._pages.get(offset // PAGE)
        start = offset % PAGE
        return memoryview(page)[start : start + size] if page and start < len(page) else None

    def until(self, offset: int, size: int) -> int:
        """How many of the bytes from `offset` on, of which the first is not here, lie before the next page that is."""
        end = offset + size
        return min((number * PAGE for number in self._pages if offset < number * PAGE < end), default=end) - offset

    def _fetch(self, first: int, last: int) -> None:
        start = first * PAGE
        data = bytearray(min(self._size, (last + 1) * PAGE) - start)
        ended = threading.Event()
        try:
            abiding(lambda: self._link.fill(start, memoryview(data), ended))
        finally:
            ended.set()
        for number in range(first, last + 1):
            at = number * PAGE - start
            self._pages[number] = bytes(data[at : at + PAGE])
