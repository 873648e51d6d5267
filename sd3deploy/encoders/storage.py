"""The ways to store a layer's weight. Each takes the rows of the weight piece by piece, gives the tensors that stand for it (named as the
library's own state_dict names them), makes the module that computes with them, and puts such tensors into it.

A new way is a class here and its name in STORAGES.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from sd3deploy.device import cpu_has_bfloat16
from sd3deploy.encoders.finite import require_finite
from sd3deploy.encoders.four_bit import BLOCK, four_bit
from sd3deploy.encoders.grouped import WIDTHS, grouped
from sd3deploy.encoders.t5 import grouped_embedding, grouped_linear, scaled_linear, wide_linear

if TYPE_CHECKING:
    import torch

    from sd3deploy.encoders.recipe import Recipe
    from sd3deploy.encoders.stored import Stored, Weight

__all__ = ["BITSANDBYTES", "STORAGES", "AsItLies", "Storage", "Taken", "Wide"]

_AT_ONCE = 2**18  # numbers: a megabyte in float32, of which several are asked for anew each time; a GPU keeps such memory
BITSANDBYTES = ("fp4", "nf4", "int8")  # the ways whose modules are bitsandbytes'


class Storage(Protocol):
    """One weight on its way. step: rows come in multiples of it, all but the last. computes: so much that a GPU is faster."""

    step: int
    computes: bool

    def __init__(self, name: str, shape: tuple[int, ...], recipe: Recipe, kind: str) -> None: ...

    def add(self, first: int, rows: torch.Tensor) -> None:
        """Rows of the weight, from number `first` on, in the type and on the device in which they come. Several threads may do that.

        Raises NotFinite for rows with NaN or infinity, here or in `tensors`.
        """

    def tensors(self) -> dict[str, torch.Tensor]:
        """On the CPU, when all rows were added."""
        ...

    @staticmethod
    def layer(linear: Any, compute: str, kind: str) -> torch.nn.Module:
        """The module that takes the place of `linear`, which has no bias; of Grouped also of an embedding. It is called on the meta device:
        no memory is taken.
        """
        ...

    @staticmethod
    def put(module: Any, tensors: Mapping[str, torch.Tensor]) -> None:
        """Put tensors into a module; their names without the module's."""


class Wide:
    """Not quantized: in the type in which is computed."""

    computes = False

    def __init__(self, name: str, shape: tuple[int, ...], recipe: Recipe, kind: str) -> None:
        import torch

        # T5 leaves float16's range in `wo`, for which transformers' own class keeps it in float32 (huggingface/diffusers#8604).
        keeps = name.endswith(".wo.weight") and recipe.compute == "float16"
        self.step, self._name = 1, name
        self.dtype = torch.float32 if keeps else getattr(torch, recipe.compute)
        self._all = torch.empty(shape, dtype=self.dtype)

    def add(self, first: int, rows: torch.Tensor) -> None:
        part = self._all[first : first + len(rows)]
        require_finite(part.copy_(rows))  # what is finite as it is read may be too large for float16

    def tensors(self) -> dict[str, torch.Tensor]:
        return {self._name: self._all}

    @staticmethod
    def layer(linear: Any, compute: str, kind: str) -> torch.nn.Module:
        if hasattr(linear, "in_features") and not cpu_has_bfloat16():
            linear.__class__ = wide_linear()
        return linear

    @staticmethod
    def put(module: Any, tensors: Mapping[str, torch.Tensor]) -> None:
        import torch

        for name, tensor in tensors.items():
            setattr(module, name, torch.nn.Parameter(tensor, requires_grad=False))


class AsItLies:
    """In the type in which it lies in the file already: taken from there. The rows are looked at, and not kept.

    To read them for that takes 0.16 s a GB from the system's memory (BF16, two cores of an AMD EPYC; 1.5 s for T5-XXL). From a disk it
    takes what the first prompt would take otherwise: what was read stays in the system's memory as far as there is room.
    """

    step, computes = 1, False

    def __init__(self, name: str, tensor: torch.Tensor) -> None:
        self._name, self._tensor = name, tensor

    def add(self, first: int, rows: torch.Tensor) -> None:
        require_finite(rows)

    def tensors(self) -> dict[str, torch.Tensor]:
        return {self._name: self._tensor}


