"""The way to the host: the only module that imports anything of it, by the names of the table and by no others.

    sdnext.shared.opts.prompt_attention → row of the table → the host's value, checked      what is not as the row says is reported, once
                                                           ↘ the row's default, else HostChanged

Names are looked up anew each time, as the host's own code does: modules and attributes may be replaced while it runs.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from types import ModuleType
from typing import Any

from sd3deploy import messages
from sd3deploy.errors import Sd3Error
from sd3deploy.events import Event
from sd3deploy.memory import exhausted
from sd3deploy.webui.host.contract import BY_NAME, FEATURES, PLACES, TABLE, Need
from sd3deploy.webui.host.patch import parameters

__all__ = [
    "HostChanged",
    "State",
    "check_job",
    "check_page",
    "check_result",
    "check_start",
    "described",
    "missing",
    "module_of",
    "optional_field",
    "require",
    "sdnext",
    "state",
    "too_old",
    "words_of",
]

_OURS = "sd3_"  # settings and flags of ours among those of the host
_TABS = ("txt2img", "img2img", "control")
_MODULES = {place.rpartition(".")[2]: place for place in (need.place for need in TABLE) if place not in PLACES}
_ON_THE_WAY = {f"{need.place}:{'.'.join(need.path[:end])}" for need in TABLE for end in range(1, len(need.path))}


class HostChanged(Sd3Error):
    """Something of the host is not as the table has it, and nothing stands in for it. It was told when it was found."""

    def __init__(self, need: Need, what: str) -> None:
        self.need = need
        self.told = state.told(need)
        if need.feature == "":
            super().__init__("host.failed", error=described({need: what}))
        else:
            super().__init__("host.changed", names=described({need: what}), **words_of([need]))


def described(found: Mapping[Need, str]) -> str:
    """What is not as it should be, in the words of a report."""
    return "; ".join(f"{need.name} {what}" for need, what in found.items())


def words_of(needs: Iterable[Need]) -> dict[str, str]:
    """The features of those rows by name, and what is lost without them, as values of the sentence "host.changed"."""
    ids = dict.fromkeys(need.feature for need in needs if need.feature)
    features = ", ".join(messages.text(f"feature.{id}") for id in ids)
    return {"features": features, "lost": messages.joined(*(messages.text(f"feature.{id}.lost") for id in ids))}


class State:
    """What was found, in this process. unmet: name → what is not as the table has it. absent: names that a host of this age does not have
    yet. off: parts that are switched off because of it. checked: how many rows were looked at. ms: how long that took at the start. listen:
    is called with what is new and means something to a user, on whatever thread finds it, with any lock held; what it returns has told it.
    Until there is one nothing is told.
    """

    def __init__(self) -> None:
        self.unmet: dict[str, str] = {}
        self.absent: set[str] = set()
        self.off: set[str] = set()
        self.checked = 0
        self.ms = 0.0
        self.job_seen = False
        self.listen: Callable[[dict[Need, str]], Event | None] | None = None
        self._told: dict[tuple[str, bool], Event | None] = {}  # feature, and whether parts of it are off → what has told it
        self._failed: set[str] = set()  # functions that were found out by a call: how they look says nothing
        self._lock = threading.Lock()

    def report(self, found: Mapping[Need, str], called: bool = False) -> None:
        """Take note of what is not as it should be; tell what was not told yet. called: whether a call has shown it. Raises nothing."""
        with self._lock:
            for need, what in found.items():
                self.unmet.setdefault(need.name, what)
            self._failed |= {need.name for need in found} if called else set()
            self._switch()
        self.announce()

    def retry(self) -> None:
        """A model is about to be loaded, or a user asks for a change: what has failed in a call before is called again. Until then it is
        not, or every step of the same load would fail in its own way.
        """
        with self._lock:
            for name in self._failed:
                self.unmet.pop(name, None)
            self._failed.clear()
            self._switch()

    def back(self, need: Need) -> bool:
        """Whether what was not as it should be is so again: what another extension has taken away for a moment costs no feature for good.
        What is wrapped or registered is so only at the start; what has failed in a call waits for `retry`.
        """
        if need.place in PLACES or need.kind in ("patch", "callback") or need.name in self._failed or _examined(need):
            return False
        self.mend([need])
        return True

    def mend(self, needs: Iterable[Need]) -> None:
        """These are as they should be."""
        with self._lock:
            for need in needs:
                self.unmet.pop(need.name, None)
            self._switch()

    def _switch(self) -> None:
        """Called with the lock held."""
        needs = [need for need in map(BY_NAME.__getitem__, self.unmet) if need.required and need.feature is not None]
        self.off = {part for need in needs for part in FEATURES.get(need.feature or "", (need.feature or "",))}

    def announce(self) -> None:
        """Tell all that was not told yet, in one sentence."""
        if not self.listen:
            return
        with self._lock:
            needs = [need for need in map(BY_NAME.__getitem__, self.unmet) if need.feature is not None]
            new = [need for need in needs if not self._told.keys() & {(need.feature, need.required), (need.feature, True)}]
            self._told.update(dict.fromkeys((need.feature or "", need.required) for need in new))
        if new:
            event = self.listen({need: self.unmet[need.name] for need in new})
            self._told.update(dict.fromkeys(((need.feature or "", need.required) for need in new), event))

    def told(self, need: Need) -> Event | None:
        """What has told that it is missing."""
        return self._told.get((need.feature or "", need.required)) or self._told.get((need.feature or "", True))

    def lacks(self, part: str) -> bool:
        """Whether a part of the extension is switched off because of the host."""
        if part not in self.off:
            return False
        for name in list(self.unmet):
            self.back(BY_NAME[name])
        return part in self.off

    def data(self) -> dict[str, Any]:
        """As JSON-able values, for a report."""
        moved = {name: f"{what} → {BY_NAME[name].lost}" for name, what in sorted(self.unmet.items())}
        return {"checked": self.checked, "moved": moved, "older": sorted(self.absent)}


state = State()


# Looking up


class _Gone(Exception):
    """There is no such name; the message says which part of the way is missing."""


def module_of(need: Need) -> tuple[ModuleType, str]:
    """The module and the name in it of a function that is to be wrapped. Raises HostChanged where there is none of that shape."""
    if need.name in state.unmet:
        raise HostChanged(need, state.unmet[need.name])
    name = need.name if not need.instead or _there(need.name) else need.instead
    place, _, attribute = name.partition(":")
    return _module(place), attribute


def _there(name: str) -> bool:
    try:
        _follow(name)
    except Exception:
        return False
    return True


def _module(place: str) -> Any:
    found = sys.modules.get(place)
    return found if found is not None else importlib.import_module(place)


def _follow(name: str) -> Any:
    place, _, path = name.partition(":")
    try:
        found = _module(place)
    except ImportError as error:
        raise _Gone(f"is gone: {error}") from error
    for part in path.split("."):
        try:
            found = getattr(found, part)
        except AttributeError as error:
            raise _Gone("is gone" if path.endswith(part) else f"is gone with {part}") from error
    return found


def _resolve(need: Need) -> Any:
    if need.kind == "option" and need.instead and not _registered(need.name) and _registered(need.instead):
        return _follow(need.instead)
    try:
        return _follow(need.name)
    except Exception:
        if need.instead and _there(need.instead):
            return _follow(need.instead)
        raise


def _registered(option: str) -> bool:
    """Whether the host has that setting: one of another version may still be stored. Where nothing tells, it has it."""
    try:
        return option.rpartition(".")[2] in _follow("modules.shared:opts.data_labels")
    except Exception:
        return True


def _value(need: Need) -> Any:
    """What the row stands for; its default where it is not as it should be. Raises HostChanged where it has none."""
    if need.name in state.absent or (need.name in state.unmet and not state.back(need)):
        return _stand_in(need)
    if need.lazy and need.place not in sys.modules:
        return need.default
    try:
        found = _resolve(need)
    except Exception as error:
        _lost(need, _said(error))
        return _stand_in(need)
    if need.kind in ("function", "patch"):
        return functools.partial(_call, need, found)
    if what := _unlike(need, found):
        state.report({need: what})
        return _stand_in(need)
    return found


def _lost(need: Need, what: str) -> None:
    """It could not be looked up: it is too new for this host, or it is gone."""
    if need.since > _age():
        state.absent.add(need.name)
    else:
        state.report({need: what})


def _stand_in(need: Need) -> Any:
    if need.required:
        raise HostChanged(need, state.unmet.get(need.name, "is gone"))
    return (lambda *args, **kwargs: need.default) if need.kind == "function" else need.default


def _call(need: Need, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a function of the host. An exception that is no ordinary outcome, or a result of another kind, is a change of the host."""
    try:
        result = function(*args, **kwargs)
    except Exception as error:
        if need.raises or isinstance(error, Sd3Error) or exhausted.read_exhausted(error):
            raise
        state.report({need: _said(error)}, called=True)
        if need.required:
            raise HostChanged(need, _said(error)) from error
        return need.default
    if what := _unlike(need, result):
        state.report({need: what}, called=True)
        return _stand_in(need) if need.required else need.default
    return result


