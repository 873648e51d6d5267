"""Which exact versions to install: asked of the index, then held against what is installed.

pip's own resolver would do the first half, but it moves packages of the host, and gives up on hosts whose packages already
contradict each other. So the question is asked without dependencies, and only what the candidates themselves need is looked at:
a package that is there must do as it is; a missing one is added; one of the host's that is missing is the host's business.
"""

from __future__ import annotations

import json
import platform
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from sd3deploy.deps.belongings import belongings
from sd3deploy.deps.failure import classify
from sd3deploy.deps.options import Options
from sd3deploy.deps.pip import report_command, run, shown
from sd3deploy.deps.planning import Change, Plan, with_command
from sd3deploy.deps.requirement import host_packages
from sd3deploy.errors import DependencyError
from sd3deploy.installed import distributions, needs, versions, writable_site
from sd3deploy.vendored import Specification, canonicalize_name, version

__all__ = ["Candidate", "Clash", "about", "demanded", "examine", "failed", "resolve", "write_constraints"]

# Each round either goes one version down or adds packages that are needed. bitsandbytes has had about 3 releases per torch minimum.
_ROUNDS = 12


@dataclass(frozen=True)
class Candidate:
    """A version that the index offers, and what it says it needs (Requires-Dist lines)."""

    name: str
    version: str
    needs: tuple[str, ...]


@dataclass(frozen=True)
class Clash:
    """A candidate needs another version of something that is installed and stays as it is."""

    candidate: Candidate
    package: str
    needed: str
    found: str


def resolve(plan: Plan, options: Options) -> Plan:
    """The plan with exact versions, and with the missing packages that those need. Installs nothing.

    Changes that are exact already are left alone: the same version needs what it needed before.
    Raises DependencyError: nothing fits, a package of the host would have to move, no network, …
    """
    here = versions()
    exact: dict[str, Change] = {canonicalize_name(change.name): change for change in plan.changes if _exact(change)}
    searched: dict[str, Change] = {canonicalize_name(change.name): change for change in plan.changes if not _exact(change)}
    limits: dict[str, str] = {name: demanded(name) for name in searched}
    fixed = {**here, **{name: change.specifier.removeprefix("==") for name, change in exact.items()}}
    clash = None
    for _ in range(_ROUNDS if searched else 0):
        candidates = _ask(searched, limits, plan, options, clash)
        missing, clash = examine(candidates, fixed, host_packages())
        missing = tuple(one for one in missing if belongings(one.name).brought is None)
        if clash:
            name = canonicalize_name(clash.candidate.name)
            limits[name] = ",".join(filter(None, (limits[name], f"<{clash.candidate.version}")))
        elif missing:
            searched |= {canonicalize_name(one.name): Change(one.name, None, str(one.specifier), replace=True) for one in missing}
            limits |= {canonicalize_name(one.name): demanded(one.name) for one in missing}
        else:
            found = tuple(replace(searched[canonicalize_name(one.name)], specifier=f"=={one.version}") for one in candidates)
            return with_command(replace(plan, changes=(*exact.values(), *found)), options, here)
    if clash:
        raise _host_would_move(clash)
    return with_command(plan, options, here)


def examine(
    candidates: Iterable[Candidate], fixed: Mapping[str, str], host: frozenset[str]
) -> tuple[tuple[Specification, ...], Clash | None]:
    """Pure: what the candidates need and nobody has, and the first contradiction to what is there.

    fixed: normalized name → version of what stays as it is. A missing package of the host is not reported: the host installs its own.
    """
    candidates = tuple(candidates)
    chosen = {canonicalize_name(one.name): one.version for one in candidates}
    missing: dict[str, Specification] = {}
    for candidate in candidates:
        for need in needs(candidate.needs):
            name = canonicalize_name(need.name)
            found = chosen.get(name) or fixed.get(name)
            if found is None:
                if name not in host:
                    missing.setdefault(name, need)
            elif version(found) and not need.specifier.contains(found, prereleases=True):
                return (), Clash(candidate, need.name, str(need.specifier), found)
    return tuple(missing.values()), None


def demanded(name: str) -> str:
    """The versions of a distribution that the installed packages ask for, as one specifier: what we add must not break theirs."""
    asked = [need for one in distributions() for need in needs(one.requires()) if canonicalize_name(need.name) == canonicalize_name(name)]
    return ",".join(dict.fromkeys(str(need.specifier) for need in asked if str(need.specifier)))


def write_constraints(plan: Plan, file: Path) -> None:
    """One line for everything that is installed and stays."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{line}\n" for line in plan.constraints), encoding="utf-8")


def failed(plan: Plan, code: int, output: str, command: tuple[str, ...]) -> DependencyError:
    """The error for a run that failed, with everything that its sentence may want to name."""
    id, detail = classify(output, code)
    return DependencyError(id, **about(plan, command), detail=detail)


def about(plan: Plan, command: tuple[str, ...] = ()) -> dict[str, str]:
    """The values that the sentences of this package use."""
    return {
        "names": ", ".join(change.name for change in plan.changes) or ", ".join(plan.sweep),
        "command": shown(command or plan.command),
        "folder": str(writable_site()),
        "python": ".".join(map(str, sys.version_info[:3])),
        "executable": sys.executable,
        "platform": f"{platform.system()} {platform.machine()}",
        "size": f"{(plan.download + plan.unpacked) / 1_000_000:.0f}",
    }


def _ask(searched: Mapping[str, Change], limits: Mapping[str, str], plan: Plan, options: Options, clash: Clash | None) -> list[Candidate]:
    """One dry run. Demands of installed packages that nothing can meet are dropped: the host lives with that contradiction already."""
    try:
        return _dry_run([_line(change, limits[name]) for name, change in searched.items()], plan, options)
    except DependencyError as error:
        if error.id not in ("deps.no_wheel", "deps.conflict"):
            raise
        if clash:  # nothing older is left
            raise _host_would_move(clash) from error
        if not any(limits.values()):
            raise
        return _dry_run([_line(change, "") for change in searched.values()], plan, options)


def _dry_run(wanted: list[str], plan: Plan, options: Options) -> list[Candidate]:
    # A folder of its own: a preview may ask while an install is running.
    with tempfile.TemporaryDirectory() as folder:
        constraints, report = Path(folder, "constraints.txt"), Path(folder, "report.json")
        write_constraints(plan, constraints)
        command = report_command(wanted, options, constraints, report)
        code, output = run(command, options)
        if code != 0:
            raise failed(plan, code, output, command)
        items = json.loads(report.read_text(encoding="utf-8"))["install"]
    return [
        Candidate(item["metadata"]["name"], item["metadata"]["version"], tuple(item["metadata"].get("requires_dist", ()))) for item in items
    ]


def _line(change: Change, limit: str) -> str:
    return f"{change.name}{','.join(filter(None, (change.specifier, limit)))}"


def _exact(change: Change) -> bool:
    return change.specifier.startswith("==") and "," not in change.specifier and "*" not in change.specifier


def _host_would_move(clash: Clash) -> DependencyError:
    return DependencyError(
        "deps.host_package",
        name=f"{clash.candidate.name} {clash.candidate.version}",
        package=clash.package,
        needed=clash.needed,
        found=clash.found,
    )
