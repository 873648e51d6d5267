"""Forms that are known and not read. A refusal says what the file is, and what to get instead. A new one is a row of REFUSED."""

from __future__ import annotations

from dataclasses import dataclass

from sd3deploy.encoders.forms.declared import COMFY, STATE
from sd3deploy.encoders.forms.form import Layer, NotMine, Unusable

__all__ = ["REFUSED"]


@dataclass
class Refused:
    """One that is told by parts beside the weight, or by `quant_method` in the folder's config.json. parts: all of them are there. starts:
    how one of them begins. dtype: of the weight, where the parts alone do not tell. methods: values of `quant_method`.
    """

    title: str
    example: str
    parts: frozenset[str] = frozenset()
    starts: tuple[str, ...] = ()
    dtype: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    read: bool = False

    def look(self, layer: Layer) -> NotMine | Unusable:
        """As Form has it."""
        declared = layer.declared or {}
        if COMFY in declared or any(part.startswith(STATE) for part in declared):
            return NotMine("the file declares another form")
        weight = layer.parts.get("weight")
        begun = any(part.startswith(self.starts) for part in layer.parts if self.starts)
        there = self.parts <= layer.parts.keys() if self.parts else begun
        if there and (not self.dtype or (weight is not None and weight.dtype in self.dtype)):
            return Unusable("form.refused", {"form": self.title})
        wide = weight is not None and weight.dtype in ("F32", "F16", "BF16") and len(layer.parts) == 1
        if layer.folder.get("quant_method") in self.methods and not wide:
            return Unusable("form.refused", {"form": self.title})
        return NotMine(f"there are no signs of {self.title}")


REFUSED = (
    Refused(
        "compressed-tensors (llm-compressor)",
        "a folder whose config.json says compressed-tensors",
        starts=("weight_packed", "weight_shape", "weight_global_scale"),
        methods=("compressed-tensors",),
    ),
    Refused("optimum-quanto", "a folder with quanto_qmap.json", starts=("weight._",), methods=("quanto",)),
    Refused("torchao", "a folder whose config.json says torchao", starts=("_weight_", "weight:"), methods=("torchao",)),
    Refused("HQQ", "a folder whose config.json says hqq", starts=("W_q",), methods=("hqq",)),
    Refused("MLX, quantized", "files that mlx or mflux have quantized", frozenset({"weight", "scales", "biases"}), dtype=("U32",)),
    Refused("GPTQ, AWQ", "a folder whose config.json says gptq or awq", frozenset({"qweight", "qzeros"}), methods=("gptq", "awq")),
    # Beside ComfyUI's NVFP4 it looks the same; only the marker tells them apart, and the order of everything is another.
    Refused(
        "NVFP4 without a comfy_quant marker (NVIDIA ModelOpt)",
        "a folder with hf_quant_config.json",
        starts=("weight_scale_2",),
        methods=("modelopt",),
    ),
    Refused(
        "FP8 with weight_scale_inv (transformers' fine-grained FP8)",
        "a folder whose config.json says fp8",
        starts=("weight_scale_inv",),
        methods=("fp8", "fbgemm_fp8"),
    ),
    Refused(
        "SDNQ without its folder",
        "model.safetensors of such a folder alone",
        starts=("svd_up", "svd_down", "zero_point"),
        methods=("sdnq", "sdnq_training"),
    ),
)
