"""How good the estimates of memory are, and what watching costs.

Models of three sizes are made on the spot and loaded with each text encoder in a process of its own, which makes one picture on the CPU:
the growth of its private memory is compared with the estimate. `--small` is the smallest of them with two encoders.
"""

from __future__ import annotations

import gc
import json
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.calibrate import Sampler, child

__all__ = ["SCALES", "Scale", "error", "make", "picture", "run"]

ROOT = Path(__file__).resolve().parent.parent
CHOICES = ("none", "q4", "q5", "q6", "q8", "bf16", "fp4", "nf4", "int8", "fp8", "default")

# Published peaks of SD3 medium in float16 at 1024 × 1024, 28 steps, guided, on an A100: torch's highest allocation in GiB
# (huggingface.co/blog/sd3). Its other rows say how diffusers moves parts, which the host does in its own way.
PUBLISHED = (("everything on the GPU", "default", "none", 18.765), ("model offload, no T5", "none", "model", 4.266))


@dataclass(frozen=True)
class Scale:
    """A model, and the edge of the picture that is made with it. Widths, and how many blocks of each."""

    t5: int
    t5_layers: int
    clip: int
    clip_layers: int
    heads: int
    layers: int
    px: int


# The VAE is a quarter as wide as the real one.
SCALES = {
    "small": Scale(t5=512, t5_layers=12, clip=256, clip_layers=2, heads=8, layers=3, px=640),
    "medium": Scale(t5=1024, t5_layers=8, clip=384, clip_layers=4, heads=10, layers=3, px=704),
    "large": Scale(t5=1536, t5_layers=10, clip=768, clip_layers=16, heads=12, layers=4, px=896),
}


def run(small: bool = False) -> dict[str, Any]:
    """{"estimates": {scale: {choice: {MB and percent}}}, "published": …, "watching": …, "judging": …}; errors are those of the estimate,
    relative to what was measured. The last one of an encoder is that of a process with glibc's heap as it comes.
    """
    estimates: dict[str, Any] = {}
    for name, scale in SCALES.items():
        if small and name != "small":
            continue
        with tempfile.TemporaryDirectory(prefix="sd3deploy-bench-") as folder:
            make(Path(folder), scale)
            estimates[name] = {choice: compared(picture(folder, choice, scale.px)) for choice in (("fp4", "none") if small else CHOICES)}
            for choice in () if small else ("fp4", "bf16", "none"):
                heap = error(picture(folder, choice, scale.px, steady=False))
                estimates[name][choice]["peak_error_percent_with_heap"] = round(heap, 1)
    return {
        "estimates": estimates,
        "published": published(),
        "watching": watching(2 if small else 20),
        "judging_ms": judging(3 if small else 30),
    }


