"""The file with the tensors of an encoder, in the format of safetensors: written and hashed piece by piece, and memory-mapped.

safetensors' own functions are for tensors that are in memory. Its `save_file` before 0.8 (SD.Next of 2025 brings 0.6 and 0.7) copies every
tensor before it writes the first. Its `load_file` touches each tensor as it maps it: with nothing in the system's memory that reads three
quarters of the file bit by bit, which took half as long again as reading it in one go (bench/load.py).
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import math
import os
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from sd3deploy.encoders.containers import open_content
from sd3deploy.encoders.files import LocalFile
from sd3deploy.errors import EncoderError

if TYPE_CHECKING:
    import torch

__all__ = ["Progress", "bytes_of", "map_tensors", "named", "place_of", "quiet", "type_of", "write_tensors"]

Progress = Callable[[int, int], None]

_PIECE = 1 << 24  # bytes written at a time
_AHEAD = 1 << 26  # bytes read ahead at a time: the thread that does it waits for Python in between
_POPULATE, _SOON = 22, 3  # MADV_POPULATE_READ, of Linux; MADV_WILLNEED
_SMALL = 4096  # numbers at most in a tensor that is called small
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
_NAMES = {stored: name for name, stored in _TYPES.items()}


def quiet(done: int, total: int) -> None:
    """Tell nobody how far it is."""


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor], progress: Progress = quiet) -> str:
    """Write a new file and flush it to the disk. Returns its sha256."""
    ordered = sorted(tensors.items(), key=place_of)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers asks for that
    end = 0
    for name, tensor in ordered:
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": type_of(tensor), "shape": list(tensor.shape), "data_offsets": [start, end]}
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    digest = hashlib.sha256()
    with open(path, "xb") as file:
        _put(file, digest, memoryview(len(head).to_bytes(8, "little") + head))
        done = 0
        progress(0, end)
        for _, tensor in ordered:
            content = bytes_of(tensor)
            for start in range(0, len(content), _PIECE):
                piece = content[start : start + _PIECE]
                _put(file, digest, piece)
                done += len(piece)
                progress(done, end)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def type_of(tensor: torch.Tensor) -> str:
    """safetensors' name of its type."""
    return _TYPES[str(tensor.dtype).removeprefix("torch.")]


def named(stored: str) -> torch.dtype:
    """The type that safetensors calls so. Raises ValueError for one that is not known."""
    import torch

    if stored not in _NAMES:
        raise ValueError(f"{stored} is no type")
    return getattr(torch, _NAMES[stored])


def place_of(item: tuple[str, torch.Tensor]) -> tuple[int, bool, str]:
    """In the file: each tensor where its type may lie, and the small ones together, which are all that an encoder is put together from."""
    name, tensor = item
    return -tensor.element_size(), tensor.numel() > _SMALL, name


def map_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Memory-map a file of `write_tensors`. Nothing is read yet; a thread begins to, and ends by itself when all is in memory.

    Raises ValueError for a file that is none, OSError for one that can not be read.
    """
    import torch

    try:
        stored = open_content(LocalFile(path)).tensors
    except EncoderError as error:
        raise ValueError(str(error)) from error
    whole = torch.UntypedStorage.from_file(str(path), False, path.stat().st_size)
    found = {}
    for name, tensor in stored.items():
        if tensor.dtype not in _NAMES:
            raise ValueError(f"{name}: {tensor.dtype}")
        empty: Any = torch.empty(0, dtype=getattr(torch, _NAMES[tensor.dtype]))
        if math.prod(tensor.shape) * empty.element_size() != tensor.size or tensor.offset % empty.element_size():
            raise ValueError(f"{name}: {tensor.size} bytes at {tensor.offset}")
        # A storage of its own each: by it others tell which tensors are one and the same, and how large they are.
        found[name] = empty.set_(whole[tensor.offset : tensor.offset + tensor.size], 0, tensor.shape)
    try:
        threading.Thread(target=_read_ahead, args=(whole,), name="sd3-read-ahead", daemon=True).start()
    except RuntimeError:  # no more threads: then it is read when it is used
        pass
    return found


def _read_ahead(whole: Any) -> None:
    """Ask the system for every page, from the first to the last. Meanwhile an encoder is put together, which takes few of them.

    Asked for, a page that can not be had is an error that nobody minds; touched, it would be the end of the process.
    """
    if os.name == "nt":  # which reads what is used
        return
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    for start in range(0, len(whole), _AHEAD):
        place = whole.data_ptr() + start, min(_AHEAD, len(whole) - start)
        if sys.platform != "linux" or madvise(*place, _POPULATE):  # not known before Linux 5.14
            madvise(*place, _SOON)


def _put(file: BinaryIO, digest: Any, piece: memoryview) -> None:
    file.write(piece)
    digest.update(piece)


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """Its bytes, without a copy where it lies in one piece."""
    import torch

    flat = tensor.detach().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")
