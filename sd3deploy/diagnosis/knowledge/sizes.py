"""Rules about sizes of pictures."""

from __future__ import annotations

import re
from collections.abc import Mapping

from sd3deploy import messages
from sd3deploy.diagnosis.rule import Advice, Rule, Seen

__all__ = ["RULES"]

_GRID = 16  # px: 8 of the VAE times the transformer's patch of 2 (huggingface/diffusers#9573)


def _multiples(values: Mapping[str, str], seen: Seen) -> Advice:
    """The nearest size that fits."""
    grid = int(values["grid"])
    near = lambda side: max(grid, round(int(side) / grid) * grid)  # noqa: E731
    return Advice(values={"better": f"{near(values['width'])}×{near(values['height'])}"})


def _one_off(values: Mapping[str, str], seen: Seen) -> Advice | None:
    """Latents that lost their last row or column to the patches: the two lengths differ by one, in the step of a flow scheduler."""
    return Advice() if abs(int(values["one"]) - int(values["other"])) == 1 else None


def _pixels(values: Mapping[str, str], seen: Seen) -> Advice:
    """Patches as pixels."""
    side = messages.text(f"size.side.{(values.get('side') or 'any').lower()}")
    return Advice(values={"pixels": int(values["patches"]) * _GRID, "most": int(values["limit"]) * _GRID, "side": side})


RULES: tuple[Rule, ...] = (
    Rule(
        id="size-multiple",
        cause="size-not-multiple",
        match=r"`?height`? and `?width`? have to be divisible by (?P<grid>8|16) but are (?P<height>\d+) and (?P<width>\d+)",
        action="setting",
        source="https://github.com/huggingface/diffusers/pull/9573",
        advise=_multiples,
    ),
    Rule(
        id="size-scheduler",
        cause="size-not-multiple",
        match=r"The size of tensor a \((?P<one>\d+)\) must match the size of tensor b \((?P<other>\d+)\) at non-singleton dimension [23]\b",
        also=(r"scheduling_flow_match|pipeline_stable_diffusion_3|StableDiffusion3|SD3ControlNet|controlnet_sd3",),
        unless=re.escape("UNet2D"),
        action="setting",
        source="https://github.com/huggingface/diffusers/issues/8668",
        advise=_one_off,
    ),
    Rule(
        id="size-pos-embed",
        cause="size-too-large",
        match=r"(?P<side>Height|Width) \((?P<patches>\d+)\) cannot be greater than `?pos_embed_max_size`?: (?P<limit>\d+)",
        action="setting",
        source="https://github.com/huggingface/diffusers/blob/main/src/diffusers/models/embeddings.py",
        advise=_pixels,
    ),
    Rule(
        id="size-pos-embed-comfy",
        cause="size-too-large",
        match=r"AssertionError: \((?P<patches>\d+), (?P<limit>\d+)\)",
        also=(r"cropped_pos_embed|pos_embed_max_size",),
        action="setting",
        source="https://github.com/Acly/krita-ai-diffusion/issues/1874",
        advise=_pixels,
    ),
)