class Taken:
    """Quantized in the file already, in the very form that is wanted: what is stored is taken, and nothing is rounded a second time."""

    computes = False

    def __init__(self, name: str, weight: Weight, beside: Mapping[str, torch.Tensor]) -> None:
        import torch

        self.step, self._name, self._weight, self._beside = weight.layout.step, name, weight, beside
        self._data = torch.empty(weight.stored.size, dtype=torch.uint8)

    @staticmethod
    def of(name: str, weight: Weight, recipe: Recipe, kind: str, read: Callable[[Stored], torch.Tensor]) -> Taken | None:
        """Where the weight lies in the form that is wanted; None where it does not. read: as for `Layout.open`."""
        encoded = getattr(weight.layout, "encoded", None)
        beside = encoded(kind, recipe.compute, read) if encoded else None
        return None if beside is None else Taken(name, weight, beside)

    def add(self, first: int, rows: torch.Tensor) -> None:
        start = first * self._weight.stored.size // self._weight.shape[0]
        self._data[start : start + len(rows)] = rows

    def tensors(self) -> dict[str, torch.Tensor]:
        layout: Any = self._weight.layout
        layer = self._name.removesuffix("weight")
        for tensor in self._beside.values():
            if tensor.is_floating_point():
                require_finite(tensor)  # the codes are finite whatever they are
        return {self._name: layout.codes(self._data), **{layer + part: tensor for part, tensor in self._beside.items()}}


