"""FP8 with scales that lie beside the weight."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sd3deploy.encoders.forms.form import Layer, Mine, NotMine
from sd3deploy.encoders.forms.plain import FP8
from sd3deploy.encoders.stored import Decode, Stored

if TYPE_CHECKING:
    import torch

__all__ = ["ScaledFp8"]


@dataclass(frozen=True)
class Scaled:
    """Weight = numbers · the one scale."""

    dtype: str
    width: int
    scale: Stored
    name = "FP8, a scale"
    exact = False
    step = 1

    def open(self, read: Callable[[Stored], torch.Tensor]) -> Decode:
        import torch

        dtype = getattr(torch, FP8[self.dtype])
        scale = read(self.scale).view(torch.float32)

        def decode(data: torch.Tensor, first: int, rows: int) -> torch.Tensor:
            return data.view(dtype).reshape(rows, self.width).float() * scale

        return decode


class ScaledFp8:
    """FP8 with a scale for the whole weight, in ComfyUI's older form."""

    title = "FP8 with scales"
    example = "t5xxl_fp8_e4m3fn_scaled.safetensors (comfyanonymous/flux_text_encoders)"

    @staticmethod
    def look(layer: Layer) -> Mine | NotMine:
        stored, scale = layer.parts.get("weight"), layer.parts.get("scale_weight")
        if stored is None or stored.dtype not in FP8:
            return NotMine("the weight is not FP8")
        if scale is None:
            return NotMine("there is no scale", 1)
        if scale.dtype != "F32" or scale.shape not in ((), (1,)):
            return NotMine(f"the scale is {scale.dtype} {list(scale.shape)}", 2)
        return Mine(stored, stored.shape, Scaled(stored.dtype, stored.shape[1], scale), frozenset({"weight", "scale_weight"}))
