"""The packages of a text encoder that are not there yet: whether they come when it is chosen, or can not."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sd3deploy import messages
from sd3deploy.deps.options import Options
from sd3deploy.deps.requirement import requirements
from sd3deploy.deps.status import State, check

__all__ = ["Lack", "lack"]


# The sentence that an installer would refuse with → the same in a few words, for a list of choices.
_REFUSED = {"deps.offline": "lack.offline", "deps.not_allowed": "lack.not_allowed", "deps.forbidden": "lack.forbidden"}


@dataclass(frozen=True)
class Lack:
    """names: of the packages. refusal: the id of the sentence on why they can not be installed; "" where they can."""

    names: tuple[str, ...] = ()
    refusal: str = ""

    @property
    def sentence(self) -> str:
        """Why a choice that needs them can not be had, in a few words; "" where it can."""
        return messages.text(_REFUSED[self.refusal], names=", ".join(self.names)) if self.refusal else ""


def lack(groups: Iterable[str], options: Options) -> Lack:
    """What is missing or broken of the core requirements and of those groups of pyproject.toml. It looks at the disk, a few milliseconds
    for each package.
    """
    names = tuple(one.name for one in check(requirements(groups)) if one.state is not State.OK)
    return Lack(names, options.forbids if names else "")
