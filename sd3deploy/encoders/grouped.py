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
from typing import TYPE_CHECKING, Any

from sd3deploy.encoders.finite import require_finite

if TYPE_CHECKING:
    import torch

__all__ = ["LAYOUT", "UNPACKED", "WIDTHS", "Grouped", "grouped", "rotate"]

WIDTHS = {"q4": (4, 32), "q5": (5, 32), "q6": (6, 32), "q8": (8, 64)}  # kind → bits, weights of a group

LAYOUT = 1  # one more with every change of how bytes are read, or what lies in caches would be read as something else
_PIECE = 32  # columns that are rotated together: each group holds whole ones
_HEAD = 8  # bytes of a row's two float32
_CELLS = 256  # of a group's range
_LARGEST = 1023  # of an entry: the sum of 32 of them fits into 15 bits
_MARK, _MARKS = 0x0003_0003_0003_0003, 0x0003_0002_0001_0000  # two bits of each of four sums, and the sums' numbers there
_SUMS = (0, 13), (13, 11), (24, 17), (41, 19)  # of cells, of codes, of their squares, of the products of both: first bit, bits
_TINY = 2.0**-126  # the smallest normal float32
_STEP = 2.0**-20  # of a group's largest weight: eight steps of float32. Narrower cells would lie elsewhere than they are looked for.
# By how many steps of the codes a group's range is cut at its lower and upper end. Four, whose errors fit into one 64-bit number; in 4 bit
# these are the best of 169 for normal weights with least squares behind them, picked together. Eight lower the weights' error by 0.6 %.
_CUTS = ((0.1, 0.2), (0.5, -0.2), (-0.1, 0.4), (0.3, 0.0))
_PACKED = 2**20  # weights at a time on a CPU: a half as many take longer
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

    if device.type != "cpu" or torch.compiler.is_compiling():
        return torch.empty(shape, dtype=dtype, device=device)
    size, rooms, key = math.prod(shape), _OWN.__dict__, f"{name} {dtype}"
    if key not in rooms or len(rooms[key]) < size:
        with torch.inference_mode(False):
            rooms[key] = torch.empty(max(size, _PACKED), dtype=dtype)
    return rooms[key][:size].view(shape)