def _said(error: Exception) -> str:
    return str(error) if isinstance(error, _Gone) else f"raises {type(error).__name__}: {error}"


def _unlike(need: Need, value: Any) -> str:
    """In which way a value or a result is not of the kind that the row has; "" where it is."""
    if need.gives is None or (value is None and need.kind == "function"):
        return ""
    given = need.gives if isinstance(need.gives, tuple) else (need.gives,)
    if isinstance(given[0], str):
        lacking = [name for name in given if not hasattr(value, str(name))]
        return f"is {type(value).__name__} without {', '.join(map(str, lacking))}" if lacking else ""
    return "" if isinstance(value, given) else f"is {type(value).__name__}"  # type: ignore[arg-type]


class _At:
    """A module of the host, or an object on the way to a name of the table."""

    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        object.__setattr__(self, "_name", name)

    def __getattr__(self, part: str) -> Any:
        name = self._below(part)
        if need := BY_NAME.get(name):
            return _value(need)
        if part.startswith(_OURS):
            return getattr(_follow(self._name), part)
        if name in _ON_THE_WAY:
            return _At(name)
        raise LookupError(f"{name} is not in the contract with the host")  # a mistake of ours

    def __setattr__(self, part: str, value: Any) -> None:
        name = self._below(part)
        need = BY_NAME.get(name)
        if need is None and not part.startswith(_OURS):
            raise LookupError(f"{name} is not in the contract with the host")
        if need is not None and (name in state.absent or (name in state.unmet and not state.back(need))):
            _stand_in(need)  # raises where nothing stands in for it
            return
        try:
            setattr(_follow(self._name), part, value)
        except Exception as error:
            if need is None:
                raise
            _lost(need, _said(error))
            _stand_in(need)

    def _below(self, part: str) -> str:
        return f"{self._name}{'.' if ':' in self._name else ':'}{part}"


