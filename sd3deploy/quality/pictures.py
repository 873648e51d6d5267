"""Pictures of one model with the text encoders beside each other, and how like they are to those of the reference."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sd3deploy import messages
from sd3deploy.encoders.choices import Choice
from sd3deploy.quality import likeness
from sd3deploy.quality.prompts import Prompt

if TYPE_CHECKING:
    import numpy

__all__ = ["SEED", "Pictures", "Setting", "Shown", "written"]

SEED = 0


@dataclass(frozen=True)
class Setting:
    """size: of both edges, px. steps: of denoising. guidance: the scale; at 1 and below the negative prompt, which is empty, has no part.
    Steps and scale are the defaults of diffusers' StableDiffusion3Pipeline.
    """

    size: int = 512
    steps: int = 28
    guidance: float = 7.0


@dataclass(frozen=True)
class Shown:
    """One choice: of each prompt its picture, uint8 [height, width, 3], and how like it is to that of the reference, by the names of
    likeness.measures.
    """

    choice: Choice
    pictures: Sequence[numpy.ndarray]
    scores: Sequence[Mapping[str, float]]

    def mean(self, measure: str) -> float:
        """Of all pictures."""
        return likeness.mean(measure, [one[measure] for one in self.scores])

    def worst(self, measure: str) -> float:
        """Of one picture."""
        return likeness.worst(measure, [one[measure] for one in self.scores])


@dataclass(frozen=True)
class Pictures:
    """reference: with the T5 in float32, uint8 [height, width, 3] of each prompt. dtype: in which the pipeline computed, and to which what
    every T5 has given was rounded. measures: the names of those that could be computed. notes: sentences about what could not be done.
    """

    prompts: Sequence[Prompt]
    setting: Setting
    dtype: str
    reference: Sequence[numpy.ndarray]
    shown: Sequence[Shown]
    measures: Sequence[str]
    notes: Sequence[str]

    @property
    def title(self) -> str:
        """What was made, and with what."""
        words = {"size": self.setting.size, "steps": self.setting.steps, "guidance": f"{self.setting.guidance:g}"}
        return messages.text("quality.pictures.title", count=len(self.prompts), seed=SEED, dtype=self.dtype, **words)

    @property
    def table(self) -> list[list[str]]:
        """The heads, then a line for each choice; only the heads where nothing could be computed."""
        if not self.measures:
            return [[""]]
        heads = [name for measure in self.measures for name in (measure.upper(), messages.text("quality.column.worst"))]
        lines = [
            [one.choice.name, *(written(name, value) for name in self.measures for value in (one.mean(name), one.worst(name)))]
            for one in self.shown
        ]
        return [["", *heads], *lines]

    def report(self) -> dict[str, Any]:
        """As JSON-able values. psnr: in dB, null where the pictures are the same."""
        choices = {
            one.choice.id: {
                "name": one.choice.name,
                **{name: {"mean": _finite(one.mean(name)), "worst": _finite(one.worst(name))} for name in self.measures},
                "prompts": [{name: _finite(value) for name, value in scores.items()} for scores in one.scores],
            }
            for one in self.shown
        }
        setting = {"size": self.setting.size, "steps": self.setting.steps, "guidance": self.setting.guidance, "seed": SEED}
        told = {"reference": "float32", "prompts": [prompt.text for prompt in self.prompts], "choices": choices, "notes": [*self.notes]}
        return {**setting, "dtype": self.dtype, **told}


def written(measure: str, value: float) -> str:
    """A number as it is shown."""
    if measure == "psnr":
        return f"{value:.1f} dB" if math.isfinite(value) else messages.text("quality.pictures.same")
    return f"{value:.4f}"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
