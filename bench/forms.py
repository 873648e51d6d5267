"""Forms: T5 FP4 from a file in each form that is read, seconds and peak memory, beside the same from FP16 in one run.

Full shapes write 1.5 to 10 GB of codes to a temporary folder for each form, one after the other, in 20 minutes on a CPU. The codes are
random, with scales that make weights of them; what is read is quantized as always. Each form has a process of its own (`--small`: tiny
shapes, one process). GGUF is also dequantized alone, by its own library and by what reads it here, on as many threads.
"""

from __future__ import annotations

import json
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bench import _memory, _weights
from bench._process import answer
from bench._ways import device

__all__ = ["run"]

SMALL = {**_weights.SMALL, "d_ff": 768}  # in rows of which K-quants have whole blocks
PEAK = 600e6  # bytes above the result, at most
GGUF_FACTOR = 1.5  # times what the library's own dequantizing takes, at most, dequantizing alone
Part = tuple[str, str, tuple[int, ...], bytes]  # name below the layer, type, shape, one run of bytes that is repeated


def run(small: bool = False) -> dict[str, Any]:
    """{form: {"file": bytes, "s": …, "result": bytes, "above_result": bytes, "met": bool}}; of GGUF also "library_s" and "ours_s", of
    dequantizing alone.
    """
    rows: dict[str, Any] = {}
    with _weights.orderly(), tempfile.TemporaryDirectory(prefix="sd3deploy-bench-") as place:
        for form, write in WRITERS.items():
            file = Path(place) / f"t5.{'gguf' if form.startswith('GGUF') else 'safetensors'}"
            write(file, SMALL if small else _weights.FULL)
            _memory.read_through([file])
            row: dict[str, Any] = {}
            for alone in (False, True) if form.startswith("GGUF") else (False,):
                question = {"file": str(file), "alone": alone}
                row |= measured(**question) if small else answer("bench.forms", question, Path(place))
            row["met"] = row["above_result"] <= PEAK and row.get("ours_s", 0) <= row.get("library_s", 0) * GGUF_FACTOR
            rows[form] = {"file": file.stat().st_size, **row}
            print(f"  … {form}: {rows[form]}", file=sys.stderr, flush=True)
            file.unlink()
    return rows


def measured(file: str, alone: bool) -> dict[str, Any]:
    """Seconds until it is quantized, bytes of the result, and what the process took beyond it at its peak. alone: those of dequantizing."""
    import torch
    import transformers

    from sd3deploy.encoders import choices, source
    from sd3deploy.encoders.quantize import quantize
    from sd3deploy.encoders.recipe import Recipe
    from sd3deploy.encoders.weights import open_weights

    transformers.utils.logging.disable_progress_bar()
    torch.zeros(2, 128).mul(2)  # begin what torch begins once
    weights = open_weights(source.find("Local file", source.Facts(""), file))
    if alone:
        return {"library_s": _seconds(lambda: _library(Path(file))), "ours_s": _seconds(lambda: _ours(weights))}
    with _memory.Peak() as peak:
        started = time.perf_counter()
        made = quantize(weights, Recipe(choices.find("fp4")), device())
        seconds = time.perf_counter() - started
    return {"s": round(seconds, 2), "result": made.size, "above_result": peak.resident - made.size}


def _seconds(work: Callable[[], None]) -> float:
    started = time.perf_counter()
    work()
    return round(time.perf_counter() - started, 2)


