"""Scales beside a weight, in the shapes that files have."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sd3deploy.encoders.stored import Stored

if TYPE_CHECKING:
    import torch

__all__ = ["FLOATS", "Scales", "floats", "scales_of"]

FLOATS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}  # the container's name → torch's
# Weights of a row or of a side of a block that share a scale, at least. Writers take 64 and 128; what a smaller number explains is rather
# another layout, which happens to have as many scales.
_LEAST = 16


@dataclass(frozen=True)
class Scales:
    """Each scale is shared by `rows` × `columns` weights. kind: for people, after the name of the type."""

    stored: Stored
    rows: int
    columns: int
    kind: str

    def open(self, read: Callable[[Stored], torch.Tensor], height: int, width: int) -> Callable[[torch.Tensor, int], None]:
        """What multiplies rows of a weight of height × width in place: (float32 [rows, width], number of the first row)."""
        import torch

        grid = floats(read(self.stored), self.stored.dtype).reshape(height // self.rows, width // self.columns)

        def multiply(numbers: torch.Tensor, first: int) -> None:
            own = grid[torch.arange(first, first + len(numbers)) // self.rows]
            numbers.view(len(numbers), own.shape[1], self.columns).mul_(own.unsqueeze(2))

        return multiply


def floats(data: torch.Tensor, dtype: str) -> torch.Tensor:
    """Bytes as float32 numbers."""
    import torch

    return data.view(getattr(torch, FLOATS[dtype])).float()


def scales_of(scale: Stored, shape: tuple[int, ...]) -> Scales | None:
    """How scales belong to a weight of this shape; None where they do not. What has one dimension are rows, also of a square weight."""
    if scale.dtype not in FLOATS or not shape or 0 in shape:
        return None
    height = shape[0]
    width = 1
    for side in shape[1:]:
        width *= side
    found = scale.shape
    if found in ((), (1,), (1, 1)):
        return Scales(scale, height, width, "a scale")
    if len(shape) != 2:
        return None
    if found in ((height,), (height, 1)):
        return Scales(scale, 1, width, "a scale per row")
    if 0 in found:
        return None
    if len(found) == 3 and found[0] == height and found[2] == 1 and width % found[1] == 0 and width // found[1] >= _LEAST:
        return Scales(scale, 1, width // found[1], f"a scale per {width // found[1]} of a row")
    if len(found) == 2 and height % found[0] == 0 and width % found[1] == 0:
        side = height // found[0]
        if side == width // found[1] >= _LEAST:
            return Scales(scale, side, side, f"a scale per {side} × {side}")
    return None