class FourBitStorage:
    """bitsandbytes' FP4 or NF4 with double quantization, which costs nothing measurable and saves 8 % (bench/encoders.py)."""

    computes = True

    def __init__(self, name: str, shape: tuple[int, ...], recipe: Recipe, kind: str) -> None:
        import torch

        self._name, self._shape, self._compute, self._best = name, shape, recipe.compute, recipe.scale == "best"
        self._quantizer = four_bit(kind)
        self._numbers = math.prod(shape)
        self.step = BLOCK // math.gcd(BLOCK, self._numbers // shape[0])
        blocks = -(-self._numbers // BLOCK)
        # A rest that is no whole block is filled with zeros, which change neither its scale nor the codes of the others. What stays is
        # asked for before what goes again, or the heap keeps the room between.
        self._codes = torch.empty(blocks * BLOCK // 2, dtype=torch.uint8)
        self._nested = torch.empty(blocks, dtype=torch.uint8)
        self._scales = torch.empty(blocks)

    def add(self, first: int, rows: torch.Tensor) -> None:
        import torch

        flat = rows.reshape(-1)
        if rest := -flat.numel() % BLOCK:
            flat = torch.nn.functional.pad(flat, (0, rest))
        start = first * self._numbers // self._shape[0]
        codes = self._codes[start // 2 : (start + flat.numel()) // 2]
        self._quantizer.quantize(flat, codes, self._scales[start // BLOCK : (start + flat.numel()) // BLOCK], best=self._best)

    def tensors(self) -> dict[str, torch.Tensor]:
        import torch
        from bitsandbytes import functional

        offset = self._scales.mean()  # as bitsandbytes.functional.quantize_4bit with compress_statistics
        scales, nested = functional.quantize_blockwise(self._scales.sub_(offset), blocksize=256)
        state = functional.QuantState(
            absmax=self._nested.copy_(scales),
            shape=torch.Size(self._shape),
            dtype=getattr(torch, self._compute),
            blocksize=BLOCK,
            code=functional.get_4bit_type(self._quantizer.kind, device="cpu"),
            quant_type=self._quantizer.kind,
            offset=offset,
            state2=nested,
        )
        codes = self._codes[: -(-self._numbers // 2)].unsqueeze(1)
        return {self._name: codes, **{f"{self._name}.{key}": value for key, value in state.as_dict(packed=True).items()}}

    @staticmethod
    def layer(linear: torch.nn.Linear, compute: str, kind: str) -> torch.nn.Module:
        import torch
        from bitsandbytes.nn import Linear4bit

        return Linear4bit(linear.in_features, linear.out_features, False, getattr(torch, compute), quant_type=kind)

    @staticmethod
    def put(module: Any, tensors: Mapping[str, torch.Tensor]) -> None:
        from bitsandbytes.nn import Params4bit

        weight = tensors["weight"]
        state = {name.removeprefix("weight."): tensor for name, tensor in tensors.items() if name != "weight"}
        place: Any = weight.device  # annotated as a string there
        module.weight = Params4bit.from_prequantized(weight, state, requires_grad=False, device=place, module=module)


class Int8:
    """bitsandbytes' INT8 (LLM.int8): a scale per row, and the inputs' outliers computed in float16."""

    computes = True

    def __init__(self, name: str, shape: tuple[int, ...], recipe: Recipe, kind: str) -> None:
        import torch

        self.step, self._layer = 1, name.removesuffix("weight")
        self._codes, self._scales = torch.empty(shape, dtype=torch.int8), torch.empty(shape[0])

    def add(self, first: int, rows: torch.Tensor) -> None:
        import torch
        from bitsandbytes.functional import int8_vectorwise_quant

        halves = rows.to(torch.float16)  # as bitsandbytes.nn.Int8Params
        require_finite(halves)  # its kernels take the largest of a row without looking at NaN
        codes, scales, _ = int8_vectorwise_quant(halves)
        self._codes[first : first + len(rows)].copy_(codes)
        self._scales[first : first + len(rows)].copy_(scales)

    def tensors(self) -> dict[str, torch.Tensor]:
        import torch

        # The format is that of bitsandbytes.utils.LINEAR_8BIT_WEIGHTS_FORMAT_MAPPING: 0 is row by row, the only one that is left.
        found = {"weight": self._codes, "SCB": self._scales, "weight_format": torch.tensor(0, dtype=torch.uint8)}
        return {self._layer + key: value for key, value in found.items()}

    @staticmethod
    def layer(linear: torch.nn.Linear, compute: str, kind: str) -> torch.nn.Module:
        from bitsandbytes.nn import Linear8bitLt

        # threshold: of an outlier among the inputs, from the paper (LLM.int8) and transformers' BitsAndBytesConfig.
        return Linear8bitLt(linear.in_features, linear.out_features, False, has_fp16_weights=False, threshold=6.0)

    @staticmethod
    def put(module: Any, tensors: Mapping[str, torch.Tensor]) -> None:
        from bitsandbytes import nn

        codes = tensors["weight"]
        parameter: Any = nn.Int8Params
        module.weight = parameter(codes, requires_grad=False, has_fp16_weights=False, CB=codes, SCB=tensors["SCB"])


class Rows:
    """FP8 with a float32 scale per row; ours (t5.scaled_linear)."""

    computes = True

    def __init__(self, name: str, shape: tuple[int, ...], recipe: Recipe, kind: str) -> None:
        import torch

        self.step, self._layer = 1, name.removesuffix("weight")
        self._codes, self._scales = torch.empty(shape, dtype=torch.float8_e4m3fn), torch.empty(shape[0], 1)

    def add(self, first: int, rows: torch.Tensor) -> None:
        import torch

        largest = torch.finfo(self._codes.dtype).max
        many = max(1, _AT_ONCE // rows.shape[1]) if rows.device.type == "cpu" else len(rows)
        for start in range(0, len(rows), many):
            wide = rows[start : start + many].float()
            scales = wide.abs().amax(1, keepdim=True).clamp_(min=torch.finfo(torch.float32).tiny).div_(largest)
            part = slice(first + start, first + start + len(wide))
            self._codes[part].copy_(wide / scales)
            self._scales[part].copy_(scales)

    def tensors(self) -> dict[str, torch.Tensor]:
        require_finite(self._scales)  # those of a row with NaN or infinity are none: torch's largest is
        return {f"{self._layer}weight": self._codes, f"{self._layer}scale": self._scales}

    @staticmethod
    def layer(linear: torch.nn.Linear, compute: str, kind: str) -> torch.nn.Module:
        return scaled_linear()(linear.in_features, linear.out_features)

    @staticmethod
    def put(module: Any, tensors: Mapping[str, torch.Tensor]) -> None:
        module.weight, module.scale = tensors["weight"], tensors["scale"]


class Grouped:
    """4, 5, 6 or 8 bits with a scale and a middle for each group along a row; ours (grouped.py)."""

    computes = True

    def __init__(self, name: str, shape: tuple[int, ...], recipe: Recipe, kind: str) -> None:
        import torch

        self.step, self._name, self._form = 1, name, grouped(kind)
        self._all = torch.empty(shape[0], self._form.width(shape[1]), dtype=torch.uint8)

    def add(self, first: int, rows: torch.Tensor) -> None:
        self._all[first : first + len(rows)].copy_(self._form.pack(rows))

    def tensors(self) -> dict[str, torch.Tensor]:
        return {self._name: self._all}

    @staticmethod
    def layer(linear: Any, compute: str, kind: str) -> torch.nn.Module:
        if hasattr(linear, "in_features"):
            return grouped_linear()(linear.in_features, linear.out_features, kind)
        return grouped_embedding()(linear.num_embeddings, linear.embedding_dim, kind, compute)

    @staticmethod
    def put(module: Any, tensors: Mapping[str, torch.Tensor]) -> None:
        if (found := tensors["weight"].shape) != module.weight.shape:
            raise ValueError(f"stored as {list(found)}, not as {list(module.weight.shape)}")
        Wide.put(module, tensors)


STORAGES: Mapping[str, type[Storage]] = {
    "fp4": FourBitStorage,
    "nf4": FourBitStorage,
    "int8": Int8,
    "fp8-rows": Rows,
    **dict.fromkeys(WIDTHS, Grouped),
    "wide": Wide,
}
