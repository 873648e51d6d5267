"""Layers of the same kind are stored alike: the q of each block, for instance. A part that one of them lacks, or has in another shape or
type, would change its numbers without a sign of it in the layer itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from sd3deploy.encoders.containers.gguf import BLOCKS
from sd3deploy.encoders.forms.declared import COMFY
from sd3deploy.encoders.forms.form import Layer, Mine
from sd3deploy.encoders.forms.fp8 import SCALES
from sd3deploy.encoders.forms.plain import FP8
from sd3deploy.encoders.forms.scales import FLOATS
from sd3deploy.errors import EncoderError
from sd3deploy.lazy import lazy

__all__ = ["require_uniform"]

_BLOCK = lazy(r"^encoder\.block\.\d+\.")


def require_uniform(layers: Mapping[str, tuple[Layer, Mine]], *, marked: bool) -> None:
    """Raise EncoderError for a layer that stands out among its kind, and for FP8 without a scale in a file that has scales.

    marked: whether the file says as a whole that its FP8 has scales. Mixed files are normal: layers of several forms are not compared.
    """
    eight = {path: any(scale in layer.parts for scale in SCALES) for path, (layer, mine) in layers.items() if mine.stored.dtype in FP8}
    if marked or any(eight.values()):
        for path, scaled in eight.items():
            if not scaled:
                raise EncoderError("form.scale-missing", file=layers[path][0].file.name, layer=path)
    kinds: dict[Any, list[str]] = {}
    for path, (layer, mine) in layers.items():
        if _BLOCK.match(path):
            said = (layer.declared or {}).get(COMFY, {}).get("format")
            kinds.setdefault((_BLOCK.sub("", path), _type(mine.stored.dtype), said), []).append(path)
    for paths in kinds.values():
        signs = {path: _signs(*layers[path]) for path in paths}
        usual = Counter(signs.values()).most_common(1)[0][0]
        for path, found in signs.items():
            if found != usual:
                part = min(found ^ usual)[0]
                values = {"file": layers[path][0].file.name, "layer": path, "part": part}
                raise EncoderError("form.uneven", **values, found=_words(part, found), usual=_words(part, usual))


def _type(dtype: str) -> str:
    """What may not be mixed among layers of a kind, under one name. Of GGUF's types that is what takes as many bytes, such as Q4_0, IQ4_NL
    and Q4_K: llama.cpp mixes others alone (src/llama-quant.cpp, llama_tensor_get_type_impl), and nothing else tells one from the other.
    """
    numbers, size = BLOCKS.get(dtype, (1, 0))
    if numbers > 1:
        return f"{size / numbers} bytes"
    return "FP8" if dtype in FP8 else "16 bit" if dtype in ("F16", "BF16") else dtype


def _signs(layer: Layer, mine: Mine) -> frozenset[tuple[str, str, tuple[int, ...]]]:
    """Part, type and shape of what the numbers depend on; of weights that are not quantized the type alone."""
    if mine.stored.dtype in FLOATS:
        return frozenset({("weight", mine.stored.dtype, ())})
    parts = (part for part in mine.used if part not in (layer.declared or {}))
    return frozenset((part, layer.parts[part].dtype, layer.parts[part].shape) for part in parts)


def _words(part: str, signs: frozenset[tuple[str, str, tuple[int, ...]]]) -> str:
    return next((f"{dtype} {list(shape)}" for name, dtype, shape in signs if name == part), "–")
