"""Numbers as they are, one after the other."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sd3deploy.encoders.forms.form import Layer, Mine, NotMine
from sd3deploy.encoders.stored import Decode, Stored

if TYPE_CHECKING:
    import torch

__all__ = ["FP8", "NUMBERS", "AsNumbers", "Plain"]

# The container's name → torch's
FP8 = {"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"}
NUMBERS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", **FP8}


@dataclass(frozen=True)
class AsNumbers:
    """dtype: the container's name. width: numbers in a row."""

    dtype: str
    width: int
    step: int = 1

    @property
    def name(self) -> str:
        return {"F32": "FP32", "F16": "FP16", "F8_E4M3": "FP8", "F8_E5M2": "FP8 (E5M2)"}.get(self.dtype, self.dtype)

    @property
    def exact(self) -> bool:
        return self.dtype not in FP8

    def open(self, read: Callable[[Stored], torch.Tensor]) -> Decode:
        import torch

        dtype = getattr(torch, NUMBERS[self.dtype])

        def decode(data: torch.Tensor, first: int, rows: int) -> torch.Tensor:
            found = data.view(dtype).reshape(rows, self.width)
            return found if self.exact else found.float()

        return decode


class Plain:
    """FP32, FP16, BF16, and FP8 that was cast without a scale."""

    title = "FP32, FP16, BF16, FP8 without scales"
    example = "t5xxl_fp16.safetensors, t5xxl_fp8_e4m3fn.safetensors (comfyanonymous/flux_text_encoders)"
    read = True

    @staticmethod
    def look(layer: Layer) -> Mine | NotMine:
        stored = layer.parts.get("weight")
        if stored is None:
            return NotMine("there is no weight")
        if stored.dtype not in NUMBERS or not stored.shape:
            return NotMine(f"the weight is of type {stored.dtype}" if stored.shape else "the weight is one number")
        if layer.declared is not None:
            return NotMine(f"there is a marker, {next(iter(layer.declared), '')}", 1)
        return Mine(stored, stored.shape, AsNumbers(stored.dtype, math.prod(stored.shape[1:])))
