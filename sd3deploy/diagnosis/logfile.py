"""The lines of a log, whatever it is: plain, compressed, rotated, from the clipboard; in any encoding; of any size."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import re
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from sd3deploy.errors import LogError

__all__ = ["blocks", "rotated", "tail"]

_BLOCK = 64 * 1024  # bytes: one with nothing of interest in it is skipped whole
_LONGEST = 1024 * 1024  # characters of one line; a longer one is cut: memory stays bounded
_MAGIC = ((b"\x1f\x8b", gzip.open), (b"BZh", bz2.open), (b"\xfd7zXZ\x00", lzma.open))
_BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def blocks(log: str | Path) -> Iterator[str]:
    """The text in blocks that end where lines end; a line longer than a million characters is cut. "-" is the standard input.

    Memory does not grow with the file. Raises LogError for a file that is not there, may not be read, or is damaged.
    """
    try:
        with _opened(log) as file:
            yield from _whole_lines(_decoded(file))
    except (OSError, EOFError, lzma.LZMAError, zipfile.BadZipFile, RuntimeError) as error:
        if isinstance(error, FileNotFoundError):
            raise LogError("log.missing", file=log) from error
        if isinstance(error, PermissionError):
            raise LogError("log.forbidden", file=log) from error
        raise LogError("log.damaged", file=log, detail=f"{type(error).__name__}: {error}") from error


def rotated(log: Path) -> list[Path]:
    """A log and what was rotated away from it (sdnext.log.1, sdnext.log.2.gz, …), oldest first."""
    found = []
    for path in log.parent.glob(f"{log.name}.*"):
        number = re.match(r"\.(\d+)(?:\.(?:gz|bz2|xz))?$", path.name[len(log.name) :])
        if number:
            found.append((int(number[1]), path))
    return [*(path for _, path in sorted(found, reverse=True)), *([log] if log.exists() else [])]


def tail(log: Path, size: int) -> str:
    """The last `size` bytes of a log, from the beginning of a line on. Raises LogError like `blocks`."""
    try:
        with open(log, "rb") as file:
            head = file.read(_BLOCK)
            end = file.seek(0, io.SEEK_END)
            start = max(0, end - size)
            file.seek(start - start % 4)  # of no character of UTF-16 or UTF-32 a part
            data = file.read()
    except OSError as error:
        raise LogError("log.forbidden" if isinstance(error, PermissionError) else "log.missing", file=log) from error
    text = data.decode(_encoding(head).replace("-sig", ""), errors="replace")
    return text.partition("\n")[2] if start else text


def _opened(log: str | Path) -> IO[bytes]:
    if str(log) == "-":
        return sys.stdin.buffer
    path = Path(log)
    file = open(path, "rb")  # noqa: SIM115  closed by whoever called
    head = file.read(6)
    file.seek(0)
    for magic, opener in _MAGIC:
        if head.startswith(magic):
            return opener(file)  # type: ignore[return-value]
    if head.startswith(b"PK\x03\x04"):
        return _in_zip(zipfile.ZipFile(file))
    return file


def _in_zip(archive: zipfile.ZipFile) -> IO[bytes]:
    """The log of an archive, such as a support bundle: the largest file that looks like one."""
    logs = [one for one in archive.infolist() if re.search(r"\.(log|txt)(\.\d+)?$", one.filename, re.IGNORECASE)]
    if not logs:
        raise zipfile.BadZipFile("no .log or .txt in it")
    best = max(logs, key=lambda one: (one.filename == "log.txt", one.filename.endswith(".log"), one.file_size))  # as bundle.py calls it
    return archive.open(best)


def _decoded(file: IO[bytes]) -> Iterator[str]:
    head = file.read(_BLOCK)
    encoding = _encoding(head)
    decoder = codecs.getincrementaldecoder(encoding)("replace")
    while head:
        yield decoder.decode(head)
        head = file.read(_BLOCK)
    yield decoder.decode(b"", True)


def _encoding(head: bytes) -> str:
    """Windows' PowerShell redirects in UTF-16, its cmd in the code page of the country, everybody else in UTF-8."""
    for bom, name in _BOMS:
        if head.startswith(bom):
            return name
    if (zeros := head.count(0)) > len(head) // 4:
        return "utf-16-be" if head[::2].count(0) > zeros // 2 else "utf-16-le"
    try:
        codecs.getincrementaldecoder("utf-8")("strict").decode(head)  # the last character may be cut
        return "utf-8"
    except UnicodeDecodeError:
        pass
    try:
        from charset_normalizer import from_bytes  # comes with requests, which the host has
    except ImportError:
        return "cp1252"
    found = from_bytes(head).best()
    return found.encoding if found else "cp1252"


def _whole_lines(texts: Iterator[str]) -> Iterator[str]:
    rest = ""
    for text in texts:
        text = rest + text
        end = text.rfind("\n") + 1
        if end:
            yield text[:end]
        rest = text[end:]
        if len(rest) > _LONGEST:
            yield f"{rest}\n"
            rest = ""
    if rest:
        yield rest
