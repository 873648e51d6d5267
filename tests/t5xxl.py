"""T5-XXL and what looks like it, as names and shapes alone: headers of files that nobody needs to have."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from sd3deploy.encoders.containers import Content
from sd3deploy.encoders.files import LocalFile
from sd3deploy.encoders.stored import Stored

Shapes = dict[str, tuple[int, ...]]


def shapes(*, width=4096, wide=10240, blocks=24, heads=64, inner=4096, vocabulary=32128, buckets=32, gated=True, copy=False) -> Shapes:
    """Of the encoder of a T5 v1.1, else of one without gates."""
    found: Shapes = {"shared.weight": (vocabulary, width), "encoder.final_layer_norm.weight": (width,)}
    if copy:
        found["encoder.embed_tokens.weight"] = (vocabulary, width)
    for number in range(blocks):
        attention, dense = f"encoder.block.{number}.layer.0", f"encoder.block.{number}.layer.1"
        found |= {f"{attention}.SelfAttention.{one}.weight": (inner, width) for one in "qkv"}
        found[f"{attention}.SelfAttention.o.weight"] = (width, inner)
        found |= {f"{dense}.DenseReluDense.{one}.weight": (wide, width) for one in (("wi_0", "wi_1") if gated else ("wi",))}
        found[f"{dense}.DenseReluDense.wo.weight"] = (width, wide)
        found |= {f"{part}.layer_norm.weight": (width,) for part in (attention, dense)}
    found["encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"] = (buckets, heads)
    return found


def content(found: Mapping[str, tuple[int, ...]], dtype: str = "F16", name: str = "t5.safetensors", metadata=None) -> Content:
    """A file with these."""
    file = LocalFile(Path(name))
    return Content(file, {key: Stored(file, key, 0, 0, dtype, shape) for key, shape in found.items()}, metadata or {}, "")
