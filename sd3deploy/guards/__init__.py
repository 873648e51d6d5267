"""Guards: nothing that SD3 can not run reaches the device, and what can be mended is mended.

    Job (facts) → each guard's findings → Outcome (what is changed, what is refused) → whoever applies and shows it

A new guard is a file with `check(job) -> tuple[Finding, ...]`, a line in GUARDS, and its sentences in messages/.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from sd3deploy import messages
from sd3deploy.errors import JobRefused
from sd3deploy.guards import attention, prompt, resolution, sampling
from sd3deploy.guards.finding import MODES, Action, Finding, Mode, action
from sd3deploy.guards.job import Job
from sd3deploy.guards.number import number

__all__ = ["DEFAULT_MODE", "GUARDS", "MODES", "Action", "Finding", "Job", "Mode", "Outcome", "check"]

GUARDS: Mapping[str, Callable[[Job], tuple[Finding, ...]]] = {
    "attention": attention.check,
    "size": resolution.check,
    "sampling": sampling.check,
    "prompt": prompt.check,
}
DEFAULT_MODE: Mode = "fix"


@dataclass(frozen=True)
class Outcome:
    """What the guards say about a job: each finding with what is done about it. job: as it is after the changes."""

    job: Job
    decided: tuple[tuple[Action, Finding], ...] = ()

    @property
    def refused(self) -> tuple[Finding, ...]:
        """The findings that stop the job."""
        return tuple(found for done, found in self.decided if done == "refuse")

    @property
    def change(self) -> dict[str, object]:
        """Fields of the job → their new values; of `processors`, see attention.restore."""
        return {field: value for done, found in self.decided if done == "apply" for field, value in found.change.items()}

    @property
    def code(self) -> int:
        """The exit code: 0 runs as asked, 1 changed, 2 refused."""
        return 2 if self.refused else int(bool(self.change))

    @property
    def told(self) -> list[tuple[Finding, Action]]:
        """What a person has to know: of a job that is refused, only why."""
        return [(found, done) for done, found in self.decided if done == "refuse" or not self.refused]

    def raise_refused(self) -> None:
        """Raise JobRefused if the job is refused."""
        if refused := self.refused:
            message = messages.joined(*(found.message for found in refused), messages.text("guard.refuse"))
            raise JobRefused(refused[0].id, message, messages.joined(*(found.remedy for found in refused)))

    def report(self) -> dict[str, Any]:
        """As JSON-able values; sizes in px, as they are after the changes, and as they were given where they can not be made."""
        findings = [asdict(found) | {"action": done, "told": found.told(done)} for done, found in self.decided]
        sides = self.job.width, self.job.height
        width, height = (str(side) if isinstance(side, float) and number(side) is None else side for side in sides)
        return {"findings": findings, "width": width, "height": height, "sampler": self.job.sampler, "code": self.code}


def check(job: Job, modes: Mapping[str, Mode] | None = None, guards: Iterable[str] = GUARDS) -> Outcome:
    """Ask the guards of those names about a job; `modes`: guard → mode, DEFAULT_MODE where it has none."""
    decided: list[tuple[Action, Finding]] = []
    for name in guards:
        mode = (modes or {}).get(name, DEFAULT_MODE)
        for found in GUARDS[name](job) if mode != "off" else ():
            decided.append((action(mode, found), found))
    change = Outcome(job, tuple(decided)).change
    return Outcome(replace(job, **{field: value for field, value in change.items() if hasattr(job, field)}), tuple(decided))
