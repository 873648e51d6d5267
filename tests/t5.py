"""A small T5 encoder with real shapes: gated feed-forward, relative attention bias, T5's own initialisation."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers

from sd3deploy.encoders import identity

VOCABULARY = 512
MARKED = {identity.MARK: "true"}  # in the configuration or the metadata of what is smaller than T5-XXL, else it is refused


def make(folder: Path, *, wide: bool = False) -> transformers.T5EncoderModel:
    """Save one as `folder`/text_encoder_3 and as `folder`/t5.safetensors, and return it in float32.

    wide: weights of the first block so large that its feed-forward leaves float16's range (65504), as T5-XXL's does.
    """
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=VOCABULARY, d_model=128, d_kv=32, d_ff=256, num_layers=3, num_heads=4, feed_forward_proj="gated-gelu", **MARKED
    )
    encoder = transformers.T5EncoderModel(config).eval().requires_grad_(False)
    if wide:
        feed_forward = encoder.encoder.block[0].layer[1].DenseReluDense
        for linear in (feed_forward.wi_0, feed_forward.wi_1, feed_forward.wo):
            linear.weight.mul_(60)
    encoder.save_pretrained(folder / "text_encoder_3")
    from safetensors.torch import save_file

    state = {name: tensor.contiguous() for name, tensor in encoder.state_dict().items() if name != "encoder.embed_tokens.weight"}
    save_file(state, folder / "t5.safetensors", MARKED)
    return encoder


def tokens() -> torch.Tensor:
    """Two prompts of 77 tokens."""
    return torch.randint(1, VOCABULARY, (2, 77), generator=torch.Generator().manual_seed(1))


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    """Of two outputs as a whole: 1 is the same direction, garbage is near 0."""
    return torch.nn.functional.cosine_similarity(a.double().flatten(), b.double().flatten(), dim=0).item()
