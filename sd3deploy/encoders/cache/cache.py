"""The folder with quantized encoders. One process writes at a time, any number read; nothing half-written is ever seen under its name."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sd3deploy import units
from sd3deploy.encoders import choices
from sd3deploy.encoders.cache import writing
from sd3deploy.encoders.cache.entry import CONFIG, MODEL, TEMPORARY, Entry, name_for, ours
from sd3deploy.encoders.cache.error import CacheError
from sd3deploy.encoders.cache.journal import Journal, finished_of, folder_of
from sd3deploy.encoders.cache.manifest import digest, key, place
from sd3deploy.encoders.cache.tensors import Progress, map_tensors, quiet
from sd3deploy.encoders.cache.unfinished import Unfinished, unfinished
from sd3deploy.encoders.mapped import Mapped, stamp
from sd3deploy.errors import Sd3Error, SettingError
from sd3deploy.file_lock import try_lock

if TYPE_CHECKING:
    from sd3deploy.encoders.encoded import Encoded
    from sd3deploy.encoders.recipe import Recipe
    from sd3deploy.encoders.weights import Weights

__all__ = ["DEFAULT_LIMIT", "Cache", "folder_for", "limit_for"]

DEFAULT_LIMIT = 20  # GB: each of the choices that can be kept, for one source
_NAME = "SD3 Deploy"  # of the folder among those of the host's models
_LOCK = ".sd3-lock"
_PATIENCE = 2.0  # seconds that somebody waits who removes or begins: a reader that tidies up is quicker, a writer is not
_WRITING = 120.0  # seconds that whoever has something to write waits for a writer: a slow disk takes a minute for an encoder
_POLL = 0.05  # seconds
_STALE = 7 * 86400.0  # seconds after which nobody goes on with what was interrupted: “encoder.cancelled-kept” says a week


def folder_for(models: Path, setting: str = "") -> Path:
    """Where the cache is. models: the host's folder for models. setting: sd3_cache_folder, "" for the default; a relative one is below
    `models`.
    """
    if not setting.strip():
        return models / _NAME
    folder = Path(setting.strip().strip("\"'"))
    try:
        return models / folder.expanduser()
    except RuntimeError:  # ~ of somebody that there is not
        return models / folder


def limit_for(setting: object) -> int:
    """Bytes. setting: sd3_cache_limit, in GB; what is no number above 0 means the default."""
    number = isinstance(setting, (int, float)) and not isinstance(setting, bool) and 0 < setting < 1e6  # 1e6: more than any disk has
    return int((setting if number else DEFAULT_LIMIT) * 10**9)  # type: ignore[operator]


def _nothing(id: str, values: Mapping[str, object]) -> None:
    pass


@dataclass(frozen=True)
class Cache:
    """folder: need not be there yet. limit: bytes of all entries together. told: called with the id of a sentence and its values, for
    what is no error: a damaged entry that was removed.
    """

    folder: Path
    limit: int = DEFAULT_LIMIT * 10**9
    told: Callable[[str, Mapping[str, object]], None] = field(default=_nothing, compare=False, repr=False)

    def find(self, weights: Weights, recipe: Recipe) -> Encoded | None:
        """The encoder, memory-mapped, where it is there, whole, and of these very weights; else None.

        It costs a few milliseconds. Where the file is not the one that was written (a copy, a backup), its content is hashed once.
        """
        from sd3deploy.encoders.encoded import Encoded

        try:
            wanted = key(weights.fingerprint(), recipe)
        except (OSError, ValueError):  # the source is gone or damaged: whoever reads it says so
            return None
        entry = Entry(self.folder / name_for(recipe.choice.id, wanted))
        if not ours(entry.folder):
            return None
        text = None
        try:
            text = entry.text
            wrong = self._wrong(entry, wanted)
            if wrong is None:
                file = entry.folder / MODEL
                before = stamp(file)
                tensors = map_tensors(file)
                mapped = (Mapped.of(file, before, tensors.values()),)
                return Encoded(recipe, json.loads((entry.folder / CONFIG).read_bytes()), tensors, mapped)
        except (FileNotFoundError, ValueError):  # removed this moment, or a header that can not be read
            wrong = MODEL
        except OSError as error:
            self.told("cache.unreadable", {"name": recipe.choice.name, "folder": entry.folder, "detail": error.strerror or error})
            return None
        self._damaged(entry, wrong, text)
        return None

    def entry(self, weights: Weights, recipe: Recipe) -> Entry | None:
        """Where that encoder is stored, whole; None where it is not. What is damaged stays, for `find` or `store` to remove."""
        try:
            wanted = key(weights.fingerprint(), recipe)
            found = Entry(self.folder / name_for(recipe.choice.id, wanted))
            return found if ours(found.folder) and self._wrong(found, wanted) is None else None
        except (OSError, ValueError):
            return None

    def store(
        self,
        weights: Weights,
        recipe: Recipe,
        encoded: Encoded,
        fingerprint: list[Any] | None = None,
        progress: Progress = quiet,
        journal: Journal | None = None,
    ) -> Entry | None:
        """Keep an encoder, after whoever is writing. None where it is not kept because the source was changed while it was read.

        fingerprint: that of the weights before they were read. progress: called with bytes done and bytes in all; what it raises ends
        the writing. journal: what was written while it was made; it is gone afterwards, unless this raises: then the next attempt goes on
        with it. Raises CacheError with a remedy when there is no room, another process writes for minutes, or the folder is not writable.
        """
        try:
            entry = self._checked(weights, recipe, encoded, fingerprint, progress, journal)
        except BaseException:
            if journal is not None:
                journal.close()
            raise
        if journal is not None:
            journal.discard()
        return entry

    def finished(self, weights: Weights, recipe: Recipe) -> frozenset[str]:
        """The weights that an interrupted attempt has made, with which `journal` goes on; none where they can not be read."""
        try:
            return finished_of(self.folder, key(weights.fingerprint(), recipe))
        except (OSError, ValueError):
            return frozenset()

    def journal(self, weights: Weights, recipe: Recipe, fingerprint: list[Any]) -> Journal | None:
        """Where to write what is made of these weights while the rest of them is read, with what an earlier attempt has made. None where
        that can not be: another process is at it, or the disk has no room. Whoever has one ends it with `close` or `store`. What nobody can
        go on with is removed, and what others left goes where there is no room for both, the oldest first.
        """
        expected = min(weights.size, recipe.choice.bytes or weights.size)
        if expected > self.limit:
            return None
        try:
            self._require_own()
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._lock(_PATIENCE) as mine:
                if not mine:
                    return None
                wanted, source = key(fingerprint, recipe), {"place": place(weights), "content": digest(fingerprint)}
                own = Unfinished(folder_of(self.folder, wanted))
                if not self._make_room_beside(own, max(0, expected - own.bytes), source):
                    return None
                return Journal.begin(self.folder, wanted, source)
        except (OSError, ValueError, CacheError):  # `store` says what is wrong with the folder
            return None

    def keep(
        self,
        weights: Weights,
        recipe: Recipe,
        encoded: Encoded,
        fingerprint: list[Any] | None = None,
        journal: Journal | None = None,
    ) -> None:
        """As `store`, for a thread of its own: what goes wrong is told, not raised."""
        try:
            self.store(weights, recipe, encoded, fingerprint, journal=journal)
        except Sd3Error as error:
            self.told(error.id, error.values)
        except Exception as error:
            self.told("unexpected", {"error": f"{type(error).__name__}: {error}"})

    def _checked(
        self,
        weights: Weights,
        recipe: Recipe,
        encoded: Encoded,
        fingerprint: list[Any] | None,
        progress: Progress,
        journal: Journal | None,
    ) -> Entry | None:
        try:
            now = weights.fingerprint()
        except (OSError, ValueError):
            return None
        if fingerprint is not None and fingerprint != now:
            return None
        if encoded.size > self.limit:
            sizes = {"size": units.size(encoded.size), "limit": units.size(self.limit)}
            raise CacheError("cache.over-limit", name=recipe.choice.name, **sizes)
        try:
            self._require_own()
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._lock(_WRITING) as mine:
                if not mine:
                    raise CacheError("cache.waited", name=recipe.choice.name, folder=self.folder)
                return self._store(weights, encoded, now, progress, journal)
        except (OSError, ValueError) as error:  # ValueError: a name with a zero in it
            raise writing.failure(self.folder, encoded, error) from error

    def entries(self) -> list[Entry]:
        """Those that are there, damaged or not, the one used last first."""
        try:
            found = [Entry(folder) for folder in self.folder.iterdir() if ours(folder)]
        except (OSError, ValueError):  # nothing was stored yet, or can ever be
            return []
        return sorted(found, key=lambda entry: (-entry.used, entry.folder.name))

    @property
    def bytes(self) -> int:
        """Of all entries."""
        return sum(entry.bytes for entry in self.entries())

    def clear(self) -> int:
        """Remove all entries and nothing else. Returns the bytes that are free now; `told` names those that are in use and stay.

        Raises CacheError when another process is writing, or the folder can not be written.
        """
        freed = 0
        if not os.path.lexists(self.folder / _LOCK) and not self.entries():  # nothing of ours, so that no lock is put there either
            return freed
        try:
            with self._lock(_PATIENCE) as mine:
                if not mine:
                    raise CacheError("cache.busy", folder=self.folder)
                freed += self._sweep()
                for one in (*self.entries(), *unfinished(self.folder)):
                    try:
                        freed += one.remove()
                    except OSError as error:
                        self.told("cache.in-use", {"folder": one.folder, "detail": error.strerror or error})
        except OSError as error:
            raise CacheError("cache.unwritable", folder=self.folder, detail=error.strerror or error) from error
        return freed

    def verify(self, progress: Progress = quiet) -> list[tuple[Entry, bool]]:
        """Read everything and compare it with what was written. What is damaged is removed, so that it is made anew.

        progress: called with bytes done and bytes in all.
        """
        entries, done = self.entries(), 0
        total = sum(entry.bytes for entry in entries)

        def read(count: int) -> None:
            nonlocal done
            done += count
            progress(done, total)

        results = []
        for entry in entries:
            try:
                text = entry.text
                wrong = entry.damage(entry.folder.name[-12:], hashed=True, progress=read)
            except OSError as error:
                self.told("cache.unreadable", {"name": _title(entry), "folder": entry.folder, "detail": error.strerror or error})
                results.append((entry, False))
                continue
            if wrong is None and not entry.stamped:
                self._renew(entry)
            elif wrong is not None:
                self._damaged(entry, wrong, text)
            results.append((entry, wrong is None))
        return results

    def change_beside(self, name: str, change: Callable[[bytes | None], bytes]) -> None:
        """Write a small file into the folder, whole or not at all; `clear` leaves it. change: from what is in the file, None where there is
        none, to what shall be; no other process writes meanwhile. Raises CacheError where that can not be.
        """
        file, scratch = self.folder / name, self.folder / f"{name}.{os.getpid()}.part"
        try:
            self._require_own()
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._lock(_WRITING) as mine:
                if not mine:
                    raise CacheError("cache.busy", folder=self.folder)
                try:
                    scratch.write_bytes(change(file.read_bytes() if file.exists() else None))
                    os.replace(scratch, file)
                finally:
                    scratch.unlink(missing_ok=True)
        except (OSError, ValueError) as error:
            detail = getattr(error, "strerror", None) or error
            raise CacheError("cache.unwritable", folder=self.folder, detail=detail) from error

    # The steps

    def _require_own(self) -> None:
        """Raise CacheError for a folder that holds other things, such as somebody's home or the root of a disk."""
        folder = self.folder.absolute()
        own = folder.exists() and ((folder / _LOCK).exists() or bool(self.entries()))
        if folder.resolve() in (Path(folder.anchor), Path(os.path.expanduser("~")).resolve()):
            own = False
        elif not own:
            # The lock once more: another process may have put it there since.
            own = not folder.exists() or not any(folder.iterdir()) or (folder / _LOCK).exists()
        if not own:
            raise CacheError("cache.not-ours", folder=folder, example=folder / _NAME)

    def _wrong(self, entry: Entry, wanted: str) -> str | None:
        """As `damage`; what is whole was used now."""
        wrong = entry.damage(wanted)
        if wrong is None:
            if not entry.stamped:
                self._renew(entry)
            entry.touch()
        return wrong

    def _store(self, weights: Weights, encoded: Encoded, fingerprint: list[Any], progress: Progress, journal: Journal | None) -> Entry:
        self._sweep()
        wanted = key(fingerprint, encoded.recipe)
        entry = Entry(self.folder / name_for(encoded.recipe.choice.id, wanted))
        if ours(entry.folder):
            if self._wrong(entry, wanted) is None:
                return entry  # somebody was quicker
            entry.remove()
        if os.path.lexists(entry.folder):
            raise CacheError("cache.out-taken", folder=entry.folder)
        if journal is not None and not journal.whole(encoded.tensors):
            journal.discard()
            journal = None
        if journal is None:
            writing.check_room(self.folder, encoded)
        entry = writing.write(entry.folder, weights, encoded, fingerprint, progress, journal=journal)
        self._make_room(entry)
        return entry

    def _make_room_beside(self, own: Unfinished, expected: int, source: Mapping[str, str]) -> bool:
        """Remove the journals that nobody can go on with, then those not used for longest, until there is room for `expected` bytes more.
        Returns whether the disk has it: entries go when another one is there, and not before.
        """
        others = [one for one in unfinished(self.folder) if one != own]
        for one in [one for one in others if not one.serves(source)]:
            _try_to_remove(one)
            others.remove(one)

        def free() -> int:
            return shutil.disk_usage(self.folder).free - writing.SPARE - expected

        def left() -> int:
            return self.limit - self.bytes - own.bytes - expected - sum(one.bytes for one in others)

        while others and (left() < 0 or free() < 0):
            _try_to_remove(others.pop())
        return free() >= 0

    def _make_room(self, new: Entry) -> None:
        """Remove what the new one takes the place of, then what was not used for longest, until the limit is kept."""
        made = new.manifest
        others = [entry for entry in self.entries() if entry != new]
        stale: list[Entry | Unfinished] = [entry for entry in others if (there := entry.manifest) and made and there.same_source(made)]
        kept = sorted([*(entry for entry in others if entry not in stale), *unfinished(self.folder)], key=lambda one: -one.used)
        total = new.bytes + sum(entry.bytes for entry in kept)
        while kept and total > self.limit:
            stale.append(kept.pop())
            total -= stale[-1].bytes
        for one in stale:
            _try_to_remove(one)

    def _sweep(self) -> int:
        """Remove what a writer left that was killed: whoever holds the lock is the only one. Returns the bytes that are free now."""
        freed = sum(_try_to_remove(one) for one in unfinished(self.folder) if time.time() - one.used > _STALE)
        for folder in self.folder.iterdir():
            if folder.name.startswith(TEMPORARY) and folder.is_dir() and not folder.is_symlink():
                freed += sum(file.stat().st_size for file in folder.iterdir())
                shutil.rmtree(folder, ignore_errors=True)
        return freed

    def _damaged(self, entry: Entry, wrong: str, text: bytes | None) -> None:
        """Remove a damaged entry and say so, unless another process is at work there. text: of its manifest as it was seen."""
        try:
            with self._lock() as mine:
                if not mine or not ours(entry.folder) or entry.text != text:
                    return
                entry.remove()
        except OSError:  # it may not be removed: it is not used for all that
            pass
        self.told("cache.damaged", {"name": _title(entry), "file": wrong, "folder": entry.folder})

    def _renew(self, entry: Entry) -> None:
        try:
            with self._lock() as mine:
                if mine:
                    entry.renew()
        except OSError:
            pass

    @contextmanager
    def _lock(self, patience: float = 0.0) -> Iterator[bool]:
        """Hold the lock of the folder, or not. Raises OSError where there can be none."""
        descriptor = os.open(self.folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            until = time.monotonic() + patience
            while not (mine := try_lock(descriptor)) and time.monotonic() < until:
                time.sleep(_POLL)
            yield mine
        finally:
            os.close(descriptor)  # closing is unlocking


def _try_to_remove(one: Entry | Unfinished) -> int:
    """Returns the bytes that are free now."""
    try:
        return one.remove()
    except OSError:  # in use: the next one that is stored finds it again
        return 0


def _title(entry: Entry) -> str:
    try:
        return choices.find(entry.choice).name
    except SettingError:  # of a newer version of this extension
        return entry.folder.name
