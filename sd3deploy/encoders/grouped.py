"""Weights in 4, 5, 6 or 8 bit with a scale and a middle for each group of them along a row; our own format, in plain torch.

A row is filled with zeros up to whole groups and rotated: each 32 columns times Sylvester's Hadamard matrix of ±1, which spreads single
large weights. What is multiplied with it is rotated too, and divided by 32. The row is stored as uint8: two float32 (the row's scale and
middle), a byte of scale and a signed byte of middle for each group, then four bits of each code (eight in 8 bit), then what the codes have
above that. A byte holds codes of columns that lie a half, a quarter or an eighth of the row apart, the first in its lowest bits.

    weight = code · scale + (middle − (2^bits − 1) / 2 · scale),  scale = row's scale · byte,  middle = row's middle · signed byte

A middle has a smaller error than a least value with as many bits: it is nearer to 0. Rotated weights lower the error of the output by 6 %
with outlier channels and 15 % with Student's t in 4 bit, about as much in 6 and 8 (a T5 of 4 blocks and 512 columns, five seeds, pieces of
256). Of pieces of 32 only the weights' error was compared: it is that of 256 or below. Scales have 8 bit: a group whose weights are a
thousandth of the row's largest group keeps little of them, which the product of the row does not show.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from sd3deploy.encoders.finite import require_finite

if TYPE_CHECKING:
    import torch

__all__ = ["LAYOUT", "UNPACKED", "WIDTHS", "Grouped", "grouped", "rotate"]

WIDTHS = {"q4": (4, 32), "q5": (5, 32), "q6": (6, 32), "q8": (8, 64)}  # kind → bits, weights of a group

LAYOUT = 1  # one more with every change of how bytes are read, or what lies in caches would be read as something else
_PIECE = 32  # columns that are rotated together: each group holds whole ones
_HEAD = 8  # bytes of a row's two float32
_GRID = 4095  # integers of a group's range: with so few every sum over a group is exact in float32, in whatever order it is made
_CELL = 16  # of them that one look-up takes for the same
_LARGEST = 1023  # of an entry: the sum of 32 of them fits into 15 bits
_TINY = 2.0**-126  # the smallest normal float32
# By how many steps of the codes a group's range is cut at its lower and upper end. Eight, which are two look-ups for two weights, picked
# in 4 bit one by one out of 121, each as the one that lowered the error of normal weights most; in 5 and 6 bit nearly the same are best.
_CUTS = ((0.17, 0.17), (-0.3, 0.4), (0.4, -0.07), (-0.07, 0.4), (0.4, -0.3), (-0.07, -0.07), (0.4, 0.17), (0.17, 0.4))
_PACKED = 2**19  # weights at a time on a CPU: twice as many take longer, as do half as many
_UNPACKED = 2**21
UNPACKED = 2**24  # weights at a time on other devices, each of which takes 5 bytes meanwhile
_OWN = threading.local()  # memory of each thread


@lru_cache
def grouped(kind: str) -> Grouped:
    """The format `kind` of WIDTHS; its tables are made once."""
    return Grouped(*WIDTHS[kind])


def rotate(x: torch.Tensor, columns: int) -> torch.Tensor:
    """Inputs [..., n] with zeros up to `columns`, rotated, in their type: what is multiplied with weights that are stored rotated.

    A CPU does it in float32, in which so small a product is faster than in 16 bit.
    """
    import torch

    dtype = torch.float32 if x.device.type == "cpu" else x.dtype
    padded = torch.nn.functional.pad(x, (0, columns - x.shape[-1])).to(dtype)
    return (padded.unflatten(-1, (-1, _PIECE)) @ _hadamard(x.device, dtype, 1 / _PIECE)).flatten(-2).to(x.dtype)


def _hadamard(device: torch.device, dtype: torch.dtype, scale: float) -> torch.Tensor:
    """Nothing is kept while a compiler looks on: what it sees are tensors without numbers."""
    import torch

    return (_turn.__wrapped__ if torch.compiler.is_compiling() else _turn)(device, dtype, scale)


@lru_cache(maxsize=32)
def _turn(device: torch.device, dtype: torch.dtype, scale: float) -> torch.Tensor:
    import torch

    with torch.inference_mode(False):
        matrix = torch.ones(1, 1, dtype=torch.float32)
        pair = torch.tensor([[1, 1], [1, -1]], dtype=torch.float32)
        while len(matrix) < _PIECE:
            matrix = torch.kron(matrix, pair)
        return (matrix * scale).to(device, dtype)


def _room(name: str, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Memory of this thread, until it asks for that name again: on a CPU, to ask for it anew each time costs more than to fill it."""
    import torch

    with torch.inference_mode(False):
        if device.type != "cpu" or torch.compiler.is_compiling():
            return torch.empty(shape, dtype=dtype, device=device)
        size, rooms, key = math.prod(shape), _OWN.__dict__, f"{name} {dtype}"
        if key not in rooms or len(rooms[key]) < size:
            rooms[key] = torch.empty(max(size, _PACKED), dtype=dtype)
        return rooms[key][:size].view(shape)


