"""The shapes of a T5 encoder, and how many bytes each text encoder choice makes of them: exactly what the loaders leave."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from sd3deploy.encoders.choices import NONE, Choice
from sd3deploy.encoders.grouped import WIDTHS, grouped

__all__ = ["DTYPES", "T5_XXL", "T5Shape"]

DTYPES = {"bfloat16": 2, "float16": 2, "float32": 4}  # bytes of one number


@dataclass(frozen=True)
class T5Shape:
    """The shapes of a T5 encoder, named as in its configuration. gated: two input projections in each feed-forward."""

    vocab_size: int = 32128
    d_model: int = 4096
    d_kv: int = 64
    d_ff: int = 10240
    num_layers: int = 24
    num_heads: int = 64
    buckets: int = 32
    gated: bool = True

    @property
    def linears(self) -> list[tuple[int, int]]:
        """(rows, columns) of every linear layer of a block but `wo`."""
        inner = self.d_kv * self.num_heads
        return [(inner, self.d_model)] * 3 + [(self.d_model, inner)] + [(self.d_ff, self.d_model)] * (2 if self.gated else 1)

    @property
    def wo(self) -> tuple[int, int]:
        """(rows, columns) of the second half of a feed-forward, which transformers keeps out of quantization."""
        return self.d_model, self.d_ff

    @property
    def embedding(self) -> tuple[int, int]:
        """(rows, columns) of the embedding, once: it is tied."""
        return self.vocab_size, self.d_model

    @property
    def rest(self) -> int:
        """How many numbers lie outside of linear layers and the embedding: the position bias, the norms."""
        return self.buckets * self.num_heads + self.d_model * (2 * self.num_layers + 1)

    @property
    def numbers(self) -> int:
        """How many parameters there are. T5-XXL: 4.762 billion."""
        return self.rest + math.prod(self.embedding) + self.num_layers * sum(map(math.prod, [*self.linears, self.wo]))

    def bytes(self, choice: Choice, compute: str = "bfloat16") -> int:
        """Resident bytes of a choice, with `compute` as the type of what is not quantized. Exact: tests compare real modules."""
        if choice is NONE:
            return 0
        wide = DTYPES[compute]
        wo_wide = 4 if compute == "float16" else wide  # T5 keeps `wo` in float32 where it would overflow (_keep_in_fp32_modules)
        size = self.rest * wide + _size(choice.stored_embedding, self.embedding, wide)
        size += self.num_layers * sum(_size(choice.stored, sides, wide) for sides in self.linears)
        return size + self.num_layers * _size(choice.stored_wo, self.wo, wo_wide)


def _size(stored: str, sides: tuple[int, int], wide: int) -> int:
    """Bytes of a layer. wide: of a number that is not quantized."""
    found = _STORED.get(stored)
    return found(*sides) if found else math.prod(sides) * wide


def _four_bit(rows: int, columns: int) -> int:
    """bitsandbytes, blocks of 64, double quantization: codes, one byte of scale for each block, and the second level of scales
    (blocks of 256, float32, with their table of 256), the table of 16 and an offset (bitsandbytes/functional.py, QuantState).
    """
    numbers = rows * columns
    blocks = -(-numbers // 64)
    return -(-numbers // 2) + blocks + 4 * -(-blocks // 256) + 4 * 256 + 4 * 16 + 4


def _eight_bit(rows: int, columns: int) -> int:
    """One byte for each number, one float32 scale for each row: bitsandbytes' INT8, and our FP8."""
    return rows * columns + 4 * rows


def _grouped(kind: str) -> Callable[[int, int], int]:
    return lambda rows, columns: rows * grouped(kind).width(columns)


_STORED: Mapping[str, Callable[[int, int], int]] = {
    "fp4": _four_bit,
    "nf4": _four_bit,
    "fp8-rows": _eight_bit,
    "int8": _eight_bit,
    **{kind: _grouped(kind) for kind in WIDTHS},
}

T5_XXL = T5Shape()
