"""The order of a refresh, and its verdict."""

from __future__ import annotations

import importlib
import logging
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass

from sd3deploy import messages
from sd3deploy.refresh import caches, finders, guards, lazy
from sd3deploy.refresh.package import Package, changed_on_disk, normal, read_package
from sd3deploy.refresh.private import LIBRARIES

__all__ = ["Restart", "Verdict", "refresh"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Restart:
    """A distribution that only a new process can use. `reason` is a sentence for the user."""

    name: str
    loaded: str
    on_disk: str
    reason: str


@dataclass(frozen=True)
class Verdict:
    """refreshed: distributions that are usable now. restart: those that are not, and why. steps: what was changed, for the log."""

    refreshed: tuple[str, ...]
    restart: tuple[Restart, ...]
    seconds: float
    steps: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """True when nothing needs a new process."""
        return not self.restart


def refresh(distributions: Iterable[str]) -> Verdict:
    """Make changed distributions usable in this process; ask for a restart where that can not be done.

    Give the names of what was installed, such as "bitsandbytes". Safe to repeat. Hold the host's queue lock: no model may be
    loading or generating meanwhile. Raises nothing; a library in use that changed on disk is left exactly as it is.
    """
    started = time.perf_counter()
    steps: list[str] = []
    restart: list[Restart] = []
    finders.invalidate()
    packages = [read_package(name) for name in sorted({normal(name) for name in distributions})]
    restart += [_replaced(package) for package in packages if package.replaced]
    steps += [f"{package.name}: not installed" for package in packages if not package.version and not package.loaded]
    haunted = [package for package in packages if package.haunted]
    restart += [_entry(package, "refresh.haunted") for package in haunted]
    hot = [package for package in packages if package.version and not package.replaced and package not in haunted]
    # A library whose files are no longer those in memory must not be corrected by what its new files say.
    swapped = [library for library in LIBRARIES if changed_on_disk(library)]
    known = {normal(entry.name) for entry in restart}
    restart += [_replaced(read_package(library)) for library in swapped if normal(library) not in known]

    namespaces, residue = finders.clean(hot)
    steps += residue
    usable: list[Package] = []
    for package in hot:
        if (failure := _import(package)) is None:
            usable.append(package)
        else:
            restart.append(failure)
            steps.append(f"{package.name}: {failure.reason}")
    libraries = tuple(library for library in LIBRARIES if library in sys.modules and library not in swapped)
    if usable:
        try:
            steps += caches.correct_tables(usable)
            steps += guards.replay(usable, libraries)
            steps += lazy.correct_lazy_modules(usable, libraries)
            steps += lazy.replace_copies(usable, libraries, namespaces)
        except Exception as error:  # an oddity of a library that no step foresaw: what can not be vouched for needs a new process
            log.warning("refresh stopped: %s", error, exc_info=True)
            restart += [_entry(package, "refresh.stopped", error=error) for package in usable]
            usable = []
    verdict = Verdict(tuple(package.name for package in usable), tuple(restart), time.perf_counter() - started, tuple(steps))
    log.debug("refresh %s: restart %s, %.3f s, %s", verdict.refreshed, [entry.name for entry in restart], verdict.seconds, steps)
    return verdict


def _import(package: Package) -> Restart | None:
    """Import a package before anybody is told that it is there. Returns why it can not be used, or None."""
    for name in package.imports:
        try:
            importlib.import_module(name)
        except (Exception, SystemExit) as error:
            log.debug("import %s", name, exc_info=True)
            if isinstance(error, ModuleNotFoundError) and error.name and error.name.partition(".")[0] != name.partition(".")[0]:
                return _entry(package, "refresh.needs-module", module=error.name)
            # torch's registry outlives the module: operators of a failed or earlier import are there until the process ends
            again = "multiple times" in str(error)
            return _entry(package, "refresh.registered" if again else "refresh.import-failed", error=_short(error))
    return None


def _replaced(package: Package) -> Restart:
    return _entry(package, "refresh.replaced" if package.version else "refresh.removed")


def _entry(package: Package, id: str, **values: object) -> Restart:
    loaded = "" if package.loaded == "?" else package.loaded
    values.update(name=package.name, loaded=loaded, on_disk=package.version)
    return Restart(package.name, loaded, package.version, f"{messages.text(id, **values)} {messages.remedy(id, **values)}".strip())


def _short(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:299]}…"
