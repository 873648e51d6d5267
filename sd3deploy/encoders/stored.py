"""A tensor as it lies on disk, and a weight, which is made of one or several of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from sd3deploy.encoders.files import File

if TYPE_CHECKING:
    import torch

__all__ = ["Decode", "Layout", "Stored", "Weight"]

# (bytes of whole rows: uint8 [n], number of the first row, rows) → the rows
Decode = Callable[["torch.Tensor", int, int], "torch.Tensor"]


@dataclass(frozen=True)
class Stored:
    """Where a tensor lies. key: its name there. offset, size: bytes. dtype: the container's name of it, as "BF16" or "Q5_K". shape: as the
    container has it, rows first.
    """

    file: File
    key: str
    offset: int
    size: int
    dtype: str
    shape: tuple[int, ...]


class Layout(Protocol):
    """How the bytes of a weight become numbers. The bytes of a row follow those of the row before."""

    @property
    def name(self) -> str:
        """Of the form, for people, the same in every language: "BF16", "Q5_K", "FP8, a scale per row"."""
        ...

    @property
    def exact(self) -> bool:
        """Whether it holds the weights as they were trained, in 16 bit or more. What does not, is quantized twice where it is quantized."""
        ...

    @property
    def step(self) -> int:
        """Rows are decoded in multiples of it, all but the last."""
        ...

    def open(self, read: Callable[[Stored], torch.Tensor]) -> Decode:
        """What decodes rows, in float32 or wider than it is stored; called by several threads. read: the bytes of another tensor, such as
        scales: uint8 [n]. It is called here alone. Raises ValueError for such a one that does not fit.
        """
        ...


@dataclass(frozen=True)
class Weight:
    """A weight of the encoder. stored: the tensor that is read piece by piece. shape: of the weight, which may differ from that of what
    is stored.
    """

    stored: Stored
    shape: tuple[int, ...]
    layout: Layout
