"""The T5 encoder class that can be quantized whole, and the modules that it needs.

transformers keeps the second half of each feed-forward (`wo`, a fifth of T5-XXL) out of every quantization, and its
feed-forward casts the activations to the type of wo's weight: with 4-bit codes stored as uint8 that turns the output into
garbage without an error. The classes are made on first use because torch takes seconds to import.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from sd3deploy.device import cpu_has_bfloat16
from sd3deploy.encoders.grouped import grouped, rotate

if TYPE_CHECKING:
    import torch
    import transformers

__all__ = [
    "WIDENED",
    "feed_forwards",
    "grouped_embedding",
    "grouped_linear",
    "product_type",
    "scaled_linear",
    "t5_encoder_class",
    "wide_linear",
]

WIDENED = 2**22  # weights that a CPU makes wide at a time: fewer are many products, more leave its caches


@lru_cache
def t5_encoder_class() -> type[transformers.T5EncoderModel]:
    """A T5EncoderModel in which nothing is kept from quantization and the feed-forward never casts to a storage type.

    On a CPU that emulates bfloat16, in which a product takes 3.4 times as long as in float32, the norm before each layer gives float32,
    and so do linear layers, which go by the type of their input, and all else up to the last norm. What is stored, and what the encoder
    gives, stays bfloat16. To do that in each layer alone would leave attention in bfloat16: a fifth of the time of plain bfloat16.
    """
    import torch
    import transformers
    from transformers.models.t5.modeling_t5 import T5DenseActDense, T5DenseGatedActDense, T5LayerNorm

    class GatedFeedForward(T5DenseGatedActDense):
        def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
            gate, linear = self.act(self.wi_0(hidden_states)), self.wi_1(hidden_states)
            return self.wo(self.dropout(_wide(gate) * _wide(linear)))

    class FeedForward(T5DenseActDense):
        def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
            return self.wo(self.dropout(_wide(self.act(self.wi(hidden_states)))))

    def _wide(tensor: torch.Tensor) -> torch.Tensor:
        # The product of the two halves and wo's output leave float16's range in T5-XXL (huggingface/diffusers#8604).
        # As float32 both survive, and the residual stream after it stays float32, as with the stock class.
        return tensor.float() if tensor.dtype is torch.float16 else tensor

    class LayerNorm(T5LayerNorm):
        def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
            if product_type(self.weight.dtype, hidden_states.device) is self.weight.dtype:
                return super().forward(hidden_states)
            wide = hidden_states.float()
            return self.weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.variance_epsilon))

    class T5EncoderModel(transformers.T5EncoderModel):  # this very name: the host lists modules to offload by class name
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            # An instance attribute: transformers collects the class attributes of every submodule in post_init,
            # so neither a class attribute nor an empty skip list does it.
            self._keep_in_fp32_modules = set()
            for module in feed_forwards(self):
                module.__class__ = GatedFeedForward if hasattr(module, "wi_0") else FeedForward
            for module in self.encoder.block.modules():
                if type(module) is T5LayerNorm:  # or it is apex's, which is for CUDA
                    module.__class__ = LayerNorm

    return T5EncoderModel


def feed_forwards(encoder: torch.nn.Module) -> list[Any]:
    """The feed-forward module of each block: those that hold a `wo`."""
    return [module for module in encoder.modules() if hasattr(module, "wo") and (hasattr(module, "wi_0") or hasattr(module, "wi"))]


@lru_cache
def wide_linear() -> type[torch.nn.Linear]:
    """A linear layer without bias whose weight is not quantized, computed in the type of its input."""
    import torch

    class Linear(torch.nn.Linear):  # this very name: the host and what quantizes know linear layers by it
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            if input.dtype is self.weight.dtype:
                return super().forward(input)
            return _product(input, (self.weight,), lambda rows: rows.to(input.dtype))

    return Linear


@lru_cache
def scaled_linear() -> type[torch.nn.Module]:
    """A linear layer stored as float8_e4m3fn with one float32 scale per row, computed in the type of its input.

    The scale per row takes FP8's output error from 0.161 to 0.107 against a plain cast at the same bytes (bench/encoders.py).
    """
    import torch

    class ScaledLinear(torch.nn.Module):
        weight: torch.Tensor
        scale: torch.Tensor

        def __init__(self, in_features: int, out_features: int) -> None:
            super().__init__()
            self.in_features, self.out_features = in_features, out_features
            self.register_buffer("weight", None)
            self.register_buffer("scale", None)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return _product(x, (self.weight, self.scale), lambda codes, scale: codes.to(x.dtype) * scale.to(x.dtype))

        def _apply(self, fn: Any, recurse: bool = True) -> torch.nn.Module:
            # `.to(dtype)` would quietly turn the storage back into 16 bit: follow the device, keep the types.
            def keep_type(tensor: torch.Tensor) -> torch.Tensor:
                moved = fn(tensor)
                return moved if moved.dtype is tensor.dtype else tensor.to(moved.device)

            return super()._apply(keep_type, recurse)

    return ScaledLinear


@lru_cache
def grouped_linear() -> type[torch.nn.Module]:
    """A linear layer stored as grouped.py has it, computed in the type of its input; unpacked anew for each call, and for it alone.

    Its one parameter is bytes, which no `.to(dtype)` changes, and which accelerate's hooks move as they move every parameter.
    """
    import torch

    class GroupedLinear(torch.nn.Module):
        def __init__(self, in_features: int, out_features: int, kind: str) -> None:
            super().__init__()
            self.in_features, self.out_features, self.kind = in_features, out_features, kind
            self.weight = _stored(out_features, in_features, kind)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            form = grouped(self.kind)
            return _product(form.inputs(x), (self.weight,), lambda rows: form.factors(rows, self.in_features, x.dtype))

        def extra_repr(self) -> str:
            return f"{self.in_features}, {self.out_features}, {self.kind}"

    return GroupedLinear


@lru_cache
def grouped_embedding() -> type[torch.nn.Module]:
    """An embedding stored as grouped.py has it, which gives `compute`, the name of a type."""
    import torch

    class GroupedEmbedding(torch.nn.Module):
        def __init__(self, num_embeddings: int, embedding_dim: int, kind: str, compute: str) -> None:
            super().__init__()
            self.num_embeddings, self.embedding_dim, self.kind, self.compute = num_embeddings, embedding_dim, kind, compute
            self.weight = _stored(num_embeddings, embedding_dim, kind)

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            form = grouped(self.kind)
            wide = form.unpack(self.weight[tokens.reshape(-1)], self.embedding_dim, torch.float32)
            turned = rotate(wide, wide.shape[-1])[:, : self.embedding_dim]  # a second turn is the way back
            return turned.to(getattr(torch, self.compute)).reshape(*tokens.shape, self.embedding_dim)

        def extra_repr(self) -> str:
            return f"{self.num_embeddings}, {self.embedding_dim}, {self.kind}"

    return GroupedEmbedding


def _stored(rows: int, columns: int, kind: str) -> torch.nn.Parameter:
    import torch

    return torch.nn.Parameter(torch.empty(rows, grouped(kind).width(columns), dtype=torch.uint8), requires_grad=False)


def product_type(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """The type in which an encoder of that type computes there: float32 on a CPU that emulates bfloat16, else its own."""
    import torch

    return torch.float32 if dtype is torch.bfloat16 and device.type == "cpu" and not cpu_has_bfloat16() else dtype


def _product(x: torch.Tensor, stored: Sequence[torch.Tensor], widen: Callable[..., torch.Tensor]) -> torch.Tensor:
    """x [..., columns] times the rows of a weight. stored: tensors with its rows. widen: makes rows of them a weight of x's type.

    On a CPU a few rows at a time, which stay in its caches: to be given the memory for all takes longer than to fill it.
    """
    import torch

    rows = max(1, WIDENED // x.shape[-1]) if x.device.type == "cpu" else len(stored[0])
    parts = [torch.nn.functional.linear(x, widen(*part)) for part in zip(*(tensor.split(rows) for tensor in stored), strict=True)]
    return parts[0] if len(parts) == 1 else torch.cat(parts, -1)
