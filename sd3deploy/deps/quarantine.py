"""Moving a distribution out of the way so that it can be put back: a repair either succeeds or has not happened.

A manifest is written before the first move and removed after the last success, so that a process that was killed
between the two leaves a trace, and the next one can undo it. Every step leaves either the old or the new on disk, whole:
a process may be killed between any two lines of this file. What another distribution owns is never touched.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
from pathlib import Path

from sd3deploy.deps.belongings import belongings
from sd3deploy.deps.workspace import workspace
from sd3deploy.installed import owners
from sd3deploy.vendored import canonicalize_name

__all__ = ["Quarantine", "interrupted", "recover", "rubbish", "sweep"]

_MANIFEST = "manifest.json"


# The quarantines of this process that are at work: they are not "interrupted".
_active: set[Path] = set()


class Quarantine:
    """Context manager: on entry everything that belongs to `name` is moved away; left by an exception, it is put back
    and whatever was installed meanwhile is removed; left normally, the old files are deleted.

    Raises OSError when a file can not be moved (in use, no permission), after what was already moved is back in its place.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._folder = _root() / f"{canonicalize_name(name)}-{os.getpid()}-{time.time_ns()}"

    def __enter__(self) -> Quarantine:
        paths = belongings(self.name).all()
        strange = next((path for path in paths if _foreign(path)), None)
        if strange:
            raise PermissionError(errno.EACCES, "belongs to another environment", str(strange))
        self._folder.mkdir(parents=True)
        _active.add(self._folder)
        begun = self._folder / f"{_MANIFEST}.part"
        begun.write_text(json.dumps([str(path) for path in paths]), encoding="utf-8")
        begun.replace(self._folder / _MANIFEST)
        try:
            for number, path in enumerate(paths):
                _move(path, self._folder / str(number))
        except OSError:
            _restore(self._folder, self.name)
            raise
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        if kind is None:
            _forget(self._folder)
        else:
            _restore(self._folder, self.name)


def interrupted(name: str) -> tuple[Path, ...]:
    """Quarantines of this distribution that nobody finished: the process that made them is gone."""
    try:
        entries = sorted(_root().iterdir())
    except OSError:  # no quarantine was ever made here
        return ()
    mine = (one for one in entries if one.name.rsplit("-", 2)[0] == canonicalize_name(name))
    return tuple(one for one in mine if one not in _active and (one / _MANIFEST).exists())


def recover(name: str, healthy: bool) -> None:
    """End what an interrupted repair has begun: put back what it had moved away, or, where what lies there now is `healthy`, let go of
    that: the repair was done, only nobody had noted it. To be called under the lock, when no other repair can be running.
    """
    for folder in interrupted(name):
        _forget(folder) if healthy else _restore(folder, name)


def rubbish() -> tuple[Path, ...]:
    """Quarantines without a manifest, to be deleted under the lock: killed before anything was moved, or after all was over."""
    try:
        return tuple(one for one in _root().iterdir() if one not in _active and not (one / _MANIFEST).exists())
    except OSError:  # no quarantine was ever made here
        return ()


def sweep(name: str) -> None:
    """Delete what a stopped pip left of a distribution that is otherwise healthy. What is in use stays; it does no harm."""
    for path in belongings(name).residue:
        try:
            _remove(path)
        except OSError:
            pass


def _root() -> Path:
    return workspace() / "quarantine"


def _foreign(path: Path) -> bool:
    """A link inside a package folder may lead into another environment: changing files there would break a stranger."""
    site = next((parent for parent in path.parents if parent.name in ("site-packages", "dist-packages")), None)
    return site is None or not path.parent.resolve().is_relative_to(site.resolve())


def _restore(folder: Path, name: str) -> None:
    """Remove what was installed meanwhile, then move the old files back, each to where it was, as far as nobody else owns that now."""
    paths = [Path(path) for path in json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))]
    moved = {number: path for number, path in enumerate(paths) if _exists(folder / str(number))}
    for path in belongings(name).all():
        if (path not in paths or path in moved.values()) and not _foreign(path):
            _remove(path)
    for number, path in moved.items():
        if _exists(path) and _owned_by_others(path, name):
            continue
        _remove(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        _move(folder / str(number), path)
    _forget(folder)


def _owned_by_others(path: Path, name: str) -> bool:
    """Whether somebody has installed another distribution there since the old files were moved away."""
    site = next(parent for parent in path.parents if parent.name in ("site-packages", "dist-packages"))
    return bool(owners(site, [path.relative_to(site).as_posix()], but=name))


def _forget(folder: Path) -> None:
    _active.discard(folder)
    (folder / _MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)  # a file in use on Windows; without its manifest it means nothing any more
    try:
        _root().rmdir()
    except OSError:  # others are still in it
        pass


def _move(source: Path, target: Path) -> None:
    """Rename; where the system can not (another disk, or a lower layer of a container's file system), copy. `target` appears as a whole,
    and `source` goes at once: killed in between, one of the two is complete.
    """
    try:
        source.rename(target)
        return
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
    part, gone = _beside(target), _beside(source)
    _remove(part)
    if source.is_dir() and not source.is_symlink():
        shutil.copytree(source, part, symlinks=True)
    else:
        shutil.copy2(source, part, follow_symlinks=False)
    part.rename(target)
    try:
        source.rename(gone)
    except OSError:  # a folder of a lower layer can be emptied, but not renamed
        gone = source
    _remove(gone)


def _beside(path: Path) -> Path:
    """Where a path is copied to, and renamed to before it is deleted: named as pip does, so that what is left of it is swept."""
    return path.with_name(f"~{path.name[1:]}" if len(path.name) > 1 else f"~{path.name}")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif _exists(path):
        path.unlink()


def _exists(path: Path) -> bool:
    return path.is_symlink() or path.exists()
