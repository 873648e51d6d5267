"""Replace one function of the host or of a library: in one place, undone at will, applied once, with the signature kept.

    host → patched(…) → wrapper(call, …) → call(…) → the host's own function        exactly once, whatever happens to the wrapper
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from types import ModuleType
from typing import Any

from fastapi import HTTPException

from sd3deploy.errors import JobRefused

__all__ = ["DELIBERATE", "Call", "Patch", "parameters"]

DELIBERATE = (JobRefused, HTTPException)  # what a wrapper raises on purpose, for whoever has asked the host

_REST = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
_MARK = "__sd3deploy_original__"
_RAISED_IN = "__sd3deploy_call__"  # on an exception: the Call whose function has raised it


class Call:
    """The host's function in one call of it, given to the wrapper as `original`. It runs the function once and keeps what came of it.

    An exception is not kept: its frames would hold the tensors of a job that ran out of memory while the wrapper frees them. What is kept
    is a mark on it, and a copy without frames.
    """

    def __init__(self, function: Callable[..., Any], names: tuple[str, ...], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._function, self._names, self._args, self._kwargs = function, names, args, kwargs
        self._ran = self.returned = False
        self._result: Any = None
        self._error: BaseException | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the host's function. A second call runs nothing: it ends as the first one did."""
        return self._end() if self._ran else self.again(*args, **kwargs)

    def again(self, *args: Any, **kwargs: Any) -> Any:
        """Run the host's function although it ran before: the one retry of a job that ran out of memory."""
        self._ran = True
        try:
            self._result = self._function(*args, **kwargs)
        except BaseException as error:
            error.__dict__[_RAISED_IN] = self  # not by setattr: an exception may be a frozen dataclass
            self._error = _without_frames(error)
            raise
        self.returned = True
        return self._result

    def argument(self, name: str, *default: Any) -> Any:
        """An argument of this call by the name of its parameter, given by position or by keyword. Raises LookupError where it is not
        given and there is no `default`.
        """
        if name in self._kwargs:
            return self._kwargs[name]
        place = self._names.index(name) if name in self._names else len(self._args)
        if place >= len(self._args) and default:
            return default[0]
        return self._args[place]

    def settle(self) -> Any:
        """What the host gets when the wrapper has failed: what its function has returned, or raised; it is run if it was not."""
        return self._end() if self._ran else self._function(*self._args, **self._kwargs)

    def cause(self, error: BaseException) -> BaseException | None:
        """The exception of the host's function that `error` is, or that was under way when `error` was raised."""
        seen: set[int] = set()
        found: BaseException | None = error
        while found is not None and id(found) not in seen:
            if found.__dict__.get(_RAISED_IN) is self:
                return found
            seen.add(id(found))
            found = found.__cause__ or found.__context__
        return None

    def _end(self) -> Any:
        if self._error is not None and not self.returned:
            raise self._error
        return self._result


class Patch:
    """`wrapper(original, *args, **kwargs)` in place of `module.name`; `original` is a Call. Any number of threads may be inside.

    The wrapper may leave the original alone on purpose, by returning something or raising one of DELIBERATE. An exception of its own, at
    whatever point, ends the patch: it only passes through from then on, `failed` is called with the exception, and the host gets what its
    own function has returned or raised. What is no Exception, such as KeyboardInterrupt, always passes.

    expects: parameter names that the wrapper leans on. When the function is missing or lacks one of them, `apply` returns
    False and nothing is touched: the host is of another version than the wrapper was written for.
    """

    def __init__(
        self,
        module: ModuleType,
        name: str,
        wrapper: Callable[..., Any],
        expects: tuple[str, ...] = (),
        failed: Callable[[Exception], object] = lambda error: None,
    ) -> None:
        self.module, self.name, self.wrapper, self.expects, self.failed = module, name, wrapper, expects, failed
        self.active = False
        self._layer: object = None  # the latest function of ours; an older one may lie under somebody else's wrapper

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
        names = parameters(original, self.name)
        if not set(self.expects) <= set(names):
            return False

        @functools.wraps(original)
        def patched(*args: Any, **kwargs: Any) -> Any:
            mine = self.active and self._layer is patched
            return self._run(Call(original, names, args, kwargs), args, kwargs) if mine else original(*args, **kwargs)

        setattr(patched, _MARK, original)
        self.active, self._layer = True, patched
        setattr(self.module, self.name, patched)
        return True

    @property
    def in_place(self) -> bool:
        """Whether calls of the function come to the wrapper, as far as wrappers of others say what they wrap."""
        current, seen = getattr(self.module, self.name, None), set()
        while current is not None and id(current) not in seen:
            if current is self._layer:
                return True
            seen.add(id(current))
            current = getattr(current, "__wrapped__", None)
        return False

    def undo(self) -> None:
        """Put the original back. Where somebody else has wrapped the wrapper since, it stays and only passes through."""
        self.active = False
        current = getattr(self.module, self.name, None)
        if _is_ours(current) and current is self._layer:
            setattr(self.module, self.name, getattr(current, _MARK))

    def _run(self, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        try:
            return self.wrapper(call, *args, **kwargs)
        except Exception as error:
            cause = call.cause(error)
            if isinstance(error, DELIBERATE) or cause is error:
                del cause
                raise
            self.active = False
            self.failed(error)
        if cause is None or call.returned:
            return call.settle()
        try:
            raise cause  # ours was raised while that one was on its way
        finally:
            del cause  # or its frames, with the tensors of the job, would be kept by this one


def _is_ours(function: object) -> bool:
    """A wrapper made with functools.wraps around ours has copied our mark, but wraps something else."""
    return hasattr(function, _MARK) and getattr(function, "__wrapped__", None) is getattr(function, _MARK)


def parameters(function: Callable[..., Any], name: str) -> tuple[str, ...]:
    """The names of its parameters, in their order. Of somebody's wrapper that takes anything and does not say what it wraps, those of the
    function of that name which its code uses, also through other such wrappers.
    """
    inside = [function]
    for one in inside:
        found = _parameters(one)
        if any(each.kind not in _REST for each in found) and (one is function or one.__name__ == name):
            return tuple(each.name for each in found)
        if found and all(each.kind in _REST for each in found):
            inside += [each for each in _used(one) if each not in inside]
    return ()


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # compiled: it does not tell
        return []


def _used(function: Callable[..., Any]) -> list[Callable[..., Any]]:
    """The functions that its code names."""
    try:
        found = inspect.getclosurevars(function)
    except (TypeError, ValueError):  # no function, or half made
        return []
    return [one for one in (*found.nonlocals.values(), *found.globals.values()) if inspect.isfunction(one)]


def _without_frames(error: BaseException) -> BaseException:
    """The same exception as if it had never been raised; a RuntimeError with its words for a kind that can not be made twice."""
    try:
        copy = type(error).__new__(type(error), *error.args)
        copy.__dict__.update({name: value for name, value in vars(error).items() if name != _RAISED_IN})
        return copy if str(copy) == str(error) else RuntimeError(f"{type(error).__name__}: {error}")
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
