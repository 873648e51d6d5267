"""What activations take: measured on real modules, fitted, written to sd3deploy/memory/constants.json.

Activations do not depend on depth: two blocks of full width show what all of them take. `--small` goes the same way with tiny shapes,
and writes nothing.
"""

from __future__ import annotations

import datetime
import gc
import json
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

__all__ = ["Case", "Sampler", "child", "run"]

ROOT = Path(__file__).resolve().parent.parent
FILE = ROOT / "sd3deploy" / "memory" / "constants.json"
TEXT = 77 + 256  # tokens of the prompt that the transformer sees
T5_TOKENS = 256
CONTEXT = 600 * 2**20  # assumed where there is no CUDA device to ask
MEASURED = "Measured"  # how the source of constants begins that come from a device, and not from counting

# What the workspace of convolutions adds to the tensors that can be counted is known from a published measurement alone: the same decoder
# (SDXL's AutoencoderKL) on an RTX 4090 at 1024 × 1024 in 16 bit, highest allocation above the weights (invoke-ai/InvokeAI#8414).
PUBLISHED_DECODE = round(2434.22 * 2**20 / (256 * 1024**2 * 2), 2)
PUBLISHED_BY = "invoke-ai/InvokeAI#8414: 2434 MiB at 1024 × 1024 in float16 on an RTX 4090"

TRANSFORMERS: dict[str, dict[str, Any]] = {  # as published, but for the depth
    "sd3-medium": {"num_attention_heads": 24},
    "sd3.5-medium": {"num_attention_heads": 24, "dual_attention_layers": (0, 1), "qk_norm": "rms_norm", "pos_embed_max_size": 384},
    "sd3.5-large": {"num_attention_heads": 38, "qk_norm": "rms_norm"},
    "tiny": {"num_attention_heads": 4},
    "tiny, dual": {"num_attention_heads": 4, "dual_attention_layers": (0, 1), "qk_norm": "rms_norm"},
}
VAES: dict[str, Any] = {"vae": (128, 256, 512, 512), "tiny": (32, 64, 128, 128)}
BLOCKS: dict[str, Any] = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
T5S: dict[str, dict[str, Any]] = {
    "t5-xxl": {"d_model": 4096, "d_ff": 10240, "num_heads": 64},
    "tiny": {"d_model": 256, "d_ff": 640, "num_heads": 4},
}


