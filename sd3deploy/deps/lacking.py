"""The packages of a text encoder that are not there yet: whether they come when it is chosen, or can not."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sd3deploy import messages
from sd3deploy.deps.options import Options
from sd3deploy.deps.requirement import requirements
from sd3deploy.deps.status import State, Status, check

__all__ = ["Lack", "lack"]


# The sentence that an installer would refuse with → the same in a few words, for a list of choices.
_REFUSED = {"deps.offline": "lack.offline", "deps.not_allowed": "lack.not_allowed", "deps.forbidden": "lack.forbidden"}


@dataclass(frozen=True)
class Lack:
    """names: of the packages that are not in order. installs: those of them that have to be installed. refusal: why a choice that needs
    them can not be had, in a few words; "" where it can.
    """

    names: tuple[str, ...] = ()
    installs: tuple[str, ...] = ()
    refusal: str = ""


def lack(groups: Iterable[str], options: Options) -> Lack:
    """What is not in order of the core requirements and of those groups of pyproject.toml. It looks at the disk, a few milliseconds for
    each package.
    """
    found = [one for one in check(requirements(groups)) if one.state is not State.OK]
    installs = _names(one for one in found if one.wrong and not one.blocked)
    if refusal := options.forbids if installs else "":
        said = messages.text(_REFUSED[refusal], names=", ".join(installs))
    elif blocked := [one for one in found if one.blocked]:
        owners = dict.fromkeys(owner for one in blocked for owner in one.owners)
        said = messages.text("lack.shared", names=", ".join(_names(blocked)), owners=", ".join(owners))
    elif stale := _names(one for one in found if one.state is State.STALE):
        said = messages.text("lack.restart", names=", ".join(stale))
    else:
        said = ""
    return Lack(_names(found), installs, said)


def _names(statuses: Iterable[Status]) -> tuple[str, ...]:
    return tuple(one.name for one in statuses)
