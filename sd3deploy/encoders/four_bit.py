"""4-bit codes of bitsandbytes (FP4, NF4) for blocks of 64 weights, with the scale of each block chosen for the least squared error.

Storage and kernels stay those of bitsandbytes: a code for each weight, a scale for each block. Its own scale is the block's largest
magnitude. A somewhat smaller one lets the largest weight saturate and spends the codes on the others, which is better for most blocks.
With `best` the better of four is taken, block by block; without it the result is bit for bit what bitsandbytes gives.

bitsandbytes' own quantizer for the CPU searches for each weight among the bounds between two codes (60 ns a weight on one core). This one
scales a block to integers and looks the code up: 1.7 ns, 2.7 ns with the search. Where one integer lies on both sides of a bound, the table
says so, and the weight is compared exactly, as bitsandbytes does it. Arrays are looked at in other types for speed, which takes
little-endian numbers: those of every machine that torch runs on.
"""

from __future__ import annotations

import math
import threading
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from sd3deploy.encoders.finite import NotFinite, require_finite

if TYPE_CHECKING:
    import torch

__all__ = ["BLOCK", "FACTORS", "FourBit", "four_bit"]

BLOCK = 64  # weights that share a scale: what transformers takes, and bitsandbytes by default
# Of the largest magnitude. Four, because their errors fit into one 64-bit number; these, because they were better than six other sets on
# normal, outlier, heavy-tailed and uniform weights (bench/encoders.py compares both scales).
FACTORS = (0.8, 0.88, 0.95, 1.0)

# Weights at a time. Threads wait for each other's Python between two operations: larger ones wait less, still larger ones leave the cache.
_CHUNK = 8192 * BLOCK
_LOOKED_UP = 2048 * BLOCK  # at a time: numpy writes the places down as 64-bit numbers first, and so many stay in the cache
_SEARCHED = 2 * _LOOKED_UP // BLOCK  # blocks: one look-up for each two weights
_RANGE = 1.25  # of the integers, in scales: 1 / 0.8
_UNSURE = 16  # in place of a code
_UNEQUAL = 0.02  # integers; float32 rounds less than that
_SMALLEST = 1e-30  # a scale below it does not fit into the integers' arithmetic


@lru_cache
def four_bit(kind: str) -> FourBit:
    """The quantizer for `kind`, fp4 or nf4; its tables are made once."""
    return FourBit(kind)


