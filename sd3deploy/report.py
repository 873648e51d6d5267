"""What is known about this installation and what is wrong with it: for the screen, for a program, and to paste into an issue."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from sd3deploy import __version__, messages, units
from sd3deploy.lazy import lazy
from sd3deploy.redact import Redactor
from sd3deploy.terminal import columns, pad, wrap

__all__ = ["Report"]

_MARKS = {"ok": "✓", "warning": "!", "failed": "✗"}
_STATES = {"ok": "report.state.ok", "warning": "report.state.warning", "failed": "report.state.failed", "skipped": "report.state.skipped"}
_SHOWN = ("torch", "diffusers", "transformers", "accelerate", "bitsandbytes")  # packages of the head; markdown and JSON have all
_MEMORY = 10_000_000  # among the facts of a device a larger number is one of bytes
_EVENTS = 20  # of the last are shown; JSON has all
_SIGNS = lazy(r"[&<>@#`*_\[\]|\\~$]")  # that mean something in markdown, in HTML or to GitHub
_BREAK = lazy(r"\r\n|[\r\v\f\x85\u2028\u2029]")


@dataclass(frozen=True)
class Report:
    """JSON-able parts, each of which may be missing. They are redacted when the report is made: it never holds a secret.

    generated: ISO 8601. host: such as root, version, commit. python: such as version, platform, executable. device: facts about it.
    packages: name → version, None where it is not installed. settings: key → value. model: what is loaded, and its text encoders.
    contract: what of the host is not as this extension knows it. findings: of Finding.report(); those of the checks are added. checks: of
    Result.report(). memory: bytes or facts. runs: summaries of the memory's runs. events: what happened, oldest first.
    """

    generated: str = ""
    extension: str = __version__
    host: Mapping[str, Any] = field(default_factory=dict)
    python: Mapping[str, Any] = field(default_factory=dict)
    device: Mapping[str, Any] = field(default_factory=dict)
    packages: Mapping[str, str | None] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    model: Mapping[str, Any] = field(default_factory=dict)
    contract: Mapping[str, Any] = field(default_factory=dict)
    findings: Sequence[Mapping[str, Any]] = ()
    checks: Sequence[Mapping[str, Any]] = ()
    memory: Mapping[str, Any] = field(default_factory=dict)
    runs: Sequence[Mapping[str, Any]] = ()
    events: Sequence[Mapping[str, Any]] = ()
    redactor: Redactor = field(default_factory=Redactor.of_this_machine, repr=False, compare=False)

    def __post_init__(self) -> None:
        for one in fields(self):
            if one.name == "packages":  # a package may be called google-auth: its version is no password
                value = {self.redactor(name): version and self.redactor(version) for name, version in self.packages.items()}
            elif one.name != "redactor":
                value = self.redactor.value(getattr(self, one.name))
            else:
                continue
            object.__setattr__(self, one.name, value)
        object.__setattr__(self, "findings", _merged(self.findings, self.checks))

    def data(self) -> dict[str, Any]:
        """As JSON-able values."""
        return {one.name: getattr(self, one.name) for one in fields(self) if one.name != "redactor"}

    def json(self) -> str:
        """As a JSON object: `findings` is a list of objects with rule, cause, package, message, remedy, evidence and line."""
        return json.dumps(self.data(), indent=2, ensure_ascii=True, allow_nan=False)

    def text(self, width: int = 100) -> str:
        """For a terminal of so many columns: what this is, the checks, and what is wrong."""
        return _clean("\n".join(self._lines(max(width, 40)))) + "\n"

    def markdown(self) -> str:
        """To paste into an issue: nothing in it is taken for HTML, a link, or a person who is called."""
        return _clean("\n".join(self._paragraphs())) + "\n"

    @property
    def verdict(self) -> str:
        """One sentence: whether anything is wrong."""
        failed, warned = (sum(_state(check) == state for check in self.checks) for state in ("failed", "warning"))
        if not self.findings and not failed and not warned:
            return messages.text("report.fine")
        if not self.checks:
            return messages.text("report.found", findings=len(self.findings))
        return messages.text("report.found-checks", findings=len(self.findings), failed=failed, warned=warned, checks=len(self.checks))

    def _head(self) -> list[tuple[str, str]]:
        """(label, words)"""
        packages = [f"{name} {self.packages[name] or messages.text('report.missing')}" for name in _SHOWN if name in self.packages]
        made = (
            ("report.host", _words(self.host)),
            ("report.contract", _contract(self.contract)),
            ("report.python", _words(self.python)),
            ("report.device", _words(self.device)),
            ("report.model", _words(self.model)),
            ("report.packages", ", ".join(packages)),
            ("report.memory", _words(self.memory)),
        )
        return [(messages.text(id), words) for id, words in made if words]

    def _title(self) -> str:
        return messages.text("report.title", version=self.extension, time=self.generated).strip()

    def _lines(self, width: int) -> Iterator[str]:
        yield self._title()
        head = self._head()
        room = max((columns(label) for label, _ in head), default=0) + 2
        for label, words in head:
            yield from wrap(words, width, pad(label, room), " " * room)
        if self.checks:
            yield ""
        for check in self.checks:
            yield from self._check(check, width)
        yield ""
        yield from wrap(self.verdict, width)
        for finding in self.findings:
            yield ""
            yield from self._finding(finding, width)

    def _check(self, check: Mapping[str, Any], width: int) -> Iterator[str]:
        state = _state(check)
        start = f"{_MARKS.get(state, '-')} {pad(_said(state), 8)} "
        title, message = _one(check, "title") or _one(check, "id"), _one(check, "message")
        seconds = f" ({check['seconds']:.1f} s)" if isinstance(check.get("seconds"), int | float) and check["seconds"] >= 1 else ""
        words = f"{title}: {message}{seconds}" if message else f"{title}{seconds}"
        yield from wrap(words, width, start, " " * columns(start))
        told = any(finding.get("message") == message for finding in self.findings)
        if state != "ok" and _one(check, "remedy") and not told:
            yield from wrap(_one(check, "remedy"), width, " " * columns(start) + "→ ", " " * columns(start) + "  ")

    def _finding(self, finding: Mapping[str, Any], width: int) -> Iterator[str]:
        yield from wrap(_one(finding, "message") or _one(finding, "rule"), width, "• ", "  ")
        if _one(finding, "remedy"):
            yield from wrap(_one(finding, "remedy"), width, "  → ", "    ")
        for line in _evidence(finding):
            yield f"    | {line}"
        if told := ", ".join(_about(finding)):
            yield f"    {told}"
        if _one(finding, "source"):
            yield f"    {messages.text('report.source', source=_one(finding, 'source'))}"

    def _paragraphs(self) -> Iterator[str]:
        yield f"### {_inert(self._title())}"
        yield ""
        for label, words in self._head():
            yield f"- **{_inert(label)}**: {_inert(words)}"
        yield ""
        yield f"**{_inert(self.verdict)}**"
        for number, finding in enumerate(self.findings, 1):
            yield ""
            yield f"{number}. {_inert(_one(finding, 'message') or _one(finding, 'rule'))}"
            if _one(finding, "remedy"):
                yield f"   → {_inert(_one(finding, 'remedy'))}"
            about = [*_about(finding), *filter(None, (_one(finding, "rule"), _one(finding, "source")))]
            yield f"   {', '.join(_code(word) for word in about)}"
            if evidence := _evidence(finding):
                yield from _details(messages.text("report.evidence"), "\n".join(evidence))
        if self.checks:
            lines = [line for check in self.checks for line in self._check(check, 100)]
            yield from _details(messages.text("report.checks"), "\n".join(lines))
        if self.packages:
            lines = [f"{name}=={version}" if version else f"# {name}" for name, version in sorted(self.packages.items())]
            yield from _details(messages.text("report.packages"), "\n".join(lines))
        for id, part in (("report.settings", self.settings), ("report.runs", self.runs), ("report.events", self.events[-_EVENTS:])):
            if part:
                yield from _details(messages.text(id), json.dumps(part, indent=1, ensure_ascii=False, allow_nan=False), "json")


def _merged(findings: Sequence[Mapping[str, Any]], checks: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The findings, and those of the checks that are not among them."""
    found, seen = [], set()
    checked = (one for check in checks for one in check.get("findings") or () if isinstance(one, Mapping) and "message" in one)
    for one in (*findings, *checked):
        key = str((one.get("rule"), one.get("package"), one.get("message")))
        if key not in seen:
            seen.add(key)
            found.append(one)
    return found


