"""Text in columns of a terminal, where a Chinese character takes two."""

from __future__ import annotations

import unicodedata

from sd3deploy.lazy import lazy

__all__ = ["columns", "pad", "wrap"]

_CLOSING = "，。；：、？！）》”’…"  # that no line begins with
_PIECE = lazy(rf"[⺀-鿿豈-﫿︰-﹏＀-￯][{_CLOSING}]*|[^\s⺀-鿿豈-﫿︰-﹏＀-￯]+")  # one wide character, or a word in one piece


def columns(text: str) -> int:
    """How wide a line is (Unicode's East Asian Width: W and F take two columns)."""
    return sum(2 if unicodedata.east_asian_width(one) in "WF" else 1 for one in text)


def pad(text: str, width: int) -> str:
    """Filled with spaces up to `width` columns."""
    return text + " " * max(0, width - columns(text))


def wrap(text: str, width: int, first: str = "", later: str = "") -> list[str]:
    """Lines of `width` columns at most, the first one after `first`, the others after `later`. Paths, commands and addresses stay in one
    piece, whatever their length; between wide characters a line may end anywhere.
    """
    lines, line, empty, end = [], first, True, 0
    for piece in _PIECE.finditer(text):
        gap = " " if piece.start() > end and not empty else ""
        end = piece.end()
        if not empty and columns(line) + len(gap) + columns(piece[0]) > width:
            lines.append(line)
            line, gap = later, ""
        line += gap + piece[0]
        empty = False
    return [*lines, line if not empty else first.rstrip()]
