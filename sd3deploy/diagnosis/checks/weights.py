"""Whether one file of weights is whole: its header says how long it has to be. Nothing but the header is read."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from sd3deploy.encoders.header import read_header as header_of

__all__ = ["Weights", "read_header"]

_POINTER = b"version https://git-lfs.github.com/spec/"


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
    size = 0
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            if file.read(len(_POINTER)) == _POINTER:
                return Weights(path, "pointer", size)
        if path.suffix != ".safetensors":
            return Weights(path, "whole" if size else "truncated", size)
        header = header_of(path)
    except OSError:  # not there, a link that leads nowhere, or not to be read
        return Weights(path, "missing")
    except ValueError:
        return Weights(path, "truncated", size)
    if not header.tensors:  # a file of weights without any
        return Weights(path, "truncated", size)
    return Weights(path, "whole" if size == header.size else "truncated", size, header.size, tuple(header.tensors))
