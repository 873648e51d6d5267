"""What of the weights had been quantized before it is made into an encoder, and is not taken as it is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

from sd3deploy.encoders.recipe import Recipe
from sd3deploy.encoders.stored import Stored
from sd3deploy.encoders.weights import Weights

if TYPE_CHECKING:
    import torch

__all__ = ["quantized_before"]


def quantized_before(weights: Weights, recipe: Recipe, read: Callable[[Stored], torch.Tensor] | None = None) -> str:
    """The form of such weights, that of most of their bytes; "" where there are none. Each layer is asked: files are mixed.

    read: as for `Layout.open`; without it the headers alone are asked, which do not show whether a table is another than the kernels'.
    """
    sizes: Counter[str] = Counter()
    for name, weight in weights.tensors.items():
        takes = getattr(weight.layout, "takes", None)
        if not (weight.layout.exact or (takes and takes(recipe.stored(name.removesuffix(".weight")), read))):
            sizes[weight.layout.name] += weight.stored.size
    return sizes.most_common(1)[0][0] if sizes else ""
