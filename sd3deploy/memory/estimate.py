"""How much memory a job takes at its peak: the parts that are resident plus the activations, for each phase, on the device and in RAM."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from sd3deploy.encoders.choices import HOST_DEFAULT, NONE, Choice
from sd3deploy.encoders.grouped import UNPACKED, WIDTHS
from sd3deploy.encoders.t5 import WIDENED
from sd3deploy.memory.errors import Errors
from sd3deploy.memory.sizes import Weights
from sd3deploy.memory.t5_shape import DTYPES

__all__ = ["OFFLOADS", "PHASES", "Constants", "Estimate", "Need", "Setup", "balanced_defaults", "constants", "estimate"]

PHASES = ("load", "encode", "denoise", "decode")
OFFLOADS = ("none", "balanced", "model", "group", "sequential")  # the host's setting diffusers_offload_mode
ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")

_TEXT_TOKENS = 77 + 256  # of CLIP and of T5; without T5 the pipeline fills its place with zeros (diffusers, pipeline_stable_diffusion_3.py)
_T5_TOKENS = 256

# What is in RAM while T5 is quantized, beyond what is left: bytes of the pieces in which it is read (bench/RESULTS.md, load).
_PIECES = 160_000_000


@dataclass(frozen=True)
class Constants:
    """What measured pipelines say about activations; calibrated by bench/calibrate.py, which wrote constants.json.

    image, text, dual: numbers of the transformer's width for each token of the image, of the prompt, and more for an image token where
    there is a second attention. decode: numbers of the VAE's channels for each pixel. encode: numbers of d_ff for each token of T5.
    context: bytes on the device that belong to no tensor, such as the CUDA context and the libraries' workspaces.
    """

    image: float
    text: float
    dual: float
    decode: float
    encode: float
    context: int
    source: str


@lru_cache
def constants(kind: str) -> Constants:
    """Those of a kind of device; of CUDA for every accelerator that has none of its own."""
    known: dict[str, Any] = json.loads(Path(__file__).with_name("constants.json").read_text("utf-8"))
    return Constants(**known.get(kind, known["cuda"]))


@dataclass(frozen=True)
class Setup:
    """All that decides about memory.

    kind: of the device, "cpu", "cuda", …. dtype: in which the model is loaded; compute: of a quantized T5; product: in which it multiplies
    (Device.product_dtype). width, height: px.
    guided: a guidance scale above 1 doubles the batch. tiling: the VAE decodes in tiles. wide_vae: it decodes in float32.
    watermark: bytes, and never: parts, that balanced offload leaves on the device; ceiling: bytes of one part that it puts there at
    most, the rest of it is streamed; 0: no limit. factors: phase → what a real run on this
    machine has shown the activations to be, relative to the estimate. errors: of the choices on these weights, where they were measured.
    """

    weights: Weights
    encoder: Choice = HOST_DEFAULT
    kind: str = "cuda"
    dtype: str = "bfloat16"
    compute: str = "bfloat16"
    product: str = "bfloat16"
    width: int = 1024
    height: int = 1024
    batch: int = 1
    guided: bool = True
    offload: str = "balanced"
    tiling: bool = False
    wide_vae: bool = False
    watermark: int = 0
    never: tuple[str, ...] = ()
    ceiling: int = 0
    factors: Mapping[str, float] = field(default_factory=dict)
    errors: Errors = field(default_factory=Errors)

    @property
    def pixels(self) -> int:
        """Of one picture."""
        return self.width * self.height


@dataclass(frozen=True)
class Need:
    """The peak of one phase in bytes. activation: the share of it that is no weights."""

    gpu: int
    ram: int
    activation: int


@dataclass(frozen=True)
class Estimate:
    """parts: bytes of each part. phases: the need of each. stacks: phase → "gpu" or "ram" → what is there at the peak → bytes: parts,
    "activation", and "kept" for what balanced offload leaves on the device of parts that only the host knows.
    """

    setup: Setup
    parts: Mapping[str, int]
    phases: Mapping[str, Need]
    stacks: Mapping[str, Mapping[str, Mapping[str, int]]] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """Bytes of all parts."""
        return sum(self.parts.values())

    @property
    def gpu(self) -> int:
        """The highest peak on the device, in bytes; 0 where the CPU computes."""
        return max(need.gpu for need in self.phases.values())

    @property
    def ram(self) -> int:
        """The highest peak in RAM, in bytes, of the model alone."""
        return max(need.ram for need in self.phases.values())


def balanced_defaults(total: int) -> dict[str, Any]:
    """What the host's balanced offload does on a card of `total` bytes unless it is told otherwise (its shared_defaults.py), as fields
    of a setup.
    """
    gib = round(total / 2**30)
    low, high = (0.0, 0.6) if gib <= 12 else (0.2, 0.8 if gib >= 24 else 0.6)
    never = ("text_encoder", "text_encoder_2", "vae") if gib >= 24 else ()
    return {"watermark": int(low * total), "ceiling": int(high * total), "never": never}


def estimate(setup: Setup) -> Estimate:
    """The estimate for a setup. It never falls when pixels, batch or the bytes of a part grow."""
    parts = setup.weights.bytes(setup.encoder, setup.dtype, setup.compute)
    phases, stacks = {}, {}
    for phase in PHASES:
        activation = round(_ACTIVATION[phase](setup, constants(setup.kind)) * setup.factors.get(phase, 1.0))
        work = {"activation": activation}
        gpu, ram = ({}, {**parts, **work}) if setup.kind == "cpu" else _placed(setup, parts, phase, work)
        phases[phase] = Need(sum(gpu.values()), sum(ram.values()), activation)
        stacks[phase] = {"gpu": gpu, "ram": ram}
    return Estimate(setup, parts, phases, stacks)


def _placed(setup: Setup, parts: Mapping[str, int], phase: str, work: Mapping[str, int]) -> tuple[dict[str, int], dict[str, int]]:
    """What is on the device and in RAM, by offload mode: part → bytes. work: the activations."""
    stays = {"text_encoder_3": parts["text_encoder_3"]} if _by_bitsandbytes(setup) else {}
    if phase == "load":
        # Each part is loaded into RAM and moved; bitsandbytes' layers go to the device at once (encoders/load.py).
        return dict(parts) if setup.offload == "none" else stays, {**parts, **work}
    if setup.offload == "none":
        return {**parts, **work}, {}
    active = {"encode": ENCODERS, "denoise": ("transformer",), "decode": ("vae",)}[phase]
    if setup.offload in ("sequential", "group"):  # what stays: its weights can not be hooked one by one (webui/offload.py)
        leaves = {name: _leaf(setup, parts, name) for name in active if name not in stays}
        name = max(leaves, key=lambda name: leaves[name])
        return {name: leaves[name], **stays, **work}, {name: size for name, size in parts.items() if name not in stays}
    # The host's prompt parser moves all text encoders to the device at once, whatever the mode (its prompt_parser_diffusers.py).
    working = {name: parts[name] for name in active}
    others = {name: size for name, size in parts.items() if name not in active}
    kept: dict[str, int] = {}
    if setup.offload == "balanced":
        if setup.ceiling and phase != "encode":
            working = {name: min(size, setup.ceiling) for name, size in working.items()}
        kept = {name: others[name] for name in setup.never if name in others}
        kept["kept"] = max(0, min(setup.watermark, sum(others.values())) - sum(kept.values()))
    return {**working, **kept, **work}, {name: size - working.get(name, 0) for name, size in parts.items()}


def _by_bitsandbytes(setup: Setup) -> bool:
    return "bitsandbytes" in setup.encoder.groups


def _leaf(setup: Setup, parts: Mapping[str, int], name: str) -> int:
    """The largest single layer of a part: T5's embedding; elsewhere a tenth (SD3.5 medium's position embeddings, CLIP-G's tokens: 9 %),
    and no more than the largest that is known, those position embeddings.
    """
    if name == "text_encoder_3" and setup.weights.t5:
        return min(parts[name], setup.weights.t5.vocab_size * setup.weights.t5.d_model * DTYPES[setup.compute])
    return min(parts[name] // 10, 226_492_416 * DTYPES[setup.dtype])


def _temporary(setup: Setup) -> int:
    """A weight of T5 as it is made wide again for one product: the largest linear layer; on a CPU a few rows of it where it is ours."""
    shape = setup.weights.t5
    stored = setup.encoder.stored
    if shape is None or stored == "" or (stored == "wide" and (setup.kind != "cpu" or setup.product == setup.compute)):
        return 0
    numbers, wide = shape.d_ff * shape.d_model, DTYPES[setup.compute]
    if setup.compute == "float16" or setup.product == "float32":  # `wo` leaves float16's range
        wide = DTYPES["float32"]
    if setup.kind == "cpu" and stored in ("wide", "fp8-rows", *WIDTHS):
        return min(numbers, WIDENED) * 2 * wide
    return numbers * wide + (5 * min(numbers, UNPACKED) if stored in WIDTHS else 0)  # codes and what is not rounded yet, for a piece


def _load(setup: Setup, _: Constants) -> float:
    """In RAM, while T5 is quantized."""
    shape = setup.weights.t5
    if shape is None or setup.encoder in (NONE, HOST_DEFAULT):
        return 0
    return min(_PIECES, 2 * shape.numbers) if setup.encoder.quantized else 0


def _encode(setup: Setup, known: Constants) -> float:
    shape = setup.weights.t5
    if shape is None or setup.encoder is NONE:
        return 0
    wide = DTYPES[setup.dtype] if setup.encoder is HOST_DEFAULT else max(DTYPES[setup.compute], DTYPES[setup.product])
    return known.encode * setup.batch * _T5_TOKENS * shape.d_ff * wide + _temporary(setup)


def _denoise(setup: Setup, known: Constants) -> float:
    image = setup.pixels / 256  # a token for each 16 × 16 px
    numbers = (known.image + known.dual * setup.weights.dual) * image + known.text * _TEXT_TOKENS
    return numbers * setup.weights.width * DTYPES[setup.dtype] * setup.batch * (2 if setup.guided else 1)


def _decode(setup: Setup, known: Constants) -> float:
    """One picture after the other (the host's VAE slicing, on by default); the finished ones wait as float32."""
    wide = 4 if setup.wide_vae else DTYPES[setup.dtype]
    at_once = min(setup.pixels, setup.weights.tile**2) if setup.tiling else setup.pixels
    tiles = 3 * 3 * setup.pixels * wide if setup.tiling else 0  # tiles overlap and are put together in rows
    return known.decode * at_once * setup.weights.channels * wide + tiles + setup.batch * 3 * setup.pixels * (wide + 4)


_ACTIVATION = {"load": _load, "encode": _encode, "denoise": _denoise, "decode": _decode}
