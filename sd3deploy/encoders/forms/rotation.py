"""Weights that were rotated before they were quantized, so that outliers are spread over their neighbours ("convrot").

Each row was cut into pieces of `size` numbers, and each piece multiplied by a symmetric orthogonal matrix, which is its own inverse.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["rotates", "unrotate"]

_LARGEST = 2**16  # numbers that are rotated together


def rotates(size: object, width: int) -> bool:
    """Whether rows of `width` numbers can be rotated in pieces of that size."""
    return isinstance(size, int) and not isinstance(size, bool) and 2 <= size <= _LARGEST and not size & (size - 1) and width % size == 0


def unrotate(numbers: torch.Tensor, size: int) -> torch.Tensor:
    """Rows turned back: float32 [rows, width].

    A power of 4 is rotated by the Kronecker power of [[1, 1, 1, −1], [1, 1, −1, 1], [1, −1, 1, 1], [−1, 1, 1, 1]] / 2
    (Comfy-Org/comfy-kitchen), another power of 2 by Sylvester's matrix / √size (silveroxides/convert_to_quant, utils/convrot.py). Either is
    applied digit by digit: for 4096 numbers that is 6 steps of 4 additions a number instead of 4096 additions.
    """
    rows, width = numbers.shape
    four = size.bit_length() % 2 == 1
    base = 4 if four else 2
    inner = 1
    while inner < size:
        found = numbers.view(rows, width // (inner * base), base, inner)
        if four:  # the sum of all without twice the one that stands opposite, halved
            numbers = (found.sum(2, keepdim=True) / 2 - found.flip(2)).view(rows, width)
        else:
            first, second = found.unbind(2)
            numbers = found.new_empty(found.shape)
            numbers[:, :, 0], numbers[:, :, 1] = first + second, first - second
            numbers = numbers.view(rows, width)
        inner *= base
    return numbers if four else numbers.mul_(size**-0.5)
