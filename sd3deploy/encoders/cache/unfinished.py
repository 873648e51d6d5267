"""What interrupted loads have left in the folder: journals, of which each is somebody's next attempt."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sd3deploy.encoders.cache.entry import LIST, LOCK
from sd3deploy.encoders.cache.journal import JOURNAL, source_of
from sd3deploy.file_lock import try_lock

__all__ = ["Unfinished", "unfinished"]


@dataclass(frozen=True)
class Unfinished:
    """A journal on disk, as entries are there: it has a size, was used at some time, and can be removed."""

    folder: Path

    @property
    def bytes(self) -> int:
        """On the disk."""
        try:
            return sum(file.stat().st_size for file in self.folder.iterdir())
        except OSError:  # it has just become an entry, or is gone
            return 0

    @property
    def used(self) -> float:
        """When anything was added, in seconds since the epoch."""
        for place in (self.folder / LIST, self.folder):
            try:
                return place.stat().st_mtime
            except OSError:
                continue
        return 0.0

    def serves(self, source: Mapping[str, str]) -> bool:
        """Whether somebody can go on with it now that this is the source, as Journal.begin has it: it is of another place, or of this very
        content. What can not be read serves nobody.
        """
        found = source_of(self.folder)
        return found is not None and (found == source or found["place"] != source["place"])

    def remove(self) -> int:
        """Remove it; the caller holds the lock of the cache. Returns the bytes that are free then. Raises OSError when it is in use."""
        descriptor = os.open(self.folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if not try_lock(descriptor):
                raise BlockingIOError(errno.EWOULDBLOCK, os.strerror(errno.EWOULDBLOCK))
        finally:
            os.close(descriptor)  # Windows removes nothing that is open; whoever would take it holds the lock of the cache
        freed = self.bytes
        shutil.rmtree(self.folder)
        return freed


def unfinished(parent: Path) -> list[Unfinished]:
    """Those in the folder of a cache, the one used last first."""
    try:
        found = [Unfinished(folder) for folder in parent.iterdir() if folder.name.startswith(JOURNAL)]
    except (OSError, ValueError):  # nothing was stored yet, or can ever be
        return []
    found = [one for one in found if one.folder.is_dir() and not one.folder.is_symlink()]
    return sorted(found, key=lambda one: (-one.used, one.folder.name))
