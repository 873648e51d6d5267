"""FP8 with scales that lie beside the weight."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sd3deploy.encoders.forms.form import Layer, Mine, NotMine
from sd3deploy.encoders.forms.plain import FP8, AsNumbers
from sd3deploy.encoders.forms.scaled import Scaled
from sd3deploy.encoders.forms.scales import FLOATS, floats, scales_of
from sd3deploy.encoders.stored import Decode, Stored

if TYPE_CHECKING:
    import torch

__all__ = ["SCALES", "ScaledFp8", "ScaledWide"]

SCALES = ("scale_weight", "weight_scale")  # ComfyUI's older and newer name


class ScaledFp8:
    """FP8 with scales: one, or for each row, for groups of a row, or for square blocks (formats of ComfyUI, sd-scripts, musubi-tuner and
    convert_to_quant).
    """

    title = "FP8 with scales"
    example = "t5xxl_fp8_e4m3fn_scaled.safetensors (comfyanonymous/flux_text_encoders)"
    read = True

    @staticmethod
    def look(layer: Layer) -> Mine | NotMine:
        stored = layer.parts.get("weight")
        if stored is None or stored.dtype not in FP8:
            return NotMine("the weight is not FP8")
        if layer.declared is not None:
            return NotMine("the file declares another form", 1)
        names = [name for name in SCALES if name in layer.parts]
        if len(names) != 1:
            return NotMine("there are two scales" if names else "there is no scale", 1)
        scale = layer.parts[names[0]]
        found = scales_of(scale, stored.shape)
        if found is None:
            return NotMine(f"the scale is {scale.dtype} {list(scale.shape)} for a weight of {list(stored.shape)}", 2)
        width = math.prod(stored.shape[1:])
        layout = Scaled(f"FP8, {found.kind}", FP8[stored.dtype], stored.shape[0], width, found)
        return Mine(stored, stored.shape, layout, frozenset({"weight", names[0]}))


@dataclass(frozen=True)
class OfOne:
    """Numbers as they are, once their scale was looked at."""

    dtype: str
    width: int
    scale: Stored
    exact = True
    step = 1

    @property
    def name(self) -> str:
        return f"{AsNumbers(self.dtype, self.width).name}, a scale of 1"

    def open(self, read: Callable[[Stored], torch.Tensor]) -> Decode:
        found = floats(read(self.scale), self.scale.dtype).item()
        if found != 1:
            raise ValueError(f"{self.scale.key} is {found} instead of 1, beside a weight that is not quantized")
        return AsNumbers(self.dtype, self.width).open(read)


class ScaledWide:
    """16 or 32 bit with a scale of exactly 1, which writers of FP8 leave beside what they do not quantize (Clybius/Learned-Rounding)."""

    title = "FP32, FP16, BF16 with a scale of 1"
    example = "layers that Learned-Rounding leaves alone"
    read = True

    @staticmethod
    def look(layer: Layer) -> Mine | NotMine:
        stored = layer.parts.get("weight")
        if stored is None or stored.dtype not in FLOATS:
            return NotMine("the weight is not FP32, FP16 or BF16")
        names = [name for name in SCALES if name in layer.parts]
        if len(names) != 1 or layer.declared is not None:
            return NotMine("there is not one scale", 0)
        scale = layer.parts[names[0]]
        if scale.dtype not in FLOATS or scale.shape not in ((), (1,), (1, 1)):
            return NotMine(f"the scale is {scale.dtype} {list(scale.shape)} for a weight of {stored.dtype}", 2)
        layout = OfOne(stored.dtype, math.prod(stored.shape[1:]), scale)
        return Mine(stored, stored.shape, layout, frozenset({"weight", names[0]}))
