"""A quantized text encoder before it is one: its tensors, wherever they came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sd3deploy.encoders.mapped import Mapped
from sd3deploy.encoders.recipe import Recipe

if TYPE_CHECKING:
    import torch

__all__ = ["Encoded"]


@dataclass(frozen=True)
class Encoded:
    """A T5 encoder as tensors on the CPU. config: of transformers' T5Config, with quantization_config where bitsandbytes has one. tensors:
    as the state_dict of the encoder has them. mapped: the files in which some of them lie.
    """

    recipe: Recipe
    config: Mapping[str, Any]
    tensors: Mapping[str, torch.Tensor]
    mapped: tuple[Mapped, ...] = ()

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors.values())