def _summed(table: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """What the table has at places [..., n], int64: its sums [...]."""
    import torch

    found = _room("found", places.shape, torch.int64, places.device)
    torch.index_select(table, 0, places.view(-1), out=found.view(-1))
    return found.sum(-1)


class Grouped:
    """Packs and unpacks, on the device on which the weights or the bytes lie. It may be used by several threads.

    Made without torch, so that sizes can be asked for wherever there is none.
    """

    def __init__(self, bits: int, group: int) -> None:
        self.bits, self.group, self._top = bits, group, 2**bits - 1
        self._half = self._top / 2
        self._search: dict[torch.device, tuple[torch.Tensor, torch.Tensor]] = {}

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

        rows = rows.detach()
        packed = torch.empty(len(rows), self.width(rows.shape[1]), dtype=torch.uint8, device=rows.device)
        many = max(1, _PACKED // rows.shape[1]) if rows.device.type == "cpu" else max(1, len(rows))
        for first in range(0, len(rows), many):
            self._pack(rows[first : first + many], packed[first : first + many])
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

    def _pack(self, rows: torch.Tensor, packed: torch.Tensor) -> None:
        import torch

        columns, groups = self.padded(rows.shape[1]), self.padded(rows.shape[1]) // self.group
        wide = _room("wide", (len(rows), columns), torch.float32, rows.device)
        wide[:, : rows.shape[1]] = rows
        wide[:, rows.shape[1] :] = 0
        rotated = _room("rotated", (len(rows), groups, self.group), torch.float32, rows.device)
        torch.mm(wide.view(-1, _PIECE), _hadamard(wide.device, wide.dtype, 1.0), out=rotated.view(-1, _PIECE))
        low, high = rotated.amin(2), rotated.amax(2)
        require_finite(torch.maximum(-low, high) * 4)  # of finite weights too it may be none: what is computed of them stays below
        scale, middle = self._fitted(rotated, low, high)
        of_row = torch.stack([scale.amax(1) / 255, middle.abs().amax(1) / 127], 1).clamp_(min=_TINY)
        # With a scale of 0 a whole group is one number: only where it is narrower than one step of the least other scale.
        scales = (scale / of_row[:, :1]).round_().clamp_(max=255).maximum((scale * self._top >= of_row[:, :1]).float())
        packed[:, :_HEAD] = of_row.view(torch.uint8)
        packed[:, _HEAD : _HEAD + groups] = scales
        packed[:, _HEAD + groups : _HEAD + 2 * groups] = (middle / of_row[:, 1:]).round_().to(torch.int8).view(torch.uint8)
        scale, least = self._scales(packed, columns)
        require_finite(scale * self._top + least)
        codes = rotated.sub_(least - scale / 2).mul_(1 / scale.clamp(min=_TINY)).clamp_(0, self._top)  # half a step more is cut off next
        self._put(self._bytes(codes).view(len(rows), -1), packed[:, _HEAD + 2 * groups :])

    def _fitted(self, wide: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Scale and middle of each group [rows, groups]: codes by the best of the clippings, then least squares to them.

        All of it of cells, for sums of integers are the same in whatever order they are made. They are nearly as good as the weights: a
        cell is 1/17 of a step of the codes in 4 bit, and a quarter in 6.
        """
        import torch

        if self.bits == 8:
            return (high - low) / self._top, low / 2 + high / 2
        cell = ((high - low) / (_CELLS - 1)).maximum(torch.maximum(-low, high) * _STEP).clamp_(min=_TINY)
        start = (low - cell / 2)[..., None]  # a cell's number is its middle
        cells = torch.sub(wide, start, out=_room("wide", wide.shape, wide.dtype, wide.device)).mul_((1 / cell)[..., None])
        pairs = self._bytes(cells).view(torch.int16)
        places = _room("places", pairs.shape, torch.int32, pairs.device).copy_(pairs).bitwise_and_(0xFFFF)
        errors, sums = self._search_on(wide.device)
        marked = _summed(errors, places).bitwise_and_(~_MARK).bitwise_or_(_MARKS)  # the number of each is found in the least
        best = marked.view(torch.int16).unflatten(1, (-1, len(_CUTS))).amin(2, keepdim=True).bitwise_and_(_MARK & 0xFF).int()
        found = _summed(sums, places.add_(best * _CELLS**2))
        number, code, square, both = ((found >> first).bitwise_and_(2**bits - 1).float() for first, bits in _SUMS)
        spread = square * self.group - code * code
        scale = (both * self.group - code * number) / spread.clamp(min=1)  # 0 of codes that are all the same
        middle = (number - scale * code) / self.group + scale * self._half
        return scale * cell, low + middle * cell

    def _tables(self) -> tuple[Any, Any]:
        """For two weights as cells, side by side in 16 bits: the sums of their squared errors with the four clippings, 16 bits each; and
        for one clipping after the other what least squares need, as _SUMS has it.
        """
        import numpy

        cells, within, errors, sums = numpy.arange(_CELLS), (numpy.arange(16) + 0.5) / 16 - 0.5, [], []
        for cut_low, cut_high in _CUTS:
            start, end = cut_low * (_CELLS - 1) / self._top, (_CELLS - 1) * (1 - cut_high / self._top)
            scale = (end - start) / self._top
            places = cells[:, None] + within
            wrong = ((places - start) / scale).round().clip(0, self._top) * scale + start - places
            errors.append((wrong**2).mean(1))
            code = ((cells - start) / scale).round().clip(0, self._top).astype("int64")
            sums.append(sum(part << first for part, (first, _) in zip((cells, code, code * code, code * cells), _SUMS, strict=True)))
        scaled = (numpy.stack(errors) / numpy.max(errors) * _LARGEST).round().astype("int64")
        four = sum(error << 16 * place for place, error in enumerate(scaled))
        return numpy.add.outer(four, four).ravel(), numpy.concatenate([numpy.add.outer(one, one).ravel() for one in sums])

    def _search_on(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """The tables, there."""
        import torch

        if device not in self._search:
            with torch.inference_mode(False):
                errors, sums = (torch.from_numpy(table).to(device) for table in self._tables())
            self._search[device] = errors, sums
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
