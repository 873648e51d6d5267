"""What a known failure is, what causes it and what helps: `families` decide by structure, `knowledge` has what is known by a sentence."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Literal

from sd3deploy.diagnosis.failure import Failure, failure_of
from sd3deploy.diagnosis.installed import Installed

__all__ = ["CAUSES", "Action", "Advice", "Cause", "Judge", "Kind", "Rule", "Seen", "Verdict", "kinds"]

Cause = Literal[
    "stale-availability",  # installed, but this process asked too early and remembers the answer
    "mixed-package-files",  # files of two versions of one package
    "missing-package",
    "version-too-old",
    "version-too-new",
    "moved-name",  # a name that another version of the package has
    "wrong-interpreter",  # installed into another Python
    "foreign-downgrade",  # another extension or the user moved a package of the host
    "platform-unsupported",
    "attention-processor",
    "gated-access",
    "missing-text-encoder",
    "float16-overflow",
    "quantized-move",
    "offload-conflict",
    "fp8-storage-only",
    "device-mismatch",
    "out-of-memory",
    "memory-spill",
    "size-not-multiple",
    "size-too-large",
    "size-off-area",
    "prompt-parser",
    "network",
    "disk-full",
    "permission",
    "host-bug",
    "unknown",
]
CAUSES: tuple[Cause, ...] = Cause.__args__  # type: ignore[attr-defined]
Action = Literal["install", "refresh", "setting", "restart", "none"]


NOTHING = Installed({})  # is known of what is installed


class Seen:
    """What else is known while an entry is being judged.

    installed: what is, nothing where nobody knows; looked up when it is first asked for. installs: what the log says about installs (name →
    version or ""). told: what it says about the machine, up to this entry ("python", "torch", "mirror"). text: of the entry, in one line.
    """

    def __init__(
        self,
        installed: Installed | Callable[[], Installed] = NOTHING,
        installs: Mapping[str, str] = MappingProxyType({}),
        text: str = "",
        told: Mapping[str, str] = MappingProxyType({}),
        failure: Failure | None = None,
    ) -> None:
        self.failure = failure or failure_of((text,))
        self.installs, self.text, self.told = installs, self.failure.text, told
        self._look = installed if callable(installed) else lambda: installed

    @cached_property
    def installed(self) -> Installed:
        return self._look()


@dataclass(frozen=True)
class Advice:
    """What a general rule concludes from what is installed; what is "" stays as the rule has it.

    sentence: id of the message instead of the rule's own. values: for its placeholders.
    """

    package: str = ""
    cause: Cause | Literal[""] = ""
    action: Action | Literal[""] = ""
    sentence: str = ""
    values: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Kind:
    """A kind of failure. id: stable; its sentence and remedy are `rule.<id>` and `rule.<id>.remedy` in messages/. source: where it was seen
    or is documented. package: the distribution at fault, "" where it is none or depends.
    """

    id: str
    cause: Cause
    action: Action
    source: str
    package: str = ""


@dataclass(frozen=True)
class Verdict:
    """What somebody has made of a failure: its kind, what fills the sentences' placeholders, and what is otherwise than the kind has it.
    matched: the words that decided, "" where it was something else. weak: it counts only where nothing beside it says more.
    """

    kind: Kind
    values: Mapping[str, object] = field(default_factory=dict)
    advice: Advice = Advice()
    matched: str = ""
    weak: bool = False


Judge = Callable[[Failure, Seen], Verdict | None]


@dataclass(frozen=True)
class Rule(Kind):
    """A failure that is known by a sentence.

    match: regular expression, searched without regard to case in the text of an entry, in which every run of white space is one space; its
    named groups fill the sentence's placeholders. also: expressions that have to be found as well; unless: one that must not. advise: looks
    at what is installed, and may say None: it is something else.
    """

    match: str = ""
    also: tuple[str, ...] = ()
    unless: str = ""
    advise: Callable[[Mapping[str, str], Seen], Advice | None] | None = None

    @cached_property
    def _patterns(self) -> tuple[re.Pattern[str], ...]:
        return tuple(re.compile(pattern, re.IGNORECASE) for pattern in (self.match, *self.also))

    @cached_property
    def _unless(self) -> re.Pattern[str] | None:
        return re.compile(self.unless, re.IGNORECASE) if self.unless else None

    def search(self, text: str) -> re.Match[str] | None:
        """Where the text shows this failure: the match of `match`."""
        found = [pattern.search(text) for pattern in self._patterns]
        if not all(found) or (self._unless and self._unless.search(text)):
            return None
        return found[0]

    def judge(self, failure: Failure, seen: Seen) -> Verdict | None:
        """As the families do."""
        match = self.search(failure.text)
        if match is None:
            return None
        values = {name: value or "" for name, value in match.groupdict().items()}
        advice = self.advise(values, seen) if self.advise else Advice()
        return Verdict(self, values, advice, match[0]) if advice is not None else None


def kinds(*rows: Kind) -> dict[str, Kind]:
    """By id, for a family that decides among them."""
    return {one.id: one for one in rows}
