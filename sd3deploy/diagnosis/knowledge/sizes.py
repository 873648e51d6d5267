"""Rules about sizes of pictures."""

from __future__ import annotations

import re
from collections.abc import Mapping

from sd3deploy import messages
from sd3deploy.diagnosis.rule import Advice, Rule, Seen

__all__ = ["RULES"]

_DIFFUSERS = "https://github.com/huggingface/diffusers/"

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
    Rule("size-multiple", "size-not-multiple", "setting", f"{_DIFFUSERS}pull/9573",
         match=r"`?height`? and `?width`? have to be divisible by (?P<grid>8|16) but are (?P<height>\d+) and (?P<width>\d+)",
         advise=_multiples),
    Rule("size-scheduler", "size-not-multiple", "setting", f"{_DIFFUSERS}issues/8668",
         match=r"The size of tensor a \((?P<one>\d+)\) must match the size of tensor b \((?P<other>\d+)\)"
         r" at non-singleton dimension [23]\b",
         also=(r"scheduling_flow_match|pipeline_stable_diffusion_3|StableDiffusion3|SD3ControlNet|controlnet_sd3",),
         unless=re.escape("UNet2D"), advise=_one_off),
    Rule("size-pos-embed", "size-too-large", "setting", f"{_DIFFUSERS}blob/main/src/diffusers/models/embeddings.py",
         match=r"(?P<side>Height|Width) \((?P<patches>\d+)\) cannot be greater than `?pos_embed_max_size`?: (?P<limit>\d+)",
         advise=_pixels),
    Rule("size-pos-embed-comfy", "size-too-large", "setting", "https://github.com/Acly/krita-ai-diffusion/issues/1874",
         match=r"AssertionError: \((?P<patches>\d+), (?P<limit>\d+)\)", also=(r"cropped_pos_embed|pos_embed_max_size",), advise=_pixels),
)  # fmt: skip
