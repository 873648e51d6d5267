"""Several encoders of the same weights beside each other, block by block, so that memory holds one block of one of them at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sd3deploy import messages
from sd3deploy.device import Device
from sd3deploy.encoders.assemble import assemble
from sd3deploy.encoders.choices import Choice, find
from sd3deploy.encoders.parts import embed, parts, pass_through
from sd3deploy.encoders.quantize import Stopped, quantize
from sd3deploy.encoders.recipe import Recipe
from sd3deploy.encoders.weights import Weights
from sd3deploy.memory import heap
from sd3deploy.quality.prompts import Prompt

if TYPE_CHECKING:
    import torch

__all__ = ["Found", "Measured", "Outputs", "measure", "outputs"]


@dataclass(frozen=True)
class Measured:
    """One choice with one prompt, all its tokens together. error: ‖output − float32's‖ / ‖float32's‖. cosine: of the two. seconds: that
    the blocks took, without loading them.
    """

    error: float
    cosine: float
    seconds: float


@dataclass
class Found:
    """measured: id of a choice → key of a prompt → what was measured. failed: id → why that one could not run, as a sentence."""

    measured: dict[str, dict[str, Measured]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Outputs:
    """Key of a prompt → the last hidden states [1, LENGTH, d_model], on the device: exact, of float32; given, of each choice, with the
    seconds that its blocks took. failed: as of Found.
    """

    exact: Mapping[str, torch.Tensor]
    given: Mapping[Choice, Mapping[str, tuple[torch.Tensor, float]]]
    failed: dict[str, str]


class _Encoder:
    """One encoder on its way through the blocks. hidden: key of a prompt → its hidden states so far; seconds: that they took."""

    def __init__(self, recipe: Recipe, prompts: Sequence[Prompt], device: Device) -> None:
        self._recipe, self._device = recipe, device
        self.hidden = {prompt.key: prompt.tensor(device.torch) for prompt in prompts}
        self.seconds = dict.fromkeys(self.hidden, 0.0)

    def go_on(self, part: Weights, first: bool, last: bool, cancelled: Callable[[], bool]) -> None:
        """Through the next part."""
        import torch

        encoder = assemble(quantize(part, self._recipe, self._device, cancelled=cancelled), self._device.torch)
        with torch.inference_mode():
            for key, states in self.hidden.items():
                if cancelled():
                    raise Stopped("encoder.stopped")
                started = time.perf_counter()
                self.hidden[key] = embed(encoder, states) if first else pass_through(encoder, states, last)
                self._wait()
                self.seconds[key] += time.perf_counter() - started
        del encoder
        heap.trim()  # else a fifth of a gigabyte stays from block to block

    def _wait(self) -> None:
        """Until the device has computed what it was told to."""
        import torch

        library = getattr(torch, self._device.torch.partition(":")[0], None)
        if (synchronize := getattr(library, "synchronize", None)) is not None:
            synchronize()


def measure(
    weights: Weights,
    wanted: Mapping[Choice, Sequence[Prompt]],
    device: Device,
    progress: Callable[[int, int, str], None] = lambda done, total, name: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Found:
    """Run each choice with its prompts, and compare what it gives with float32's. As `outputs`."""
    made = outputs(weights, wanted, device, progress, cancelled)
    found = Found(failed=made.failed)
    for choice, given in made.given.items():
        compared = {key: _compared(states, made.exact[key], seconds) for key, (states, seconds) in given.items()}
        if any(one is None for one in compared.values()):
            found.failed[choice.id] = messages.text("quality.no-numbers")
        else:
            found.measured[choice.id] = {key: one for key, one in compared.items() if one}
    return found


def outputs(
    weights: Weights,
    wanted: Mapping[Choice, Sequence[Prompt]],
    device: Device,
    progress: Callable[[int, int, str], None] = lambda done, total, name: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Outputs:
    """Run each choice with its prompts, and float32 with all of them. progress: called with parts done, parts in all, and the name of
    what runs.

    Beside one block in float32 (0.8 GB of T5-XXL) memory holds the hidden states of each encoder and prompt. Raises Stopped soon after
    `cancelled` says yes, and what `quantize` raises for the weights themselves; a choice that fails stops no other.
    """
    prompts = list({prompt.key: prompt for some in wanted.values() for prompt in some}.values())
    exact = _Encoder(Recipe(find("bf16"), "float32"), prompts, device)
    running = {choice: _Encoder(Recipe(choice, device.compute_dtype), some, device) for choice, some in wanted.items()}
    failed: dict[str, str] = {}
    count, done = weights.config["num_layers"] + 1, 0
    total = count * (len(running) + 1)
    for number, part in enumerate(parts(weights)):
        first, last = number == 0, number == count - 1
        progress(done, total, "float32")
        exact.go_on(part, first, last, cancelled)
        done += 1
        for choice in wanted:
            progress(done, total, choice.name)
            done += 1
            if choice in running:
                try:
                    running[choice].go_on(part, first, last, cancelled)
                except (Stopped, OSError):
                    raise
                except Exception as error:
                    failed[choice.id] = f"{type(error).__name__}: {error}".splitlines()[0][:300]
                    del running[choice]
    progress(total, total, "")
    given = {choice: {key: (one.hidden[key], one.seconds[key]) for key in one.hidden} for choice, one in running.items()}
    return Outputs(exact.hidden, given, failed)


def _compared(states: torch.Tensor, exact: torch.Tensor, seconds: float) -> Measured | None:
    """None where the output is no number."""
    import torch

    ours, right = (one.float().cpu().double().flatten() for one in (states, exact))
    error = float((ours - right).norm() / right.norm())
    cosine = float(torch.nn.functional.cosine_similarity(ours, right, dim=0))
    return Measured(error, cosine, seconds) if error == error and error != float("inf") else None
