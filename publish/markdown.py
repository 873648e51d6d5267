"""Tables of Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

__all__ = ["plain", "table"]


def plain(text: str) -> str:
    """A sentence as a cell shows it: nothing in it is taken for HTML, and what stands between two ` stays as it is."""
    parts = text.replace("\n", " ").split("`")
    return "`".join(part if number % 2 else part.replace("<", "&lt;").replace("*", r"\*") for number, part in enumerate(parts))


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """The lines of a table. Cells hold Markdown."""
    lines = [_row(heads), f"|{'---|' * len(heads)}", *map(_row, rows)]
    return "\n".join(lines)


def _row(cells: Sequence[str]) -> str:
    return "|".join(["", *(f" {cell} ".replace("|", r"\|") if cell else " " for cell in cells), ""])