def _state(check: Mapping[str, Any]) -> str:
    return _one(check, "state")


def _said(state: str) -> str:
    return messages.text(_STATES[state]) if state in _STATES else state


def _one(part: Mapping[str, Any], name: str) -> str:
    """A value as words in one line, "" where there is none."""
    value = part.get(name)
    return "" if value is None else " ".join(str(value).split())


def _words(part: Mapping[str, Any]) -> str:
    """Facts in one line; a value that speaks for itself needs no name."""
    told = []
    for name, value in part.items():
        if value is None or value in ("", [], {}):
            continue
        if isinstance(value, Mapping):
            value = f"({_words(value)})"
        elif isinstance(value, list):
            value = ", ".join(map(str, value))
        elif isinstance(value, int) and value >= _MEMORY:
            value = units.size(value)
        value = " ".join(str(value).split())
        told.append(value if name in ("root", "name", "version") else f"{name} {value}")
    return ", ".join(told)


def _contract(part: Mapping[str, Any]) -> str:
    """How much of the host was looked at, and what of it has moved."""
    if not part:
        return ""
    moved = [f"{name} {what}" for name, what in (part.get("moved") or {}).items()]
    return "; ".join([messages.text("report.contract.checked", count=part.get("checked", 0), moved=len(moved)), *moved])


