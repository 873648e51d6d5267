"""Which of the known names somebody meant who wrote another one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["LONGEST", "nearest"]

LONGEST = 60  # characters that are compared: a name from outside may have millions, and no name of ours has more


def nearest(value: str, names: Iterable[str], cutoff: float = 0.0) -> str | None:
    """The name that is most like `value`, in any case; None where none reaches `cutoff`, 0 to 1, of likeness."""
    known = {name.lower(): name for name in names}
    found = difflib.get_close_matches(value[:LONGEST].lower(), known, 1, cutoff)
    return known[found[0]] if found else None
