"""From what was said to what is wrong: the rules applied to the entries of a log, to a traceback or to an error."""

from __future__ import annotations

import logging
import re
import traceback
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from sd3deploy import messages
from sd3deploy.diagnosis.failure import Failure, failure_of
from sd3deploy.diagnosis.finding import Finding, finding
from sd3deploy.diagnosis.installed import Installed
from sd3deploy.diagnosis.knowledge import JUDGES, REMARKS
from sd3deploy.diagnosis.record import QUIET, Record, from_text, records
from sd3deploy.diagnosis.rule import NOTHING, Seen, Verdict
from sd3deploy.diagnosis.unknown import UNKNOWN, unknown
from sd3deploy.lazy import lazy
from sd3deploy.vendored import canonicalize_name

__all__ = ["diagnose", "read"]

log = logging.getLogger(__name__)
_EVIDENCE = 12  # lines that are shown of an entry
_REMEMBERED = 256  # kinds of entries, before the oldest is judged for good
_UNKNOWN = 3  # errors that no rule knows are mentioned so many times
_OURS = "SD3 Deploy: id="  # what this extension has explained already
_NO_DIGITS = dict.fromkeys(map(ord, "0123456789"))
_STARTED = lazy(r"Starting SD\.?Next")
_INSTALLED = lazy(
    r"(?:\binstall(?:ing|ed)?:? (?:package|requirement)s?\s*[=:]\s*|successfully installed )(?P<what>.+)", re.IGNORECASE
)
_TOLD = (
    ("python", lazy(r"\bPython(?:: version=| version: | )(3\.\d+(?:\.\d+)?)")),
    ("torch", lazy(r"\b(?:torch==|pytorch version: )(\d[\w.+]*)")),
    ("unfetched", lazy(r"Could not fetch URL https?://([\w.-]+)")),
    ("unreached", lazy(r"Retrying \(Retry\(total=0\b.{0,200}?\)\) after connection broken by '(\w+)")),
    ("mirror", lazy(r"(?:HF_ENDPOINT\W{1,4}(?:https?://)?|https?://(?=[\w.-]*mirror))([\w-]+\.[\w.-]*\w)")),
)
_NAMED = lazy(r"(?<![\w.\-])([A-Za-z][\w.\-]*?)(?:(?:==|-)(\d[\w.+]*)|(?=[<>~=!\s\"',\]]|$))")  # a==1.0, a-1.0
_SAME = 5  # lines around a failure in which a program says once more that there was one

Look = Callable[[], Installed | None]  # None, or nothing in it, where nobody knows


def diagnose(error: BaseException | str, look: Look = lambda: None) -> list[Finding]:
    """What an error, or the text of one, tells; [] where no rule knows it. look: called when a rule needs to know what is installed."""
    if isinstance(error, BaseException):
        error = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    found = _Matcher(look).over(from_text(error))
    return [replace(one, line=0) for one in found if one.rule != UNKNOWN.id]  # no line of a file


def read(blocks: Iterable[str], look: Look = lambda: None, *, since_start: bool = False) -> list[Finding]:
    """What a log tells: one finding for each thing that is wrong, the latest first, what no rule knows last. blocks: as of logfile.

    since_start: what was said before the server was last started is over.
    """
    return _Matcher(look, since_start).over(records(blocks))


@dataclass(frozen=True)
class _Case:
    """Entries that differ in nothing but numbers: the last of them, how many there were, and what had been installed by then."""

    entry: Record
    count: int
    installs: Mapping[str, str]


