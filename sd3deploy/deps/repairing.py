"""NumPy in halves, and other host packages whose files are broken: found, and put back to the version that the host pins.

Two kinds look alike to the user ("cannot import name 'broadcast_to' from 'numpy.lib.stride_tricks'"):
on disk, where files of two versions are mixed and every new process fails; and in this process, where one version is
loaded and another lies on disk, so that whatever is imported late comes from the other one.
"""

from __future__ import annotations

import sys
from pathlib import Path

from sd3deploy.deps.execution import Outcome, apply
from sd3deploy.deps.options import Options
from sd3deploy.deps.pip import Progress, run
from sd3deploy.deps.planning import plan
from sd3deploy.deps.requirement import Requirement, host_packages, requirements
from sd3deploy.deps.status import State, Status, check
from sd3deploy.deps.stopping import stoppable
from sd3deploy.errors import DependencyError, RestartRequired
from sd3deploy.installed import distributions, import_name, pins, versions
from sd3deploy.vendored import canonicalize_name, same_version

__all__ = ["diagnose", "diagnose_numpy", "repair"]


def diagnose(name: str) -> Status:
    """BROKEN (the files), STALE (this process loaded another version than the one on disk), MISSING or OK. 30 to 50 ms for NumPy."""
    return check([Requirement(name, "", "host")])[0]


def diagnose_numpy() -> Status:
    """diagnose("numpy"): the one that is known to break."""
    return diagnose("numpy")


def repair(name: str, host_root: Path | None = None, options: Options | None = None, progress: Progress | None = None) -> Outcome:
    """Put a broken host package back to the version that the host pins (else the one that it was): its files are moved away,
    the right version is installed without dependencies, and all is put back if that fails. Healthy: nothing happens. Files that another
    distribution owns too are left alone, with a sentence (`apply`).

    Raises RestartRequired when this process had loaded the package: it is mended on disk, but not in memory.
    Raises DependencyError: not one of the host's or ours, no version known, or the install failed.
    """
    options = options or Options(host_root=host_root)
    if canonicalize_name(name) not in host_packages() | {canonicalize_name(one.name) for one in requirements()}:
        raise DependencyError("repair.not_ours", name=name)
    status = diagnose(name)
    if status.state not in (State.BROKEN, State.STALE):
        return Outcome({}, 0.0, "")
    wanted = pins(host_root).get(canonicalize_name(name))
    if status.state is State.BROKEN and not status.only_residue and not status.blocked and wanted is None:
        wanted = _only_version(status)
    todo = plan(check([Requirement(name, f"=={wanted}" if wanted else "", "host")]), options, versions())
    outcome = Outcome({}, 0.0, "") if todo.empty else apply(todo, options, progress)
    if status.loaded and (outcome.changed or status.state is State.STALE):
        now = outcome.changed.get(name, status.installed)
        late = "repair.restart" if outcome.changed else "deps.restart"
        raise RestartRequired(late, name=name, loaded=status.loaded, installed=now, before=status.installed, detail=status.detail)
    if outcome.changed:
        _prove_import(name, options)
    return outcome


def _only_version(status: Status) -> str:
    """Without a pin: the version on disk where there is just one, else the one that this process has loaded."""
    found = {one.version for one in distributions(status.name)}
    if len(found) == 1:
        return found.pop()
    if status.loaded and any(same_version(status.loaded, one) for one in found):
        return status.loaded
    raise DependencyError("repair.no_version", name=status.name, detail=status.detail, executable=sys.executable)


def _prove_import(name: str, options: Options) -> None:
    """In a process of its own: what is loaded here must not change."""
    with stoppable(lambda: False):  # it is done already: too late for a stop
        code, output = run((sys.executable, "-c", f"import {import_name(name)}"), options)
    if code:
        last = output.strip().splitlines()[-1] if output.strip() else f"exit code {code}"
        raise DependencyError("repair.not_importable", name=name, detail=last, executable=sys.executable)
