"""The small T5 in every form that people have, written by the formulas of the programs that write them, or by the libraries themselves.

A new form is a line in CASES: tests/test_forms.py reads it, and tests/test_forms_mutations.py damages it.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from bitsandbytes import functional

from tests import t5

NAMES = {
    torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
    torch.uint8: "U8", torch.int8: "I8", torch.int16: "I16", torch.int32: "I32",
}  # fmt: skip
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], dtype=np.float32)


@dataclass(frozen=True)
class Raw:
    """A tensor as the header of a safetensors file has it."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes


Parts = dict[str, Raw]
# path of a layer, weight → what lies below the path, and the numbers that it stands for
Write = Callable[[str, np.ndarray], "tuple[Parts, np.ndarray]"]


@dataclass(frozen=True)
class Case:
    """One form. layer: writes a linear layer; the others are plain in the type `rest`. error: of the numbers, relative to what was written,
    at most. close: how near the reading has to come to the formula, 0 for equal. more: tensors beside them. prefix: before all names.
    header: for the metadata of the file, by the paths of the linear layers.
    """

    name: str
    layer: Write
    error: float
    rest: torch.dtype = torch.float16
    close: float = 0.0
    more: Parts = field(default_factory=dict)
    prefix: str = ""
    header: Callable[[list[str]], dict[str, str]] = lambda paths: {}


def raw(values: torch.Tensor | np.ndarray, dtype: str = "") -> Raw:
    tensor = torch.from_numpy(np.ascontiguousarray(values)).reshape(values.shape) if isinstance(values, np.ndarray) else values
    return Raw(dtype or NAMES[tensor.dtype], tuple(tensor.shape), tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())


def words(value: object) -> Raw:
    data = json.dumps(value).encode()
    return Raw("U8", (len(data),), data)


def save(file: Path, tensors: dict[str, Raw], metadata: dict[str, str] | None = None) -> Path:
    """A safetensors file with any types."""
    file.write_bytes(header(tensors, metadata) + b"".join(one.data for one in tensors.values()))
    return file


def header(tensors: dict[str, Raw], metadata: dict[str, str] | None = None, room: int = 0) -> bytes:
    """Of such a file, with spaces behind it up to `room` bytes."""
    found, start = {"__metadata__": {**t5.MARKED, **(metadata or {})}}, 0
    for name, one in tensors.items():
        found[name] = {"dtype": one.dtype, "shape": one.shape, "data_offsets": (start, start + len(one.data))}
        start += len(one.data)
    text = json.dumps(found).encode().ljust(room - 8)
    return struct.pack("<Q", len(text)) + text


def written(case: Case, state: dict[str, torch.Tensor]) -> tuple[dict[str, Raw], dict[str, str], dict[str, np.ndarray]]:
    """A T5 in a form: its tensors, the metadata, and the numbers by their names in transformers."""
    tensors, expected, paths = dict(case.more), {}, []
    for name, tensor in state.items():
        if "SelfAttention.relative" in name or not ("SelfAttention" in name or "DenseReluDense" in name):
            rest = tensor.to(case.rest)
            tensors[case.prefix + name], expected[name] = raw(rest), rest.float().numpy()
            continue
        path = name.removesuffix(".weight")
        paths.append(case.prefix + path)
        parts, expected[name] = case.layer(path, tensor.float().numpy())
        tensors |= {f"{case.prefix}{path}.{part}": one for part, one in parts.items()}
    return tensors, case.header(paths), expected


def plain(dtype: torch.dtype) -> Write:
    def write(path: str, weight: np.ndarray) -> tuple[Parts, np.ndarray]:
        found = torch.from_numpy(weight).to(dtype)
        return {"weight": raw(found)}, found.float().numpy()

    return write


