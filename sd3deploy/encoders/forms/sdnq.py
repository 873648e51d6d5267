"""SDNQ, decoded by its own library: the folder's configuration and the shapes of what lies there say how."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sd3deploy.encoders.forms.form import Layer, Mine, NotMine, Unusable
from sd3deploy.encoders.stored import Decode, Stored

if TYPE_CHECKING:
    import torch

__all__ = ["METHODS", "Sdnq"]

METHODS = ("sdnq", "sdnq_training")
_MOST = 2**20  # rows or columns
_TYPES = {
    **{"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "BOOL": "bool"},
    **{"U8": "uint8", "I8": "int8", "U16": "uint16", "I16": "int16", "U32": "uint32", "I32": "int32"},
}


@dataclass(frozen=True)
class Dequantized:
    """A layer that is decoded as a whole when it begins, because a rotation and a low-rank part go over all of its rows. For that time its
    weight is in memory in float32: 168 MB for the largest of T5-XXL. dtype: SDNQ's name.
    """

    dtype: str
    parts: Mapping[str, Stored]
    dequantizer: Any
    step: int = 1
    exact: bool = False

    @property
    def name(self) -> str:
        return f"SDNQ {self.dtype.upper()}"

    def open(self, read: Callable[[Stored], torch.Tensor]) -> Decode:
        import torch

        found = {}
        for part, stored in self.parts.items():
            tensor = read(stored).view(getattr(torch, _TYPES[stored.dtype])).reshape(stored.shape)
            # Since 0.2.8 scales and zero points may be codes themselves, with a scale of their own.
            codes = part == "weight" or tensor.dtype not in (torch.float32, torch.float16, torch.bfloat16)
            found[part] = tensor if codes else tensor.float()
        matmul = self.dequantizer.use_quantized_matmul
        whole = self.dequantizer(**found, skip_quantized_matmul=matmul, skip_compile=True, dtype=torch.float32).detach()

        def decode(data: torch.Tensor, first: int, rows: int) -> torch.Tensor:
            return whole[first : first + rows]

        return decode


class Sdnq:
    """Any type of SDNQ, with its groups, low-rank part and rotation."""

    title = "SDNQ"
    read = True
    example = "text_encoder_2 of Disty0/FLUX.1-dev-SDNQ-uint4-svd-r32"

    @staticmethod
    def look(layer: Layer) -> Mine | NotMine | Unusable:
        stored, scale = layer.parts.get("weight"), layer.parts.get("scale")
        if layer.folder.get("quant_method") not in METHODS:
            return NotMine("the folder does not say so")
        if stored is None or scale is None:
            return NotMine("there is no scale", 1)
        try:
            parts = {part: one for part, one in layer.parts.items() if part in _names()}
            # Where a whole tensor has one scale (0.2.8), only a weight that is not packed tells its rows.
            dequantizer = _dequantizer(layer, parts, {*scale.shape, *stored.shape})
        except ImportError:
            return Unusable("form.sdnq-package")
        except Exception as error:  # a configuration of which the library makes nothing
            return Unusable("form.sdnq", {"error": (str(error) or type(error).__name__).splitlines()[0][:200]})
        if dequantizer is None:
            return Unusable("form.sdnq", {"error": f"the shapes {[list(one.shape) for one in layer.parts.values()]} do not fit"})
        layout = Dequantized(str(dequantizer.weights_dtype), parts, dequantizer)
        return Mine(stored, tuple(dequantizer.original_shape), layout, frozenset(parts))


def _names() -> frozenset[str]:
    """What the library calls the tensors of a layer: 5 until 0.2.3, 9 since 0.2.8. Raises ImportError."""
    return frozenset(importlib.import_module("sdnq.common").sdnq_keys)


def _dequantizer(layer: Layer, parts: Mapping[str, Stored], sides: set[int]) -> Any:
    """The library's own for a layer of which it makes tensors of just these types and shapes; None where there is none. sides: which may be
    the number of rows.
    """
    import torch

    quantizer: Any = importlib.import_module("sdnq.quantizer")
    types: Any = importlib.import_module("sdnq.common").dtype_dict
    shapes = {part: one.shape for part, one in parts.items()}
    stored, name = layer.parts["weight"], f"{layer.path}.weight"

    def linear(columns: int, rows: int) -> torch.nn.Linear:
        return torch.nn.Linear(columns, rows, bias=False, device="meta", dtype=torch.bfloat16)

    def config() -> Any:  # the library adds to one what it finds
        return quantizer.SDNQConfig.from_dict(copy.deepcopy(said))

    said = {**layer.folder, "quantization_device": None, "return_device": None, "use_dynamic_quantization": False}
    kind = quantizer.get_quant_kwargs(linear(1, 1), config(), torch_dtype=torch.bfloat16, param_name=name)["weights_dtype"]
    for rows in sorted(sides - {0}):
        columns, rest = divmod(stored.size * 8, rows * types[kind]["num_bits"])
        if rest or not 0 < columns <= _MOST >= rows:
            continue
        made, _ = quantizer.sdnq_quantize_layer(linear(columns, rows), config(), torch_dtype=torch.bfloat16, param_name=name)
        own = {part: one for part, one in made.named_parameters() if part in _names()}
        if {part: tuple(one.shape) for part, one in own.items()} == shapes and str(own["weight"].dtype) == f"torch.{_TYPES[stored.dtype]}":
            return made.sdnq_dequantizer
    return None