def _evidence(finding: Mapping[str, Any]) -> list[str]:
    lines = finding.get("evidence") or []
    return [line for text in ([lines] if isinstance(lines, str) else lines) for line in _BREAK.sub("\n", str(text)).split("\n")]


def _about(finding: Mapping[str, Any]) -> Iterator[str]:
    line, count = finding.get("line"), finding.get("count")
    if isinstance(line, int) and line > 0:
        yield messages.text("report.line", line=line)
    if isinstance(count, int) and count > 1:
        yield messages.text("report.count", count=count)


def _clean(text: str) -> str:
    return _BREAK.sub("\n", text)


def _inert(words: str) -> str:
    """Text that a renderer of markdown shows as it is. GitHub looks for people, issues and addresses after it has resolved entities: a
    space without width keeps it from finding any.
    """
    words = " ".join(words.split())
    words = _SIGNS.sub(lambda match: f"&#{ord(match[0])};", words)
    words = words.replace("&#64;", "&#64;&#8203;").replace("&#35;", "&#35;&#8203;").replace("://", ":&#8203;//")
    words = re.sub(r"(?i)(www|gh)(?=[.-])", r"\1&#8203;", words)
    return re.sub(
        r"^(\d{0,9})([-+=.)])(?=\s|[-+=]|$)", lambda match: f"{match[1]}&#{ord(match[2])};", words
    )  # would begin a list or a heading


def _code(words: str) -> str:
    """As code in a line, whatever backticks it has."""
    words = " ".join(_clean(words).split())
    fence = "`" * (max((len(run) for run in re.findall(r"`+", words)), default=0) + 1)
    space = " " if words.startswith("`") or words.endswith("`") else ""
    return f"{fence}{space}{words}{space}{fence}"


def _details(title: str, text: str, language: str = "") -> Iterator[str]:
    """A part that is folded up, as a block of code whose fence no line in it can close."""
    text = _clean(text)
    fence = "`" * max(3, max((len(run) for run in re.findall(r"`+", text)), default=0) + 1)
    yield from ("", f"<details><summary>{_inert(title)}</summary>", "", f"{fence}{language or 'text'}", text, fence, "", "</details>")