@dataclass(frozen=True)
class Case:
    """One measurement. phase: denoise, decode or encode. module: the name of its shapes. px: the edge of the picture."""

    phase: str
    module: str
    px: int = 0
    batch: int = 1
    dtype: str = "bfloat16"

    @property
    def name(self) -> str:
        """For the table."""
        size = f" {self.px} px" if self.px else ""
        return f"{self.phase} {self.module}{size}{f' × {self.batch}' if self.batch > 1 else ''} {self.dtype}"

    @property
    def wide(self) -> int:
        """Bytes of one number."""
        return 4 if self.dtype == "float32" else 2

    @property
    def amounts(self) -> dict[str, int]:
        """Constant → how many bytes of activation a 1 in it means, as sd3deploy/memory/estimate.py counts."""
        if self.phase == "decode":
            return {"decode": VAES[self.module][1] * self.px**2 * self.wide}
        if self.phase == "encode":
            return {"encode": T5S[self.module]["d_ff"] * T5_TOKENS * self.batch * self.wide}
        shape = TRANSFORMERS[self.module]
        row = 64 * shape["num_attention_heads"] * self.batch * self.wide
        image = row * (self.px // 16) ** 2
        return {"image": image, "text": row * TEXT, "dual": image if "dual_attention_layers" in shape else 0}


def _cases(dtype: str, denoise: Sequence[tuple[str, int, int]], decode: Sequence[tuple[str, int]], encode: Sequence[Any]) -> list[Case]:
    return [
        *(Case("denoise", module, px, batch, dtype) for module, px, batch in denoise),
        *(Case("decode", module, px, 1, dtype) for module, px in decode),
        *(Case("encode", module, 0, batch, kind) for module, batch, kind in encode),
    ]


SIZES = (("sd3-medium", 512, 2), ("sd3-medium", 1024, 2), ("sd3-medium", 1536, 2), ("sd3-medium", 1024, 8))
DEVICE = _cases(
    "bfloat16",
    [*SIZES, *((name, px, batch) for name in ("sd3.5-medium", "sd3.5-large") for _, px, batch in SIZES)],
    [("vae", px) for px in (512, 768, 1024, 1536)],
    [("t5-xxl", batch, "bfloat16") for batch in (1, 2, 4)],
)
# Smaller ones on a CPU, where full ones take minutes each. The host computes in float32 there, a T5 of ours in bfloat16.
CPU = _cases(
    "float32",
    [("sd3-medium", 512, 2), ("sd3-medium", 768, 2), ("sd3.5-medium", 768, 2), ("sd3.5-large", 512, 2), ("sd3.5-large", 640, 2)],
    [("vae", 384), ("vae", 512), ("vae", 640)],
    [("t5-xxl", batch, "bfloat16") for batch in (1, 2, 4)],
)
TINY = [("tiny", 256, 2), ("tiny", 512, 2), ("tiny, dual", 512, 2)]


def run(small: bool = False) -> dict[str, Any]:
    """{way of measuring: {"cases": {case: MB}, "constants": {…}, "worst_error_percent": {phase: …}}}: in how far the fitted constants miss
    what was measured. The full run says what it wrote.
    """
    import torch

    if torch.cuda.is_available():
        ways = {"cuda": _fitted(_small("bfloat16") if small else DEVICE, _on_cuda)}
        context, device = _context(), f"{MEASURED} on {torch.cuda.get_device_name()}"
        ways["cuda"]["constants"]["context"] = context
        written = {"cuda": (ways["cuda"]["constants"], f"{device}: highest allocation above the weights, {_today()}.")}
    else:
        ways = {
            "counted": _fitted(_small("bfloat16") if small else DEVICE, _counted),
            "cpu": _fitted(_small("float32") if small else CPU, _in_a_child),
        }
        counted, on_cpu = ways["counted"]["constants"], ways["cpu"]["constants"]
        written = {
            "cpu": (on_cpu | {"context": 0}, f"{MEASURED} on a CPU in float32: peak of private memory above the weights, {_today()}."),
            "cuda": (counted | {"decode": PUBLISHED_DECODE, "context": CONTEXT}, _source_of_counted(counted["decode"])),
        }
    return ways | ({} if small else {"written": _write(written)})


def _small(dtype: str) -> list[Case]:
    return _cases(dtype, TINY, [("tiny", 256)], [("tiny", 4, dtype)])


def _fitted(cases: Sequence[Case], measure: Callable[[Case], int]) -> dict[str, Any]:
    measured = {case: measure(case) for case in cases}
    constants, errors = fit(measured)
    table = {case.name: round(size / 1e6, 1) for case, size in measured.items()}
    return {"cases_mb": table, "constants": constants, "worst_error_percent": errors}


def fit(measured: dict[Case, int]) -> tuple[dict[str, Any], dict[str, float]]:
    """The constants, by least squares of the bytes, and for each phase by how much the worst case misses them, in percent."""
    import numpy

    constants: dict[str, Any] = {}
    errors: dict[str, float] = {}
    for phase in dict.fromkeys(case.phase for case in measured):
        cases = [case for case in measured if case.phase == phase]
        names = list(cases[0].amounts)
        amounts = numpy.array([[case.amounts[name] for name in names] for case in cases], float)
        sizes = numpy.array([measured[case] for case in cases], float)
        found = numpy.linalg.lstsq(amounts, sizes, rcond=None)[0]
        constants |= {name: round(float(value), 2) for name, value in zip(names, found, strict=True)}
        errors[phase] = round(100 * float(numpy.max(numpy.abs(amounts @ found / sizes - 1))), 1)
    return constants, errors


# The modules


def _module(case: Case) -> Any:
    """Random weights in the type of the case; on whatever device torch makes tensors now."""
    import diffusers
    import transformers

    if case.phase == "denoise":
        shape: dict[str, Any] = {"num_layers": 3, "attention_head_dim": 64, "pos_embed_max_size": 192} | TRANSFORMERS[case.module]
        width = shape["num_attention_heads"] * shape["attention_head_dim"]
        joint = {"joint_attention_dim": 4096, "caption_projection_dim": width, "pooled_projection_dim": 2048}
        module: Any = diffusers.SD3Transformer2DModel(**shape, **joint)
    elif case.phase == "decode":
        module = diffusers.AutoencoderKL(
            **BLOCKS,
            block_out_channels=VAES[case.module],
            layers_per_block=2,
            latent_channels=16,
            sample_size=1024,
            use_quant_conv=False,
            use_post_quant_conv=False,
        )
    else:
        config = transformers.T5Config(vocab_size=32128, d_kv=64, num_layers=2, feed_forward_proj="gated-gelu", **T5S[case.module])
        module = transformers.T5EncoderModel(config)
    return module.eval().requires_grad_(False)


def _call(module: Any, case: Case, px: int, **where: Any) -> None:
    """One forward pass; its output is dropped. where: dtype and device of what goes in."""
    import torch

    side, batch = px // 8, case.batch
    with torch.no_grad():
        if case.phase == "denoise":
            tokens, pooled = torch.zeros(batch, TEXT, 4096, **where), torch.zeros(batch, 2048, **where)
            module(torch.zeros(batch, 16, side, side, **where), tokens, pooled, torch.zeros(batch, **where))
        elif case.phase == "decode":
            module.decode(torch.zeros(batch, 16, side, side, **where), return_dict=False)
        else:
            module(torch.ones(batch, T5_TOKENS, dtype=torch.long, device=where.get("device")))


@contextmanager
def _default(dtype: Any) -> Iterator[None]:
    import torch

    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


# Three ways to measure the peak above the weights, in bytes


def _counted(case: Case) -> int:
    """Tensors that are alive at once, each storage once, with tensors that have a size and no content: full shapes cost nothing."""
    import torch
    from torch._subclasses import FakeTensorMode
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    class Live(TorchDispatchMode):
        def __init__(self, weights: Sequence[Any]) -> None:
            super().__init__()
            self.sizes: dict[int, int] = {}
            self.peak = self.now = 0
            for weight in weights:
                self.see(weight.untyped_storage(), 0)

        def see(self, storage: Any, size: int) -> None:
            key = storage._cdata
            if key not in self.sizes:
                self.sizes[key] = size
                self.now += size
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self.drop, key)

        def drop(self, key: int) -> None:
            self.now -= self.sizes.pop(key)

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            for leaf in tree_leaves(result):
                if isinstance(leaf, torch.Tensor):
                    storage = leaf.untyped_storage()
                    self.see(storage, storage.nbytes())
            return result

    dtype = getattr(torch, case.dtype)
    with FakeTensorMode(allow_non_fake_inputs=True), _default(dtype):
        module = _module(case)
        with Live([*module.parameters(), *module.buffers()]) as live:
            _call(module, case, case.px, dtype=dtype)
        return live.peak