class _Host:
    """The modules of the host by their last names: `sdnext.shared`, `sdnext.generic`."""

    def __getattr__(self, name: str) -> Any:
        if name not in _MODULES:
            raise LookupError(f"no module {name} is in the contract with the host")
        return _At(_MODULES[name])


sdnext: Any = _Host()


# Checking


def too_old() -> bool:
    """Whether this host has not yet the loaders that the hooks were written for (2025-08-20); such hosts have a 4-bit T5 of their own."""
    return _age() == "2025-09" and any(name.startswith("pipelines.generic:") for name in state.unmet)


def require(part: str) -> None:
    """Raise HostChanged where that part of the extension is switched off because of the host."""
    for name in list(state.unmet) if state.lacks(part) else ():
        need = BY_NAME[name]
        if need.required and part in FEATURES.get(need.feature or "", (need.feature,)):
            raise HostChanged(need, state.unmet[name])


def missing() -> str:
    """What the extension can not do without and this host does not have; "" where all is there."""
    return described({BY_NAME[name]: what for name, what in state.unmet.items() if BY_NAME[name].feature == ""})


def _timed(check: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(check)
    def timed(*args: Any) -> None:
        started = time.perf_counter()
        check(*args)
        state.ms += 1e3 * (time.perf_counter() - started)

    return timed


@_timed
def check_start() -> None:
    """Look at all that is there while the host loads scripts, once. Calls no function of the host. Raises nothing."""
    _check(need for need in TABLE if need.place not in PLACES and not _is_late(need))


def _is_late(need: Need) -> bool:
    """Whether it is there only when the host's API is."""
    return need.place == "modules.shared" and need.path[0] == "api"


@_timed
def check_page(demo: Any, app: Any, panel: bool = True) -> None:
    """Look at the page and the API of the host when both are there. demo: gradio's Blocks. app: FastAPI's. panel: whether ours was built.
    Raises nothing.
    """
    tabs = _TABS[:2] if state.lacks("control") else _TABS
    ids = {getattr(block, "elem_id", None) for block in getattr(demo, "blocks", {}).values()}
    routes = {getattr(route, "path", "") for route in getattr(app, "routes", ())}
    found: dict[Need, str] = {}
    for need in TABLE:
        name = need.name.partition(":")[2]
        if need.kind == "element" and ids:
            if name.startswith("script_") and not panel:
                continue
            gone = [tab for tab in tabs if not {one.format(tab=tab) for one in name.split("|")} & ids]
            found |= {need: f"is gone in {', '.join(gone)}"} if gone else {}
        elif need.kind == "route" and routes and not any(path.endswith(name) for path in routes):
            if need.since > _age():
                state.absent.add(need.name)
            else:
                found[need] = "is gone"
    state.checked += sum(need.kind in ("element", "route") for need in TABLE)
    state.report(found)
    _check(need for need in TABLE if _is_late(need))


def check_job(p: Any) -> None:
    """Look at the object that describes a job, when the first one comes, and at what was odd in one before: another extension may have made
    that. Raises nothing.
    """
    needs = [need for need in TABLE if need.kind == "field" and (not state.job_seen or need.name in state.unmet)]
    if not state.job_seen:
        state.job_seen = True
        state.checked += len(needs)
    found = {need: _examined_field(p, need) for need in needs if need.since <= _age()}
    state.mend(need for need, what in found.items() if not what)
    state.report({need: what for need, what in found.items() if what})


def _examined_field(p: Any, need: Need) -> str:
    try:
        return _unlike(need, getattr(p, need.path[0]))
    except AttributeError:
        return "is gone"
    except Exception as error:
        return _said(error)


def optional_field(p: Any, name: str) -> Any:
    """An attribute of a job that not every host has; the row's default where this one has it not, or otherwise."""
    need = BY_NAME[f"job:{name}"]
    return need.default if need.name in state.unmet else getattr(p, name, need.default)


def check_result(need: Need, result: Any) -> None:
    """Look at what a function of the host has returned that we wrap. Raises nothing."""
    if result is not None and (what := _unlike(need, result)):
        state.report({need: what})


def _check(needs: Iterable[Need]) -> None:
    found: dict[Need, str] = {}
    for need in needs:
        if need.lazy and need.place not in sys.modules:
            continue
        state.checked += 1
        if what := _examined(need):
            if need.since > _age():
                state.absent.add(need.name)
            else:
                found[need] = what
    state.report(found)


def _examined(need: Need) -> str:
    """What is not as the row says; "" where all is."""
    try:
        value = _resolve(need)
        if need.kind == "option" and not need.instead and not _registered(need.name):
            return "is gone; a value of it is still stored"
    except Exception as error:
        return _said(error)
    if need.kind in ("function", "patch", "callback"):
        return _uncallable(need, value)
    return _unlike(need, value)


def _uncallable(need: Need, function: Any) -> str:
    """In which way a function can not be called as the row says."""
    if not callable(function):
        return f"is {type(function).__name__}"
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # compiled: it does not tell
        return ""
    if need.kind == "patch":
        there = parameters(function, need.path[-1])
        lacking = [name for name in need.call.split() if name not in there]
        return f"has no parameter {', '.join(lacking)}" if lacking else ""
    words = [word.strip() for word in need.call.strip("()").split(",") if word.strip()]
    positional, named = [word for word in words if "=" not in word], [word.strip("=") for word in words if "=" in word]
    try:
        bound = signature.bind(*positional, **dict.fromkeys(named))
    except TypeError as error:
        return f"is called in another way: {error}"
    shifted = [name for name, value in bound.arguments.items() if isinstance(value, str) and name != value]
    return f"is called in another way: {', '.join(shifted)}" if shifted else ""


@functools.lru_cache(1)
def _age() -> str:
    """How new the host is, at least: the latest month of which something of the table is there."""
    dated = [need for need in TABLE if need.place not in PLACES and need.since > "2025-09"]
    dated = [need for need in dated if (not need.lazy or need.place in sys.modules) and (need.kind != "option" or _registered(need.name))]
    there = [need.since for need in dated if _there(need.name)]
    return max(there, default="2025-09")
