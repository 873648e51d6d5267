"""What an encoder really is and really takes, read off its tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sd3deploy.encoders.t5 import feed_forwards

if TYPE_CHECKING:
    import torch

__all__ = ["Measure", "measure", "tensors"]


@dataclass(frozen=True)
class Measure:
    """bytes: resident, every storage once. bytes_16bit: the same parameters at two bytes each. linears: linear layers of any kind.
    linear4bit: those that bitsandbytes holds in 4 bit. wo_quantized: every feed-forward's `wo` takes less than two bytes a weight.
    """

    bytes: int
    bytes_16bit: int
    linears: int
    linear4bit: int
    wo_quantized: bool


def measure(encoder: torch.nn.Module) -> Measure:
    """Measure a text encoder; it may lie on any device."""
    modules: list[Any] = list(encoder.modules())
    linears = [module for module in modules if hasattr(module, "in_features") and hasattr(module, "weight")]
    outputs = [module.wo for module in feed_forwards(encoder)]
    tables = [module for module in modules if hasattr(module, "num_embeddings")]
    embeddings = {id(module.weight): module.num_embeddings * module.embedding_dim for module in tables}
    norms = sum(module.weight.numel() for module in modules if type(module).__name__.endswith("Norm"))
    weights = sum(embeddings.values()) + norms + sum(module.in_features * module.out_features for module in linears)
    return Measure(
        bytes=sum(_bytes(tensor) for tensor in tensors(encoder)),
        bytes_16bit=2 * weights,
        linears=len(linears),
        linear4bit=sum(type(module).__name__ == "Linear4bit" for module in linears),
        wo_quantized=bool(outputs) and all(_bytes(module.weight) < 2 * module.in_features * module.out_features for module in outputs),
    )


def tensors(encoder: torch.nn.Module) -> list[torch.Tensor]:
    """Every tensor that the module keeps alive, each storage once, with the scales that bitsandbytes keeps beside its weights."""
    found: dict[Any, torch.Tensor] = {}

    def add(tensor: torch.Tensor | None) -> None:
        if tensor is not None:
            found.setdefault(tensor.data_ptr() or id(tensor), tensor)

    for tensor in [*encoder.parameters(), *encoder.buffers()]:
        add(tensor)
        state = getattr(tensor, "quant_state", None)
        while state is not None:  # double quantization nests a second state
            for part in ("absmax", "code", "offset"):
                add(getattr(state, part, None))
            state = getattr(state, "state2", None)
        add(getattr(tensor, "CB", None))
        add(getattr(tensor, "SCB", None))
    return list(found.values())


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()
