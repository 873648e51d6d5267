"""`estimate`: how much memory a picture takes: each part, each phase, and whether it fits. Exit code 0 unless it does not fit (1)."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import Any

from sd3deploy import messages, units
from sd3deploy.encoders import choices
from sd3deploy.errors import SettingError
from sd3deploy.memory import capacity, sizes, verdict
from sd3deploy.memory.estimate import OFFLOADS, Setup, balanced_defaults, estimate
from sd3deploy.memory.t5_shape import DTYPES
from sd3deploy.terminal import pad

__all__ = ["add", "arguments", "gigabytes", "run", "setup"]


def add(subparsers: Any) -> None:
    """Describe the command to argparse."""
    parser = subparsers.add_parser("estimate", help="how much memory a picture takes, and whether it fits", description=__doc__)
    arguments(parser)
    which = 'such as fp4 or "T5 FP4"; none: CLIP alone (default: what the host loads)'
    parser.add_argument("--encoder", default="default", metavar="CHOICE", help=which)
    parser.add_argument("--vram", type=gigabytes, metavar="GB", help="of the GPU; without it only the need is shown")
    parser.set_defaults(run=run)


def arguments(parser: argparse.ArgumentParser) -> None:
    """What this command and `recommend` have in common."""
    names = ", ".join(sizes.MODELS)
    parser.add_argument("--model", default="sd3-medium", metavar="NAME|PATH", help=f"{names}, or a folder or file (default: sd3-medium)")
    parser.add_argument("--width", type=int, default=1024, metavar="PX")
    parser.add_argument("--height", type=int, default=1024, metavar="PX")
    parser.add_argument("--batch", type=int, default=1, metavar="N")
    parser.add_argument("--guidance", type=float, default=6.0, metavar="SCALE", help="above 1 the batch is doubled")
    parser.add_argument("--offload", choices=OFFLOADS, default="balanced", help="the host's model offload mode (default: %(default)s)")
    parser.add_argument("--tiling", action="store_true", help="the VAE decodes in tiles of 512 px")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="in which the model is loaded (default: %(default)s)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="what computes (default: %(default)s)")
    parser.add_argument("--ram", type=gigabytes, default=0, metavar="GB", help="of the machine; without it RAM is taken to suffice")
    parser.add_argument("--json", action="store_true", help="bytes, as JSON")


def gigabytes(word: str) -> float:
    """A size as argparse reads it. Raises ValueError for one that no machine has, such as nan."""
    size = float(word)
    if not 0 < size < 1e6:
        raise ValueError(word)
    return size


def setup(options: argparse.Namespace, vram: float, encoder: choices.Choice) -> Setup:
    """The setup that the words describe. Raises SettingError for words that mean nothing."""
    asked = options.width, options.height, options.batch
    if min(asked) < 1 or max(asked) > 10**9:  # beyond it a float overflows
        raise SettingError("memory.no-size", width=options.width, height=options.height, batch=options.batch)
    weights = sizes.known(options.model)
    if options.tiling:
        weights = sizes.tiled(weights, verdict.TILE)
    return Setup(
        weights,
        encoder,
        kind=options.device,
        dtype=options.dtype,
        compute="float16" if options.dtype == "float16" else "bfloat16",
        product="float32" if options.device == "cpu" and options.dtype != "float16" else options.dtype,  # it may have no bfloat16
        width=options.width,
        height=options.height,
        batch=options.batch,
        guided=options.guidance > 1,
        offload=options.offload,
        tiling=options.tiling,
        wide_vae=options.dtype == "float16",  # SD3's VAE is computed in float32 where there is no bfloat16 (force_upcast)
        **balanced_defaults(int(vram * capacity.GIB)),
    )


def there(options: argparse.Namespace, vram: float) -> capacity.Capacity:
    """The machine that the words describe."""
    card = capacity.card(vram, options.ram)
    return card if options.device == "cuda" else capacity.Capacity("cpu", ram_total=card.ram_total, ram_usable=card.ram_usable)


def run(options: argparse.Namespace) -> int:
    """Print the parts and the phases. Raises SettingError for words that mean nothing."""
    asked = setup(options, options.vram or 0, choices.find(options.encoder))
    found, place = estimate(asked), there(options, options.vram or 0)
    judged = verdict.judge(found, place)
    code = int(judged.answer == "no")
    change = verdict.cheapest(asked, place) if code else None
    if options.json:
        print(json.dumps(report(found, judged, change), ensure_ascii=False))
        return code
    most = max(found.total, *(max(need.gpu, need.ram) for need in found.phases.values()))  # all of them are in its unit
    for name, size in found.parts.items():
        if size:
            print(f"{pad(messages.text(f'memory.part.{name}'), 12)} {units.size(size, most):>9}")
    print(f"{pad(messages.text('memory.total'), 12)} {units.size(found.total, most):>9}\n")
    for phase, need in found.phases.items():
        gpu, ram = (f"{units.size(bytes, most) if bytes else '–':>9}" for bytes in (need.gpu, need.ram))
        print(f"{pad(messages.text(f'memory.phase.{phase}'), 22)} GPU {gpu}   RAM {ram}")
    if judged.answer != "unknown":
        print("\n" + judged.sentence)
    if code:
        print(change.sentence if change else messages.text("memory.nothing"))
    return code


def report(found: Any, judged: verdict.Verdict, change: verdict.Change | None) -> dict[str, Any]:
    """As JSON-able values."""
    return {
        "model": found.setup.weights.name,
        "encoder": found.setup.encoder.name,
        "offload": found.setup.offload,
        "parts": dict(found.parts),
        "total": found.total,
        "phases": {phase: asdict(need) for phase, need in found.phases.items()},
        "gpu": found.gpu,
        "ram": found.ram,
        "verdict": asdict(judged) | {"missing": judged.missing},
        "change": change.sentence if change else None,
    }
