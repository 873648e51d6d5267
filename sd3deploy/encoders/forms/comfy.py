"""ComfyUI's newer form: each layer has a marker, `comfy_quant`, that names its format."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sd3deploy.encoders.forms.declared import COMFY
from sd3deploy.encoders.forms.form import Layer, Mine, NotMine, Unusable
from sd3deploy.encoders.forms.plain import FP8
from sd3deploy.encoders.forms.rotation import rotates
from sd3deploy.encoders.forms.scaled import Scaled
from sd3deploy.encoders.forms.scales import FLOATS, scales_of
from sd3deploy.encoders.forms.tiles import Tiled4, Tiled8, tiled
from sd3deploy.encoders.stored import Layout, Stored

__all__ = ["Comfy"]

_REFUSED = ("hybrid_mxfp8", "convrot_w4a4", "asym_w4a8_int8")
# The keys that are known. Those that are not looked at say how a layer is computed, or what it was made from, not what its numbers are.
_KEYS = {
    *("format", "group_size", "full_precision_matrix_mult", "convrot", "convrot_groupsize", "per_row", "linear_dtype", "num_experts"),
    *("orig_dtype", "orig_shape"),  # convert_to_quant, formats/nvfp4_conversion.py
}
_ROTATED = 256  # numbers, where the marker does not tell

# What a format makes of a layer: its parts, what the marker says, what multiplies the columns → a layout, or why it does not fit
_Read = Callable[[Mapping[str, Stored], Mapping[str, Any], "Stored | None"], "tuple[Layout, tuple[int, int]] | str"]


class Comfy:
    """FP8, INT8, NVFP4, MXFP8 as ComfyUI, convert_to_quant, musubi-tuner write them (Comfy-Org/comfy-kitchen, comfy_kitchen/tensor)."""

    title = "comfy_quant: FP8, INT8, NVFP4, MXFP8"
    example = "files that convert_to_quant has made, with --t5xxl"
    read = True

    @staticmethod
    def look(layer: Layer) -> Mine | NotMine | Unusable:
        said = (layer.declared or {}).get(COMFY)
        if said is None:
            return NotMine("there is no comfy_quant marker")
        name = said.get("format")
        if name in _REFUSED:
            return Unusable("form.comfy-unsupported", {"format": name})
        if not isinstance(name, str) or name not in _FORMATS:
            return Unusable("form.comfy-unknown", {"format": str(name)[:60]})
        if unknown := sorted(str(key)[:40] for key in said.keys() - _KEYS):
            return Unusable("form.comfy-unknown", {"format": f"{name}, {unknown[0]}"})
        weight = layer.parts.get("weight")
        if weight is None or len(weight.shape) != 2 or 0 in weight.shape:
            return NotMine(f"there is no weight of two dimensions for {name}", 4)
        columns = layer.parts.get("pre_quant_scale")
        found = _FORMATS[name](layer.parts, said, columns)
        if isinstance(found, str):
            return NotMine(f"{found} ({name})", 5)
        layout, shape = found
        if said.get("orig_shape", list(shape)) != list(shape):  # it was padded
            return NotMine(f"orig_shape is {str(said['orig_shape'])[:40]} for {list(shape)} ({name})", 5)
        if columns is not None and (columns.dtype not in FLOATS or columns.shape != (shape[1],) or said.get("convrot")):
            return NotMine(f"pre_quant_scale is {columns.dtype} {list(columns.shape)} ({name})", 5)
        used = {"weight", COMFY, "weight_scale", "pre_quant_scale", *(("weight_scale_2",) if name == "nvfp4" else ())}
        return Mine(weight, shape, layout, frozenset(used & layer.parts.keys()))


def _eight(dtypes: Mapping[str, str], label: str, kinds: str = "", *, needed: bool = True, rotated: bool = False) -> _Read:
    """Numbers of 8 bit with a scale. kinds: how the kind of the scale begins that the format has."""

    def read(parts: Mapping[str, Stored], said: Mapping[str, Any], columns: Stored | None) -> tuple[Layout, tuple[int, int]] | str:
        weight, scale = parts["weight"], parts.get("weight_scale")
        if weight.dtype not in dtypes:
            return f"the weight is {weight.dtype}"
        height, width = weight.shape
        found = scales_of(scale, weight.shape) if scale else None
        if found is None and (scale or needed):
            return f"the scale is {scale.dtype} {list(scale.shape)} for {list(weight.shape)}" if scale else "there is no scale"
        if found and kinds and not found.kind.startswith(kinds):
            return f"there is {found.kind}"
        many, size = found and 1 < found.columns < width, said.get("group_size")
        if found and many and size is not None and size != found.columns:
            return f"group_size is {str(size)[:20]}, and there is {found.kind}"
        turned = said.get("convrot", False)
        if not isinstance(turned, bool) or (turned and not rotated):
            return f"convrot is {str(turned)[:20]}"
        size = said.get("convrot_groupsize")
        size = _ROTATED if size is None else size
        if turned and not rotates(size, width):
            return f"convrot_groupsize is {str(size)[:20]} for rows of {width}"
        name = f"{label}, {found.kind}" if found else label
        layout = Scaled(f"{name}, rotated" if turned else name, dtypes[weight.dtype], height, width, found, size if turned else 0, columns)
        return layout, (height, width)

    return read


def _nvfp4(parts: Mapping[str, Stored], said: Mapping[str, Any], columns: Stored | None) -> tuple[Layout, tuple[int, int]] | str:
    weight, scale, second = parts["weight"], parts.get("weight_scale"), parts.get("weight_scale_2")
    if weight.dtype != "U8":
        return f"the weight is {weight.dtype}"
    height, width = weight.shape[0], 2 * weight.shape[1]
    if why := _tiles(scale, ("F8_E4M3", "U8"), height, width, 16, said):
        return why
    if second is None or second.dtype != "F32" or second.shape not in ((), (1,)):
        return f"weight_scale_2 is {second.dtype} {list(second.shape)}" if second else "there is no weight_scale_2"
    assert scale is not None
    return Tiled4(height, width, scale, second, columns), (height, width)


def _mxfp8(parts: Mapping[str, Stored], said: Mapping[str, Any], columns: Stored | None) -> tuple[Layout, tuple[int, int]] | str:
    weight, scale = parts["weight"], parts.get("weight_scale")
    if weight.dtype != "F8_E4M3":
        return f"the weight is {weight.dtype}"
    height, width = weight.shape
    if why := _tiles(scale, ("F8_E8M0", "U8"), height, width, 32, said):
        return why
    assert scale is not None
    return Tiled8(height, width, scale, columns), (height, width)


def _tiles(scale: Stored | None, dtypes: tuple[str, ...], height: int, width: int, group: int, said: Mapping[str, Any]) -> str:
    """Why scales in tiles do not fit; "" where they do."""
    if said.get("convrot") or said.get("group_size") not in (None, group):
        return "the marker asks for another layout"
    if width % group:
        return f"rows of {width} are no multiple of {group}"
    if scale is None or scale.dtype not in dtypes or scale.shape != tiled(height, width // group):
        return f"the scale is {scale.dtype} {list(scale.shape)} for {[height, width]}" if scale else "there is no scale"
    return ""


_E4M3, _E5M2, _INT8 = {"F8_E4M3": FP8["F8_E4M3"]}, {"F8_E5M2": FP8["F8_E5M2"]}, {"I8": "int8"}
_FORMATS: Mapping[str, _Read] = {
    "float8_e4m3fn": _eight(_E4M3, "FP8", needed=False),
    "float8_e5m2": _eight(_E5M2, "FP8 (E5M2)", needed=False),
    "float8_e4m3fn_rowwise": _eight(_E4M3, "FP8", "a scale per row"),
    "float8_e4m3fn_blockwise": _eight(_E4M3, "FP8", "a scale per"),
    "int8_tensorwise": _eight(_INT8, "INT8", rotated=True),
    "int8_blockwise": _eight(_INT8, "INT8", "a scale per"),
    "nvfp4": _nvfp4,
    "mxfp8": _mxfp8,
}
