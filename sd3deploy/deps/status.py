"""The state of each requirement: facts gathered from disk and from this process, then judged."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import Enum

from sd3deploy import messages
from sd3deploy.deps.belongings import Belongings, belongings
from sd3deploy.deps.damage import Damage, damage
from sd3deploy.deps.requirement import Requirement
from sd3deploy.installed import Distribution, import_name
from sd3deploy.loaded import is_replaced, loaded_version
from sd3deploy.vendored import SpecifierSet, same_version, version

__all__ = ["Facts", "State", "Status", "check", "gather", "judge"]


class State(Enum):
    """What a requirement is in."""

    OK = "ok"
    MISSING = "missing"
    TOO_OLD = "too_old"
    TOO_NEW = "too_new"
    BROKEN = "broken"
    STALE = "stale"


_SENTENCES = {
    State.MISSING: "deps.state.missing",
    State.TOO_OLD: "deps.state.too_old",
    State.TOO_NEW: "deps.state.too_new",
    State.STALE: "deps.state.stale",
}


@dataclass(frozen=True)
class Facts:
    """What was seen: the version on disk, the one loaded in this process (each None where there is none), the damages.

    brought: the other distribution that brings the module in its place.
    """

    installed: str | None
    loaded: str | None
    damages: tuple[tuple[Damage, str], ...] = ()
    brought: Distribution | None = None


@dataclass(frozen=True)
class Status:
    """The verdict on one requirement. `detail` is a sentence for the user, "" where all is well.

    brought: the name of the other distribution that brings the module in its place, whose version is `installed` then. owners: where it
    would have to be changed, the other distributions that own its packages, so that it is not.
    """

    requirement: Requirement
    state: State
    installed: str | None
    loaded: str | None
    detail: str
    damages: frozenset[Damage] = frozenset()
    brought: str = ""
    owners: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.requirement.name

    @property
    def only_residue(self) -> bool:
        """Healthy, but a stopped pip left renamed folders behind: deleting them is all that is needed."""
        return self.state is State.BROKEN and self.damages == {Damage.RESIDUE} and self.installed is not None

    @property
    def wrong(self) -> bool:
        """Whether it would have to be installed: neither in order, nor swept, nor waiting for a restart alone."""
        return self.state not in (State.OK, State.STALE) and not self.only_residue

    @property
    def blocked(self) -> bool:
        """Whether it is wrong and stays so, because others own its files. What a killed repair of ours has left is looked at first."""
        return self.wrong and bool(self.owners) and Damage.INTERRUPTED not in self.damages


def check(requirements: Iterable[Requirement]) -> tuple[Status, ...]:
    """The state of each, from this environment's files and this process's loaded modules. Imports nothing, starts nothing."""
    return tuple(_check(requirement) for requirement in requirements)


def _check(requirement: Requirement) -> Status:
    own = belongings(requirement.name)
    status = judge(requirement, gather(requirement.name, own))
    return replace(status, owners=tuple(one.name for one in own.owners)) if status.wrong else status  # who is well is not asked for


def gather(name: str, own: Belongings) -> Facts:
    """Look at the disk and at sys.modules."""
    there = own.infos[0] if own.infos else own.brought
    return Facts(there.version if there else None, _loaded(name, there.version if there else ""), damage(name, own), own.brought)


def judge(requirement: Requirement, facts: Facts) -> Status:
    """Broken before stale: the files have to be mended first, then the process restarted. Stale before a wrong version only
    where the version on disk would do: otherwise it has to be changed anyway. What another distribution brings counts as there; its
    module may call itself by another version than the distribution, so the two are not compared."""
    installed = version(facts.installed)
    if facts.damages:
        state = State.BROKEN
    elif facts.installed is None:
        state = State.MISSING
    elif installed is not None and not SpecifierSet(requirement.specifier).contains(installed, prereleases=True):
        state = State.TOO_OLD if _below(requirement.specifier, facts.installed) else State.TOO_NEW
    elif facts.loaded is not None and not facts.brought and not same_version(facts.loaded, facts.installed):
        state = State.STALE
    else:
        state = State.OK
    damages = frozenset(kind for kind, _ in facts.damages)
    brought = facts.brought.name if facts.brought else ""
    return Status(requirement, state, facts.installed, facts.loaded, _detail(state, requirement, facts), damages, brought)


def _below(specifier: str, installed: str) -> bool:
    floors = [version(one.version) for one in SpecifierSet(specifier) if one.operator in (">=", ">", "~=", "==")]
    found = version(installed)
    return any(floor is not None and found is not None and found < floor for floor in floors)


def _loaded(name: str, on_disk: str) -> str | None:
    """The version that this process imported; None: not imported, or a module that does not tell. What was not replaced since is the one
    on disk, whatever it calls itself.
    """
    module = import_name(name)
    found = loaded_version(module)
    if found and on_disk and not is_replaced(name, module, on_disk):
        return on_disk
    return None if found in ("", "?") else found


def _detail(state: State, requirement: Requirement, facts: Facts) -> str:
    if state is State.OK:
        return ""
    if state is State.BROKEN:
        return messages.joined(*(messages.text(kind.value, example=example) for kind, example in facts.damages))
    known = {"name": requirement.name, "installed": facts.installed, "loaded": facts.loaded, "needed": requirement.specifier}
    return messages.text(_SENTENCES[state], **known)
