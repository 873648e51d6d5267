"""Numbers of 8 bit with scales."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sd3deploy.encoders.forms.rotation import unrotate
from sd3deploy.encoders.forms.scales import Scales, floats
from sd3deploy.encoders.stored import Decode, Stored

if TYPE_CHECKING:
    import torch

__all__ = ["Scaled", "fold"]


@dataclass(frozen=True)
class Scaled:
    """Weight = numbers · scales, then turned back, then by columns. dtype: torch's name. scales: None where all are 1. rotated: how many
    numbers of a row were rotated together, 0 for none. columns: what multiplies the inputs of the layer.
    """

    name: str
    dtype: str
    height: int
    width: int
    scales: Scales | None
    rotated: int = 0
    columns: Stored | None = None
    exact = False
    step = 1

    def open(self, read: Callable[[Stored], torch.Tensor]) -> Decode:
        import torch

        dtype = getattr(torch, self.dtype)
        multiply = self.scales.open(read, self.height, self.width) if self.scales else None
        columns = fold(self.columns, read)

        def decode(data: torch.Tensor, first: int, rows: int) -> torch.Tensor:
            numbers = data.view(dtype).reshape(rows, self.width).float()
            if multiply:
                multiply(numbers, first)
            if self.rotated:
                numbers = unrotate(numbers, self.rotated)
            return numbers if columns is None else numbers.mul_(columns)

        return decode


def fold(columns: Stored | None, read: Callable[[Stored], torch.Tensor]) -> torch.Tensor | None:
    """What multiplies each column of a weight, as the inputs are multiplied by it where the layer is computed."""
    return None if columns is None else floats(read(columns), columns.dtype).reshape(1, -1)
