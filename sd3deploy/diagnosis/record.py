"""What a log says, entry by entry: a message with the lines that belong to it, or a traceback with its error.

Entries that can not tell of a failure are passed over as cheaply as possible: a log of hundreds of megabytes has few that can.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

from sd3deploy.diagnosis.collected import bare
from sd3deploy.lazy import lazy

__all__ = ["PASTED", "QUIET", "Record", "bounded", "from_text", "records"]

_KEPT = 60  # lines at each end of an entry: a traceback tells at its beginning where, and at its end what
_LONGEST = 400  # lines; what goes on for longer is no entry
_LARGEST = 16_000  # characters at each end: every rule searches all of an entry; the longest one in tests/knowledge has 1,581
_WIDEST = 4000  # characters of a line
PASTED = 100_000  # characters of a text that somebody pastes: read while a person waits; a log's lines are 100 long
_BEGINNING = PASTED // 5  # of them from the beginning, where versions stand; the error is at the end
_WRAPPED = 60  # characters: the narrowest window in which somebody reads a log

# What every line that matters has, in lower case: of errors, and of what explains them later (installs, starts, versions).
_TELLING = (
    "error", "exception", "traceback", "warn", "critical", "fail", "cannot", "can't", "could not", "unable", "not found", "no module",
    "not supported", "unsupported", "out of memory", "killed", "sigkill", "code 137", "oom-kill", "denied", "invalid", "mismatch",
    "must match", "must be", "requires", "required", "missing", "no space", "too many", "not enough", "expected", "nan", "not available",
    "incompatible", "nstall", "starting", "packages:", "abort", "refused", "timed out", "unauthorized", "forbidden", "gated", "corrupt",
    "overflow", "conflict", "not have", "not implemented", "deprecated", "allocat", "divisible", "disabled", "skipping", "ignoring",
    "lacks", " fault", "violation", "core dump", "terminate called", "illegal instruction", "exit code", "exit status", "return code",
    "exited with", "no solution", "no python", "bad interpreter", "nvrm: xid", "getötet", "speicherzugriff", "已杀死", "段错误",
    "not compatible", "cuda capability", "python version", "python 3.", "pytorch version", "hf_endpoint", "hf-mirror",
)  # fmt: skip

_SHORTEST = min(map(len, _TELLING))

# Of SD.Next's file and console, of A1111's and ComfyUI's loggers, of Python's own; the level stands near, where there is one.
_LEVELS = r"DEBUG|TRACE|INFO|WARNING|WARN|ERROR|CRITICAL|FATAL"
_HEAD = lazy(
    rf"\d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d,\d+ \| [^|]* \| [^|]* \| (?P<level>{_LEVELS}) "  # SD.Next's, in one go: it has most lines
    r"|\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d|\[\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d"
    rf"|\[?\d\d:\d\d:\d\d(?:[-.,]\d+)?\]?\s+(?:\[?(?:{_LEVELS})\b)|\[(?:{_LEVELS})\]|(?:{_LEVELS}):"
)
_LEVEL = lazy(rf"(?:^|[\s|\[(:-])({_LEVELS})(?=[\s|\])\]:-]|$)")
_NEAR = 100  # characters: a time, a machine, a logger
_HEADS = frozenset("0123456789[DTIWECF")  # with which a head can begin
QUIET = ("DEBUG", "TRACE", "INFO")  # levels at which nobody complains
_TRACEBACK = lazy(  # or cut off
    r"\s*(?:\^C)?(?:[╭┌+][─-]+ )?Traceback \(most recent call last\)|(?P<indent>\s+)File \"[^\"]+\", line \d+"
)
# With which ComfyUI, A1111, Python's own clean-up and asyncio announce a traceback.
_MARK = lazy(r"(?:!!!|\*\*\*) |Exception ignored (?:in|while)|Exception in callback |handle: <Handle ")
# What pip and uv say of a build is indented below, what faulthandler says of a crash goes on with its threads.
_GOES_ON = ("error: subprocess-exited", "× Failed to build", "× Failed to download", "Fatal Python error", "Windows fatal exception")
_THREADS = ("Thread 0x", "Current thread 0x", "Extension modules:")
_CHAINED = ("The above exception was the direct cause", "During handling of the above exception")
_ESCAPE = lazy(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\))")
_DRAWN = "│┃╭╮╰╯┌┐└┘─━❱"
_FRAME = lazy(f"[{_DRAWN}]+")


@dataclass(frozen=True)
class Record:
    """One entry. line: of its first line, counted from 1. level: as the log has it, "" where it has none. lines: without escapes.
    last: nothing came after it.

    text: all in one line, without the frames that are drawn around tracebacks; what was broken at the edge of a window is whole again.
    """

    line: int
    level: str
    lines: tuple[str, ...]
    last: bool = False

    @property
    def text(self) -> str:
        return " ".join(_FRAME.sub(" ", " ".join(self.lines)).split())

    @property
    def rejoined(self) -> str:
        """As `text`, with words mended that a window of fixed width has cut in two; "" where no line fills a window."""
        widest = max(map(len, self.lines))
        if len(self.lines) < 2 or widest < _WRAPPED or len(self.lines[-1]) == widest:
            return ""
        pairs = zip(("", *self.lines), self.lines, strict=False)
        parts = [line.strip() if len(before) == widest else f" {line}" for before, line in pairs]
        return " ".join(_FRAME.sub(" ", "".join(parts)).split())


def from_text(text: str) -> list[Record]:
    """The entries of a traceback or of a part of a log."""
    return list(records([text if text.endswith("\n") else f"{text}\n"]))


def bounded(text: str) -> tuple[str, int]:
    """A text of at most PASTED characters, and how many were left out of its middle; what is read begins and ends where lines do."""
    if len(text) <= PASTED:
        return text, 0
    first = text[:_BEGINNING]
    last = text[-(PASTED - _BEGINNING - 1) :]
    first = first[: first.rfind("\n") + 1] or f"{first}\n"
    last = last[last.find("\n") + 1 :] or last
    return first + last, len(text) - len(first) - len(last)


def records(blocks: Iterable[str]) -> Iterator[Record]:
    """The entries of a log that may tell of a failure, in their order. blocks: text that ends where a line ends."""
    entry = _Entry()
    number = 0  # of lines before the block
    for block in blocks:
        if "\x1b" in block:
            block = _ESCAPE.sub("", block)
        block = bare(block)
        for line in block.split("\n")[:-1] if block.endswith("\n") else block.split("\n"):
            number += 1
            if "\r" in line:  # a progress bar writes over itself
                line = line.rstrip("\r").rpartition("\r")[2]
            if done := entry.add(number, line):
                yield done
    if done := entry.close(last=True):
        yield done


class _Entry:
    """The entry that is being read, if any.

    One with a head (a time, a level) goes on until the next head, or until a second traceback that is not chained to the first. One
    without is a line that tells of something, with what follows it indented or broken at the edge of a window; or a traceback, which ends
    with its error, but for another one chained to it. What pip says of a build that failed is indented below its "error:", with gaps; a
    head without a time ends at a gap, because the program may print anything after it.
    """

    def __init__(self) -> None:
        self._quiet = False  # the last head announced nothing of interest: what is indented below belongs to it
        self._clear()

    def _clear(self) -> None:
        self._lines: list[str] = []
        self._line, self._level = 0, ""  # a head with a level takes more of what follows than one without
        self._timed = self._goes_on = False
        self._traceback = self._indent = -1  # the line that began the last traceback; its indent while its error is to come
        self._raised = False  # the error of a traceback has come

    def add(self, number: int, line: str) -> Record | None:
        """The entry that ends with the line before."""
        if not line and (not self._lines or not self._lines[-1]):  # a second empty line ends no more than the first; there can be millions
            return None
        head = _HEAD.match(line) if line[:1] in _HEADS else None
        if head:
            done = self.close()
            level = head["level"] or _level(line)
            self._quiet = level in QUIET and not _explains(line)
            if not self._quiet and (level or _tells(line)):
                self._begin(number, level, line)
            return done
        cut = not self._lines and not self._quiet and 'File "' in line  # a frame of one whose beginning was cut off
        traceback = _TRACEBACK.match(line) if cut or "Traceback" in line else None
        if self._lines and self._belongs(line, traceback is not None):
            self._append(line, traceback)
            return None
        done = self.close()
        if traceback or _MARK.match(line) or (_tells(line) and not (self._quiet and line[:1].isspace())):
            self._begin(number, "", line, traceback)
        return done

    def close(self, *, last: bool = False) -> Record | None:
        if not self._lines:
            return None
        first = _bounded(self._lines)
        rest = _bounded(self._lines[: len(first) - 1 : -1])
        done = Record(self._line, self._level, (*first, *rest[::-1]), last)
        self._clear()
        return done

    def _begin(self, number: int, level: str, line: str, traceback: re.Match[str] | None = None) -> None:
        self._line, self._level, self._timed = number, level, any(letter.isdigit() for letter in line[:6])
        self._append(line, traceback)

    def _append(self, line: str, traceback: re.Match[str] | None) -> None:
        if traceback:
            self._traceback = len(self._lines)
            self._indent = max(0, len(line) - len(line.lstrip()) - 2 * bool(traceback["indent"]))
        elif self._indent >= 0 and (bare := line.strip()) and bare[0] not in _DRAWN and len(line) - len(line.lstrip()) <= self._indent:
            self._indent, self._raised = -1, True
        elif not self._level and not self._goes_on:
            self._goes_on = line.lstrip().startswith(_GOES_ON)
        self._lines.append(line.rstrip()[:_WIDEST])

    def _belongs(self, line: str, traceback: bool) -> bool:
        if len(self._lines) >= _LONGEST:
            return False
        if self._level in QUIET:  # it is read for what it says itself: a failure below it is its own
            return line[:1].isspace() and not traceback
        if self._level:
            if traceback:
                return not (self._loose() if self._traceback < 0 else self._raised and not self._chained())
            return self._timed or self._indent >= 0 or bool(self._lines[-1]) or line[:1].isspace()
        if self._goes_on and (line[:1].isspace() or not line or line.startswith(_THREADS)):
            return True
        if traceback or _MARK.match(line):
            return self._indent >= 0 or self._chained() or _MARK.match(self._lines[-1]) is not None
        bare = line.strip()
        if self._indent >= 0 or not bare or bare.startswith(_CHAINED) or self._announced():
            return True
        return bool(self._lines[-1]) and (line[:1].isspace() or (len(self._lines[-1]) >= _WRAPPED and not _tells(line)))

    def _loose(self) -> bool:
        """A line need not belong to the head: a traceback after it does not either."""
        pairs = zip(self._lines, self._lines[1:], strict=False)
        return any(line and line[0] not in _DRAWN and not line[0].isspace() and len(before) < _WRAPPED for before, line in pairs)

    def _chained(self) -> bool:
        return any(line.lstrip().startswith(_CHAINED) for line in self._lines[max(0, self._traceback) :])

    def _announced(self) -> bool:
        """What ends with a colon comes next, after a gap as well."""
        return next(filter(None, reversed(self._lines)), "").endswith(":")


def _bounded(lines: Sequence[str]) -> list[str]:
    """The first of them."""
    sizes = accumulate(map(len, lines[:_KEPT]))
    return [line for line, size in zip(lines, sizes, strict=False) if size <= _LARGEST]


def _level(line: str) -> str:
    found = _LEVEL.search(line, 0, _NEAR)
    return found[1] if found else ""


def _tells(line: str) -> bool:
    if len(line) < _SHORTEST:
        return False
    lowered = line.lower()
    return any(word in lowered for word in _TELLING)


def _explains(line: str) -> bool:
    """Said without a complaint, but what comes later is understood by it."""
    return "nstall" in line or "Starting" in line or "version" in line or "Packages:" in line or "Torch:" in line or "mirror" in line
