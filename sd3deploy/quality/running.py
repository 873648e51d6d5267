"""Measures what is not kept yet, a few prompts at a time, and keeps it as soon as it is known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from sd3deploy.device import Device
from sd3deploy.encoders.cache import CacheError
from sd3deploy.encoders.choices import Choice
from sd3deploy.encoders.stopping import Stopped
from sd3deploy.encoders.weights import Weights
from sd3deploy.errors import EncoderError
from sd3deploy.quality.beside import measure
from sd3deploy.quality.kept import Kept
from sd3deploy.quality.prompts import LENGTH, Prompt

__all__ = ["run", "unmeasured"]

_HIDDEN = 2**29  # bytes of hidden states, of all encoders together: with a block in float32, torch and its libraries below 2 GB
_ON_CPU = 8  # prompts at a time there: each takes seconds to minutes, and what is under way is lost where somebody stops it

Progress = Callable[[float, int, int, str], None]  # 0 to 1, prompts that are done, kept ones among them; all prompts; what runs


def unmeasured(choices: Sequence[Choice], prompts: Sequence[Prompt], kept: Kept) -> list[Prompt]:
    """The prompts that at least one of the choices has not run with yet."""
    known = [kept.measured(choice).keys() for choice in choices]
    return [prompt for prompt in prompts if any(prompt.key not in keys for keys in known)]


def run(
    weights: Weights,
    fingerprint: list[Any],
    choices: Sequence[Choice],
    prompts: Sequence[Prompt],
    kept: Kept,
    device: Device,
    progress: Progress = lambda fraction, done, all, name: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> dict[str, str]:
    """Measure into `kept`. fingerprint: of the weights, before they were read. Returns the choices that failed: id → why.

    Raises CacheError where nothing can be kept, before anything is measured; what can not be kept later is in `kept` alone, whose `lost`
    says why. Raises what `measure` raises, EncoderError where the weights are changed meanwhile; what was measured before that is kept.
    """
    failed: dict[str, str] = {}
    missing = unmeasured(choices, prompts, kept)
    if missing:
        kept.add({})
    each = LENGTH * int(weights.config["d_model"]) * 4 * (len(choices) + 1)
    many = max(1, _HIDDEN // each)
    before = len(prompts) - len(missing)
    groups = -(-len(missing) // (min(many, _ON_CPU) if device.torch == "cpu" else many))
    for number in range(groups):
        first, last = (len(missing) * place // groups for place in (number, number + 1))
        group = missing[first:last]
        known = {choice: kept.measured(choice).keys() for choice in choices if choice.id not in failed}
        wanted = {choice: some for choice, keys in known.items() if (some := [one for one in group if one.key not in keys])}
        if not wanted:
            continue

        def went_on(done: int, total: int, name: str, first: int = first, last: int = last) -> None:
            progress((before + first + (last - first) * done / total) / len(prompts), before + first, len(prompts), name)

        try:
            found = measure(weights, wanted, device, went_on, cancelled)
        except Stopped as stopped:
            if kept.lost:
                raise Stopped("quality.lost", error=kept.lost) from stopped
            raise
        if weights.fingerprint() != fingerprint:
            raise EncoderError("source.changed", file=weights.name)
        failed |= found.failed
        with suppress(CacheError):  # hours may lie behind it
            kept.add(found.measured, found.failed)
    return failed
