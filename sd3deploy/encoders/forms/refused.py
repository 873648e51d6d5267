"""Forms that are known and not read. A refusal says what the file is, and what to get instead."""

from __future__ import annotations

from sd3deploy.encoders.forms.declared import COMFY, STATE
from sd3deploy.encoders.forms.form import Layer, NotMine, Unusable

__all__ = ["REFUSED"]


class Refused:
    """One that is told by parts beside the weight, or by `quant_method` in the folder's config.json. parts: all of them are there. starts:
    how one of them begins. dtype: of the weight, where the parts alone do not tell.
    """

    title = example = ""
    read = False
    parts: frozenset[str] = frozenset()
    starts: tuple[str, ...] = ()
    dtype: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()

    @classmethod
    def look(cls, layer: Layer) -> NotMine | Unusable:
        declared = layer.declared or {}
        if COMFY in declared or any(part.startswith(STATE) for part in declared):
            return NotMine("the file declares another form")
        weight = layer.parts.get("weight")
        there = cls.parts <= layer.parts.keys() if cls.parts else any(part.startswith(cls.starts) for part in layer.parts if cls.starts)
        if there and (not cls.dtype or (weight is not None and weight.dtype in cls.dtype)):
            return Unusable("form.refused", {"form": cls.title})
        wide = weight is not None and weight.dtype in ("F32", "F16", "BF16") and len(layer.parts) == 1
        if layer.folder.get("quant_method") in cls.methods and not wide:
            return Unusable("form.refused", {"form": cls.title})
        return NotMine(f"there are no signs of {cls.title}")


class CompressedTensors(Refused):
    title = "compressed-tensors (llm-compressor)"
    example = "a folder whose config.json says compressed-tensors"
    starts = ("weight_packed", "weight_shape", "weight_global_scale")
    methods = ("compressed-tensors",)


class Quanto(Refused):
    title = "optimum-quanto"
    example = "a folder with quanto_qmap.json"
    starts = ("weight._",)
    methods = ("quanto",)


class TorchAo(Refused):
    title = "torchao"
    example = "a folder whose config.json says torchao"
    starts = ("_weight_", "weight:")
    methods = ("torchao",)


class Hqq(Refused):
    title = "HQQ"
    example = "a folder whose config.json says hqq"
    starts = ("W_q",)
    methods = ("hqq",)


class Mlx(Refused):
    title = "MLX, quantized"
    example = "files that mlx or mflux have quantized"
    parts = frozenset({"weight", "scales", "biases"})
    dtype = ("U32",)


class Gptq(Refused):
    title = "GPTQ, AWQ"
    example = "a folder whose config.json says gptq or awq"
    parts = frozenset({"qweight", "qzeros"})
    methods = ("gptq", "awq")


class ModelOpt(Refused):
    """Beside ComfyUI's NVFP4 it looks the same; only the marker tells them apart, and the order of everything is another."""

    title = "NVFP4 without a comfy_quant marker (NVIDIA ModelOpt)"
    example = "a folder with hf_quant_config.json"
    starts = ("weight_scale_2",)
    methods = ("modelopt",)


class BlockFp8(Refused):
    title = "FP8 with weight_scale_inv (transformers' fine-grained FP8)"
    example = "a folder whose config.json says fp8"
    starts = ("weight_scale_inv",)
    methods = ("fp8", "fbgemm_fp8")


class Sdnq(Refused):
    title = "SDNQ without its folder"
    example = "model.safetensors of such a folder alone"
    starts = ("svd_up", "svd_down", "zero_point")
    methods = ("sdnq", "sdnq_training")


REFUSED: tuple[type[Refused], ...] = (CompressedTensors, Quanto, TorchAo, Hqq, Mlx, Gptq, ModelOpt, BlockFp8, Sdnq)
