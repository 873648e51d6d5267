"""What a known failure looks like, what causes it, and what helps: as data. `knowledge` holds the rules, `matcher` applies them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from sd3deploy.vendored import SpecifierSet, version

if TYPE_CHECKING:
    from sd3deploy.diagnosis.installed import Installed

__all__ = ["ALWAYS", "CAUSES", "Action", "Advice", "Cause", "Rule", "Seen", "When"]

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


@dataclass(frozen=True)
class When:
    """Where a rule holds. versions: (distribution, PEP 440 specifier) pairs; systems: of platform.system(); devices: the host's word for
    the stack (cuda, rocm, mps, …). What is not known does not rule anything out.
    """

    versions: tuple[tuple[str, str], ...] = ()
    systems: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()

    def holds(self, installed: Installed | None) -> bool:
        """Whether it may be so, with what is installed here; None: nobody knows."""
        if installed is None:
            return True
        if self.systems and installed.system and installed.system not in self.systems:
            return False
        if self.devices and installed.device and installed.device not in self.devices:
            return False
        for name, specifier in self.versions:
            found = version(installed.version(name))
            if found is not None and not SpecifierSet(specifier).contains(found, prereleases=True):
                return False
        return True


ALWAYS = When()


@dataclass(frozen=True)
class Seen:
    """What else is known while a record is being judged: what is installed (None: nobody knows), what the log says about installs
    (name → version or "") and about paths of Python, up to this record.
    """

    installed: Installed | None = None
    installs: Mapping[str, str] = field(default_factory=dict)
    text: str = ""


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
class Rule:
    """One failure.

    id: stable; its sentence and remedy are `rule.<id>` and `rule.<id>.remedy` in messages/. match: regular expression, searched without
    regard to case in the text of a record, in which every run of white space is one space; its named groups fill the sentence's
    placeholders. also: expressions that have to be found as well; unless: one that must not. package: the distribution at fault.
    advise: looks at what is installed, and may say None: it is something else. source: where it was seen or is documented.
    """

    id: str
    cause: Cause
    match: str
    action: Action
    source: str
    package: str = ""
    also: tuple[str, ...] = ()
    unless: str = ""
    when: When = ALWAYS
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

    def values(self, match: re.Match[str]) -> dict[str, Any]:
        """What the named groups have caught."""
        return {name: value or "" for name, value in match.groupdict().items()}