def make(target: Path, scale: Scale, seed: int = 3) -> Path:
    """Write a model of that size to the folder `target`: the tiny one of the demo with larger parts, in float16 safetensors."""
    import torch
    from diffusers import AutoencoderKL, SD3Transformer2DModel
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel

    from sd3deploy import tiny_sd3

    tiny_sd3.make(target)
    heads = {"attention_head_dim": 64, "num_attention_heads": scale.heads, "num_layers": scale.layers}
    joint = {"joint_attention_dim": scale.t5, "caption_projection_dim": 64 * scale.heads, "pooled_projection_dim": 2 * scale.clip}
    transformer: dict[str, Any] = tiny_sd3.TRANSFORMER | heads | joint
    vae: dict[str, Any] = tiny_sd3.VAE | {"block_out_channels": (32, 64, 128, 128), "layers_per_block": 2, "norm_num_groups": 32}
    clip = CLIPTextConfig.from_pretrained(target / "text_encoder")
    clip.update({"hidden_size": scale.clip, "projection_dim": scale.clip, "intermediate_size": 4 * scale.clip})
    clip.update({"num_hidden_layers": scale.clip_layers, "num_attention_heads": scale.clip // 64})
    t5 = T5Config.from_pretrained(target / "text_encoder_3")
    t5.update({"d_model": scale.t5, "d_ff": scale.t5 * 5 // 2, "num_heads": scale.t5 // 64, "num_layers": scale.t5_layers})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        makers = {
            "transformer": lambda: SD3Transformer2DModel(**transformer),
            "text_encoder": lambda: CLIPTextModelWithProjection(clip),
            "text_encoder_2": lambda: CLIPTextModelWithProjection(clip),
            "text_encoder_3": lambda: T5EncoderModel(t5),
            "vae": lambda: AutoencoderKL(**vae),
        }
        for name, maker in makers.items():
            maker().half().save_pretrained(target / name)
    return target


# Estimates


def picture(folder: str | Path, choice: str, px: int, *, steady: bool = True) -> dict[str, Any]:
    """`measured` in a process of its own. steady: as bench.calibrate.child."""
    return json.loads(child("bench.memory", str(folder), choice, str(px), steady=steady))


def measured(folder: str, choice_id: str, px: int) -> dict[str, Any]:
    """Load the model with that encoder as the extension does, make a picture in two steps, and say what both took beside the estimate.

    {"level": bytes before, "peaks": {phase: bytes}, "parts": …, "estimated": {phase: bytes}, "estimated_parts": …}
    """
    from sd3deploy import tiny_sd3
    from sd3deploy.encoders import choices
    from sd3deploy.memory import sizes
    from sd3deploy.memory.estimate import Setup, estimate

    choice = choices.find(choice_id)
    # What a running server has in memory anyway is no part of the estimate: all libraries, as they are after a job with a tiny model.
    _load_and_draw(str(tiny_sd3.ensure()), choice, 64, lambda phase, step: None)
    gc.collect()
    peaks: dict[str, int] = {}
    at = "load"
    with Sampler() as sampler:

        def mark(phase: str, _step: int) -> None:
            nonlocal at
            peaks[at] = max(peaks.get(at, 0), sampler.reset())
            at = phase

        parts = _load_and_draw(folder, choice, px, mark)
        mark("done", 0)
    setup = Setup(sizes.read_model(Path(folder)), choice, kind="cpu", dtype="float32", width=px, height=px, offload="none")
    found = estimate(setup)
    return {
        "level": sampler.level,
        "peaks": peaks,
        "parts": parts,
        "estimated": {phase: need.ram for phase, need in found.phases.items()},
        "estimated_parts": dict(found.parts),
    }


def _load_and_draw(folder: str, choice: Any, px: int, mark: Any) -> dict[str, int]:
    """Returns the bytes of the parts as they are after the load: with its first use bitsandbytes repacks what it computes on the CPU."""
    import torch
    from diffusers import StableDiffusion3Pipeline

    from sd3deploy.device import detect_device
    from sd3deploy.encoders import choices, source, swap, tokenizer
    from sd3deploy.encoders.load import load
    from sd3deploy.encoders.measure import tensors
    from sd3deploy.memory.phases import watched
    from sd3deploy.memory.sizes import PARTS

    ours = choice is not choices.HOST_DEFAULT
    without = {"text_encoder_3": None} if ours else {}
    pipeline: Any = StableDiffusion3Pipeline.from_pretrained(folder, torch_dtype=torch.float32, **without)
    if ours and choice is not choices.NONE:
        facts = source.Facts(folder)
        found = source.find("Model", facts)
        encoder = load(choice, found, detect_device("cpu", "cpu"))
        swap.replace(pipeline, encoder, tokenizer.find(pipeline.tokenizer_3, encoder, facts, found))
    modules = {name: getattr(pipeline, name) for name in PARTS}
    parts = {name: sum(t.numel() * t.element_size() for t in tensors(module)) if module else 0 for name, module in modules.items()}
    pipeline.set_progress_bar_config(disable=True)
    pipeline.vae.enable_slicing()  # as the host does
    with watched(pipeline, mark, lambda error, phase: None):
        pipeline("a photo of a cat", height=px, width=px, num_inference_steps=2, guidance_scale=6.0)
    return parts


def compared(result: dict[str, Any]) -> dict[str, Any]:
    """MB of the parts, of each phase as measured / estimated, and the error of the estimate of the process's peak in percent."""
    level, peaks, estimated = result["level"], result["peaks"], result["estimated"]
    return {
        "parts_mb": round(sum(result["parts"].values()) / 1e6, 1),
        "parts_exact": result["parts"] == result["estimated_parts"],
        "level_mb": round(level / 1e6),
        **{f"{phase}_mb": f"{(peaks[phase] - level) / 1e6:.0f} / {estimated[phase] / 1e6:.0f}" for phase in estimated},
        "peak_error_percent": round(error(result), 1),
    }


def error(result: dict[str, Any]) -> float:
    """Of the estimate, in percent of the process's peak; positive: it is too high."""
    peak = max(result["peaks"].values())
    return 100 * ((result["level"] + max(result["estimated"].values())) / peak - 1)


def published() -> dict[str, Any]:
    """What the estimate says to peaks that others have measured on a GPU, in GiB."""
    from sd3deploy.encoders import choices
    from sd3deploy.memory.estimate import Setup, estimate
    from sd3deploy.memory.sizes import MODELS

    found = {}
    for name, choice, offload, peak in PUBLISHED:
        setup = Setup(MODELS["sd3-medium"], choices.find(choice), dtype="float16", compute="float16", offload=offload)
        gib = max(need.gpu for phase, need in estimate(setup).phases.items() if phase != "load") / 2**30
        found[name] = {"published_gib": peak, "estimated_gib": round(gib, 3), "error_percent": round(100 * (gib / peak - 1), 1)}
    return found


# Watching


def watching(seconds: float) -> dict[str, float]:
    """What the monitor's thread costs while the process waits, in percent of a core; a reading, and a mark with its reading, in µs."""
    from sd3deploy.device import detect_device
    from sd3deploy.memory.monitor import Monitor, reader

    device = _device()
    monitor = Monitor(reader(detect_device(device, device)))
    alone = _cpu_seconds(lambda: time.sleep(seconds))
    with monitor.run("job") as run:
        watched = _cpu_seconds(lambda: time.sleep(seconds))
        count = len(run.times)
        marks = [_us(lambda step=step: monitor.mark("denoise", step)) for step in range(1, 201)]
    assert monitor.read is not None
    return {
        "seconds": seconds,
        "readings": count,
        "percent_of_a_core": round(100 * max(0.0, watched - alone) / seconds, 3),
        "reading_us": round(statistics.median(_us(monitor.read) for _ in range(200)), 1),
        "mark_us": round(statistics.median(marks), 1),
    }


def _device() -> str:
    import torch

    if not torch.cuda.is_available():
        return "cpu"
    torch.zeros(1, device="cuda")  # only then a reading asks the driver
    return "cuda"


def _cpu_seconds(work: Any) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def _us(work: Any) -> float:
    started = time.perf_counter()
    work()
    return (time.perf_counter() - started) * 1e6


def judging(times: int) -> dict[str, float]:
    """Medians in ms: what is done before each job, and what the page asks for, with SD3.5 large on a card where it does not fit."""
    from sd3deploy.encoders import choices
    from sd3deploy.memory import verdict
    from sd3deploy.memory.capacity import card
    from sd3deploy.memory.estimate import Setup, balanced_defaults, estimate
    from sd3deploy.memory.sizes import MODELS

    there = card(8, 16)
    setup = Setup(MODELS["sd3.5-large"], choices.find("bf16"), **balanced_defaults(there.total))
    steps = {
        "estimate_and_judge": lambda: verdict.judge(estimate(setup), there),
        "recommend": lambda: verdict.recommend(setup, there),
        "cheapest_change": lambda: verdict.cheapest(setup, there),
    }
    return {name: round(statistics.median(_us(step) for _ in range(times)) / 1e3, 3) for name, step in steps.items()}


if __name__ == "__main__":
    print(json.dumps(measured(sys.argv[1], sys.argv[2], int(sys.argv[3]))))
