"""What was announced of a remote file, read ahead over several connections. It is read from once, from the front to the end."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from sd3deploy.encoders import stopping
from sd3deploy.encoders.hub.link import Link
from sd3deploy.encoders.hub.waiting import POLL

__all__ = ["Stream"]

CONNECTIONS = 4
BLOCK = 8 << 20  # bytes that one request asks for
AHEAD = 12  # blocks that are in memory at most: 96 MiB


@dataclass
class _Block:
    offset: int
    size: int
    data: bytearray = field(default_factory=bytearray)
    filled: int = 0


class Stream:
    """spans: (offset, bytes), which are read in this order and do not overlap."""

    def __init__(self, link: Link, spans: Iterable[tuple[int, int]]) -> None:
        self._link = link
        self._blocks = list(_blocks(spans))
        self._first = 0  # the block that is read from
        self._next = 0  # the block that is fetched next
        self._failed: BaseException | None = None
        self._ended = threading.Event()
        self._changed = threading.Condition()
        self._asked: Callable[[], bool] = stopping.stopped()
        self._numbers = {block.offset: number for number, block in enumerate(self._blocks)}
        for number in range(min(CONNECTIONS, len(self._blocks))):
            threading.Thread(target=self._fetch, name=f"sd3-hub-{number}", daemon=True).start()

    def covers(self, offset: int) -> bool:
        """Whether bytes from `offset` on are still to come."""
        return self._find(offset) is not None

    def readinto(self, offset: int, view: memoryview) -> int:
        """Bytes from `offset` on, as many as are there, at least one. Raises what Link.fill raises, and Stopped."""
        number = self._find(offset)
        assert number is not None
        block = self._blocks[number]
        with self._changed:
            for done in self._blocks[self._first : number]:
                done.data = bytearray()
            self._first = number
            self._changed.notify_all()
            while block.filled <= offset - block.offset:
                if self._failed is not None:
                    raise self._failed
                if self._asked():
                    raise stopping.Stopped("encoder.stopped")
                self._changed.wait(POLL)
        start = offset - block.offset
        count = min(len(view), block.filled - start)
        view[:count] = memoryview(block.data)[start : start + count]
        return count

    def close(self) -> None:
        """Nobody reads any more. A thread that waits for the network ends when that answers or its patience is over."""
        self._ended.set()
        with self._changed:
            self._changed.notify_all()

    def _find(self, offset: int) -> int | None:
        for number in (self._first, self._first + 1):  # nearly always one of these
            if number < len(self._blocks) and 0 <= offset - self._blocks[number].offset < self._blocks[number].size:
                return number
        number = self._numbers.get(offset)
        return number if number is not None and number >= self._first else None

    def _fetch(self) -> None:
        while (block := self._take()) is not None:

            def arrived(count: int, block: _Block = block) -> None:
                with self._changed:
                    block.filled = count
                    self._changed.notify_all()

            try:
                self._link.fill(block.offset, memoryview(block.data), self._ended, arrived)
            except BaseException as error:
                with self._changed:
                    self._failed = self._failed or error
                    self._changed.notify_all()
                return

    def _take(self) -> _Block | None:
        """The next block to fetch, when there is room for it."""
        with self._changed:
            while not self._ended.is_set() and self._failed is None and self._next < len(self._blocks):
                if self._next < self._first + AHEAD:
                    block = self._blocks[self._next]
                    self._next += 1
                    block.data = bytearray(block.size)
                    return block
                self._changed.wait()
        return None


def _blocks(spans: Iterable[tuple[int, int]]) -> Iterator[_Block]:
    """Spans that follow each other are one; each is cut into blocks."""
    joined: list[list[int]] = []
    for offset, size in spans:
        if joined and joined[-1][1] == offset:
            joined[-1][1] += size
        elif size:
            joined.append([offset, offset + size])
    for start, end in joined:
        for offset in range(start, end, BLOCK):
            yield _Block(offset, min(BLOCK, end - offset))