def _on_cuda(case: Case) -> int:
    """The allocator's peak of a second pass; the first one loads the libraries and chooses the algorithms of the convolutions."""
    import torch

    dtype = getattr(torch, case.dtype)
    with _default(dtype), torch.device("cuda"):
        module = _module(case)
    where = {"dtype": dtype, "device": "cuda"}
    _call(module, case, case.px, **where)
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    _call(module, case, case.px, **where)
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before
    del module
    torch.cuda.empty_cache()
    return peak


def _context() -> int:
    """Bytes on the device that belong to no tensor, after work of all kinds. Nothing else may use the device while this is measured."""
    import torch

    free, total = torch.cuda.mem_get_info()
    return total - free - torch.cuda.memory_reserved()


def _in_a_child(case: Case) -> int:
    return int(child("bench.calibrate", json.dumps(asdict(case))))


def child(module: str, *arguments: str, steady: bool = True) -> str:
    """The last line that a module of this package prints in a process of its own, so that the peak is its own.

    steady: freed memory goes back to the system at once. glibc by itself keeps what it may need again: up to 0.5 GB, whatever the model,
    so that the same pass takes more or less of it from one time to the next. Elsewhere the variable means nothing.
    """
    heap = {"MALLOC_MMAP_THRESHOLD_": "131072"} if steady else {}
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, **heap})
    if done.returncode != 0:
        raise RuntimeError(f"the measured process failed: {done.stderr.strip()[-2000:]}")
    return done.stdout.splitlines()[-1]


def _private_peak(case: Case) -> int:
    """The growth of this process's memory. A tiny pass first loads what is loaded once; what it leaves counts, as it would for a user."""
    import torch

    dtype = getattr(torch, case.dtype)
    with _default(dtype):
        module = _module(case)
    with Sampler() as sampler:
        _call(module, case, 64, dtype=dtype)
        _call(module, case, case.px, dtype=dtype)
    return sampler.peak - sampler.level


class Sampler:
    """Watches the private memory of this process every 2 ms. level: bytes at the beginning; peak: the most since `reset`, or then."""

    def __init__(self) -> None:
        import psutil

        self._process = psutil.Process()
        self._lock = threading.Lock()  # between a reading and its place in the peak, `reset` may have begun again
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.level = self.peak = self.private()

    def private(self) -> int:
        """Resident memory without files that are only mapped, as far as the system tells them apart (Linux)."""
        memory = self._process.memory_info()
        return memory.rss - getattr(memory, "shared", 0)

    def reset(self) -> int:
        """Begin again. Returns the peak until now."""
        with self._lock:
            now = self.private()
            peak, self.peak = max(self.peak, now), now
        return peak

    def __enter__(self) -> Sampler:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(0.002):
            with self._lock:
                self.peak = max(self.peak, self.private())


# The file


def _today() -> str:
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "diffusers", "transformers"))
    return f"{versions}, {datetime.date.today()} (bench/calibrate.py)"


def _source_of_counted(decode: float) -> str:
    return (
        f"No GPU was measured: tensors counted in bfloat16, {_today()}. For decode the count is {decode}, without the workspace of"
        f" convolutions; a published measurement of the same decoder has it ({PUBLISHED_BY}). The context of 600 MiB is assumed."
    )


def _write(found: dict[str, tuple[dict[str, Any], str]]) -> list[str]:
    """Put constants with their source into the file; it keeps what it has of other kinds of device. Returns the kinds."""
    stored = json.loads(FILE.read_text("utf-8"))
    kinds = []
    for kind, (constants, source) in found.items():
        # What a device has shown is not replaced by what was counted without one.
        if source.startswith(MEASURED) or not stored.get(kind, {}).get("source", "").startswith(MEASURED):
            order = ("image", "text", "dual", "decode", "encode", "context")
            rounded = {name: int(constants[name]) if name == "context" else round(constants[name], 2) for name in order}
            stored[kind] = rounded | {"source": source}
            kinds.append(kind)
    FILE.write_text(json.dumps(stored, indent=2, ensure_ascii=False) + "\n", "utf-8")
    return kinds


if __name__ == "__main__":
    print(_private_peak(Case(**json.loads(sys.argv[1]))))
