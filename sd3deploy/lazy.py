"""Regular expressions that are compiled when they are first used.

There are two hundred of them, nearly all the doctor's and the report's. To compile them takes a quarter of what the extension adds to the
start of the host (bench/startup.py), and most starts use none.
"""

from __future__ import annotations

import re
from typing import Any, AnyStr, cast

__all__ = ["lazy"]


def lazy(pattern: AnyStr, flags: int = 0) -> re.Pattern[AnyStr]:
    """As re.compile. A wrong pattern raises re.error at its first use, so tests compile each of them."""
    return cast("re.Pattern[AnyStr]", _Lazy(pattern, flags))


class _Lazy:
    """Hands on what a pattern has. Each method is kept as it is found, so that only its first use goes through here."""

    def __init__(self, pattern: str | bytes, flags: int) -> None:
        self.pattern, self._flags = pattern, flags

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        found = self.__dict__[name] = getattr(re.compile(self.pattern, self._flags), name)
        return found

    def __repr__(self) -> str:
        return f"lazy({self.pattern!r})"
