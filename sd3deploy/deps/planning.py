"""What would be done about a set of statuses, as data: shown before it is done, and tested without doing it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from sd3deploy import messages
from sd3deploy.deps.options import Options
from sd3deploy.deps.pip import install_command, shown
from sd3deploy.deps.status import State, Status
from sd3deploy.deps.workspace import workspace
from sd3deploy.vendored import SpecifierSet, canonicalize_name, version

__all__ = ["Change", "Plan", "plan"]

# Bytes to download and bytes on disk: the wheels of the newest version for Linux x86-64 and CPython 3.11, as the registry lists
# them and as their archives unpack (accelerate 1.15.0, bitsandbytes 0.50.2, numpy 2.1.2, packaging 26.3,
# protobuf 7.36.2, sentencepiece 0.2.3). Other platforms differ somewhat.
_SIZES = {
    "accelerate": (394_295, 1_553_934),
    "bitsandbytes": (43_139_553, 129_151_546),
    "numpy": (16_338_306, 55_878_733),
    "packaging": (129_956, 499_179),
    "protobuf": (343_223, 1_388_238),
    "sentencepiece": (1_713_961, 5_532_201),
}


@dataclass(frozen=True)
class Change:
    """One distribution that would change: from which version (None: absent) to what (a specifier, exact once resolved).

    replace: its files are moved away first, because they are broken or partly there. download, unpacked: bytes, None if unknown.
    """

    name: str
    before: str | None
    specifier: str
    replace: bool = False
    download: int | None = None
    unpacked: int | None = None


@dataclass(frozen=True)
class Plan:
    """changes: what is installed. sweep: healthy distributions that only need leftovers deleted. blocked: those that are wrong and stay
    so, because others own their files. stale: those that only a restart helps. command: what is run. constraints: the lines of the file
    that the command names, everything installed now.
    """

    statuses: tuple[Status, ...]
    changes: tuple[Change, ...] = ()
    sweep: tuple[str, ...] = ()
    blocked: tuple[Status, ...] = ()
    stale: tuple[Status, ...] = ()
    command: tuple[str, ...] = ()
    constraints: tuple[str, ...] = ()

    @property
    def empty(self) -> bool:
        """Nothing to do on disk, and nothing that can not be done."""
        return not (self.changes or self.sweep or self.blocked)

    @property
    def download(self) -> int:
        """Bytes to fetch, as far as known."""
        return sum(change.download or 0 for change in self.changes)

    @property
    def unpacked(self) -> int:
        """Bytes on disk, as far as known."""
        return sum(change.unpacked or 0 for change in self.changes)

    def describe(self) -> str:
        """The preview: one line for each change with its size, then the exact command."""
        if self.empty:
            return messages.text("deps.plan.nothing")
        lines = [_line(change) for change in self.changes]
        lines += [messages.text("deps.plan.sweep", name=name) for name in self.sweep]
        lines += [messages.text("deps.plan.blocked", name=one.name, owners=", ".join(one.owners)) for one in self.blocked]
        if self.command:
            lines.append(shown(self.command))
        return "\n".join(lines)


def plan(statuses: Iterable[Status], options: Options, installed: Mapping[str, str] | None = None) -> Plan:
    """Decide. Pure: `installed` (normalized name → version) becomes the constraints; apply() takes a fresh look anyway."""
    statuses = tuple(statuses)
    todo = Plan(
        statuses,
        changes=tuple(_change(one) for one in statuses if one.wrong and not one.blocked),
        sweep=tuple(one.name for one in statuses if one.only_residue),
        blocked=tuple(one for one in statuses if one.blocked),
        stale=tuple(one for one in statuses if one.state is State.STALE),
    )
    return with_command(todo, options, installed or {})


def with_command(plan: Plan, options: Options, installed: Mapping[str, str]) -> Plan:
    """The plan with the command and the constraints that belong to its changes."""
    if not plan.changes:
        return plan
    moved = {canonicalize_name(change.name) for change in plan.changes}
    lines = tuple(f"{name}=={found}" for name, found in sorted(installed.items()) if name not in moved and version(found))
    wanted = [f"{change.name}{change.specifier}" for change in plan.changes]
    return replace(plan, command=install_command(wanted, options, constraints_file()), constraints=lines)


def constraints_file() -> Path:
    """Where the constraints are written: rewritten under the lock before each run."""
    return workspace() / "constraints.txt"


def _change(status: Status) -> Change:
    """A broken distribution comes back in the version that it had, where that one will do."""
    requirement = status.requirement
    specifier = requirement.specifier
    kept = version(status.installed)
    if status.state is State.BROKEN and kept is not None and SpecifierSet(specifier).contains(kept, prereleases=True):
        specifier = f"=={status.installed}"
    download, unpacked = _SIZES.get(canonicalize_name(requirement.name), (None, None))
    # Also a missing one: what a failed install leaves of it is then removed.
    whole = status.state in (State.BROKEN, State.MISSING)
    return Change(requirement.name, status.installed, specifier, whole, download, unpacked)


def _line(change: Change) -> str:
    id = "deps.plan.add" if change.before is None else "deps.plan.replace" if change.replace else "deps.plan.change"
    after = change.specifier or messages.text("deps.plan.any")
    return messages.text(id, name=change.name, before=change.before, after=after, size=_megabytes(change.download)).strip()


def _megabytes(size: int | None) -> str:
    return "" if size is None else messages.text("deps.plan.size", size=f"{size / 1_000_000:.1f}")
