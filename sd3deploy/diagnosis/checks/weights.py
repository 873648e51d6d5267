"""Whether one file of weights is whole: its header says how long it has to be. Nothing but the header is read."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

__all__ = ["Weights", "read_header"]

_POINTER = b"version https://git-lfs.github.com/spec/"
_HEADER = 100_000_000  # bytes: the safetensors library refuses longer ones


@dataclass(frozen=True)
class Weights:
    """state: whole; truncated (or longer than it says, or without a header that can be read); pointer: what git leaves without LFS;
    missing. bytes: on disk; wanted: as the header says, 0 where it says nothing. names: of the tensors.
    """

    path: Path
    state: Literal["whole", "truncated", "pointer", "missing"]
    bytes: int = 0
    wanted: int = 0
    names: tuple[str, ...] = field(default=(), repr=False)


def read_header(path: Path) -> Weights:
    """Of a .safetensors file; of others it is only said whether they are there."""
    size = count = 0
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            start = file.read(len(_POINTER))
            if start == _POINTER:
                return Weights(path, "pointer", size)
            if path.suffix != ".safetensors":
                return Weights(path, "whole" if size else "truncated", size)
            file.seek(0)
            length = file.read(8)
            count = struct.unpack("<Q", length)[0] if len(length) == 8 else 0
            header: Any = json.loads(file.read(count)) if 0 < count <= min(_HEADER, size) else {}
    except OSError:  # not there, a link that leads nowhere, or not to be read
        return Weights(path, "missing")
    except ValueError:
        return Weights(path, "truncated", size)
    try:
        header.pop("__metadata__", None)
        wanted = 8 + count + max(one["data_offsets"][1] for one in header.values())
    except (AttributeError, KeyError, TypeError, ValueError):  # JSON, but of something else
        return Weights(path, "truncated", size)
    return Weights(path, "whole" if size == wanted else "truncated", size, wanted, tuple(header))
