"""Weights that were rotated before they were quantized, so that outliers are spread over their neighbours ("convrot").

Each row was cut into pieces of `size` numbers, and each piece multiplied by a symmetric orthogonal matrix, which is its own inverse.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["rotates", "unrotate"]

_LARGEST = 2**16  # numbers that are rotated together
_FACTOR = 16  # a power of 4, and so of 2; 64 takes 1.6 times as long for 256 numbers on one core of an AMD EPYC


def rotates(size: object, width: int) -> bool:
    """Whether rows of `width` numbers can be rotated in pieces of that size."""
    return isinstance(size, int) and not isinstance(size, bool) and 2 <= size <= _LARGEST and not size & (size - 1) and width % size == 0


def unrotate(numbers: torch.Tensor, size: int) -> torch.Tensor:
    """Rows turned back: float32 [rows, width].

    A power of 4 is rotated by the Kronecker power of [[1, 1, 1, −1], [1, 1, −1, 1], [1, −1, 1, 1], [−1, 1, 1, 1]] / 2
    (Comfy-Org/comfy-kitchen), another power of 2 by Sylvester's matrix / √size (silveroxides/convert_to_quant, utils/convrot.py). Such a
    power is applied factor by factor: for 4096 numbers that are 3 products with 16 × 16 instead of one with 4096 × 4096.
    """

    shape, inner = numbers.shape, 1
    base = 4 if size.bit_length() % 2 else 2
    while inner < size:
        factor = min(_FACTOR, size // inner)
        matrix = _matrix(base, factor)
        numbers = numbers.reshape(-1, factor) @ matrix if inner == 1 else matrix @ numbers.reshape(-1, factor, inner)
        inner *= factor
    return numbers.reshape(shape)


@lru_cache
def _matrix(base: int, size: int) -> torch.Tensor:
    import torch

    four = [[1.0, 1, 1, -1], [1, 1, -1, 1], [1, -1, 1, 1], [-1, 1, 1, 1]]
    one = torch.tensor(four if base == 4 else [[1.0, 1], [1, -1]]) / math.sqrt(base)
    found = torch.ones(1, 1)
    while len(found) < size:
        found = torch.kron(found, one)
    return found
