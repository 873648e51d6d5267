"""A folder with a quantized encoder, whole or not at all: written beside its place, flushed to the disk, then renamed.

safetensors before 0.8 (SD.Next of 2025 brings 0.6 and 0.7) copies every tensor into memory before it writes the first; here they go to
the file piece by piece, out of the memory in which they lie, and are hashed on the way.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from sd3deploy import units
from sd3deploy.encoders.cache import manifest
from sd3deploy.encoders.cache.entry import CONFIG, MANIFEST, MODEL, TEMPORARY, Entry
from sd3deploy.encoders.cache.error import CacheError
from sd3deploy.encoders.cache.manifest import Manifest

if TYPE_CHECKING:
    import torch

    from sd3deploy.encoders.quantize import Encoded
    from sd3deploy.encoders.weights import Weights

__all__ = ["SPARE", "Progress", "check_room", "export", "quiet", "write", "write_tensors"]

Progress = Callable[[int, int], None]

SPARE = 10**9  # bytes that stay free: pictures, logs and the system itself need some
_PIECE = 1 << 24  # bytes at a time
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# torch's name of a type → safetensors' (its format description)
_TYPES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
}


def quiet(done: int, total: int) -> None:
    """Tell nobody how far it is."""


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
    target: Path, weights: Weights, encoded: Encoded, fingerprint: list[Any], progress: Progress, temporary: str = TEMPORARY
) -> Entry:
    """Make the folder `target`, which must not be there, or be empty. temporary: how the name begins under which it is written.

    Raises OSError; then nothing has changed.
    """
    recipe = encoded.recipe
    part = target.with_name(temporary + secrets.token_hex(8))
    part.mkdir()
    try:
        digest = write_tensors(part / MODEL, encoded.tensors, progress)
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
        shutil.rmtree(part, ignore_errors=True)
        raise
    _flush(target.parent)
    return Entry(target)


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor], progress: Progress = quiet) -> str:
    """Write a safetensors file and flush it to the disk. Returns its sha256."""
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))  # so that each lies where its type may lie
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers asks for that
    end = 0
    for name, tensor in ordered:
        start, end = end, end + tensor.numel() * tensor.element_size()
        dtype = _TYPES[str(tensor.dtype).removeprefix("torch.")]
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [start, end]}
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    digest = hashlib.sha256()
    with open(path, "xb") as file:
        _put(file, digest, memoryview(len(head).to_bytes(8, "little") + head))
        done = 0
        progress(0, end)
        for _, tensor in ordered:
            content = _bytes(tensor)
            for start in range(0, len(content), _PIECE):
                piece = content[start : start + _PIECE]
                _put(file, digest, piece)
                done += len(piece)
                progress(done, end)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def failure(folder: Path, encoded: Encoded, error: OSError) -> CacheError:
    """What the operating system said, as an error with a remedy."""
    if error.errno in _FULL:
        try:
            return _no_room(folder, encoded, shutil.disk_usage(folder).free)
        except OSError:  # it is gone as a whole
            pass
    return CacheError("cache.unwritable", folder=folder, detail=error.strerror or error)


def _no_room(folder: Path, encoded: Encoded, free: int) -> CacheError:
    size, spare = units.size(encoded.size), units.size(SPARE)
    return CacheError("cache.no-room", name=encoded.recipe.choice.name, size=size, spare=spare, folder=folder, free=units.size(free))


def _put(file: BinaryIO, digest: Any, piece: memoryview) -> None:
    file.write(piece)
    digest.update(piece)


def _bytes(tensor: torch.Tensor) -> memoryview:
    import torch

    flat = tensor.detach().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")


def _write(path: Path, content: bytes) -> None:
    with open(path, "xb") as file:
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
