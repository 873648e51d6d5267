"""The one way to measure a source: which weights, which choices, with which prompts, and the result."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sd3deploy import messages, units
from sd3deploy.deps import require_packages
from sd3deploy.device import Device
from sd3deploy.encoders import choices
from sd3deploy.encoders.cache import Cache
from sd3deploy.encoders.choices import CHOICES, Choice
from sd3deploy.encoders.need import shape_of
from sd3deploy.encoders.source import Source
from sd3deploy.encoders.weights import Weights, open_weights
from sd3deploy.errors import DependencyError, EncoderError
from sd3deploy.memory import capacity
from sd3deploy.memory.estimate import constants
from sd3deploy.quality import prompts, running
from sd3deploy.quality.kept import Kept
from sd3deploy.quality.result import Result, Row

__all__ = ["MEMORY", "OURS", "able", "measured", "opened", "require_memory", "tokenizer"]

MEMORY = 2_000_000_000  # bytes, of RAM and of a device with memory of its own: a block in float32, hidden states, torch, see running.py
OURS = tuple(choice for choice in CHOICES if choice.error is not None)


def opened(found: Source) -> Weights:
    """The weights of a source, all of them on this disk. Raises EncoderError (quality.remote) where they are not, and what `open_weights`
    raises for those that are damaged; DependencyError where the packages that read them are missing. No network is asked.
    """
    try:
        weights = open_weights(found.on_disk())
    except EncoderError as error:
        if error.id != "hub.offline":
            raise
        raise EncoderError("quality.remote", source=found.name) from error
    except OSError as error:
        if found.place and not Path(found.place).is_dir():
            raise EncoderError("quality.remote", source=found.name) from error
        raise EncoderError("encoder.unreadable", source=found.name, error=error) from error
    require_packages(weights.groups)
    return weights


def tokenizer(weights: Weights, places: Sequence[Path]) -> Any:
    """The T5 tokenizer that lies beside the weights, else in one of the places. Raises EncoderError where there is none."""
    beside = [folder for file in weights.files if file.path for folder in (file.path.parent, file.path.parent.parent)]
    return prompts.tokenizer([*beside, *places], weights.config["vocab_size"])


def able(named: Sequence[Choice], device: Device) -> tuple[list[Choice], dict[str, str]]:
    """Those to measure, and why not the others: name → a sentence. named: [] for all that this machine can run and whose packages are
    there. Raises Sd3Error for one that is named and can not run here.
    """
    for choice in named:
        choices.require(choice, device)
        require_packages(choice.groups)
    if named:
        return [*named], {}
    left_out = {choice.name: reason for choice in OURS if (reason := choices.unsuitable(choice, device))}
    for choice in OURS:
        try:
            require_packages(choice.groups)
        except DependencyError as error:
            left_out.setdefault(choice.name, messages.text("quality.packages", **error.values))
    return [choice for choice in OURS if choice.name not in left_out], left_out


def require_memory(device: Device) -> None:
    """Raise EncoderError where less than MEMORY is free, in RAM or on the device."""
    ram, own = capacity.read_free(device)
    need = MEMORY if own is None else MEMORY + constants(device.backend).context
    if ram < MEMORY:
        raise EncoderError("quality.memory", need=units.size(MEMORY), free=units.size(ram))
    if own is not None and own < need:
        raise EncoderError("quality.memory-device", name=device.name, need=units.size(need), free=units.size(own))


def measured(
    weights: Weights,
    named: Sequence[Choice],
    texts: Sequence[str],
    places: Sequence[Path],
    cache: Cache | None,
    device: Device,
    progress: running.Progress = lambda fraction, done, all, name: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Result:
    """Measure what is not kept yet. places: where T5's tokenizer may lie, beside those of the weights. cache: beside whose encoders the
    numbers are kept; None for nowhere. Raises Sd3Error, Stopped among them; what was measured before that is kept.
    """
    asked = prompts.tokenized(texts, tokenizer(weights, places))
    wanted, left_out = able(named, device)
    fingerprint = weights.fingerprint()
    kept = Kept(cache, fingerprint, device)
    failed = running.run(weights, fingerprint, wanted, asked, kept, device, progress, cancelled)
    left_out |= {choice.name: failed[choice.id] for choice in wanted if choice.id in failed}
    return _result(weights, [choice for choice in wanted if choice.id not in failed], asked, kept, device, left_out)


def _result(
    weights: Weights, able: list[Choice], asked: list[prompts.Prompt], kept: Kept, device: Device, left_out: dict[str, str]
) -> Result:
    import transformers

    shape = shape_of(transformers.T5Config(**weights.config))
    rows = []
    for choice in able:
        numbers = kept.measured(choice)
        rows.append(Row(choice, shape.bytes(choice, device.compute_dtype), tuple(numbers[prompt.key] for prompt in asked)))
    lost = messages.text("quality.lost", error=kept.lost) if kept.lost else ""
    rows.sort(key=lambda row: row.error)
    return Result(weights.name, weights.form, kept.fingerprint, kept.versions, device, asked, rows, left_out, lost)