class _Matcher:
    """Entries come in their order. What comes again is only counted: a log can say the same a hundred thousand times."""

    def __init__(self, look: Look, since_start: bool = False) -> None:
        self._look = lru_cache(maxsize=1)(lambda: look() or NOTHING)
        self._since_start = since_start
        self._installs: Mapping[str, str] = {}
        self._told: dict[str, str] = {}
        self._cases: OrderedDict[tuple[object, ...], _Case] = OrderedDict()
        self._found: dict[tuple[str, str, str], Finding] = {}
        self._explained: list[tuple[int, int]] = []  # first and last lines of entries that say what has failed
        self._bare: list[tuple[Finding, int]] = []  # those that only say that something has, with their last lines

    def over(self, entries: Iterable[Record]) -> list[Finding]:
        for entry in entries:
            self._listen(entry.lines[0])
            if entry.level in QUIET:
                self._note(entry.text)
            elif _OURS not in entry.lines[0]:
                self._take(entry)
        for case in self._cases.values():
            self._judge(case)
        for found, end in self._bare:
            if not any(first - _SAME <= end and found.line <= last + _SAME for first, last in self._explained):
                self._keep(found)
        latest = sorted(self._found.values(), key=lambda found: found.line, reverse=True)
        unknown = [found for found in latest if found.rule == UNKNOWN.id]
        return [found for found in latest if found.rule != UNKNOWN.id] + unknown[:_UNKNOWN]

    def _listen(self, text: str) -> None:
        """What is said about the machine in passing."""
        for name, pattern in _TOLD:
            if found := pattern.search(text):
                self._told[name] = found[1]

    def _note(self, text: str) -> None:
        """What explains later failures."""
        if _STARTED.search(text):
            self._installs = {}
            if self._since_start:
                self._cases.clear()
                self._found.clear()
        if found := _INSTALLED.search(text):
            self._installs = {**self._installs, **{canonicalize_name(name): version for name, version in _NAMED.findall(found["what"])}}

    def _take(self, entry: Record) -> None:
        shape = (entry.level, len(entry.lines), *(line.translate(_NO_DIGITS) for line in (entry.lines[0], *entry.lines[-2:])))
        before = self._cases.pop(shape, None)
        self._cases[shape] = _Case(entry, before.count + 1 if before else 1, self._installs)
        if len(self._cases) > _REMEMBERED:
            self._judge(self._cases.popitem(last=False)[1])

    def _judge(self, case: _Case) -> None:
        entry = case.entry
        parsed = [failure_of(entry.lines, entry.level, last=entry.last)]
        if entry.rejoined:
            parsed.append(failure_of((entry.rejoined,), entry.level, entry.rejoined, last=entry.last))
        try:
            found, weak = self._apply(parsed, case)
        except Exception:  # a rule of ours that fails hides no failure
            log.warning("a rule of the doctor has failed", exc_info=True)
            found, weak = unknown(parsed[0], self._look), False
        if found is None:
            return
        found = replace(found, evidence=_evidence(entry.lines, found.evidence), line=entry.line, count=case.count)
        if weak:
            self._bare.append((found, entry.line + len(entry.lines)))
            return
        self._explained.append((entry.line, entry.line + len(entry.lines)))
        self._keep(found)

    def _keep(self, found: Finding) -> None:
        key = (found.rule, found.package, found.message if found.rule == UNKNOWN.id else "")
        before = self._found.get(key)
        if before:
            found = replace(found if found.line >= before.line else before, count=found.count + before.count)
        self._found[key] = found

    def _apply(self, parsed: Sequence[Failure], case: _Case) -> tuple[Finding | None, bool]:
        """What the first says that knows the entry, and whether that is weak; what has failed and nobody explains is not known."""
        if (parsed[0].traceback and not parsed[0].failed) or any(remark.search(parsed[0].text) for remark in REMARKS):
            return None, False
        seen = [Seen(self._look, case.installs, told=self._told, failure=failure) for failure in parsed]
        for judge in JUDGES:
            for failure, known in zip(parsed, seen, strict=True):
                if verdict := judge(failure, known):
                    return self._say(verdict), verdict.weak
        if not parsed[0].failed:
            return None, False
        bare = not parsed[0].traceback and not any(one.text for one in parsed[0].chain)
        return unknown(parsed[0], self._look), bare or "subprocess-exited" in parsed[0].said

    def _say(self, verdict: Verdict) -> Finding:
        kind, advice = verdict.kind, verdict.advice
        package = advice.package or kind.package
        installed = self._look() if package else NOTHING
        there, pin = installed.version(package) or "", installed.pin(package) or ""
        words = {"installed": there, "pin": pin, "executable": installed.executable or "python", **verdict.values}  # any sentence may want
        return _about_host(finding(kind, words, advice, (verdict.matched,)), installed)


def _about_host(found: Finding, installed: Installed) -> Finding:
    """Nobody is told to move a package of the host without being told that it is the host's."""
    if found.action != "install" or not installed.belongs_to_host(found.package):
        return found
    pin = installed.pin(found.package)
    words = {"package": found.package, "pin": pin}
    said = messages.text("diagnosis.host-pins" if pin else "diagnosis.host-owns", **words)
    return replace(found, remedy=messages.joined(said, found.remedy))


def _evidence(lines: Sequence[str], matched: tuple[str, ...]) -> tuple[str, ...]:
    """The lines of an entry that a person needs: its first one, and those around what was matched, else the last ones."""
    if len(lines) <= _EVIDENCE:
        return tuple(lines)
    words = matched[0].split() if matched else []
    start = " ".join(words[:4])
    at = next((number for number in range(len(lines) - 1, -1, -1) if start and start in " ".join(lines[number].split())), len(lines) - 1)
    first = max(1, min(at - _EVIDENCE // 2, len(lines) - _EVIDENCE + 1))
    return (lines[0], *lines[first : first + _EVIDENCE - 1])
