"""Sizes that SD3 can make: multiples of patch × VAE scale, no side beyond the position embeddings, an area near the trained one."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from sd3deploy import messages
from sd3deploy.guards.finding import Finding, Severity, finding
from sd3deploy.guards.job import Hires, Job, Model
from sd3deploy.guards.number import number

__all__ = ["Resolution", "check", "resolve"]

Status = Literal["ok", "advice", "snapped", "impossible"]

# How far from the trained area pictures stay good: 1920×1080, twice of it, has smeared edges (Comfy-Org/ComfyUI#3697).
# SD3.5 medium, the one with 384 position embeddings, is published for 0.25 to 2 MP (its model card).
_AREA = {384: (0.25, 2.0)}
_AREA_ELSE = (0.5, 1.5)


@dataclass(frozen=True)
class Resolution:
    """What becomes of a size. width, height: px; with status impossible they are 0. reason: id of the sentence that says why, "" for ok,
    `values`: what it is filled with. offer: with status advice, the size that would be better.
    """

    status: Status
    width: int
    height: int
    reason: str = ""
    values: dict[str, Any] = field(default_factory=dict)
    offer: dict[str, int] = field(default_factory=dict)


def resolve(width: object, height: object, model: Model, scale: float = 1.0, default: tuple[int, int] = (0, 0)) -> Resolution:
    """The nearest size that `model` can make to width × height px, times `scale` for a hires or upscale pass.

    A side that is 0 or None is taken from `default` (px), and is impossible without one.
    """
    limits = {"limit": model.limit, "grid": model.grid}
    sides = _side(width, default[0]), _side(height, default[1])
    for name, value, side in zip(("width", "height"), (width, height), sides, strict=True):
        if side <= 0:
            return _impossible("size.no-number", side=messages.text(f"size.side.{name}"), value=str(value)[:40], **limits)
    wide, high = sides[0] * scale, sides[1] * scale
    asked = f"{wide:g}×{high:g}" if max(wide, high) < 1e5 else f"{wide:.0f}×{high:.0f}"
    shrink = min(1.0, model.limit / max(wide, high))
    if shrink < 1 and min(wide, high) * shrink < model.grid / 2:
        return _impossible("size.too-thin", asked=asked, **limits)
    made = _snap(wide * shrink, model), _snap(high * shrink, model)
    values = {"asked": asked, "size": f"{made[0]}×{made[1]}", **limits}
    if shrink < 1:
        return Resolution("snapped", made[0], made[1], "size.too-large", values)
    if made != (wide, high):
        return Resolution("snapped", made[0], made[1], "size.not-multiple", values)
    return _area(made[0], made[1], model)


def check(job: Job) -> tuple[Finding, ...]:
    """Findings about the size of the job and of its hires pass."""
    first = resolve(job.width, job.height, job.model, default=job.default)
    if first.status == "impossible":
        return (finding("error", first.reason, **first.values),)
    found = []
    change = {"width": first.width, "height": first.height}
    if first.status == "snapped":
        found.append(finding(_severity(first), first.reason, change, **first.values))
    elif not number(job.width) or not number(job.height):
        found.append(finding("advice", "size.default", change, size=f"{first.width}×{first.height}"))
    area = _area(first.width, first.height, job.model)
    if area.status == "advice":
        found.append(finding("advice", area.reason, offer=area.offer, **area.values))
    if job.hires:
        found += _second_pass(job.hires, first, job.model)
    return tuple(found)


def _second_pass(hires: Hires, first: Resolution, model: Model) -> list[Finding]:
    """It is made from a picture, so that only the limits matter. What it is a multiple of is the first pass as it will be."""
    second = resolve(*hires.size(first.width, first.height), model)
    if second.status in ("ok", "advice"):
        return []
    reason = messages.text(second.reason, **second.values)
    made = (second.width, second.height) if second.status == "snapped" else None
    if made and hires.latent:
        made = _in_shape(made, first, model)
    if made is None:
        return [finding("error", "size.hires-impossible", reason=reason)]
    change = {"hires_width": made[0], "hires_height": made[1]}
    return [finding(_severity(second), "size.hires", change, reason=reason, size=f"{made[0]}×{made[1]}")]


def _in_shape(near: tuple[int, int], first: Resolution, model: Model) -> tuple[int, int] | None:
    """The size nearest to `near` to which the latents of the first pass can be enlarged: both sides by one factor, rounded down."""
    for width in sorted(range(first.width, model.limit + 1, model.grid), key=lambda side: abs(side - near[0])):
        made = Hires(width=width, height=1, latent=True).size(first.width, first.height)
        if made[0] == width and made[1] % model.grid == 0 and made[1] <= model.limit:
            return made
    return None


def _side(value: object, default: int) -> float:
    """In px; 0 for what is no number of pixels."""
    given = 0.0 if value is None else number(value)
    return max(0.0, given or default) if given is not None else 0.0


def _severity(snapped: Resolution) -> Severity:
    """Beyond the position embeddings the pipeline fails; between the multiples the host cuts the size in silence."""
    return "error" if snapped.reason == "size.too-large" else "warning"


def _area(width: int, height: int, model: Model) -> Resolution:
    """Whether the area is one that the model was trained for; if not, with the size of the same shape that is."""
    ratio = width * height / model.trained**2
    least, most = _AREA.get(model.pos_embed_max_size, _AREA_ELSE)
    if least <= ratio <= most:
        return Resolution("ok", width, height)
    better = {name: _snap(side / math.sqrt(ratio), model) for name, side in (("width", width), ("height", height))}
    megapixels = {"area": f"{width * height / 1e6:.2g}", "trained": f"{model.trained**2 / 1e6:.2g}"}
    values = {"size": f"{width}×{height}", "better": f"{better['width']}×{better['height']}", **megapixels}
    return Resolution("advice", width, height, "size.far" if ratio > 1 else "size.small", values, better)


def _impossible(reason: str, **values: object) -> Resolution:
    return Resolution("impossible", 0, 0, reason, values)


def _snap(side: float, model: Model) -> int:
    """The nearest multiple of the grid inside the limits, halves up."""
    return max(model.grid, min(model.limit, math.floor(side / model.grid + 0.5) * model.grid))