class Grouped:
    """Packs and unpacks, on the device on which the weights or the bytes lie. It may be used by several threads.

    Made without torch, so that sizes can be asked for wherever there is none.
    """

    def __init__(self, bits: int, group: int) -> None:
        self.bits, self.group, self._top = bits, group, 2**bits - 1
        self._half = self._top / 2
        self._search: dict[torch.device, tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]] = {}

    def padded(self, columns: int) -> int:
        """How many columns are stored."""
        return -(-columns // self.group) * self.group

    def width(self, columns: int) -> int:
        """Bytes of a row."""
        padded = self.padded(columns)
        return _HEAD + 2 * padded // self.group + padded * self.bits // 8

    def pack(self, rows: torch.Tensor) -> torch.Tensor:
        """Rotate and quantize rows [n, columns] of any floating type to bytes [n, width]. Raises NotFinite."""
        import torch

        packed = torch.empty(len(rows), self.width(rows.shape[1]), dtype=torch.uint8, device=rows.device)
        many = max(1, _PACKED // rows.shape[1]) if rows.device.type == "cpu" else max(1, len(rows))
        padding = 0, self.padded(rows.shape[1]) - rows.shape[1]
        for first in range(0, len(rows), many):
            part = rows[first : first + many]
            wide = _room("wide", part.shape, torch.float32, part.device).copy_(part)
            wide = torch.nn.functional.pad(wide, padding) if padding[1] else wide
            pieces = wide.view(-1, _PIECE)
            rotated = torch.mm(
                pieces, _hadamard(wide.device, wide.dtype, 1.0), out=_room("rotated", pieces.shape, wide.dtype, wide.device)
            )
            self._pack(rotated.view(-1, self.group), packed[first : first + many])
        return packed

    def unpack(self, packed: torch.Tensor, columns: int, dtype: torch.dtype) -> torch.Tensor:
        """The weights [n, padded columns], still rotated, of bytes [n, width]: computed in float32 and rounded once."""
        import torch

        padded, cpu = self.padded(columns), packed.device.type == "cpu"
        out = torch.empty(len(packed), padded, dtype=dtype, device=packed.device)
        many = max(1, (_UNPACKED if cpu else UNPACKED) // padded)
        for first in range(0, len(packed), many):
            part = packed[first : first + many]
            scale, least = self._scales(part, padded)
            codes = self._codes(part, padded).view(len(part), -1, self.group)
            torch.add((codes.float() if cpu else codes) * scale, least, out=out[first : first + many].view_as(codes))
        return out

    def inputs(self, x: torch.Tensor) -> torch.Tensor:
        """What `factors` are multiplied with, of inputs [..., columns]: [..., padded columns + groups], in their type."""
        import torch

        padded = self.padded(x.shape[-1])
        firsts = torch.nn.functional.pad(x, (0, padded - x.shape[-1])).unflatten(-1, (-1, self.group // _PIECE, _PIECE))[..., 0]
        out = x.new_empty(*x.shape[:-1], padded + padded // self.group)  # torch.cat refuses a 16-bit type that is not autocast's
        out[..., :padded] = rotate(x, padded)
        out[..., padded:] = firsts.sum(-1)  # the sum of a rotated piece is its first number
        return out

    def factors(self, packed: torch.Tensor, columns: int, dtype: torch.dtype) -> torch.Tensor:
        """The weights as they are multiplied, [n, padded columns + groups]: what `unpack` gives, less one number for each group, and that
        number, which is multiplied with the sum of the group's inputs. To add it to each weight would be one more pass over all of them.
        In 16 bit the scale is rounded too. On a CPU they are there until this thread asks for the next.
        """
        import torch

        padded, centre = self.padded(columns), 2 ** (self.bits - 1)
        out = _room("factors", (len(packed), padded + padded // self.group), dtype, packed.device)
        many = max(1, (_UNPACKED if packed.device.type == "cpu" else UNPACKED) // padded)
        for first in range(0, len(packed), many):
            part, made = packed[first : first + many], out[first : first + many]
            scale, least = self._scales(part, padded)
            codes = self._codes(part, padded).sub_(centre).view(torch.int8)
            made[:, :padded].copy_(codes).unflatten(1, (-1, self.group)).mul_(scale.to(dtype))
            made[:, padded:] = (least + scale * centre)[..., 0]
        return out

    # Packing

    def _pack(self, wide: torch.Tensor, packed: torch.Tensor) -> None:
        """wide: [groups, group], float32, which is written over. packed: [n, width]."""
        import torch

        rows, groups = len(packed), len(wide) // len(packed)
        low, high = wide.amin(1, keepdim=True), wide.amax(1, keepdim=True)
        require_finite(high - low)  # of finite weights too it may be none
        if self.bits == 8:
            scale, middle = (high - low) / self._top, low / 2 + high / 2
        else:
            scale, middle = self._fitted(wide, low, (high / _GRID - low / _GRID).clamp_(min=_TINY))
        scale, middle = scale.view(rows, groups), middle.view(rows, groups)
        of_row = torch.stack([scale.amax(1) / 255, middle.abs().amax(1) / 127], 1).clamp_(min=_TINY)
        # With a scale of 0 a whole group is one number: only where it is narrower than one step of the least other scale.
        scales = (scale / of_row[:, :1]).round_().clamp_(max=255).maximum((scale * self._top >= of_row[:, :1]).float())
        packed[:, :_HEAD] = of_row.view(torch.uint8)
        packed[:, _HEAD : _HEAD + groups] = scales
        packed[:, _HEAD + groups : _HEAD + 2 * groups] = (middle / of_row[:, 1:]).round_().to(torch.int8).view(torch.uint8)
        scale, least = self._scales(packed, groups * self.group)
        require_finite(scale * self._top + least)
        inverse = torch.where(scale > 0, 1 / scale, 0.0)
        codes = wide.sub_(least.view(-1, 1)).mul_(inverse.view(-1, 1)).round_().clamp_(0, self._top)
        self._put(self._bytes(codes).view(rows, -1), packed[:, _HEAD + 2 * groups :])

    def _fitted(self, wide: torch.Tensor, low: torch.Tensor, step: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Scale and middle of each group [n, 1]: codes by the best of the clippings, then least squares to them."""
        import torch

        tables, starts, scales = self._search_on(wide.device)
        grid = torch.sub(wide, low, out=_room("grid", wide.shape, wide.dtype, wide.device)).mul_(1 / step).round_()
        codes = _room("codes", wide.shape, wide.dtype, wide.device)
        pairs = self._bytes(torch.mul(grid, 1 / _CELL, out=codes)).view(torch.int16)
        errors = self._sums(tables, pairs).int() * len(_CUTS)
        best = errors.add_(torch.arange(len(_CUTS), dtype=torch.int32, device=wide.device)).amin(1).remainder_(len(_CUTS))
        torch.sub(grid, starts[best][:, None], out=codes).mul_((1 / scales)[best][:, None]).round_().clamp_(0, self._top)
        code, number = codes.sum(1, keepdim=True), grid.sum(1, keepdim=True)  # not by matmul, which may round to TF32
        both = grid.mul_(codes).sum(1, keepdim=True) * self.group - code * number
        square = codes.mul_(codes).sum(1, keepdim=True) * self.group - code * code
        scale = torch.where(square > 0, both / square.clamp(min=1), 0.0)
        middle = (number - scale * code) / self.group + scale * self._half
        return scale * step, low + middle * step

    def _tables(self, clippings: list[tuple[float, float]]) -> list[torch.Tensor]:
        """For two weights as cells of the grid, side by side in 16 bits: the sums of their squared errors with four clippings."""
        import numpy
        import torch

        grid, errors = numpy.arange(_GRID + 1.0), []
        for low, high in clippings:
            scale = (high - low) / self._top
            wrong = ((grid - low) / scale).round().clip(0, self._top) * scale + low - grid
            errors.append((wrong**2).reshape(-1, _CELL).mean(1))
        scaled = (numpy.stack(errors) / numpy.max(errors) * _LARGEST).round().astype("uint64")
        four = [scaled[first : first + 4] << numpy.arange(0, 64, 16, dtype="uint64")[:, None] for first in range(0, len(scaled), 4)]
        ones = [numpy.bitwise_or.reduce(parts) for parts in four]
        return [torch.from_numpy((one[None, :] + one[:, None]).reshape(-1).view("int64")) for one in ones]

    def _search_on(self, device: torch.device) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
        """The tables, and where each clipping begins and its scale, in integers of the grid."""
        import torch

        if device not in self._search:
            one = _GRID / self._top
            clippings = [(low * one, _GRID - high * one) for low, high in _CUTS]
            with torch.inference_mode(False):
                starts = torch.tensor([low for low, _ in clippings], dtype=torch.float32, device=device)
                scales = torch.tensor([(high - low) / self._top for low, high in clippings], dtype=torch.float32, device=device)
                self._search[device] = [table.to(device) for table in self._tables(clippings)], starts, scales
        return self._search[device]

    def _bytes(self, numbers: torch.Tensor) -> torch.Tensor:
        """Numbers from 0 to 255 as uint8, cut off."""
        import numpy
        import torch

        found = _room("bytes", numbers.shape, torch.uint8, numbers.device)
        if numbers.device.type != "cpu":
            return found.copy_(numbers)
        numpy.copyto(found.numpy(), numbers.numpy(), casting="unsafe")  # four times as fast as torch
        return found

    def _sums(self, tables: list[torch.Tensor], pairs: torch.Tensor) -> torch.Tensor:
        """Of the errors of pairs [n, group / 2] with each clipping: [n, clippings], int16."""
        import torch

        places = _room("places", pairs.shape, torch.int32, pairs.device).copy_(pairs).bitwise_and_(0xFFFF)
        found = _room("found", pairs.shape, torch.int64, pairs.device)
        sums = []
        for table in tables:
            torch.index_select(table, 0, places.view(-1), out=found.view(-1))
            sums.append(found.sum(1, keepdim=True))
        return torch.cat(sums, 1).view(torch.int16)

    # The bytes

    def _scales(self, packed: torch.Tensor, padded: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Scale and least value of each group [n, groups, 1], float32."""
        import torch

        groups = padded // self.group
        of_row = packed[:, :_HEAD].clone().flatten().view(torch.float32).view(-1, 2)  # a copy, for only that lies where a float32 may
        scale = packed[:, _HEAD : _HEAD + groups].float() * of_row[:, :1]
        middle = packed[:, _HEAD + groups : _HEAD + 2 * groups].view(torch.int8).float() * of_row[:, 1:]
        return scale[..., None], (middle - scale * self._half)[..., None]

    def _planes(self) -> list[tuple[int, int]]:
        """Bits of the codes that are stored together, and how far they are shifted."""
        return [(8, 0)] if self.bits == 8 else [(4, 0), (self.bits - 4, 4)][: 1 + (self.bits > 4)]

    def _put(self, codes: torch.Tensor, packed: torch.Tensor) -> None:
        """Four codes at a time. Halves of the row are brought together, then halves of that: each code comes to lie where the format has
        it.
        """
        import torch

        at = 0
        for bits, shift in self._planes():
            words = codes.view(torch.int32)
            if bits < 8:
                room = _room("plane", words.shape, words.dtype, words.device)
                words = torch.bitwise_right_shift(words, shift, out=room).bitwise_and_((2**bits - 1) * 0x01010101)
            for distance in (4, 2, 1):
                if distance >= bits:
                    first, second = words.chunk(2, 1)
                    words = first.bitwise_or_(second.bitwise_left_shift_(distance))
            size = 4 * words.shape[1]
            packed[:, at : at + size] = words.view(torch.uint8)
            at += size

    def _codes(self, packed: torch.Tensor, padded: int) -> torch.Tensor:
        """[n, padded], uint8, which the caller may write over; on a CPU until this thread asks for the next."""
        import torch

        at, found = _HEAD + 2 * padded // self.group, []
        for bits, shift in self._planes():
            size, count = padded * bits // 8, 8 // bits
            stored = _room(f"stored {shift}", (len(packed), size), torch.uint8, packed.device).copy_(packed[:, at : at + size])
            if bits == 8:
                return stored
            words = stored.view(torch.int32)[:, None]  # four codes at a time; of a copy, because a word may lie only at every fourth byte
            parts = torch.arange(0, 8, bits, dtype=torch.int32, device=packed.device)[:, None]
            room = _room(f"codes {shift}", (len(packed), count, size // 4), torch.int32, packed.device)
            codes = torch.bitwise_right_shift(words, parts, out=room).bitwise_and_((2**bits - 1) * 0x01010101)
            found.append(codes.bitwise_left_shift_(shift) if shift else codes)
            at += size
        codes = found[0].flatten(1).bitwise_or_(found[1].flatten(1)) if len(found) > 1 else found[0].flatten(1)
        return codes.view(torch.uint8)
