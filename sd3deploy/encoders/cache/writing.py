"""A folder with a quantized encoder, whole or not at all: written beside its place, flushed to the disk, then renamed."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sd3deploy import units
from sd3deploy.encoders.cache import manifest
from sd3deploy.encoders.cache.entry import CONFIG, LIST, LOCK, MANIFEST, MODEL, TEMPORARY, Entry
from sd3deploy.encoders.cache.error import CacheError
from sd3deploy.encoders.cache.manifest import Manifest
from sd3deploy.encoders.cache.tensors import Progress, quiet, write_tensors

if TYPE_CHECKING:
    from sd3deploy.encoders.cache.journal import Journal
    from sd3deploy.encoders.encoded import Encoded
    from sd3deploy.encoders.weights import Weights

__all__ = ["SPARE", "check_room", "export", "failure", "write"]

SPARE = 10**9  # bytes that stay free: pictures, logs and the system itself need some
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def export(folder: Path, weights: Weights, encoded: Encoded, fingerprint: list[Any] | None = None, progress: Progress = quiet) -> Entry:
    """Write an encoder into a folder of its own, which must be new or empty. fingerprint: of the weights, from before they were read.

    progress: called with bytes done and bytes in all; what it raises ends the writing, and nothing is left of it.
    Raises CacheError with a remedy when there is no room, or something there already, or the place can not be written.
    """
    folder = folder.absolute()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
            raise CacheError("cache.out-taken", folder=folder)
        check_room(folder.parent, encoded)
        before = weights.fingerprint() if fingerprint is None else fingerprint
        return write(folder, weights, encoded, before, progress, temporary=f".{folder.name}.part-")
    except OSError as error:
        raise failure(folder.parent, encoded, error) from error


def check_room(folder: Path, encoded: Encoded) -> None:
    """Raises CacheError when the disk has no room for it and something to spare."""
    free = shutil.disk_usage(folder).free
    if free < encoded.size + SPARE:
        raise _no_room(folder, encoded, free)


def write(
    target: Path,
    weights: Weights,
    encoded: Encoded,
    fingerprint: list[Any],
    progress: Progress,
    temporary: str = TEMPORARY,
    journal: Journal | None = None,
) -> Entry:
    """Make the folder `target`, which must not be there, or be empty. temporary: how the name begins under which it is written. journal:
    has most of it already, and becomes that folder.

    Raises OSError; then nothing has changed.
    """
    recipe = encoded.recipe
    part = journal.folder if journal else target.with_name(temporary + secrets.token_hex(8))
    part.mkdir(exist_ok=journal is not None)
    try:
        digest = journal.finish(encoded.tensors, progress) if journal else write_tensors(part / MODEL, encoded.tensors, progress)
        config = json.dumps(encoded.config, indent=2, sort_keys=True).encode()
        _write(part / CONFIG, config)
        stamp = manifest.stamp(part / MODEL)
        made = Manifest(
            key=manifest.key(fingerprint, recipe),
            choice=recipe.choice.id,
            compute=recipe.compute,
            source=weights.name,
            place=manifest.place(weights),
            fingerprint=fingerprint,
            settings=recipe.settings(),
            versions=manifest.versions(),
            bytes=stamp["size"],
            sha256=digest,
            config=hashlib.sha256(config).hexdigest(),
            stamp=stamp,
            made=time.time(),
        )
        _write(part / MANIFEST, made.dump())
        _flush(part)
        if target.is_dir():
            target.rmdir()  # Windows renames onto nothing that is there
        os.rename(part, target)
    except BaseException:  # Ctrl-C too
        if journal is None:  # with which the next attempt goes on
            shutil.rmtree(part, ignore_errors=True)
        raise
    for name in (LIST, LOCK) if journal else ():
        with suppress(OSError):  # they do no harm
            (target / name).unlink()
    _flush(target.parent)
    return Entry(target)


def failure(folder: Path, encoded: Encoded, error: OSError | ValueError) -> CacheError:
    """What the operating system said, or Python in its place, as an error with a remedy."""
    if getattr(error, "errno", None) in _FULL:
        try:
            return _no_room(folder, encoded, shutil.disk_usage(folder).free)
        except OSError:  # it is gone as a whole
            pass
    return CacheError("cache.unwritable", folder=folder, detail=getattr(error, "strerror", None) or error)


def _no_room(folder: Path, encoded: Encoded, free: int) -> CacheError:
    size, spare = units.size(encoded.size), units.size(SPARE)
    return CacheError("cache.no-room", name=encoded.recipe.choice.name, size=size, spare=spare, folder=folder, free=units.size(free))


def _write(path: Path, content: bytes) -> None:
    with open(path, "wb") as file:  # a journal may have one, of somebody who was interrupted here
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _flush(folder: Path) -> None:
    """The names in a folder are on the disk only when the folder is."""
    if os.name == "nt":  # which has no such call
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
