"""What bitsandbytes has saved: 4 bit in blocks of a flat weight, and 8 bit with a scale per row."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sd3deploy.encoders.forms.declared import FORMAT, STATE
from sd3deploy.encoders.forms.form import Layer, Mine, NotMine, Unusable
from sd3deploy.encoders.forms.scales import floats
from sd3deploy.encoders.forms.tiles import AT_ONCE, nibbles
from sd3deploy.encoders.stored import Decode, Stored

if TYPE_CHECKING:
    import torch

__all__ = ["FourBitSaved", "Int8Saved"]

_BLOCKS = (32, 64, 128, 256, 512, 1024, 2048, 4096)  # weights that share a scale: what bitsandbytes knows (functional.py, quantize_4bit)
_NESTED = 256  # scales that share one, as its kernels take it
_127 = 7.874015718698502e-3  # 1 / 127, as bitsandbytes has it in backends/default/ops.py


@dataclass(frozen=True)
class Nested:
    """Scales that are quantized themselves. scale = table[code] · scale of `size` + offset."""

    scales: Stored
    table: Stored
    size: int
    offset: float


@dataclass(frozen=True)
class Blocks:
    """Weight = table[code] · scale of its block. The first number is in the high half of a byte. state: the marker, and what it says."""

    kind: str
    shape: tuple[int, ...]
    block: int
    scales: Stored
    table: Stored
    nested: Nested | None
    state: Stored
    said: Mapping[str, Any]
    exact = False

    @property
    def name(self) -> str:
        return f"bitsandbytes {self.kind.upper()}" + ("" if self._as_made_here else ", other blocks")

    @property
    def _as_made_here(self) -> bool:
        return self.block == 64 and self.nested is not None and self.nested.size == _NESTED

    @property
    def step(self) -> int:
        """Rows that are whole blocks, and so whole bytes."""
        return self.block // math.gcd(self.block, math.prod(self.shape[1:]))

    def open(self, read: Callable[[Stored], torch.Tensor]) -> Decode:
        import torch

        width = math.prod(self.shape[1:])
        table = nibbles(tuple(floats(read(self.table), "F32").tolist()))
        scales = self._scales(read)

        def decode(data: torch.Tensor, first: int, rows: int) -> torch.Tensor:
            begin, count = first * width // self.block, rows * width
            numbers = torch.empty(2 * len(data))
            for start in range(0, len(data), AT_ONCE):
                part = data[start : start + AT_ONCE]
                numbers[2 * start : 2 * (start + len(part))] = table.index_select(0, part.int()).view(-1)
            numbers = numbers[:count]
            whole = count // self.block * self.block
            numbers[:whole].view(-1, self.block).mul_(scales[begin : begin + whole // self.block].unsqueeze(1))
            if whole < count:
                numbers[whole:].mul_(scales[begin + whole // self.block])
            return numbers.view(rows, width)

        return decode

    def takes(self, kind: str, read: Callable[[Stored], torch.Tensor] | None = None) -> bool:
        """Whether a way to store a layer wants the very same codes. The kernels have tables of their own, so the file's must be equal to
        those; without `read` that is not looked at, and bitsandbytes not needed.
        """
        import torch

        if kind != self.kind or not self._as_made_here:
            return False
        if read is None:
            return True
        from bitsandbytes.functional import get_4bit_type

        return torch.equal(floats(read(self.table), "F32"), get_4bit_type(kind, device="cpu"))

    def encoded(self, kind: str, compute: str, read: Callable[[Stored], torch.Tensor]) -> dict[str, torch.Tensor] | None:
        """What stands beside the codes where a choice wants the very same, by part; None where it wants something else.

        The word for the type in which bitsandbytes computes is that of the choice: it says nothing about the numbers.
        """
        import torch

        if self.nested is None or not self.takes(kind, read):
            return None
        state = read(self.state)
        if self.said.get("dtype") != compute:
            state = torch.tensor(list(json.dumps({**self.said, "dtype": compute}).encode()), dtype=torch.uint8)
        return {
            "weight.absmax": read(self.scales),
            "weight.quant_map": floats(read(self.table), "F32"),
            "weight.nested_absmax": floats(read(self.nested.scales), "F32"),
            "weight.nested_quant_map": floats(read(self.nested.table), "F32"),
            f"{STATE}{kind}": state,
        }

    def codes(self, data: torch.Tensor) -> torch.Tensor:
        """The bytes as the choice has them."""
        return data.unsqueeze(1)

    def _scales(self, read: Callable[[Stored], torch.Tensor]) -> torch.Tensor:
        import torch

        if self.nested is None:
            return floats(read(self.scales), "F32")
        table, codes = floats(read(self.nested.table), "F32"), read(self.scales)
        outer = floats(read(self.nested.scales), "F32").repeat_interleave(self.nested.size)[: len(codes)]
        return table.index_select(0, codes.int()) * outer + torch.tensor(self.nested.offset)


class FourBitSaved:
    """NF4 and FP4, with scales as they are or quantized once more."""

    title = "bitsandbytes NF4, FP4"
    example = "text_encoder_3 of diffusers/t5-nf4"
    read = True

    @staticmethod
    def look(layer: Layer) -> Mine | NotMine:
        states = [part for part in layer.parts if part.startswith(STATE)]
        signs = sum(part in layer.parts for part in ("weight.absmax", "weight.quant_map")) + len(states)
        said = (layer.declared or {}).get(states[0]) if len(states) == 1 else None
        if said is None or not all(part in layer.parts for part in ("weight", "weight.absmax", "weight.quant_map")):
            return NotMine("there are not weight, absmax, quant_map and one quant_state", signs)
        why = _why_not(layer.parts, said, states[0].removeprefix(STATE))
        if why:
            return NotMine(why, 4)
        parts, nested = layer.parts, None
        used = {"weight", "weight.absmax", "weight.quant_map", states[0]}
        if "nested_blocksize" in said:
            more = "weight.nested_absmax", "weight.nested_quant_map"
            nested = Nested(parts[more[0]], parts[more[1]], said["nested_blocksize"], said["nested_offset"])
            used.update(more)
        layout = Blocks(
            said["quant_type"],
            tuple(said["shape"]),
            said["blocksize"],
            parts["weight.absmax"],
            parts["weight.quant_map"],
            nested,
            parts[states[0]],
            said,
        )
        return Mine(parts["weight"], layout.shape, layout, frozenset(used))


def _why_not(parts: Mapping[str, Stored], said: Mapping[str, Any], kind: str) -> str:
    """Why the parts do not fit to what is said; "" where they do."""
    known = {"quant_type", "blocksize", "dtype", "shape", "nested_blocksize", "nested_dtype", "nested_offset"}
    if unknown := sorted(str(key)[:40] for key in said.keys() - known):
        return f"its quant_state has {unknown[0]}"
    if kind not in ("nf4", "fp4") or said.get("quant_type") != kind:
        return f"its quant_type is {str(said.get('quant_type'))[:20]}"
    shape, block = said.get("shape"), said.get("blocksize")
    if not (isinstance(shape, list) and len(shape) == 2 and all(type(side) is int and 0 < side < 2**32 for side in shape)):
        return f"its shape is {str(shape)[:40]}"
    if type(block) is not int or block not in _BLOCKS:
        return f"its blocksize is {str(block)[:20]}"
    count = shape[0] * shape[1]
    if parts["weight"].size != -(-count // 2):
        return f"the weight has {parts['weight'].size} bytes for {shape}"
    blocks, scales, table = -(-count // block), parts["weight.absmax"], parts["weight.quant_map"]
    if (table.dtype, table.shape) != ("F32", (16,)):
        return f"its quant_map is {table.dtype} {list(table.shape)}"
    nested = [key for key in ("nested_blocksize", "nested_offset") if key in said]
    if scales.shape != (blocks,) or scales.dtype != ("U8" if nested else "F32"):
        return f"its absmax is {scales.dtype} {list(scales.shape)} for {blocks} blocks"
    return _why_not_nested(parts, said, blocks) if nested else ""


def _why_not_nested(parts: Mapping[str, Stored], said: Mapping[str, Any], blocks: int) -> str:
    size, offset = said.get("nested_blocksize"), said.get("nested_offset")
    if type(size) is not int or not 0 < size <= 2**16:
        return f"its nested_blocksize is {str(size)[:20]}"
    if type(offset) not in (int, float) or not abs(offset or 0) < 1e38:
        return f"its nested_offset is {str(offset)[:20]}"
    scales, table = parts.get("weight.nested_absmax"), parts.get("weight.nested_quant_map")
    if scales is None or table is None:
        return "there are not nested_absmax and nested_quant_map"
    if (table.dtype, table.shape, scales.dtype, scales.shape) != ("F32", (256,), "F32", (-(-blocks // size),)):
        return f"nested_absmax and nested_quant_map are {scales.dtype} {list(scales.shape)} and {table.dtype} {list(table.shape)}"
    return ""


@dataclass(frozen=True)
class Rows8:
    """Weight = number · scale of its row / 127."""

    height: int
    width: int
    scales: Stored
    name = "bitsandbytes INT8"
    exact = False
    step = 1

    def open(self, read: Callable[[Stored], torch.Tensor]) -> Decode:
        import torch

        scales = floats(read(self.scales), "F32").unsqueeze(1)

        def decode(data: torch.Tensor, first: int, rows: int) -> torch.Tensor:
            numbers = data.view(torch.int8).reshape(rows, self.width).float()
            return numbers.mul_(scales[first : first + rows]).mul_(_127)

        return decode

    def takes(self, kind: str, read: Callable[[Stored], torch.Tensor] | None = None) -> bool:
        """As that of Blocks."""
        return kind == "int8"

    def encoded(self, kind: str, compute: str, read: Callable[[Stored], torch.Tensor]) -> dict[str, torch.Tensor] | None:
        """As that of Blocks."""
        import torch

        if not self.takes(kind):
            return None
        return {"SCB": floats(read(self.scales), "F32"), FORMAT: torch.tensor(0, dtype=torch.uint8)}

    def codes(self, data: torch.Tensor) -> torch.Tensor:
        """The bytes as the choice has them."""
        import torch

        return data.view(torch.int8).view(self.height, self.width)


class Int8Saved:
    """LLM.int8, in the only order of the numbers that bitsandbytes still reads: row by row."""

    title = "bitsandbytes INT8"
    example = "bnb_llm_int8_model.safetensors (InvokeAI/t5-v1_1-xxl)"
    read = True

    @staticmethod
    def look(layer: Layer) -> Mine | NotMine | Unusable:
        stored, scales = layer.parts.get("weight"), layer.parts.get("SCB")
        if stored is None or scales is None:
            return NotMine("there are not weight and SCB", int(scales is not None) * 2)
        order = (layer.declared or {}).get(FORMAT)
        if order is not None and order != 0:
            return Unusable("form.int8-order", {"order": order})
        if (layer.declared or {}).keys() - {FORMAT}:
            return NotMine("the file declares another form", 2)
        if stored.dtype != "I8" or len(stored.shape) != 2 or 0 in stored.shape:
            return NotMine(f"the weight is {stored.dtype} {list(stored.shape)}", 3)
        if (scales.dtype, scales.shape) != ("F32", (stored.shape[0],)):
            return NotMine(f"SCB is {scales.dtype} {list(scales.shape)} for {list(stored.shape)}", 3)
        used = {"weight", "SCB", *(() if order is None else (FORMAT,))}
        return Mine(stored, stored.shape, Rows8(*stored.shape, scales), frozenset(used))