def _library(file: Path) -> None:
    """gguf's own dequantizing, on as many threads as ours, nothing kept."""
    import os

    import gguf

    tensors = [one for one in gguf.GGUFReader(file).tensors if one.tensor_type.name not in ("F32", "F16")]
    pieces = [(one.data[first : first + 256], one.tensor_type) for one in tensors for first in range(0, len(one.data), 256)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(lambda piece: gguf.quants.dequantize(*piece).size, pieces):
            pass


def _ours(weights: Any) -> None:
    """The same of ours: the same tensors, in pieces of as many rows, which are read, too."""
    import os
    from dataclasses import replace

    from sd3deploy.encoders.weights import bytes_of

    layers = [one for one in weights.tensors.values() if one.stored.dtype not in ("F32", "F16")]
    decoders = [(one, one.layout.open(bytes_of), one.stored.size // one.shape[0]) for one in layers]
    pieces = [(*layer, first) for layer in decoders for first in range(0, layer[0].shape[0], 256)]

    def decode(piece: tuple[Any, Any, int, int]) -> int:
        weight, decoder, width, first = piece
        rows = min(256, weight.shape[0] - first)
        stored = replace(weight.stored, offset=weight.stored.offset + first * width, size=rows * width)
        return decoder(bytes_of(stored), first, rows).numel()

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(decode, pieces):
            pass


# Files


def _layers(shape: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...], bool]]:
    """Path, shape, and whether it is a linear layer."""
    wide, inner, hidden = shape["d_model"], shape["num_heads"] * shape["d_kv"], shape["d_ff"]
    yield "shared", (shape["vocab_size"], wide), False
    for number in range(shape["num_layers"]):
        block = f"encoder.block.{number}.layer"
        for name in "qkv":
            yield f"{block}.0.SelfAttention.{name}", (inner, wide), True
        yield f"{block}.0.SelfAttention.o", (wide, inner), True
        if not number:
            yield f"{block}.0.SelfAttention.relative_attention_bias", (32, shape["num_heads"]), False
        yield f"{block}.0.layer_norm", (wide,), False
        for name in ("wi_0", "wi_1"):
            yield f"{block}.1.DenseReluDense.{name}", (hidden, wide), True
        yield f"{block}.1.DenseReluDense.wo", (wide, hidden), True
        yield f"{block}.1.layer_norm", (wide,), False
    yield "encoder.final_layer_norm", (wide,), False


def _safetensors(linear: Callable[[str, int, int], list[Part]], dtype: str = "F16") -> Callable[[Path, dict[str, Any]], None]:
    """Writes a file of which the linear layers are in a form, and all else is in `dtype`."""

    def write(file: Path, shape: dict[str, Any]) -> None:
        parts: list[Part] = []
        for path, sides, is_linear in _layers(shape):
            if is_linear:
                parts += [(f"{path}.{name}", kind, size, data) for name, kind, size, data in linear(path, sides[0], sides[1])]
            else:
                parts.append((f"{path}.weight", dtype, sides, _numbers(dtype)))
        header: dict[str, Any] = {"__metadata__": _mark(shape)}
        start = 0
        for name, kind, sides, _ in parts:
            size = _count(sides) * _BYTES[kind]
            header[name] = {"dtype": kind, "shape": list(sides), "data_offsets": [start, start + size]}
            start += size
        words = json.dumps(header).encode()
        words += b" " * (-len(words) % 8)
        with open(file, "wb") as out:
            out.write(struct.pack("<Q", len(words)) + words)
            for _, kind, sides, data in parts:
                _repeat(out, data, _count(sides) * _BYTES[kind])

    return write


def _gguf(kind: str) -> Callable[[Path, dict[str, Any]], None]:
    """Writes a file as llama.cpp does, with the linear layers and the embedding in a type."""

    def write(file: Path, shape: dict[str, Any]) -> None:
        import gguf

        dtype = gguf.GGMLQuantizationType[kind]
        numbers, size = gguf.GGML_QUANT_SIZES[dtype]
        infos, start, parts = b"", 0, []
        layers = list(_layers(shape))
        for path, sides, is_linear in layers:
            packed = is_linear or path == "shared"
            length = _count(sides) // numbers * size if packed else _count(sides) * 4
            name = f"{path}.weight".encode()
            infos += struct.pack("<Q", len(name)) + name + struct.pack("<I", len(sides)) + struct.pack(f"<{len(sides)}Q", *sides[::-1])
            infos += struct.pack("<IQ", dtype.value if packed else 0, start)
            parts.append((_blocks(kind, size) if packed else _numbers("F32"), length))
            start += length + -length % 32
        words = b"".join(_key(name, value) for name, value in {"general.architecture": "t5encoder", **_mark(shape)}.items())
        head = b"GGUF" + struct.pack("<IQQ", 3, len(layers), 1 + len(_mark(shape))) + words + infos
        with open(file, "wb") as out:
            out.write(head + b"\0" * (-len(head) % 32))
            for data, length in parts:
                _repeat(out, data, length)
                out.write(b"\0" * (-length % 32))

    return write


def _key(name: str, value: str) -> bytes:
    """A key of a header and its text."""
    key, text = name.encode(), value.encode()
    return struct.pack("<Q", len(key)) + key + struct.pack("<IQ", 8, len(text)) + text


def _mark(shape: dict[str, Any]) -> dict[str, str]:
    from sd3deploy.encoders import identity

    return {} if shape == _weights.FULL else {identity.MARK: "true"}


def _count(sides: tuple[int, ...]) -> int:
    count = 1
    for side in sides:
        count *= side
    return count


def _repeat(out: Any, data: bytes, size: int) -> None:
    """`size` bytes of `data`, over and over."""
    whole, rest = divmod(size, len(data))
    for _ in range(whole):
        out.write(data)
    out.write(data[:rest])


_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E8M0": 1, "I8": 1, "U8": 1, "I16": 2}
_RUN = 2**20  # numbers that are repeated


def _random(count: int = _RUN) -> Any:
    import numpy

    return numpy.random.default_rng(0).integers(0, 256, count, numpy.uint8)


def _numbers(dtype: str, value: float | None = None) -> bytes:
    """Normal numbers, or always the same."""
    import torch

    kinds = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F8_E4M3": torch.float8_e4m3fn}
    made = torch.randn(_RUN, generator=torch.Generator().manual_seed(0)) if value is None else torch.full((4096,), value)
    return made.to(kinds[dtype]).view(torch.uint8).numpy().tobytes()


def _words(value: dict[str, Any]) -> tuple[str, tuple[int, ...], bytes]:
    data = json.dumps(value).encode()
    return "U8", (len(data),), data


def _blocks(kind: str, size: int) -> bytes:
    """Blocks of random codes, with scales that are numbers. Where those stand: ggml-common.h."""
    import numpy

    found = _random(4096 * size).reshape(-1, size)
    places = {"Q6_K": (size - 2,), "Q4_K": (0, 2), "Q5_K": (0, 2)}.get(kind, (0,))
    for place in places:
        found[:, place : place + 2] = numpy.array([0.01], numpy.float16).view(numpy.uint8)
    return found.tobytes()


def _scaled(path: str, rows: int, columns: int) -> list[Part]:
    return [("weight", "F8_E4M3", (rows, columns), _numbers("F8_E4M3")), ("weight_scale", "F32", (rows, 1), _numbers("F32", 0.02))]


def _int8(path: str, rows: int, columns: int) -> list[Part]:
    said = {"format": "int8_tensorwise", "convrot": True, "convrot_groupsize": 256 if columns % 256 == 0 else 64}
    weight, scale = ("weight", "I8", (rows, columns), _random().tobytes()), ("weight_scale", "F32", (rows, 1), _numbers("F32", 0.001))
    return [weight, scale, ("comfy_quant", *_words(said))]


def _nvfp4(path: str, rows: int, columns: int) -> list[Part]:
    tiles = -(-rows // 128) * 128, -(-columns // 64) * 4
    scale = [("weight_scale", "F8_E4M3", tiles, _numbers("F8_E4M3", 1.0)), ("weight_scale_2", "F32", (), _numbers("F32", 0.01))]
    return [("weight", "U8", (rows, columns // 2), _random().tobytes()), *scale, ("comfy_quant", *_words({"format": "nvfp4"}))]


def _mxfp8(path: str, rows: int, columns: int) -> list[Part]:
    tiles = -(-rows // 128) * 128, -(-columns // 128) * 4
    weight = ("weight", "F8_E4M3", (rows, columns), _numbers("F8_E4M3"))
    return [weight, ("weight_scale", "F8_E8M0", tiles, bytes([121]) * 4096), ("comfy_quant", *_words({"format": "mxfp8"}))]


def _nf4(path: str, rows: int, columns: int) -> list[Part]:
    from bitsandbytes.functional import create_dynamic_map, get_4bit_type

    blocks = rows * columns // 64
    said = {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [rows, columns]}
    said |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.05}
    return [
        ("weight", "U8", (rows * columns // 2, 1), _random().tobytes()),
        ("weight.absmax", "U8", (blocks,), _random().tobytes()),
        ("weight.quant_map", "F32", (16,), get_4bit_type("nf4", device="cpu").numpy().tobytes()),
        ("weight.nested_absmax", "F32", (-(-blocks // 256),), _numbers("F32", 0.02)),
        ("weight.nested_quant_map", "F32", (256,), create_dynamic_map().numpy().tobytes()),
        ("weight.quant_state.bitsandbytes__nf4", *_words(said)),
    ]


def _bnb8(path: str, rows: int, columns: int) -> list[Part]:
    weight = ("weight", "I8", (rows, columns), _random().tobytes())
    return [weight, ("SCB", "F32", (rows,), _numbers("F32", 0.1)), ("weight_format", "U8", (), b"\0")]


def _nunchaku(path: str, rows: int, columns: int) -> list[Part]:
    groups = -(-columns // 128 // 8) * 8
    scales = [(name, "F16", (groups, rows), _numbers("F16", value)) for name, value in (("scales", 0.01), ("scaled_zeros", -0.08))]
    return [("qweight", "I16", (rows // 4, columns), _random().tobytes()), *scales]


WRITERS: dict[str, Callable[[Path, dict[str, Any]], None]] = {
    "FP16": _safetensors(lambda path, rows, columns: [("weight", "F16", (rows, columns), _numbers("F16"))]),
    "FP8, a scale per row": _safetensors(_scaled),
    "comfy INT8, rotated": _safetensors(_int8),
    "comfy NVFP4": _safetensors(_nvfp4),
    "comfy MXFP8": _safetensors(_mxfp8),
    "bitsandbytes NF4": _safetensors(_nf4),
    "bitsandbytes INT8": _safetensors(_bnb8),
    "Nunchaku AWQ INT4": _safetensors(_nunchaku),
    **{f"GGUF {kind}": _gguf(kind) for kind in ("Q8_0", "Q6_K", "Q5_K", "Q4_K", "IQ4_XS")},
}


def main(arguments: Iterable[str]) -> None:
    print(json.dumps(measured(**json.loads(next(iter(arguments))))))


if __name__ == "__main__":
    main(sys.argv[1:])
