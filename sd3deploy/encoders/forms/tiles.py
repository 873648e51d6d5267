"""NVFP4 and MXFP8: groups along a row, with scales in the tiles that cuBLAS takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from sd3deploy.encoders.forms.scaled import fold
from sd3deploy.encoders.forms.scales import floats
from sd3deploy.encoders.stored import Decode, Stored

if TYPE_CHECKING:
    import torch

__all__ = ["AT_ONCE", "Tiled4", "Tiled8", "nibbles", "tiled"]

AT_ONCE = 2**20  # bytes of codes that are looked up at a time, which takes 12 bytes for each
# The numbers of E2M1, whose sign is the highest bit (OCP Microscaling Formats 1.0).
_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)


def tiled(rows: int, columns: int) -> tuple[int, int]:
    """The shape in which rows × columns scales are stored."""
    return -(-rows // 128) * 128, -(-columns // 4) * 4


def nibbles(values: tuple[float, ...]) -> torch.Tensor:
    """Two numbers for each byte, that of the high half first: float32 [256, 2]."""
    import torch

    table = torch.tensor(values, dtype=torch.float32)
    codes = torch.arange(256)
    return torch.stack((table[codes >> 4], table[codes & 15]), 1)


@lru_cache
def _table() -> torch.Tensor:
    return nibbles(_E2M1)


def _flat(data: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """Scales out of their tiles of 128 × 4, in which 32 rows lie beside each other (comfy_kitchen/float_utils.py, from_blocked)."""
    high, wide = tiled(rows, columns)
    tiles = data.view(high // 128, wide // 4, 32, 4, 4)
    return tiles.permute(0, 3, 2, 1, 4).reshape(high, wide)[:rows, :columns].contiguous()


@dataclass(frozen=True)
class Tiled4:
    """NVFP4: weight = number of the code · (scale of 16 · second scale). The even column is in the high half of a byte."""

    height: int
    width: int
    scale: Stored
    second: Stored
    columns: Stored | None
    name = "NVFP4"
    exact = False
    step = 1

    def open(self, read: Callable[[Stored], torch.Tensor]) -> Decode:
        import torch

        scales = _flat(read(self.scale), self.height, self.width // 16)
        second, columns, table = floats(read(self.second), "F32").reshape(()), fold(self.columns, read), _table()

        def decode(data: torch.Tensor, first: int, rows: int) -> torch.Tensor:
            numbers = torch.empty(rows, self.width)
            codes = data.reshape(rows, self.width // 2)
            many = max(1, AT_ONCE // codes.shape[1])
            for start in range(0, rows, many):
                part = codes[start : start + many]
                own = scales[first + start : first + start + len(part)].view(torch.float8_e4m3fn).float() * second
                found = table.index_select(0, part.reshape(-1).int()).view(len(part), -1, 16)
                torch.mul(found, own.unsqueeze(2), out=numbers[start : start + many].view(found.shape))
            return numbers if columns is None else numbers.mul_(columns)

        return decode


@dataclass(frozen=True)
class Tiled8:
    """MXFP8: weight = number · 2^(exponent − 127) of 32."""

    height: int
    width: int
    scale: Stored
    columns: Stored | None
    name = "MXFP8"
    exact = False
    step = 1

    def open(self, read: Callable[[Stored], torch.Tensor]) -> Decode:
        import torch

        exponents, columns = _flat(read(self.scale), self.height, self.width // 32), fold(self.columns, read)

        def decode(data: torch.Tensor, first: int, rows: int) -> torch.Tensor:
            numbers = data.view(torch.float8_e4m3fn).reshape(rows, self.width // 32, 32).float()
            # As the exponent of a float32: 0 is zero as in comfy_kitchen, and 255, which is NaN, is infinity, and found as that.
            own = (exponents[first : first + rows].int() << 23).view(torch.float32)
            numbers = numbers.mul_(own.unsqueeze(2)).view(rows, self.width)
            return numbers if columns is None else numbers.mul_(columns)

        return decode
