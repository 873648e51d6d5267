"""GGUF: its header, read here, and the names of its tensors as transformers has them. The `gguf` package is not needed for that.

A header with a tokenizer of 32128 tokens takes 28 ms here, and 1.4 s in the GGUFReader of gguf 0.19, which makes arrays of each token
(medians of 7 on one core of an AMD EPYC); that one reports a damaged file in numpy's words.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Callable
from typing import Any

from sd3deploy.encoders.containers.content import Content
from sd3deploy.encoders.files import File
from sd3deploy.encoders.stored import Stored
from sd3deploy.errors import EncoderError
from sd3deploy.lazy import lazy

__all__ = ["BLOCKS", "Gguf"]

# Name → numbers in a block, and its bytes (ggml-org/llama.cpp, gguf-py/gguf/constants.py, GGML_QUANT_SIZES).
BLOCKS = {
    **{"F32": (1, 4), "F16": (1, 2), "BF16": (1, 2), "F64": (1, 8), "I8": (1, 1), "I16": (1, 2), "I32": (1, 4), "I64": (1, 8)},
    **{"Q4_0": (32, 18), "Q4_1": (32, 20), "Q5_0": (32, 22), "Q5_1": (32, 24), "Q8_0": (32, 34)},
    **{"Q2_K": (256, 84), "Q3_K": (256, 110), "Q4_K": (256, 144), "Q5_K": (256, 176), "Q6_K": (256, 210)},
    **{"IQ2_XXS": (256, 66), "IQ2_XS": (256, 74), "IQ2_S": (256, 82), "IQ3_XXS": (256, 98), "IQ3_S": (256, 110)},
    **{"IQ1_S": (256, 50), "IQ1_M": (256, 56), "IQ4_NL": (32, 18), "IQ4_XS": (256, 136)},
    **{"TQ1_0": (256, 54), "TQ2_0": (256, 66), "MXFP4": (32, 17), "NVFP4": (64, 36)},
}
_TYPES = {
    **{0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 10: "Q2_K", 11: "Q3_K"},
    **{12: "Q4_K", 13: "Q5_K", 14: "Q6_K"},
    **{16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 29: "IQ1_M"},
    **{24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 30: "BF16", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4", 40: "NVFP4"},
}
# Those that nothing can decode: given up by ggml, or for what lies between two layers.
_GIVEN_UP = {4: "Q4_2", 5: "Q4_3", 9: "Q8_1", 15: "Q8_K", 31: "Q4_0_4_4", 32: "Q4_0_4_8", 33: "Q4_0_8_8"}
_GIVEN_UP |= {36: "IQ4_NL_4_4", 37: "IQ4_NL_4_8", 38: "IQ4_NL_8_8", 41: "Q1_0"}

_LARGEST = 64 * 2**20  # bytes of a header; the largest tokenizers that are known take 15 MB
_MOST_KEYS, _MOST_TENSORS, _MOST_ITEMS = 4096, 65536, 2**22  # a whole SD3 has 1500 tensors, a tokenizer 262144 tokens and more merges
_LONGEST = 65535  # bytes of a key; also taken for the names of tensors
_DEEPEST = 2  # lists in lists
_CHUNK = 2**18
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_TEXT, _LIST = 8, 9

# llama.cpp's names → transformers' (ggml-org/llama.cpp, gguf-py/gguf/tensor_mapping.py; city96/ComfyUI-GGUF, loader.py, T5_SD_MAP).
_PARTS = {
    **{f"attn_{one}": f"layer.0.SelfAttention.{one}" for one in "qkvo"},
    "attn_rel_b": "layer.0.SelfAttention.relative_attention_bias",
    "attn_norm": "layer.0.layer_norm",
    "ffn_gate": "layer.1.DenseReluDense.wi_0",
    "ffn_up": "layer.1.DenseReluDense.wi_1",
    "ffn_down": "layer.1.DenseReluDense.wo",
    "ffn_norm": "layer.1.layer_norm",
}
_ENDS = {
    "token_embd.weight": "shared.weight",
    "enc.output_norm.weight": "encoder.final_layer_norm.weight",
    "output.weight": "lm_head.weight",
}
_BLOCK = lazy(r"enc\.blk\.(\d+)\.(\w+)\.(.+)")


class Gguf:
    """Keys with values, then what lies where, then the tensors."""

    title = "GGUF"

    @staticmethod
    def mine(head: bytes, name: str) -> bool:
        return head.startswith(b"GGUF")

    @staticmethod
    def read(file: File) -> Content:
        size = file.size
        with file.open() as opened:
            header = _Header(opened, size)
            try:
                return _content(file, header, size)
            except struct.error as error:
                raise ValueError("the header is cut off") from error


class _Header:
    """The bytes of a header, one value after the other."""

    def __init__(self, opened: Any, size: int) -> None:
        self._opened, self._size = opened, size
        self._buffer, self._at, self.offset = b"", 0, 0
        self._items = 0
        self.digest = hashlib.sha256()

    def take(self, count: int) -> bytes:
        """Raises ValueError where there are no so many left."""
        if self.offset + count > min(self._size, _LARGEST):
            raise ValueError("the header is cut off" if self.offset + count > self._size else "the header is too large")
        if self._at + count > len(self._buffer):
            parts, have = [self._buffer[self._at :]], len(self._buffer) - self._at
            while have < count:
                part = self._opened.read(max(_CHUNK, count - have))
                if not part:
                    raise ValueError("the header is cut off")
                parts.append(part)
                have += len(part)
            self._buffer, self._at = b"".join(parts), 0
        found = self._buffer[self._at : self._at + count]
        self._at += count
        self.offset += count
        self.digest.update(found)
        return found

    def number(self, code: str) -> Any:
        return struct.unpack(code, self.take(struct.calcsize(code)))[0]

    def text(self, longest: int = _LARGEST) -> str:
        length = self.number("<Q")
        if length > longest:
            raise ValueError("a name is too long")
        return self.take(length).decode("utf-8", "strict" if longest <= _LONGEST else "replace")

    def value(self, kind: int, depth: int = 0) -> Any:
        """A number, a truth value, a text; None for a list, which is passed over."""
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind == _TEXT:
            return self.text()
        if kind != _LIST or depth > _DEEPEST:
            raise ValueError(f"a value is of the unknown type {kind}" if kind != _LIST else "its lists are nested too deeply")
        inner, count = self.number("<I"), self.number("<Q")
        if inner in _SCALARS:
            total = count * struct.calcsize(_SCALARS[inner])
            for first in range(0, min(total, self._size + 1), _CHUNK):
                self.take(min(_CHUNK, total - first))
            return None
        self._items += count
        if self._items > _MOST_ITEMS:
            raise ValueError("a list is too long")
        for _ in range(count):
            self.take(self.number("<Q")) if inner == _TEXT else self.value(inner, depth + 1)
        return None


def _content(file: File, header: _Header, size: int) -> Content:
    header.take(4)
    version = header.number("<I")
    if version not in (2, 3):
        if int.from_bytes(version.to_bytes(4, "little"), "big") in (2, 3):
            raise EncoderError("gguf.big-endian", file=file.name)
        raise EncoderError("gguf.version", file=file.name, version=version)
    tensors, keys = header.number("<Q"), header.number("<Q")
    if tensors > _MOST_TENSORS or keys > _MOST_KEYS:
        raise ValueError(f"it claims {tensors} tensors and {keys} keys")
    metadata: dict[str, Any] = {}
    for _ in range(keys):
        key = header.text(_LONGEST)
        if key in metadata:
            raise ValueError(f"the key {key[:80]} is there twice")
        found = header.value(header.number("<I"))
        metadata[key] = found[:1000] if isinstance(found, str) else found
    if isinstance(parts := metadata.get("split.count", 0), int) and parts > 1:
        raise EncoderError("gguf.split", file=file.name, parts=parts)
    entries = [_entry(header, file) for _ in range(tensors)]
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or not 0 < alignment <= 2**20 or alignment & (alignment - 1):
        raise ValueError("its alignment is no power of two")
    return Content(file, _places(file, entries, header.offset, alignment, size), _plain(metadata), header.digest.hexdigest())


def _entry(header: _Header, file: File) -> tuple[str, str, tuple[int, ...], int, int]:
    """Name, type, shape with rows first, offset behind the header, bytes."""
    name = header.text(_LONGEST)
    sides = header.number("<I")
    if sides > 4:
        raise ValueError(f"{name[:80]} has {sides} sides")
    shape = tuple(header.number("<Q") for _ in range(sides))[::-1]
    kind, offset = header.number("<I"), header.number("<Q")
    if kind not in _TYPES:
        raise EncoderError("gguf.type", file=file.name, tensor=name[:80], type=_GIVEN_UP.get(kind, kind))
    block, bytes_ = BLOCKS[_TYPES[kind]]
    if max(shape, default=0) > 2**40 or math.prod(shape) > 2**62 or (shape or (1,))[-1] % block:
        raise ValueError(f"{name[:80]} can not have the shape {list(shape)}")
    return name, _TYPES[kind], shape, offset, math.prod(shape) // block * bytes_


def _places(file: File, entries: list[Any], end: int, alignment: int, size: int) -> dict[str, Stored]:
    """Key → where it lies. Raises ValueError unless the tensors lie one after the other, with nothing else than the alignment between them
    and behind the last.
    """

    def aligned(offset: int) -> int:
        return -(-offset // alignment) * alignment

    found: dict[str, Stored] = {}
    start = last = aligned(end)
    for name, dtype, shape, offset, length in sorted(entries, key=lambda entry: (entry[3], entry[4])):
        if start + offset != aligned(last):
            raise ValueError(f"{name[:80]} overlaps with another tensor, or there is a gap before it")
        key = _renamed(name)
        if key in found:
            raise ValueError(f"{name[:80]} is there twice")
        found[key] = Stored(file, name, start + offset, length, dtype, shape)
        last = start + offset + length
    if not last <= size <= aligned(last) and (entries or size > start):
        raise ValueError(f"it has {size} bytes instead of {last}")
    return found


def _renamed(name: str) -> str:
    """As transformers has it; one that llama.cpp does not write stays as it is."""
    if name in _ENDS:
        return _ENDS[name]
    if name.startswith("dec."):
        return f"decoder.{name}"
    if (found := _BLOCK.fullmatch(name)) and found[2] in _PARTS:
        return f"encoder.block.{found[1]}.{_PARTS[found[2]]}.{found[3]}"
    return name


def _plain(metadata: dict[str, Any]) -> dict[str, Any]:
    keep: Callable[[Any], bool] = lambda value: isinstance(value, (str, int, bool)) or (isinstance(value, float) and math.isfinite(value))  # noqa: E731
    return {key: value for key, value in metadata.items() if keep(value)}
