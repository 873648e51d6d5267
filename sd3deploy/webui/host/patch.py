"""Replace one function of the host or of a library: in one place, undone at will, applied once, with the signature kept."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from types import ModuleType
from typing import Any

__all__ = ["Patch"]

_MARK = "__sd3deploy_original__"


class Patch:
    """`wrapper(original, *args, **kwargs)` in place of `module.name`.

    expects: parameter names that the wrapper leans on. When the function is missing or lacks one of them, `apply` returns
    False and nothing is touched: the host is of another version than the wrapper was written for.
    """

    def __init__(self, module: ModuleType, name: str, wrapper: Callable[..., Any], expects: tuple[str, ...] = ()) -> None:
        self.module, self.name, self.wrapper, self.expects = module, name, wrapper, expects
        self.active = False

    @property
    def original(self) -> Callable[..., Any]:
        """What is under a patch of ours: the host reloads scripts, and a second patch must not wrap the first."""
        current = getattr(self.module, self.name)
        return getattr(current, _MARK) if _is_ours(current) else current

    def apply(self) -> bool:
        """Put the wrapper in place. Returns whether it is in place."""
        if not callable(getattr(self.module, self.name, None)):
            return False
        original = self.original
        if not set(self.expects) <= set(inspect.signature(original).parameters):
            return False

        @functools.wraps(original)
        def patched(*args: Any, **kwargs: Any) -> Any:
            return self.wrapper(original, *args, **kwargs) if self.active else original(*args, **kwargs)

        setattr(patched, _MARK, original)
        self.active = True
        setattr(self.module, self.name, patched)
        return True

    def undo(self) -> None:
        """Put the original back. Where somebody else has wrapped the wrapper since, it stays and only passes through."""
        self.active = False
        current = getattr(self.module, self.name, None)
        if _is_ours(current):
            setattr(self.module, self.name, getattr(current, _MARK))


def _is_ours(function: object) -> bool:
    """A wrapper made with functools.wraps around ours has copied our mark, but wraps something else."""
    return hasattr(function, _MARK) and getattr(function, "__wrapped__", None) is getattr(function, _MARK)
