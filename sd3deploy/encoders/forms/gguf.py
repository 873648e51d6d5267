"""The quantized types of GGUF, decoded by the `gguf` package. Its plain types are numbers as any others."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sd3deploy.encoders.containers.gguf import BLOCKS
from sd3deploy.encoders.forms.form import Layer, Mine, NotMine
from sd3deploy.encoders.stored import Decode, Stored
from sd3deploy.errors import EncoderError

if TYPE_CHECKING:
    import torch

__all__ = ["GgufTypes"]

_AT_ONCE = 2**18  # numbers
_TYPES = frozenset(name for name, (numbers, _) in BLOCKS.items() if numbers > 1)


@dataclass(frozen=True)
class Blocks:
    """Rows of blocks. dtype: GGUF's name of the type. width: numbers in a row."""

    dtype: str
    width: int
    step: int = 1
    exact: bool = False
    groups: tuple[str, ...] = ("gguf",)

    @property
    def name(self) -> str:
        return self.dtype

    def open(self, read: Callable[[Stored], torch.Tensor]) -> Decode:
        """Raises EncoderError where the package is missing, or is older than the type."""
        import torch

        dequantize = _decoder(self.dtype)
        numbers, size = BLOCKS[self.dtype]

        def decode(data: torch.Tensor, first: int, rows: int) -> torch.Tensor:
            raw = data.numpy().reshape(rows, self.width // numbers * size)
            found = torch.empty(rows, self.width)
            many = max(1, _AT_ONCE // self.width)  # the package needs twice the memory of what it is given at once
            for start in range(0, rows, many):
                found[start : start + many] = torch.from_numpy(dequantize(raw[start : start + many]))
            return found

        return decode


class GgufTypes:
    """A type of GGUF whose numbers come in blocks."""

    title = "GGUF"
    read = True
    example = "t5-v1_1-xxl-encoder-Q5_K_M.gguf (city96/t5-v1_1-xxl-encoder-gguf)"

    @staticmethod
    def look(layer: Layer) -> Mine | NotMine:
        stored = layer.parts.get("weight")
        if stored is None or stored.dtype not in _TYPES:
            return NotMine("the weight has none of its types")
        if len(stored.shape) != 2:
            return NotMine(f"the weight has the shape {list(stored.shape)}", 1)
        return Mine(stored, stored.shape, Blocks(stored.dtype, stored.shape[-1]))


def _decoder(dtype: str) -> Callable[[Any], Any]:
    """uint8 [rows, bytes] → float32 [rows, numbers]."""
    import numpy

    try:
        constants, quants = importlib.import_module("gguf.constants"), importlib.import_module("gguf.quants")
        kind = constants.GGMLQuantizationType[dtype]
        # Also makes the tables of the type, which threads would make together.
        quants.dequantize(numpy.zeros((1, BLOCKS[dtype][1]), numpy.uint8), kind)
    except ImportError as error:
        raise EncoderError("gguf.package", type=dtype) from error
    except (AttributeError, KeyError, NotImplementedError) as error:  # older than the type
        raise EncoderError("gguf.package-old", type=dtype) from error

    def decode(data: Any) -> Any:
        with numpy.errstate(all="ignore"):  # what is no number afterwards is found by those who use it
            return quants.dequantize(data, kind)

    return decode
