"""The memory that the next encoder takes, for the shapes of the one that is in use."""

from __future__ import annotations

from typing import Any

from sd3deploy.device import Device
from sd3deploy.encoders.cache import Cache
from sd3deploy.encoders.choices import Choice, find
from sd3deploy.encoders.recipe import Recipe
from sd3deploy.encoders.source import Source
from sd3deploy.encoders.weights import open_weights
from sd3deploy.memory.t5_shape import T5Shape

__all__ = ["placed", "shape", "shape_of", "while_read", "wide"]


def while_read(choice: Choice, found: Source, device: Device, cache: Cache | None, old: Any) -> int:
    """Bytes of RAM that a choice takes while it is read. What is computed on the CPU right where it lies in a file takes none."""
    if device.torch == "cpu":
        weights = open_weights(found)
        as_computed = all(one.stored.dtype == "BF16" and one.stored.file.path for one in weights.tensors.values())
        if choice.stored == "wide" and device.bf16 and as_computed:
            return 0
        if cache and choice.quantized and cache.find(weights, Recipe(choice, device.compute_dtype)):
            return 0
    return placed(choice, device, old)


def placed(choice: Choice, device: Device, old: Any) -> int:
    """Bytes that a choice takes where it is computed."""
    return shape(old).bytes(choice, device.compute_dtype)


def wide(old: Any) -> int:
    """Bytes of an encoder in 16 bit, as the webui itself loads it."""
    return shape(old).bytes(find("bf16"))


def shape(encoder: Any) -> T5Shape:
    """The shapes of a T5 encoder, from its configuration."""
    return shape_of(encoder.config)


def shape_of(known: Any) -> T5Shape:
    """The same, from transformers' T5Config."""
    names = ("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads")
    buckets, gated = known.relative_attention_num_buckets, known.is_gated_act
    return T5Shape(**{name: getattr(known, name) for name in names}, buckets=buckets, gated=gated)
