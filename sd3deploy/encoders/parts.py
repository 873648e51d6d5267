"""A T5 in parts, each of them a T5 of its own: the embedding with no block, and each block with no embedding.

They are read, quantized and assembled as a whole one is, one after the other, and give together what the whole one gives.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sd3deploy.encoders import identity
from sd3deploy.encoders.weights import Weights

if TYPE_CHECKING:
    import torch

__all__ = ["embed", "parts", "pass_through"]

_NORM = "encoder.final_layer_norm.weight"


def parts(weights: Weights) -> Iterator[Weights]:
    """The embedding, then the blocks in their order."""
    tensors = weights.tensors
    config = {**weights.config, "num_layers": 0}
    yield replace(weights, config=config, tensors={name: tensors[name] for name in ("shared.weight", _NORM)}, read=())
    config = {**weights.config, "num_layers": 1, "vocab_size": 0, "pad_token_id": None, "eos_token_id": None}
    always = {name: tensors[name] for name in (identity.BIAS, _NORM)}  # a whole one hands the bias of block 0 on to the others
    for number in range(weights.config["num_layers"]):
        prefix = f"encoder.block.{number}."
        own = {f"encoder.block.0.{name[len(prefix) :]}": weight for name, weight in tensors.items() if name.startswith(prefix)}
        yield replace(weights, config=config, tensors=own | always, read=())


def embed(encoder: Any, tokens: torch.Tensor) -> torch.Tensor:
    """Hidden states [batch, tokens, width] of token ids, by the first of the parts."""
    return encoder.get_input_embeddings()(tokens)


def pass_through(encoder: Any, hidden: torch.Tensor, last: bool) -> torch.Tensor:
    """Hidden states after one of the blocks; of the last one, as the whole encoder gives them."""
    import torch

    if not last:
        encoder.encoder.final_layer_norm = torch.nn.Identity()
    return encoder.encoder(inputs_embeds=hidden)[0]
