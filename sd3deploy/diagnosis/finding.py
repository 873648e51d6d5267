"""One thing that is wrong, in words, with the lines that show it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sd3deploy import messages
from sd3deploy.diagnosis.rule import Action, Advice, Cause, Kind

__all__ = ["Finding", "finding"]


@dataclass(frozen=True)
class Finding:
    """rule: its id. package: the distribution to change, "" where it is none. evidence: the lines that led here, of the last occurrence.
    line: of the first of them, counted from 1; 0 where there is no file. count: how often it was seen. source: where to read more.
    """

    rule: str
    cause: Cause
    action: Action
    package: str
    message: str
    remedy: str
    evidence: tuple[str, ...] = ()
    line: int = 0
    count: int = 1
    source: str = ""

    def report(self) -> dict[str, Any]:
        """As JSON-able values."""
        return {**self.__dict__, "evidence": list(self.evidence)}


_AS_THE_RULE_SAYS = Advice()


def finding(
    rule: Kind, values: Mapping[str, object], advice: Advice = _AS_THE_RULE_SAYS, evidence: tuple[str, ...] = (), line: int = 0
) -> Finding:
    """Put a kind of failure into words. values: for the placeholders of its sentences; `package` is always one of them."""
    package = advice.package or rule.package
    words = {"package": package, **values, **advice.values}
    id = advice.sentence or f"rule.{rule.id}"
    return Finding(
        rule=rule.id,
        cause=advice.cause or rule.cause,
        action=advice.action or rule.action,
        package=package,
        message=messages.text(id, **words),
        remedy=messages.remedy(id, **words) or messages.remedy(f"rule.{rule.id}", **words),
        evidence=evidence,
        line=line,
        source=rule.source,
    )
