"""GGUF files as llama.cpp, stable-diffusion.cpp and ComfyUI's converters write them, by the `gguf` package."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy
import torch

from sd3deploy.encoders import identity
from tests.forms import Raw

NAMES = {
    "layer.0.SelfAttention.q": "attn_q",
    "layer.0.SelfAttention.k": "attn_k",
    "layer.0.SelfAttention.v": "attn_v",
    "layer.0.SelfAttention.o": "attn_o",
    "layer.0.SelfAttention.relative_attention_bias": "attn_rel_b",
    "layer.0.layer_norm": "attn_norm",
    "layer.1.DenseReluDense.wi_0": "ffn_gate",
    "layer.1.DenseReluDense.wi_1": "ffn_up",
    "layer.1.DenseReluDense.wo": "ffn_down",
    "layer.1.layer_norm": "ffn_norm",
}
TOKENS = 32128
ALIGNED = 32  # bytes


def llama(name: str) -> str:
    """A name of transformers as llama.cpp has it."""
    fixed = {"shared.weight": "token_embd.weight", "encoder.final_layer_norm.weight": "enc.output_norm.weight"}
    if name in fixed or not name.startswith("encoder.block."):
        return fixed.get(name, name)
    number, _, rest = name.removeprefix("encoder.block.").partition(".")
    return f"enc.blk.{number}.{NAMES[rest.removesuffix('.weight')]}.weight"


def write(
    path: Path,
    state: Mapping[str, torch.Tensor],
    kind: str = "Q8_0",
    *,
    renamed=llama,
    arch: str | None = "t5encoder",
    tokens: int = 0,
    marked: bool = True,
    more: Mapping[str, torch.Tensor] | None = None,
) -> Path:
    """kind: of what has two sides and a row that fills its blocks; the rest is float32. arch: None, as stable-diffusion.cpp writes it."""
    writer = gguf.GGUFWriter(path, arch or "none")
    if arch is None:
        for keys in writer.kv_data:
            keys.clear()
    if marked:
        writer.add_string(identity.MARK, "true")
    if tokens:
        writer.add_token_list([f"▁token{number}" for number in range(tokens)])
        writer.add_token_scores([0.5] * tokens)
        writer.add_token_types([1] * tokens)
    dtype = gguf.GGMLQuantizationType[kind]
    block = gguf.GGML_QUANT_SIZES[dtype][0]
    for name, tensor in {**state, **(more or {})}.items():
        numbers = tensor.float().numpy()
        wanted = dtype if tensor.dim() == 2 and tensor.shape[1] % block == 0 else gguf.GGMLQuantizationType.F32
        raw = numbers.astype(numpy.float16) if wanted.name == "F16" else gguf.quants.quantize(numbers, wanted)
        writer.add_tensor(renamed(name), raw, raw_dtype=wanted)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def header(tensors: Mapping[str, Raw], room: int) -> bytes:
    """Of a file with these types, shapes and bytes, whatever they are; a text fills it up to `room` bytes. Each tensor has to end where the
    next may begin.
    """

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value.encode())) + value.encode()

    def key(name: str, value: str) -> bytes:
        return text(name) + struct.pack("<I", gguf.GGUFValueType.STRING) + text(value)

    entries, offset = b"", 0
    for name, one in tensors.items():
        assert len(one.data) % ALIGNED == room % ALIGNED == 0
        sides = struct.pack(f"<I{len(one.shape)}Q", len(one.shape), *reversed(one.shape))
        entries += text(name) + sides + struct.pack("<IQ", gguf.GGMLQuantizationType[one.dtype], offset)
        offset += len(one.data)
    start = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), 2) + key(identity.MARK, "true")
    filler = room - len(start) - len(key("general.description", "")) - len(entries)
    return start + key("general.description", " " * filler) + entries
