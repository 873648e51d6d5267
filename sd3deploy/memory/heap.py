"""The C library's heap, in which tensors below 32 MB lie."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable

__all__ = ["trim"]


def trim() -> bool:
    """Give the free pages of the heap back to the system, wherever in it they lie. Returns whether there were any.

    glibc gives back what is free at the end of the heap alone: one small object behind it keeps all of an encoder resident
    (malloc_trim(3)). Other C libraries do as they please: nothing is done there.
    """
    function = _function()
    return bool(function and function(0))


@functools.cache
def _function() -> Callable[[int], int] | None:
    try:
        found = ctypes.CDLL(None).malloc_trim
    except (OSError, TypeError, AttributeError):  # macOS, musl; on Windows there is no library without a name
        return None
    found.argtypes, found.restype = [ctypes.c_size_t], ctypes.c_int
    return found
