"""A job out of the words of a command line or of a request, for a model that need not be loaded."""

from __future__ import annotations

from sd3deploy.encoders import choices
from sd3deploy.guards.job import Hires, Job, Model
from sd3deploy.guards.number import number
from sd3deploy.guards.sampling import matches_flow

__all__ = ["job"]


def job(
    model: Model,
    width: object = None,
    height: object = None,
    *,
    hires: object = None,
    encoder: str = "",
    sampler: str = "Default",
    steps: object = 20,
    guidance: object = 6.0,
    prompt_attention: str = "",
) -> Job:
    """The facts as far as words give them. hires: factor of a second pass. encoder: name or id of a text encoder choice, "" for
    one with T5. Raises SettingError for an encoder that there is not.
    """
    scale = number(hires)
    return Job(
        model,
        width=_plain(width),
        height=_plain(height),
        hires=Hires(scale) if scale and scale > 0 else None,
        sampler=sampler,
        not_flow=frozenset() if matches_flow(sampler) else frozenset({sampler}),
        steps=_plain(steps),
        guidance=_plain(guidance),
        t5=not encoder or choices.find(encoder) is not choices.NONE,
        prompt_attention=prompt_attention or "native",
    )


def _plain(value: object) -> object:
    """A whole number as one: so it is shown and answered."""
    found = number(value)
    return value if found is None else int(found) if found == int(found) else found
