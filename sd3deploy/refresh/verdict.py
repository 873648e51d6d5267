"""The order of a refresh, and its verdict."""

from __future__ import annotations

import importlib
import logging
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from sd3deploy import installed, messages
from sd3deploy.errors import DependencyError, RestartRequired
from sd3deploy.loaded import is_replaced, note
from sd3deploy.refresh import caches, consumers, finders, imports
from sd3deploy.refresh.package import Package, read_package
from sd3deploy.refresh.private import LIBRARIES
from sd3deploy.vendored import canonicalize_name

__all__ = ["Unusable", "Verdict", "forget", "refresh"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Unusable:
    """A distribution that this process can not use. `reason` is a sentence for the user, with what to do about it."""

    name: str
    loaded: str
    on_disk: str
    reason: str


@dataclass(frozen=True)
class Verdict:
    """refreshed: distributions that are usable now. restart: those that only a new process can use. failed: those that no process can use
    as they are. steps: what was changed, for the log.
    """

    refreshed: tuple[str, ...]
    restart: tuple[Unusable, ...]
    seconds: float
    steps: tuple[str, ...]
    failed: tuple[Unusable, ...] = ()

    @property
    def ok(self) -> bool:
        """True when all that is installed can be used here and now."""
        return not self.restart and not self.failed

    def require(self) -> None:
        """Raise RestartRequired where a restart would help, else DependencyError where something can not be used."""
        for one in self.restart:
            raise RestartRequired("restart.needed", name=one.name, reason=one.reason)
        for one in self.failed:
            raise DependencyError("refresh.unusable", name=one.name, reason=one.reason)


def refresh(distributions: Iterable[str], cancelled: Callable[[], bool] = lambda: False) -> Verdict:
    """Make changed distributions usable in this process, and ask the libraries whether they know; say which need a restart.

    Give the names of what was installed, such as "bitsandbytes". Safe to repeat. Called with the host's queue held, from any thread: no
    model may be loading or generating meanwhile. Takes half a second, or up to two minutes where a new process has to be asked; where
    `cancelled` answers True meanwhile it ends at once, and the verdict says nothing. Raises nothing; a library in use that changed on disk
    is left exactly as it is.
    """
    started = time.perf_counter()
    steps: list[str] = []
    restart: list[Unusable] = []
    failed: list[Unusable] = []
    finders.invalidate()
    found = [read_package(name) for name in sorted({canonicalize_name(name) for name in distributions})]
    steps += [f"{package.name}: not installed" for package in found if not package.version and not package.loaded]
    hot = []
    for package in found:
        if package.replaced:
            restart.append(_entry(package, "refresh.replaced" if package.version else "refresh.removed"))
        elif package.haunted:
            restart.append(_entry(package, "refresh.haunted"))
        elif package.version:
            hot.append(package)
    namespaces, residue = finders.clean(hot)
    steps += residue
    usable = [package for package in hot if _import(package, restart, failed, cancelled)]
    if usable:
        libraries = tuple(library for library in LIBRARIES if library in sys.modules)
        # A library whose files are no longer those in memory must not be corrected by what its new files say.
        same = tuple(library for library in libraries if not _is_swapped(library))
        try:
            steps += caches.correct_map(usable)
            caches.forget(usable, libraries)
            steps += caches.correct_flags(usable, libraries)
            steps += caches.correct_backends(libraries)
            steps += imports.make_up(usable, same)
            steps += imports.replace_namespaces(namespaces)
            caches.forget(usable, libraries)
            for package in list(usable):
                if entry := _disbelieved(package, libraries, cancelled):
                    restart.append(entry)
                    usable.remove(package)
        except Exception as error:  # an oddity of a library that no step foresaw: what can not be vouched for needs a new process
            log.warning("refresh stopped: %s", error, exc_info=True)
            restart += [_entry(package, "refresh.stopped", error=error) for package in usable]
            usable = []
    seconds = time.perf_counter() - started
    verdict = Verdict(tuple(package.name for package in usable), tuple(restart), seconds, tuple(steps), tuple(failed))
    log.debug("refresh %s: restart %s, failed %s, %.3f s, %s", verdict.refreshed, verdict.restart, verdict.failed, seconds, steps)
    return verdict


def forget(distributions: Iterable[str]) -> None:
    """Let the libraries look for these anew when they are asked next, without importing anything. Called from any thread."""
    found = [read_package(name) for name in distributions]
    if found:
        finders.invalidate()
        caches.correct_map(found)
        caches.forget(found, LIBRARIES)


def _is_swapped(library: str) -> bool:
    return is_replaced(library, library, installed.version(library) or "")


def _import(package: Package, restart: list[Unusable], failed: list[Unusable], cancelled: Callable[[], bool]) -> bool:
    """Import a package before anybody is told that it is there; where that fails, tell whether a new process could."""
    for name in package.imports:
        try:
            importlib.import_module(name)
        except (Exception, SystemExit) as error:
            log.debug("import %s", name, exc_info=True)
            if isinstance(error, ModuleNotFoundError) and error.name and error.name.partition(".")[0] != name.partition(".")[0]:
                failed.append(_entry(package, "refresh.needs-module", module=error.name))
            elif "multiple times" in str(error):  # torch's registry outlives the module: what an earlier import has registered stays
                restart.append(_entry(package, "refresh.registered", error=_short(error)))
            elif all(consumers.in_a_new_process([(module, "True") for module in package.imports], cancelled)):
                restart.append(_entry(package, "refresh.only-anew", error=_short(error)))
            else:
                failed.append(_entry(package, "refresh.import-failed", error=_short(error)))
            return False
    note(package.name, package.version)
    return True


def _disbelieved(package: Package, libraries: tuple[str, ...], cancelled: Callable[[], bool]) -> Unusable | None:
    """What to tell where a library of the model stack still does without the package, and would not in a new process."""
    doubts = consumers.stale(package, libraries, cancelled)
    if not doubts:
        return None
    log.info("%s %s: a new process answers otherwise: %s", package.name, package.version, doubts)
    module, expression = doubts[0]
    library = module.partition(".")[0]
    if library in LIBRARIES and _is_swapped(library):
        return _entry(read_package(library), "refresh.replaced")
    return _entry(package, "refresh.disbelieved", library=library, expression=expression)


def _entry(package: Package, id: str, **values: object) -> Unusable:
    loaded = "" if package.loaded == "?" else package.loaded
    values.update(name=package.name, loaded=loaded, on_disk=package.version)
    return Unusable(package.name, loaded, package.version, messages.joined(messages.text(id, **values), messages.remedy(id, **values)))


def _short(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:299]}…"