def grid(weight: np.ndarray, rows: int, columns: int, largest: float, dtype: torch.dtype) -> tuple[np.ndarray, np.ndarray]:
    """Scales of blocks of rows × columns, [N / rows, K / columns], and the same for each weight."""
    height, width = weight.shape
    blocks = np.abs(weight).reshape(height // rows, rows, width // columns, columns).max((1, 3)) / largest
    scales = torch.from_numpy(blocks.astype(np.float32)).to(dtype).float().numpy()
    return scales, scales.repeat(rows, 0).repeat(columns, 1)


def spread(shape: str, weight: np.ndarray, side: int) -> tuple[int, int, Callable[[np.ndarray], tuple[int, ...]]]:
    height, width = weight.shape
    rows, columns = {"[]": weight.shape, "[1]": weight.shape, "[N]": (1, width), "[N,1]": (1, width), "[N,K/b,1]": (1, side)}.get(
        shape, (side, side)
    )
    shapes = {"[]": (), "[1]": (1,), "[N]": (height,), "[N,1]": (height, 1), "[N,K/b,1]": (height, width // side, 1)}
    return rows, columns, lambda scales: shapes.get(shape, scales.shape)


def eight(
    shape: str, name: str = "scale_weight", dtype: torch.dtype = torch.float8_e4m3fn, scale: torch.dtype = torch.float32, side: int = 64,
    marker: dict | None = None, rotated: int = 0, hint: str = "", columns: bool = False, state: Callable[[dict], dict] = dict,
) -> Write:  # fmt: skip
    """FP8 or INT8 with scales."""
    largest = 127.0 if dtype is torch.int8 else torch.finfo(dtype).max

    def write(path: str, weight: np.ndarray) -> tuple[Parts, np.ndarray]:
        wanted, smooth = weight, np.linspace(0.5, 2, weight.shape[1], dtype=np.float32)
        if columns:
            wanted = wanted / smooth
        if rotated:
            wanted = rotate(wanted, rotated)
        rows, wide, of = spread(shape, weight, side)
        scales, every = grid(wanted, rows, wide, largest, scale)
        codes = torch.from_numpy(wanted / every)
        codes = codes.round().clamp(-127, 127).to(dtype) if dtype is torch.int8 else codes.clamp(-largest, largest).to(dtype)
        parts = {"weight": raw(codes), name: raw(torch.from_numpy(scales.reshape(of(scales))).to(scale))}
        if marker is not None:
            parts["comfy_quant"] = words(state(marker))
        if hint:
            parts[hint] = raw(torch.tensor(3.0))
        found = codes.float().numpy() * every
        found = rotate(found, rotated) if rotated else found
        if columns:
            parts["pre_quant_scale"] = raw(smooth)
            found = found * smooth
        return parts, found

    return write


def rotate(weight: np.ndarray, size: int) -> np.ndarray:
    four = np.array([[1, 1, 1, -1], [1, 1, -1, 1], [1, -1, 1, 1], [-1, 1, 1, 1]], dtype=np.float64)
    base = four if size.bit_length() % 2 else np.array([[1, 1], [1, -1]], dtype=np.float64)
    matrix = np.ones((1, 1))
    while len(matrix) < size:
        matrix = np.kron(matrix, base)
    return (weight.reshape(-1, size).astype(np.float64) @ matrix / np.sqrt(size)).reshape(weight.shape).astype(np.float32)


def tiles(scales: np.ndarray) -> np.ndarray:
    """The scale (r, c) at the place that cuBLAS's documentation gives it."""
    rows, columns = scales.shape
    wide = -(-columns // 4)
    found = np.zeros(-(-rows // 128) * 128 * wide * 4, dtype=scales.dtype)
    r, c = np.indices(scales.shape)
    found[((r // 128) * wide + c // 4) * 512 + (r % 32) * 16 + ((r % 128) // 32) * 4 + c % 4] = scales
    return found.reshape(-1, wide * 4)


def nvfp4(columns: bool = False, dtype: str = "F8_E4M3") -> Write:
    def write(path: str, weight: np.ndarray) -> tuple[Parts, np.ndarray]:
        smooth = np.linspace(0.5, 2, weight.shape[1], dtype=np.float32)
        wanted = weight / smooth if columns else weight
        second = np.float32(np.abs(wanted).max() / 448 / 6)
        blocks = np.abs(wanted.reshape(len(wanted), -1, 16)).max(2) / 6 / second
        scales = torch.from_numpy(blocks).to(torch.float8_e4m3fn)
        every = (scales.float().numpy() * second).repeat(16, 1)
        near = np.abs(np.abs(wanted / np.where(every, every, 1))[..., None] - E2M1).argmin(-1)
        codes = (near + 8 * (wanted < 0)).astype(np.uint8)
        found = np.where(codes > 7, -E2M1[near], E2M1[near]) * every
        parts = {
            "weight": raw(codes[:, ::2] << 4 | codes[:, 1::2]),
            "weight_scale": raw(tiles(scales.view(torch.uint8).numpy()), dtype),
            "weight_scale_2": raw(np.array(second)),
            "comfy_quant": words({"format": "nvfp4", "group_size": 16, "orig_dtype": "torch.bfloat16", "orig_shape": list(weight.shape)}),
        }
        if columns:
            parts["pre_quant_scale"] = raw(smooth)
            found = found * smooth
        return parts, found

    return write


def mxfp8(dtype: str = "F8_E8M0") -> Write:
    def write(path: str, weight: np.ndarray) -> tuple[Parts, np.ndarray]:
        largest = np.abs(weight.reshape(len(weight), -1, 32)).max(2)
        exponents = np.ceil(np.log2(largest / 448)).astype(np.int32) + 127
        every = np.exp2(exponents.astype(np.float32) - 127).repeat(32, 1)
        codes = torch.from_numpy(weight / every).to(torch.float8_e4m3fn)
        scales = raw(tiles(exponents.astype(np.uint8)), dtype)
        parts = {"weight": raw(codes), "weight_scale": scales, "comfy_quant": words({"format": "mxfp8"})}
        return parts, codes.float().numpy() * every

    return write


def bnb4(kind: str, nested: bool, storage: torch.dtype = torch.uint8, block: int = 64, dtype: torch.dtype = torch.bfloat16) -> Write:
    def write(path: str, weight: np.ndarray) -> tuple[Parts, np.ndarray]:
        codes, state = functional.quantize_4bit(
            torch.from_numpy(weight).to(dtype), quant_type=kind, compress_statistics=nested, blocksize=block, quant_storage=storage
        )
        parts = {"weight": raw(codes), **{f"weight.{key}": raw(value) for key, value in state.as_dict(packed=True).items()}}
        if block <= weight.shape[1]:
            state.dtype = torch.float32
            return parts, functional.dequantize_4bit(codes, state).numpy()
        # There bitsandbytes' kernel for the CPU (0.50.2) takes the scales of other rows.
        found = codes.view(torch.uint8).view(-1).numpy()
        values = state.code.numpy()[np.stack((found >> 4, found & 15), 1)].reshape(-1)[: weight.size]
        scales = functional.dequantize_blockwise(state.absmax, state.state2) + state.offset if nested else state.absmax
        return parts, (values * scales.numpy().repeat(block)[: weight.size]).reshape(weight.shape)

    return write


def bnb8(order: bool = True) -> Write:
    def write(path: str, weight: np.ndarray) -> tuple[Parts, np.ndarray]:
        codes, scales, _ = functional.int8_vectorwise_quant(torch.from_numpy(weight).half())
        parts = {"weight": raw(codes), "SCB": raw(scales)}
        if order:
            parts["weight_format"] = raw(torch.tensor(0, dtype=torch.uint8))
        return parts, functional.int8_vectorwise_dequant(codes, scales).numpy()

    return write


def nunchaku(dtype: torch.dtype = torch.float16) -> Write:
    def write(path: str, weight: np.ndarray) -> tuple[Parts, np.ndarray]:
        height, width = weight.shape
        groups = weight.reshape(height, -1, 128)
        low, high = groups.min(2), groups.max(2)
        scales = torch.from_numpy((high - low) / 15).to(dtype).float().numpy()
        zeros = torch.from_numpy(low).to(dtype).float().numpy()
        codes = np.clip(np.round((groups - zeros[..., None]) / scales[..., None]), 0, 15).astype(np.uint32)
        packed, flat = np.zeros((height // 4, width), dtype=np.uint32), codes.reshape(height, width)
        for row in range(height):
            column = np.arange(width)
            part = column % 64
            place = 64 * (column // 64) + 16 * (row % 4) + 8 * (part // 32) + part % 8
            np.bitwise_or.at(packed[row // 4], place, flat[row] << 4 * (part % 32 // 8))
        parts = {"qweight": raw(packed.astype(np.uint16).view(np.int16))}
        for name, values in (("scales", scales), ("scaled_zeros", zeros)):
            full = np.zeros((-(-width // 128 // 8) * 8, height), dtype=np.float32)
            full[: width // 128] = values.T
            parts[name] = raw(torch.from_numpy(full).to(dtype))
        return parts, (codes * scales[..., None] + zeros[..., None]).astype(np.float32).reshape(height, width)

    return write


def only(part: str, write: Write, rest: Write) -> Write:
    """One way for the layers of a name, another for the rest."""
    return lambda path, weight: (write if path.endswith(part) else rest)(path, weight)


def wide_with_scale(value: float = 1.0) -> Write:
    def write(path: str, weight: np.ndarray) -> tuple[Parts, np.ndarray]:
        found = torch.from_numpy(weight).half()
        return {"weight": raw(found), "scale_weight": raw(torch.tensor(value))}, found.float().numpy()

    return write


def without(part: str, write: Write) -> Write:
    def found(path: str, weight: np.ndarray) -> tuple[Parts, np.ndarray]:
        parts, numbers = write(path, weight)
        return {name: one for name, one in parts.items() if name != part}, numbers

    return found


def in_header(said: dict) -> Callable[[list[str]], dict[str, str]]:
    return lambda paths: {"_quantization_metadata": json.dumps({"format_version": "1.0", "layers": dict.fromkeys(paths, said)})}


def comfy(format: str, shape: str, **values) -> Write:
    return eight(shape, "weight_scale", marker={"format": format, **values.pop("more", {})}, **values)


INT8 = {"dtype": torch.int8}
PREFIX = "text_encoders.t5xxl.transformer."
MARK = {"scaled_fp8": raw(torch.empty(0, dtype=torch.float8_e4m3fn))}
NESTED = {"format": "int8_blockwise", "params": {"group_size": 64}}
CASES = [
    Case("f32", plain(torch.float32), 0, torch.float32),
    Case("f16", plain(torch.float16), 1e-3),
    Case("bf16", plain(torch.bfloat16), 4e-3, torch.bfloat16),
    Case("fp8", plain(torch.float8_e4m3fn), 0.05, torch.float8_e4m3fn),
    Case("fp8-e5m2", plain(torch.float8_e5m2), 0.1, torch.float8_e5m2),
    *(Case(f"scale_weight {shape}", eight(shape), 0.04, more=MARK) for shape in ("[]", "[1]", "[N]", "[N,1]", "[N,K/b,1]", "[N/b,K/b]")),
    Case("scale_weight bf16", eight("[N,1]", scale=torch.bfloat16), 0.04),
    Case("scale_weight f16", eight("[]", scale=torch.float16), 0.04),
    Case("scale_weight e5m2", eight("[]", dtype=torch.float8_e5m2), 0.08),
    Case(
        "scale_weight in a whole model",
        eight("[]", hint="scale_input"), 0.04, prefix=PREFIX, more={f"{PREFIX}scaled_fp8": MARK["scaled_fp8"]},
    ),
    Case("weight_scale", eight("[N]", "weight_scale", hint="input_scale"), 0.04),
    Case("dummy scales", only(".o", wide_with_scale(), eight("[]")), 0.04),
    Case("comfy fp8", comfy("float8_e4m3fn", "[]", hint="input_scale"), 0.04),
    Case("comfy fp8 groups", comfy("float8_e4m3fn", "[N,K/b,1]", more={"group_size": 64}), 0.04),
    Case("comfy fp8 e5m2", comfy("float8_e5m2", "[]", dtype=torch.float8_e5m2), 0.08),
    Case("comfy fp8 rows", comfy("float8_e4m3fn_rowwise", "[N]"), 0.04),
    Case("comfy fp8 blocks", comfy("float8_e4m3fn_blockwise", "[N/b,K/b]", more={"group_size": 64}), 0.04),
    Case("comfy int8", comfy("int8_tensorwise", "[]", **INT8), 0.02),
    Case("comfy int8 rows", comfy("int8_tensorwise", "[N,1]", more={"per_row": True}, **INT8), 0.01),
    Case("comfy int8 smoothed", comfy("int8_tensorwise", "[N,1]", columns=True, **INT8), 0.02),
    Case(
        "comfy int8 rotated by 64",
        comfy("int8_tensorwise", "[N,1]", rotated=64, more={"convrot": True, "convrot_groupsize": 64}, **INT8), 0.01, close=1e-6,
    ),
    Case(
        "comfy int8 rotated by 128",
        comfy("int8_tensorwise", "[N,1]", rotated=128, more={"convrot": True, "convrot_groupsize": 128}, **INT8), 0.01, close=1e-6,
    ),
    Case("comfy int8 blocks", comfy("int8_blockwise", "[N/b,K/b]", more={"group_size": 64}, **INT8), 0.02),
    Case("comfy params", comfy("int8_blockwise", "[N/b,K/b]", state=lambda said: NESTED, **INT8), 0.02),
    Case(
        "comfy in the header",
        eight("[N,1]", "weight_scale", **INT8), 0.01, prefix=PREFIX, header=in_header({"format": "int8_tensorwise"}),
    ),
    Case("comfy nvfp4", nvfp4(), 0.12),
    Case("comfy nvfp4 smoothed", nvfp4(columns=True, dtype="U8"), 0.13),
    Case("comfy mxfp8", mxfp8(), 0.04),
    Case("comfy mxfp8 u8", mxfp8("U8"), 0.04),
    Case("comfy mixed", only(".wo", nvfp4(), only(".q", comfy("int8_tensorwise", "[N]", **INT8), plain(torch.float16))), 0.12),
    Case("bnb nf4", bnb4("nf4", True), 0.11),
    Case("bnb fp4", bnb4("fp4", True), 0.16),
    Case("bnb nf4 not nested", bnb4("nf4", False), 0.11),
    Case("bnb fp4 in blocks of 256", bnb4("fp4", False, block=256), 0.2),
    Case("bnb nf4 in bf16", bnb4("nf4", True, torch.bfloat16), 0.11),
    Case("bnb nf4 without wo", only(".wo", plain(torch.float16), bnb4("nf4", True)), 0.11),
    Case("bnb int8", bnb8(), 0.01),
    Case("bnb int8 without an order", bnb8(order=False), 0.01),
    Case("nunchaku", nunchaku(), 0.13),
    Case("nunchaku bf16", nunchaku(torch.bfloat16), 0.13),
]  # fmt: skip
