"""The host as an extension of a later version of it would see it: one name is gone, has another name, takes another argument, gives
something else, or raises. The host itself goes on with what it has: it was changed as a whole, and works.

Who asks is told apart by the frame that asks: that of a module of the extension sees the changed host, every other the real one.
"""

from __future__ import annotations

import builtins
import functools
import importlib
import inspect
import sys
from collections.abc import Callable
from typing import Any

from sd3deploy.webui.host.contract import BY_NAME, Need

__all__ = ["Changed", "of"]

_EXTENSION = ("sd3deploy", "sd3_deploy")
NAME = "{}_of_today"  # what a renamed name is called


class Changed:
    """A value or result of another kind, with the one that the host goes on with."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __repr__(self) -> str:
        return "<something else>"


def _from_extension() -> bool:
    frame = sys._getframe(1)
    while frame.f_globals.get("__name__") == __name__ and frame.f_back:
        frame = frame.f_back
    return str(frame.f_globals.get("__name__", "")).startswith(_EXTENSION)


def of(changes: list[dict[str, str]]) -> Changes:
    """changes: [{"name": of a row of the table or "module <name>", "how": …}]."""
    return Changes([_change(BY_NAME.get(one["name"]), one["name"], one["how"]) for one in changes])


class Changes:
    """Some changes at once. met: how often the extension has met one of them."""

    def __init__(self, changes: list[_Change]) -> None:
        self._changes = changes

    @property
    def met(self) -> int:
        return sum(change.met for change in self._changes)

    def before_scripts(self) -> None:
        for change in self._changes:
            change.before_scripts()

    def before_callbacks(self, demo: Any, app: Any) -> None:
        for change in self._changes:
            change.before_callbacks(demo, app)


class _Change:
    met = 0

    def before_scripts(self) -> None: ...

    def before_callbacks(self, demo: Any, app: Any) -> None: ...


def _change(need: Need | None, name: str, how: str) -> _Change:
    if need is None:
        return _Module(name.partition(" ")[2], how)
    kinds = {"element": _Element, "route": _Route, "field": _Field}
    if need.kind in kinds:
        return kinds[need.kind](need, how)
    if ":Script." in need.name:
        return _Hook(need, how)
    return _Late(need, how) if need.path[0] == "api" else _Name(need, how)


class _Module(_Change):
    """A module that is gone or has moved: what the extension asks for is not there, what the host imports is."""

    def __init__(self, name: str, how: str) -> None:
        self.name, self.how = name, how

    def before_scripts(self) -> None:
        module = importlib.import_module(self.name)
        package, _, last = self.name.rpartition(".")
        real = builtins.__import__

        def load(name: str, names: Any = None, local: Any = None, fromlist: Any = (), level: int = 0) -> Any:
            if name != self.name or str((names or {}).get("__name__", "")).startswith(_EXTENSION):
                return real(name, names, local, fromlist, level)
            sys.modules[self.name] = module
            try:
                return real(name, names, local, fromlist, level)
            finally:
                sys.modules[self.name] = None  # type: ignore[assignment]

        builtins.__import__ = load
        sys.modules[self.name] = None  # type: ignore[assignment]
        if self.how == "renamed":
            sys.modules[NAME.format(self.name)] = module
        self.met = 1
        if package:
            _see(sys.modules[package], last, self)


class _Name(_Change):
    """A name of a module, or of an object in one."""

    def __init__(self, need: Need, how: str) -> None:
        self.need, self.how, self.name = need, how, need.path[-1]

    def before_scripts(self) -> None:
        module = importlib.import_module(self.need.place)
        owner = functools.reduce(getattr, self.need.path[:-1], module)
        self.put(owner)

    def put(self, owner: Any) -> None:
        real = getattr(owner, self.name)
        if self.how in ("position", "keyword", "result") or (self.how == "raises" and self.need.kind != "attribute" and callable(real)):
            self.answer = self.function(real)
            if self.need.kind == "patch":
                setattr(owner, self.name, self.caller())  # in the host's module too, where no attribute is asked
        _see(owner, self.name, self)

    def caller(self) -> Callable[..., Any]:
        """The function as the host calls it: with the new argument, and as it takes the new kind of result."""

        def call(*args: Any, **kwargs: Any) -> Any:
            if self.how == "position":
                args = ("today", *args)
            elif self.how == "keyword":
                kwargs["today"] = "today"
            result = self.answer(*args, **kwargs)
            return result.value if isinstance(result, Changed) else result

        return call

    def function(self, real: Callable[..., Any]) -> Callable[..., Any]:
        """The function as it is today."""
        signature = _more(inspect.signature(real), self.how)

        @functools.wraps(real)
        def today(*args: Any, **kwargs: Any) -> Any:
            self.met += 1
            if self.how == "raises":
                raise RuntimeError("not any more")
            if self.how in ("position", "keyword"):
                bound = signature.bind(*args, **kwargs)
                bound.arguments.pop("today")
                return real(*bound.args, **bound.kwargs)
            result = real(*args, **kwargs)
            return Changed(result) if self.how == "result" else result

        today.__signature__ = signature  # type: ignore[attr-defined]
        return today

    def seen(self, real: Callable[[], Any]) -> Any:
        """What the extension sees. Raises AttributeError where there is nothing."""
        self.met += 1
        if self.how in ("gone", "renamed"):
            raise AttributeError(f"there is no {self.name}", name=self.name)
        if hasattr(self, "answer"):
            return self.answer
        if self.how == "raises" and self.need.kind != "patch":
            raise RuntimeError("not any more")
        if self.how == "type":
            return Changed(real())
        return real()


def _more(signature: inspect.Signature, how: str) -> inspect.Signature:
    """A signature with one more parameter that has no default."""
    given = [*signature.parameters.values()]
    if how == "position":
        first = inspect.Parameter("today", inspect.Parameter.POSITIONAL_OR_KEYWORD)
        return signature.replace(parameters=[first, *given])
    if how == "keyword":
        more = inspect.Parameter("today", inspect.Parameter.KEYWORD_ONLY)
        last = [one for one in given if one.kind is inspect.Parameter.VAR_KEYWORD]
        return signature.replace(parameters=[*[one for one in given if one not in last], more, *last])
    return signature


def _see(owner: Any, name: str, change: Any) -> None:
    """Let the extension see `name` of an object as the change has it."""
    kind = type(owner)

    class Seen(kind):
        def __getattribute__(self, asked: str) -> Any:
            def real() -> Any:
                return kind.__getattribute__(self, asked)

            if asked != name:
                return real()
            if not _from_extension():
                return real()
            if isinstance(change, _Name):
                fallback = getattr(kind, "__getattr__", None)
                return change.seen(real if fallback is None else lambda: _either(real, lambda: fallback(self, asked)))
            raise AttributeError(f"there is no {name}")

        if hasattr(kind, "__getattr__"):

            def __getattr__(self, asked: str) -> Any:
                if asked == name and _from_extension() and isinstance(change, _Name) and change.how in ("gone", "renamed", "raises"):
                    return change.seen(lambda: None)
                return kind.__getattr__(self, asked)

        def __setattr__(self, asked: str, value: Any) -> None:
            if asked == name and _from_extension() and isinstance(change, _Name):
                if change.how in ("gone", "renamed"):
                    object.__setattr__(self, NAME.format("new"), value)  # a new attribute that nobody reads
                    return
                if change.how == "raises":
                    raise RuntimeError("not any more")
                if change.need.kind == "patch":
                    change.answer = value
                    return
            kind.__setattr__(self, asked, value)

    Seen.__name__, Seen.__qualname__ = kind.__name__, kind.__qualname__
    object.__setattr__(owner, "__class__", Seen)


def _either(first: Callable[[], Any], second: Callable[[], Any]) -> Any:
    try:
        return first()
    except AttributeError:
        return second()


class _Late(_Name):
    """A name of the API, which is there only when the page is."""

    def before_scripts(self) -> None: ...

    def before_callbacks(self, demo: Any, app: Any) -> None:
        from modules import shared

        owner = functools.reduce(getattr, self.need.path[:-1], shared)
        self.put(owner)


class _Hook(_Change):
    """A hook of scripts: the host calls it by another name, not at all, or with more."""

    def __init__(self, need: Need, how: str) -> None:
        self.need, self.how, self.name = need, how, need.path[-1]

    def before_scripts(self) -> None:
        from modules import scripts_manager

        kind, name, self.met = scripts_manager.Script, self.name, 1
        value, call = vars(kind)[name], scripts_manager.ScriptRunner._call
        if self.how in ("gone", "renamed"):
            delattr(kind, name)
        if self.how == "renamed":
            setattr(kind, NAME.format(name), value)
        if self.how in ("raises", "result") or (self.need.kind == "function" and self.how in ("position", "keyword")):
            setattr(kind, name, self.broken(value))
        if self.need.kind != "callback" or name in ("title", "show", "ui"):
            return

        def called(runner: Any, hook: str, p: Any, *positional: Any, **kwargs: Any) -> Any:
            if hook != name:
                return call(runner, hook, p, *positional, **kwargs)
            if self.how in ("gone", "renamed"):
                return None
            return call(runner, hook, p, *positional, *(["today"] if self.how == "position" else []), **kwargs,
                        **({"today": "today"} if self.how == "keyword" else {}))  # fmt: skip

        scripts_manager.ScriptRunner._call = called

    def broken(self, real: Callable[..., Any]) -> Callable[..., Any]:
        signature = _more(inspect.signature(real), self.how)

        @functools.wraps(real)
        def today(*args: Any, **kwargs: Any) -> Any:
            if self.how == "raises":
                raise RuntimeError("not any more")
            signature.bind(*args, **kwargs)
            return Changed(real(*args, **kwargs))

        today.__signature__ = signature  # type: ignore[attr-defined]
        return today


class _Field(_Change):
    """An attribute of the object that describes a job."""

    def __init__(self, need: Need, how: str) -> None:
        self.need, self.how, self.name = need, how, need.path[-1]

    def before_scripts(self) -> None:
        from modules.processing_class import StableDiffusionProcessing as kind

        def seen(p: Any, asked: str) -> Any:
            if asked != self.name or not _from_extension():
                return object.__getattribute__(p, asked)
            self.met += 1
            if self.how in ("gone", "renamed"):
                raise AttributeError(f"there is no {asked}", name=asked)
            if self.how == "raises":
                raise RuntimeError("not any more")
            return Changed(object.__getattribute__(p, asked))

        kind.__getattribute__ = seen  # type: ignore[method-assign]


class _Element(_Change):
    """An id of the page."""

    def __init__(self, need: Need, how: str) -> None:
        self.need, self.how = need, how

    def before_callbacks(self, demo: Any, app: Any) -> None:
        pattern = self.need.name.partition(":")[2].split("|")
        ids = {one.format(tab=tab) for tab in ("txt2img", "img2img", "control") for one in pattern}
        for block in demo.blocks.values():
            if getattr(block, "elem_id", None) in ids:
                self.met += 1
                block.elem_id = None if self.how == "gone" else NAME.format(block.elem_id)


class _Route(_Change):
    """An address of the host's API."""

    def __init__(self, need: Need, how: str) -> None:
        self.need, self.how = need, how

    def before_callbacks(self, demo: Any, app: Any) -> None:
        path = self.need.name.partition(":")[2]
        self.met = sum(getattr(route, "path", "") == path for route in app.routes)
        app.router.routes[:] = [route for route in app.routes if getattr(route, "path", "") != path]
