"""How far a command is, as one line on a terminal; of what takes hours a line now and then where there is none."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from sd3deploy import units
from sd3deploy.diagnosis.checks import Progress

__all__ = ["Bar", "counted", "line", "shown"]

_WIDTH = 24  # characters
_ERASE = "\r\x1b[K"


class Bar:
    """Rewrites one line of stderr, where that is a terminal."""

    def __init__(self) -> None:
        self._seen = sys.stderr.isatty()
        self._last = ""
        self._tenths = -1

    def show(self, at: Progress) -> None:
        """The line for this progress."""
        self._write(line(at)[: shutil.get_terminal_size().columns - 1])

    def count(self, title: str, done: int, total: int) -> None:
        """The line for so many bytes."""
        self._write(counted(title, done, total)[: shutil.get_terminal_size().columns - 1])

    def fill(self, fraction: float, text: str) -> None:
        """The line for a part, 0 to 1, of whatever it is. A file or a pipe gets it when another tenth is begun."""
        if not self._seen and self._tenths != (tenths := int(10 * fraction)):
            self._tenths = tenths
            print(f"{_drawn(fraction)} {text}", file=sys.stderr, flush=True)
        self._write(f"{_drawn(fraction)} {text}"[: shutil.get_terminal_size().columns - 1])

    def clear(self) -> None:
        """Make room for something that stays."""
        self._write("")

    def _write(self, text: str) -> None:
        if self._seen and text != self._last:
            self._last = text
            print(f"{_ERASE}{text}", end="", file=sys.stderr, flush=True)


@contextmanager
def shown() -> Iterator[Bar]:
    """A bar that is gone afterwards, whatever happens."""
    bar = Bar()
    try:
        yield bar
    finally:
        bar.clear()


def line(at: Progress) -> str:
    """The bar, the number of the step, and what it is at."""
    return f"{_drawn((at.number - 1 + at.fraction) / at.total)} {at.number}/{at.total} {at.title} {at.text}".rstrip()


def counted(title: str, done: int, total: int) -> str:
    """The bar for bytes, and what they are read or written for."""
    return f"{_drawn(min(1.0, done / max(1, total)))} {units.size(done, total)} / {units.size(total)} {title}"


def _drawn(fraction: float) -> str:
    filled = round(_WIDTH * fraction)
    return f"[{'#' * filled}{'.' * (_WIDTH - filled)}]"