class FourBit:
    """Codes and scales on the CPU with numpy, on another device with torch. It may be used by several threads."""

    def __init__(self, kind: str) -> None:
        import numpy
        from bitsandbytes.functional import get_4bit_type

        self.kind = kind
        code = get_4bit_type(kind, device="cpu")
        order = code.argsort()
        self._bounds = (code[order[:-1]] + code[order[1:]]) / 2  # as bitsandbytes' backends/default/ops.py
        self._order, self._values = order, code[order]
        bounds, names = self._bounds.numpy().astype("float64"), order.numpy().astype("uint8")
        self._sixteen = 32766 / _RANGE
        low, high = _cells(numpy, numpy.arange(65536).astype("uint16").view("int16"))
        first = numpy.searchsorted(bounds * self._sixteen, low - _UNEQUAL)
        last = numpy.searchsorted(bounds * self._sixteen, high + _UNEQUAL)
        self._codes = numpy.where(first == last, names[first], _UNSURE).astype("uint8")
        self._exact = self._bounds.numpy(), names
        self._eight = 127 / _RANGE
        self._errors = self._error_table(numpy)
        self._factors = numpy.array(FACTORS, "float32")
        self._own = threading.local()

    def _error_table(self, numpy: Any) -> Any:
        """For two weights as 8-bit integers, side by side in 16 bits: the sum of their squared errors with each factor, 16 bits each.
        32 such sums, those of a block, fit into the 16 bits again.
        """
        low, high = _cells(numpy, numpy.arange(256).astype("uint8").view("int8"))
        weights = (low[:, None] + (high - low)[:, None] * (numpy.arange(32) + 0.5) / 32) / self._eight
        values, bounds = self._values.numpy().astype("float64"), self._bounds.numpy().astype("float64")
        errors = numpy.stack(
            [((f * values[numpy.searchsorted(bounds, (weights / f).clip(-1, 1))] - weights) ** 2).mean(1) for f in FACTORS]
        )
        errors = (errors / errors.max() * 1023).round().astype("uint64")
        one = numpy.bitwise_or.reduce([error << numpy.uint64(16 * place) for place, error in enumerate(errors)])
        return (one[None, :] + one[:, None]).reshape(-1)

    def quantize(self, weights: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor, *, best: bool) -> None:
        """Write the codes, two in a byte, and the scales (float32) of `weights`: flat, float, a multiple of BLOCK of them.

        codes, scales: on the CPU, wherever the weights are. Raises NotFinite for weights that are no numbers.
        """
        if weights.device.type != "cpu":
            require_finite(weights)  # bitsandbytes' kernels take the largest of a block without looking at NaN
            found, scale = self._on_device(weights, best)
            codes.copy_(found)
            scales.copy_(scale)
            return
        for start in range(0, weights.numel(), _CHUNK):
            part = slice(start, min(start + _CHUNK, weights.numel()))
            blocks = slice(part.start // BLOCK, part.stop // BLOCK)
            self._on_cpu(weights[part], codes.numpy()[part.start // 2 : part.stop // 2], scales.numpy()[blocks], best)

    def _on_cpu(self, weights: torch.Tensor, codes: Any, scales: Any, best: bool) -> None:
        """What goes row by row with torch, what looks up with numpy: each is several times faster at that."""
        import numpy
        import torch

        room = self._room(len(weights))
        integers, magnitude = (torch.int32, 0x7FFFFFFF) if weights.dtype is torch.float32 else (torch.int16, 0x7FFF)
        bits = torch.bitwise_and(weights.view(integers), magnitude, out=room.wide_bits if integers is torch.int32 else room.bits)
        scale = torch.amax(bits.view(-1, BLOCK), 1).view(weights.dtype).float()  # bits of magnitudes are ordered as the magnitudes are
        smallest, largest = (limit.item() for limit in scale.aminmax())
        if not math.isfinite(largest):
            raise NotFinite
        tiny = smallest < _SMALLEST
        safe = scale.clamp(min=_SMALLEST) if tiny else scale
        wide = room.weights.copy_(weights)
        if best:
            torch.mul(wide.view(-1, BLOCK), (self._eight / safe)[:, None], out=room.scaled.view(-1, BLOCK))
            pairs = room.eights.copy_(room.scaled).numpy().view("uint16").reshape(-1, BLOCK // 2)
            for start in range(0, len(scale), _SEARCHED):
                part = pairs[start : start + _SEARCHED]
                errors = self._errors.take(part, out=room.pairs[: len(part)], mode="wrap")
                torch.sum(torch.from_numpy(errors.view("int64")), 1, out=room.errors[start : start + _SEARCHED])
            factors = torch.from_numpy(self._factors.take(_least(numpy, room.errors.numpy())))
            scale, safe = scale * factors, safe * factors
        torch.mul(wide.view(-1, BLOCK), (self._sixteen / safe)[:, None], out=room.scaled.view(-1, BLOCK))
        sixteens = room.bits.copy_(room.scaled).numpy().view("uint16")
        found = room.codes
        for start in range(0, len(found), _LOOKED_UP):
            part = slice(start, start + _LOOKED_UP)
            self._codes.take(sixteens[part], out=found[part], mode="wrap")
        if tiny:
            found.reshape(-1, BLOCK)[scale.numpy() < _SMALLEST] = _UNSURE
        places = _unsure(numpy, found)
        if len(places):
            bounds, names = self._exact
            inverse = numpy.float32(1) / numpy.maximum(scale.numpy()[places // BLOCK], numpy.float32(1e-38))  # 1e-38: bitsandbytes' own
            found[places] = names[numpy.searchsorted(bounds, (wide.numpy()[places] * inverse).clip(-1, 1))]
        both = torch.from_numpy(found.view("int16"))  # two codes; times 4097 the upper byte is the first of them, and behind it the second
        packed = torch.mul(both, 4097, out=room.bits[: len(codes)]).numpy().view("uint16")
        numpy.copyto(codes, numpy.right_shift(packed, 8, out=packed), casting="unsafe")
        scales[:] = scale.numpy()

    def _on_device(self, weights: torch.Tensor, best: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """With torch, all factors at once and exact: there is no need for tables. It takes 50 bytes a weight meanwhile."""
        import torch

        if not best:
            codes, scale = torch.ops.bitsandbytes.quantize_4bit.default(weights, BLOCK, self.kind, torch.uint8)
            return codes.reshape(-1), scale
        bounds, values, order = (tensor.to(weights.device) for tensor in (self._bounds, self._values, self._order.to(torch.uint8)))
        blocks = weights.reshape(-1, BLOCK).float()
        factors = torch.tensor(FACTORS, device=weights.device).reshape(-1, 1, 1)
        scales = blocks.abs().amax(1, keepdim=True) * factors
        ranks = torch.bucketize((blocks * (1.0 / scales.clamp(min=1e-38))).clamp_(-1, 1), bounds, out_int32=True)
        errors = (values[ranks].mul_(scales)).sub_(blocks).square_().sum(2)
        chosen, block = errors.argmin(0), torch.arange(len(blocks), device=weights.device)
        codes = order[ranks[chosen, block]].reshape(-1)
        return (codes[::2] << 4) | codes[1::2], scales[chosen, block].reshape(-1)

    def _room(self, size: int) -> _Room:
        """Arrays of this thread, for so many weights: to ask for them anew each time costs more than to fill them."""
        rooms = self._own.__dict__.setdefault("rooms", {})
        if size not in rooms:
            whole = rooms.setdefault(_CHUNK, _Room(_CHUNK))
            rooms[size] = whole if size == _CHUNK else whole.first(size)
        return rooms[size]


class _Room:
    """Where the steps put what they make of `size` weights."""

    def __init__(self, size: int) -> None:
        import numpy
        import torch

        self.weights, self.scaled = torch.empty(size), torch.empty(size)
        self.wide_bits = self.scaled.view(torch.int32)
        self.bits, self.eights = torch.empty(size, dtype=torch.int16), torch.empty(size, dtype=torch.int8)
        self.errors = torch.empty(size // BLOCK, dtype=torch.int64)
        self.pairs = numpy.empty((_SEARCHED, BLOCK // 2), "uint64")
        self.codes = numpy.empty(size, "uint8")

    def first(self, size: int) -> _Room:
        """The same memory, for less."""
        less = object.__new__(_Room)
        for name, array in vars(self).items():
            setattr(less, name, array if name == "pairs" else array[: size // BLOCK] if name == "errors" else array[:size])
        return less


def _least(numpy: Any, errors: Any) -> Any:
    """Which of the four errors side by side is the least. Each one's place is written into its two lowest bits, and found in the least."""
    marked = ((errors.view("uint64") & numpy.uint64(0xFFFC_FFFC_FFFC_FFFC)) | numpy.uint64(0x0003_0002_0001_0000)).view("uint16")
    one, two, three, four = (marked[place::4] for place in range(len(FACTORS)))
    return numpy.minimum(numpy.minimum(one, two), numpy.minimum(three, four)) & 3


def _unsure(numpy: Any, codes: Any) -> Any:
    """Places of those codes that have to be found exactly: few, and so looked for among eight at a time."""
    marks = codes.view("uint64") & numpy.uint64(_UNSURE * 0x0101_0101_0101_0101)
    eights = numpy.flatnonzero(marks != 0)
    row, column = numpy.nonzero(codes.reshape(-1, 8)[eights] == _UNSURE)
    return 8 * eights[row] + column


def _cells(numpy: Any, integers: Any) -> tuple[Any, Any]:
    """From where to where the numbers go that become each integer: the fraction is cut off, so around 0 it is twice as much."""
    wide = integers.astype("float64")
    return numpy.where(wide > 0, wide, wide - 1), numpy.where(wide < 0, wide, wide + 1)
