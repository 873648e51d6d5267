"""Files that an encoder in memory still reads from, and whether somebody has changed one meanwhile."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["Mapped", "stamp"]


def stamp(file: Path) -> dict[str, int]:
    """What changes when somebody writes to a file or puts another in its place, though the time of its content may be put back.

    Raises OSError for a file that is not there.
    """
    found = file.stat()
    told = {"size": found.st_size, "mtime_ns": found.st_mtime_ns, "inode": found.st_ino}
    return told if os.name == "nt" else {**told, "ctime_ns": found.st_ctime_ns}  # on Windows it is the time of creation


@dataclass(frozen=True)
class Mapped:
    """A file of which tensors are a memory map. stamp: of the file before it was mapped. first, last: addresses of its tensors."""

    file: Path
    stamp: Mapping[str, int]
    first: int
    last: int

    @classmethod
    def of(cls, file: Path, before: Mapping[str, int], tensors: Iterable[torch.Tensor]) -> Mapped:
        """before: the stamp of the file from before it was mapped."""
        spans = [(tensor.data_ptr(), tensor.data_ptr() + tensor.numel() * tensor.element_size()) for tensor in tensors]
        return cls(file, before, min(first for first, _ in spans), max(last for _, last in spans))

    def changed(self, tensors: Iterable[torch.Tensor]) -> bool:
        """Whether somebody wrote to the file in place since, and one of these tensors still lies in it. It costs a stat, and more only
        where that tells of a change. A file that was removed or replaced lives on for whoever has mapped it.
        """
        try:
            now = stamp(self.file)
        except OSError:
            return False
        if now == self.stamp or now["inode"] != self.stamp["inode"]:
            return False
        return any(self.first <= tensor.data_ptr() < self.last for tensor in tensors)
