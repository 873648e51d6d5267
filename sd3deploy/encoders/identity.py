"""Whether tensors are T5-XXL's, by their names and shapes, before anything is asked about their form."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["BIAS", "MARK", "PREFIXES", "config_of", "prefix_of"]

BIAS = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"  # every T5 encoder has it, and nothing else
# What stands before the names inside of files that hold a whole model (ComfyUI, sd-scripts, stable-diffusion.cpp).
PREFIXES = ("", "text_encoders.t5xxl.transformer.", "text_encoders.t5xxl.", "te3.", "transformer.")
MARK = "sd3deploy_small_t5"  # in the config or the metadata of the small models of demo and tests


def prefix_of(names: Iterable[str]) -> str | None:
    """What stands before the names of T5's encoder; None where there is none."""
    known = set(names)
    return next((prefix for prefix in PREFIXES if prefix + BIAS in known), None)


def config_of(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """A T5Config read off the shapes of the weights."""
    import transformers

    buckets, heads = shapes[BIAS]
    vocabulary, width = shapes["shared.weight"]
    return transformers.T5Config(
        vocab_size=vocabulary,
        d_model=width,
        d_kv=shapes["encoder.block.0.layer.0.SelfAttention.q.weight"][0] // heads,
        d_ff=shapes["encoder.block.0.layer.1.DenseReluDense.wo.weight"][1],
        num_layers=1 + max(int(name.split(".")[2]) for name in shapes if name.startswith("encoder.block.")),
        num_heads=heads,
        relative_attention_num_buckets=buckets,
        feed_forward_proj="gated-gelu" if "encoder.block.0.layer.1.DenseReluDense.wi_0.weight" in shapes else "relu",
    ).to_dict()
