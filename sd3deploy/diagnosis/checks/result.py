"""What a check says, and what it says while it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from sd3deploy import messages
from sd3deploy.diagnosis.finding import Finding

__all__ = ["Cancelled", "Outcome", "Progress", "Result", "Say", "State", "conclude"]

State = Literal["ok", "warning", "failed", "skipped", "cancelled"]
Say = Callable[[float, str], None]  # fraction of the step from 0 to 1, and what it is at; raises Cancelled


class Cancelled(Exception):
    """Somebody does not want to wait any longer."""


@dataclass(frozen=True)
class Progress:
    """Where a run is. number, total: of the steps, from 1. fraction: of this step, 0 to 1. text: what it is at, "" between two."""

    id: str
    title: str
    number: int
    total: int
    fraction: float = 0.0
    text: str = ""

    def report(self) -> dict[str, Any]:
        """As JSON-able values."""
        return dict(self.__dict__)


@dataclass(frozen=True)
class Outcome:
    """What a step has found. facts: JSON-able values for whoever wants to know more."""

    state: State
    message: str
    remedy: str = ""
    findings: tuple[Finding, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Result(Outcome):
    """One step that is over."""

    id: str
    title: str
    seconds: float = 0.0

    @property
    def healthy(self) -> bool:
        """Nothing that has to be done. A step that was left out takes nothing away: what it waited for says why."""
        return self.state in ("ok", "warning", "skipped") and all(found.action == "none" for found in self.findings)

    def report(self) -> dict[str, Any]:
        """As JSON-able values."""
        findings = [found.report() for found in self.findings]
        return {"id": self.id, "title": self.title, **self.__dict__, "findings": findings, "facts": dict(self.facts)}

    @classmethod
    def of(cls, report: Mapping[str, Any]) -> Result:
        """The result that a report was made of."""
        findings = (Finding(**{**found, "evidence": tuple(found["evidence"])}) for found in report["findings"])
        return cls(**{**report, "findings": tuple(findings)})


def conclude(message: str, failed: Iterable[Finding], warned: Iterable[Finding] = (), facts: Mapping[str, Any] | None = None) -> Outcome:
    """The outcome of a step that has looked at several things. message: where nothing is wrong."""
    failed, warned = tuple(failed), tuple(warned)
    findings = (*failed, *warned)
    if not findings:
        return Outcome("ok", message, facts=facts or {})
    first = findings[0]
    more = messages.text("checks.more", count=len(findings) - 1) if findings[1:] else ""
    return Outcome("failed" if failed else "warning", messages.joined(first.message, more), first.remedy, findings, facts or {})
