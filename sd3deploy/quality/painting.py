"""The same picture with each text encoder: the prompt, the seed, the size and the steps are the same, so that T5 alone is what differs.

First the text encoders run beside each other, as for their errors: memory holds one block of one of them at a time, 0.8 GB of T5-XXL in
float32, and what each has given so far, 4 MB for an encoder and a prompt. What they have given stays in RAM in 16 bit. Then the pipeline
is loaded without T5, once. Transformer and T5 are never held together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sd3deploy import messages, pipeline
from sd3deploy.device import Device
from sd3deploy.diagnosis.checks import files, room
from sd3deploy.encoders.choices import NONE, Choice
from sd3deploy.encoders.source import Source
from sd3deploy.encoders.stopping import Stopped
from sd3deploy.encoders.weights import Weights
from sd3deploy.errors import EncoderError, Sd3Error
from sd3deploy.memory import capacity
from sd3deploy.quality import beside, likeness
from sd3deploy.quality.pictures import SEED, Pictures, Setting, Shown
from sd3deploy.quality.prompts import LENGTH, Prompt

if TYPE_CHECKING:
    import numpy
    import torch

__all__ = ["MOST", "make", "require"]

MOST = 8  # prompts: what eleven encoders give of them and of the empty one, 0.4 GB, is held in one go, see running.py


def require(source: Source, setting: Setting, device: Device) -> Path:
    """The folder of the model whose T5 a source is. Raises EncoderError where it is of no whole Stable Diffusion 3 in a folder, or memory
    is too small for a picture.
    """
    place = Path(source.place) if source.place else source.file
    model = files.examine(place) if place else None
    if model is None or not model.path.is_dir() or not model.complete:
        reason = next((one.message for one in (*model.failed, *model.warned)), "") if model else ""
        raise EncoderError("quality.pictures.no-model", source=source.name, reason=reason)
    if lack := room.lack(model.path, NONE, device, capacity.read_capacity(device), setting.size):
        raise EncoderError("quality.pictures.no-room", reason=lack.message)
    return model.path


def make(
    model: Path,
    weights: Weights,
    choices: Sequence[Choice],
    prompts: Sequence[Prompt],
    empty: Prompt,
    setting: Setting,
    device: Device,
    progress: Callable[[float, str], None] = lambda fraction, text: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Pictures:
    """Pictures of the model in that folder with the T5 of `weights` in float32, as each of the choices, and without it.

    prompts: MOST of them at most. empty: the empty prompt, which guidance leads away from. progress: called with 0 to 1 and a sentence,
    from 0 again for the pictures. A choice that fails is left out with a note. Raises Stopped soon after `cancelled` says yes, and
    EncoderError where the model can not be loaded or makes no picture.
    """

    def encoding(done: int, total: int, name: str) -> None:
        progress(done / total, messages.text("quality.pictures.encoding", name=name))

    made = beside.outputs(weights, {choice: [*prompts, empty] for choice in choices}, device, encoding, cancelled)
    given: dict[Choice | None, dict[str, torch.Tensor]] = {None: _kept(made.exact, device)}
    failed = dict(made.failed)
    for choice, states in made.given.items():
        kept = _kept({key: one for key, (one, _) in states.items()}, device)
        if all(bool(one.isfinite().all()) for one in kept.values()):
            given[choice] = kept
        else:
            failed[choice.id] = messages.text("quality.no-numbers")
    del made
    try:
        with pipeline.without_bars():
            drawn = _drawn(_Painter(model, setting, device, cancelled), given, prompts, empty, progress)
    except Sd3Error:
        raise
    except Exception as error:  # of a library: a model that it can not load, memory that runs out
        said = f"{type(error).__name__}: {error}".splitlines()[0][:300]
        raise EncoderError("quality.pictures.failed", error=said) from error
    reference = drawn.pop(None)
    measures, notes = likeness.measures()
    shown = [Shown(choice, pictures, _scores(measures, pictures, reference)) for choice, pictures in drawn.items() if choice]
    left_out = [messages.text("quality.left-out", names=one.name, reason=failed[one.id]) for one in choices if one.id in failed]
    return Pictures(prompts, setting, device.compute_dtype, reference, shown, [*measures], [*left_out, *notes])


def _kept(states: Mapping[str, torch.Tensor], device: Device) -> dict[str, torch.Tensor]:
    """In RAM, in the type in which the pipeline computes."""
    import torch

    return {key: one.to("cpu", getattr(torch, device.compute_dtype)) for key, one in states.items()}


def _drawn(
    painter: _Painter,
    given: Mapping[Choice | None, Mapping[str, torch.Tensor]],
    prompts: Sequence[Prompt],
    empty: Prompt,
    progress: Callable[[float, str], None],
) -> dict[Choice | None, list[numpy.ndarray]]:
    """The pictures of each choice, and last those without T5."""
    columns: dict[Choice | None, Mapping[str, torch.Tensor]] = {**given, NONE: {}}
    drawn: dict[Choice | None, list[numpy.ndarray]] = {}
    all = len(columns) * len(prompts)
    for choice, states in columns.items():
        drawn[choice] = []
        for prompt in prompts:
            done = sum(map(len, drawn.values()))
            text = messages.text("quality.pictures.running", done=done, all=all, name=choice.name if choice else "float32")
            progress(done / all, text)

            def stepped(part: float, done: int = done, text: str = text) -> None:
                progress((done + part) / all, text)

            drawn[choice].append(painter.paint(prompt.text, states.get(prompt.key), states.get(empty.key), stepped))
    return drawn


class _Painter:
    """The pipeline without T5, which takes what that would give."""

    def __init__(self, model: Path, setting: Setting, device: Device, cancelled: Callable[[], bool]) -> None:
        self._setting, self._cancelled = setting, cancelled
        self._pipeline = pipeline.load(model, device)
        pipeline.place(self._pipeline, device)
        self._clip: dict[str, tuple[torch.Tensor, ...]] = {}  # text → what CLIP gives of it and of the empty prompt, and both pooled

    def paint(
        self, text: str, given: torch.Tensor | None, negative: torch.Tensor | None, stepped: Callable[[float], None]
    ) -> numpy.ndarray:
        """uint8 [height, width, 3]. given, negative: what T5 gives of the prompt and of the empty one, [1, LENGTH, d_model]; None where
        there is no T5. stepped: called with 0 to 1.
        """
        import numpy
        import torch

        def step(_pipeline: Any, number: int, _timestep: Any, kept: dict[str, Any]) -> dict[str, Any]:
            if self._cancelled():
                raise Stopped("encoder.stopped")
            stepped((number + 1) / self._setting.steps)
            return kept

        with torch.inference_mode():
            if text not in self._clip:
                self._clip[text] = self._pipeline.encode_prompt(text, None, None, negative_prompt="", max_sequence_length=LENGTH)
            both, no, pooled, no_pooled = self._clip[text]
            pixels = self._pipeline(
                prompt_embeds=self._with(both, given),
                negative_prompt_embeds=self._with(no, negative),
                pooled_prompt_embeds=pooled,
                negative_pooled_prompt_embeds=no_pooled,
                width=self._setting.size,
                height=self._setting.size,
                num_inference_steps=self._setting.steps,
                guidance_scale=self._setting.guidance,
                generator=torch.Generator().manual_seed(SEED),
                output_type="np",
                callback_on_step_end=step,
            ).images[0]
        if not numpy.isfinite(pixels).all():
            raise EncoderError("quality.pictures.failed", error=messages.text("quality.no-numbers"))
        return (pixels * 255).round().astype("uint8")

    def _with(self, clip: torch.Tensor, given: torch.Tensor | None) -> torch.Tensor:
        """What CLIP gives, followed by what T5 gives in place of the zeros that stand for it."""
        import torch

        if given is None:
            return clip
        return torch.cat([clip[:, : self._pipeline.tokenizer_max_length], given.to(clip.device, clip.dtype)], dim=1)


def _scores(
    measures: Mapping[str, likeness.Measure], pictures: Sequence[numpy.ndarray], reference: Sequence[numpy.ndarray]
) -> list[dict[str, float]]:
    """Of the pictures as they are seen, with 8 bit a channel."""
    import torch

    def tensor(picture: numpy.ndarray) -> torch.Tensor:
        return torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255

    with torch.inference_mode():
        pairs = [(tensor(one), tensor(other)) for one, other in zip(pictures, reference, strict=True)]
        return [{name: measure(*pair) for name, measure in measures.items()} for pair in pairs]
