"""The support bundle: a zip with everything that somebody who helps needs to see, and nothing that nobody should."""

from __future__ import annotations

import errno
import json
import os
import re
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from sd3deploy import messages, units
from sd3deploy.diagnosis import logfile
from sd3deploy.errors import BundleError, Sd3Error
from sd3deploy.redact import PLACEHOLDER
from sd3deploy.report import Report

__all__ = ["LOG_SIZE", "Bundle"]

LOG_SIZE = 2_000_000  # bytes of the log: a start of the server and some dozens of pictures, and below what an issue takes as attachment
_FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
_NO_FOLDER = (errno.ENOENT, errno.ENOTDIR)


@dataclass(frozen=True)
class Bundle:
    """In memory until `write`: what a person has been shown is what is written. members: name → content, redacted. text: of the report."""

    members: Mapping[str, bytes]
    text: str
    generated: str = ""

    @classmethod
    def make(cls, report: Report, log: Path | None = None, *, runs: Iterable[Mapping[str, Any]] | None = None) -> Bundle:
        """log: the server's; its last part and that of those rotated away from it is taken. runs: of the memory with their readings, where
        there is more than the summaries of the report. What is wrong with the log does not keep the rest from being bundled.
        """
        redact = report.redactor
        timeline = report.runs if runs is None else redact.value(list(runs))
        text = report.text()
        members = {
            "report.txt": text,
            "report.json": report.json() + "\n",
            "report.md": report.markdown(),
            "log.txt": redact(_log(log)) if log else "",
            "settings.json": _json(report.settings),
            "packages.txt": "".join(f"{name}=={version}\n" for name, version in sorted(report.packages.items()) if version),
            "timeline.json": _json(timeline),
            "events.json": _json(report.events),
        }
        made = {name: content.encode("utf-8", "replace") for name, content in members.items() if content or name != "log.txt"}
        return cls(made, text, report.generated)

    @property
    def replaced(self) -> int:
        """How many secrets, names and addresses were taken out, all files together."""
        return sum(len(PLACEHOLDER.findall(content.decode("utf-8"))) for content in self.members.values())

    def preview(self) -> str:
        """What a person is shown before it is written: the files, how much was taken out, and the report."""
        room = max(map(len, self.members))
        files = [f"  {name:<{room}} {units.size(len(content)):>9}" for name, content in self.members.items()]
        head = messages.text("bundle.preview", count=len(self.members))
        told = messages.text("bundle.replaced", count=self.replaced) if self.replaced else messages.text("bundle.nothing-replaced")
        return "\n".join([head, *files, "", told, messages.text("bundle.look"), "", self.text])

    def data(self) -> bytes:
        """The zip. The same content makes the same bytes."""
        buffer = BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in self.members.items():
                entry = zipfile.ZipInfo(name, _moment(self.generated))
                entry.compress_type, entry.create_system, entry.external_attr = zipfile.ZIP_DEFLATED, 3, 0o644 << 16
                archive.writestr(entry, content)
        return buffer.getvalue()

    def write(self, path: Path, *, force: bool = False) -> Path:
        """Write the zip as a whole or not at all, and return its path; a folder gets one named by the time of the report.

        force: replace a file that is there. Raises BundleError with what to do: there is one already, the folder is missing or may not be
        written, the disk is full.
        """
        path = Path(path)
        if path.is_dir():
            path /= f"sd3-report-{re.sub('[^0-9]', '', self.generated)[:14] or 'now'}.zip"
        data, temporary = self.data(), None
        try:
            if not force and os.path.lexists(path):
                raise BundleError("bundle.exists", file=path)
            handle, temporary = tempfile.mkstemp(prefix=f".{path.name[:40]}.", suffix=".part", dir=path.parent)  # for this user alone
            with open(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            if not force and os.path.lexists(path):  # somebody was faster
                raise BundleError("bundle.exists", file=path)
            os.replace(temporary, path)
            temporary = None
        except OSError as error:
            raise _why(error, path, len(data)) from error
        finally:
            if temporary is not None:
                try:
                    os.unlink(temporary)
                except OSError:  # there is a worse error to tell
                    pass
        return path


def _why(error: OSError, path: Path, size: int) -> BundleError:
    if error.errno in _FULL:
        return BundleError("bundle.disk-full", folder=path.parent, size=units.size(size))
    if error.errno in _FORBIDDEN:
        return BundleError("bundle.forbidden", folder=path.parent)
    if error.errno in _NO_FOLDER:
        return BundleError("bundle.no-folder", folder=path.parent)
    return BundleError("bundle.failed", file=path, detail=error.strerror or type(error).__name__)


def _log(log: Path) -> str:
    """The last part of a log, with what was rotated away from it; where it can not be read, the sentence that says so."""
    try:
        text = logfile.tail(log, LOG_SIZE) if log.suffix not in (".gz", ".bz2", ".xz", ".zip") else _end_of(log, LOG_SIZE)
    except Sd3Error as error:
        return f"{error}\n"
    for older in reversed(logfile.rotated(log) if log.stat().st_size < LOG_SIZE else []):
        room = LOG_SIZE - len(text.encode("utf-8", "replace"))
        if older == log or room <= 0:
            continue
        try:
            text = _end_of(older, room) + text
        except Sd3Error as error:
            text = f"{error}\n{text}"
            break
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    data = text.encode("utf-8", "replace")
    return data[-LOG_SIZE:].partition(b"\n")[2].decode("utf-8", "replace") if len(data) > LOG_SIZE else text


def _end_of(log: Path, size: int) -> str:
    """The last `size` bytes of a log of any kind, compressed ones too, in whole lines; memory does not grow with the file."""
    kept: list[str] = []
    total = 0
    for block in logfile.blocks(log):
        kept.append(block)
        total += len(block)
        while total - len(kept[0]) > size:
            total -= len(kept.pop(0))
    data = "".join(kept).encode("utf-8", "replace")
    if len(data) > size:
        data = data[-size:].partition(b"\n")[2]
    text = data.decode("utf-8", "replace")
    return text if not text or text.endswith("\n") else f"{text}\n"


def _json(part: Any) -> str:
    return json.dumps(part, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _moment(generated: str) -> tuple[int, int, int, int, int, int]:
    """The time of the report as a zip has it: from 1980 on."""
    numbers: Iterator[int] = map(int, re.findall(r"\d+", generated)[:6])
    found = (*numbers, *(0,) * 6)[:6]
    year, month, day, hour, minute, second = found
    fits = 1980 <= year <= 2107 and 1 <= month <= 12 and 1 <= day <= 31 and hour < 24 and minute < 60 and second < 60
    return (year, month, day, hour, minute, second) if fits else (1980, 1, 1, 0, 0, 0)
