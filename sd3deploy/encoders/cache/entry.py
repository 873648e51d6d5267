"""One encoder in the cache: a folder of three files that transformers can read, named after what it was made of."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from sd3deploy.encoders.cache.manifest import Manifest, stamp
from sd3deploy.lazy import lazy

__all__ = ["CONFIG", "LIST", "LOCK", "MANIFEST", "MODEL", "TEMPORARY", "Entry", "name_for", "ours"]

MODEL, CONFIG, MANIFEST = "model.safetensors", "config.json", "manifest.json"
TEMPORARY = ".sd3-part-"  # how the folder of an unfinished entry begins
LIST, LOCK = "finished.jsonl", "lock"  # of the journal that it was; they stay where the process ends as it becomes an entry
_RENEWED = "manifest.json.part"
# In the order of removal: Windows refuses to remove a file that is in use, and only the first can be.
_FILES = (MODEL, LIST, LOCK, _RENEWED, CONFIG, MANIFEST)
_NAME = lazy(r"t5-([a-z0-9-]+)-[0-9a-f]{12}")
_PIECE = 1 << 22  # bytes at a time


def name_for(choice: str, key: str) -> str:
    """Of the folder."""
    return f"t5-{choice}-{key[:12]}"


def ours(folder: Path) -> bool:
    """Whether a folder is an entry, damaged or not: by its name, and by a manifest or by having nothing else in it."""
    if not _NAME.fullmatch(folder.name) or os.path.islink(folder):
        return False
    try:
        there = set(os.listdir(folder))
    except (OSError, ValueError):  # no folder, none that can be, or one that others may not look into
        return False
    return MANIFEST in there or there <= set(_FILES)


@dataclass(frozen=True)
class Entry:
    """A folder of the cache. It may be damaged, or gone by the time it is asked."""

    folder: Path

    @property
    def choice(self) -> str:
        """The id of the choice, from the name of the folder; "" where that has another name."""
        match = _NAME.fullmatch(self.folder.name)
        return match[1] if match else ""

    @property
    def text(self) -> bytes | None:
        """The manifest as it lies there; None where there is none. Raises OSError for one that can not be read."""
        try:
            return (self.folder / MANIFEST).read_bytes()
        except FileNotFoundError:
            return None

    @property
    def manifest(self) -> Manifest | None:
        """None where there is none that can be understood."""
        try:
            return Manifest.parse(self.text or b"")
        except (OSError, ValueError):
            return None

    @property
    def bytes(self) -> int:
        """On the disk."""
        return sum(stat.st_size for stat in map(self._stat, _FILES) if stat)

    @property
    def used(self) -> float:
        """When it was made or loaded last, in seconds since the epoch."""
        stat = self._stat(MANIFEST) or self._stat(".")
        return stat.st_mtime if stat else 0.0

    def touch(self) -> None:
        """Note that it was used."""
        try:
            os.utime(self.folder / MANIFEST)
        except OSError:  # a folder that is only read: then nobody evicts from it either
            pass

    def damage(self, key: str = "", *, hashed: bool = False, progress: Callable[[int], None] = lambda count: None) -> str | None:
        """The file that is not as it was written; None where all are. The content is read only where somebody may have changed it since it
        was written, or `hashed` asks for it.

        key: with which it must have been made, or the beginning of that. progress: called with bytes read.
        Raises OSError for a file that is there and can not be read.
        """
        try:
            manifest = Manifest.parse(self.text or b"")
        except ValueError:
            return MANIFEST
        if not manifest.key.startswith(key or manifest.key):  # somebody has renamed the folder
            return MANIFEST
        try:
            if hashlib.sha256((self.folder / CONFIG).read_bytes()).hexdigest() != manifest.config:
                return CONFIG
        except FileNotFoundError:
            return CONFIG
        try:
            there = stamp(self.folder / MODEL)
            if there["size"] != manifest.bytes:
                return MODEL
            if hashed or there != manifest.stamp:
                return None if _sha256(self.folder / MODEL, progress) == manifest.sha256 else MODEL
        except FileNotFoundError:
            return MODEL
        return None

    @property
    def stamped(self) -> bool:
        """Whether the file with the tensors is the very one that was written, or renewed."""
        manifest = self.manifest
        try:
            return manifest is not None and stamp(self.folder / MODEL) == manifest.stamp
        except OSError:
            return False

    def renew(self) -> None:
        """Take the stamp of a file that was found whole, so that it need not be hashed again; the caller holds the lock."""
        manifest = self.manifest
        if manifest is None:
            return
        try:
            there = stamp(self.folder / MODEL)
            with open(self.folder / _RENEWED, "wb") as file:
                file.write(replace(manifest, stamp=there).dump())
                file.flush()
                os.fsync(file.fileno())
            os.replace(self.folder / _RENEWED, self.folder / MANIFEST)
        except OSError:  # a folder that is only read: hashed each time
            pass

    def remove(self) -> int:
        """Remove it; the caller holds the lock. Returns the bytes that are free now.

        Raises OSError when it is in use (Windows) or may not be removed: then all of it is still there. What else lies in the folder stays.
        """
        freed = 0
        for name in _FILES:
            stat = self._stat(name)
            (self.folder / name).unlink(missing_ok=True)
            freed += stat.st_size if stat else 0
        try:
            self.folder.rmdir()
        except OSError:  # somebody keeps files of his own in it
            pass
        return freed

    def _stat(self, name: str) -> os.stat_result | None:
        try:
            return (self.folder / name).stat()
        except OSError:
            return None


def _sha256(file: Path, progress: Callable[[int], None]) -> str:
    digest, piece = hashlib.sha256(), bytearray(_PIECE)
    with open(file, "rb", buffering=0) as content:
        while count := content.readinto(piece):
            digest.update(memoryview(piece)[:count])
            progress(count)
    return digest.hexdigest()
