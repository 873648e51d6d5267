"""The real thing, small: the model loads, the quantized T5 loads and goes into it, a picture comes out that is one.

Where no Stable Diffusion 3 is on this disk a tiny one is made, of the same classes: all the software runs that the real one needs.
"""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sd3deploy import device, messages, pipeline, tiny_sd3, units
from sd3deploy.child import Child
from sd3deploy.deps import requirements
from sd3deploy.device import Device
from sd3deploy.diagnosis.checks import files, room
from sd3deploy.diagnosis.checks.context import Context
from sd3deploy.diagnosis.checks.result import Cancelled, Outcome, Progress, Result, Say, State
from sd3deploy.diagnosis.checks.rules import seen
from sd3deploy.diagnosis.checks.runner import Step, blocked, ending, known, title, unmade
from sd3deploy.diagnosis.finding import Finding
from sd3deploy.encoders import choices, load, measure, source, swap, tokenizer
from sd3deploy.encoders.choices import HOST_DEFAULT, NONE, Choice
from sd3deploy.memory import capacity

__all__ = ["base", "encoder", "image", "in_child", "plan"]

_STEPS = 4
_PROMPT = "a photo of a cat"
_EDGE = {"tiny": 128, "cpu": 256, "gpu": 512}  # px
_FLAT = 0.005  # standard deviation of the pixels, of 1; a black or an even picture has 0, one of noise has 0.1 and more
_GONE = 2.0  # s between two signs of life of a child


@dataclass(frozen=True)
class Plan:
    """What is tried: model, on what, and the size of the picture. tiny: it is one of ours; made: because there is no other."""

    model: Path
    name: str
    tiny: bool
    made: bool
    device: Device
    edge: int


def base(context: Context, say: Say) -> Outcome:
    """The step: the pipeline without T5."""
    say(0.0, "")
    quiet = contextlib.ExitStack()
    quiet.enter_context(pipeline.without_bars())
    context.cleanups.append(quiet.close)
    found = plan(context, say)
    if lack := _lack(found, NONE):
        return _refused(lack)
    say(0.3, found.name)
    started = time.perf_counter()
    context.cleanups.append(_free)
    context.held["pipeline"] = pipeline.load(found.model, found.device, _shipped(context))
    facts = {"model": str(found.model), "tiny": found.tiny, "made": found.made, "load": round(time.perf_counter() - started, 2)}
    said = messages.text("checks.base.tiny" if found.made else "checks.base.ok", name=found.name, device=found.device.name)
    return Outcome("ok", said, facts=facts)


def encoder(context: Context, say: Say) -> Outcome:
    """The step: T5 as chosen, or where that can not run here the best that can, into the pipeline."""
    say(0.0, "")
    found = plan(context, say)
    wanted = choices.find(context.encoder)
    if wanted is NONE:
        return Outcome("ok", messages.text("checks.encoder.none"), facts={"encoder": NONE.id})
    chosen = _able(wanted, found.device, context)
    if lack := _lack(found, chosen):
        return _refused(lack)
    say(0.2, chosen.name)
    facts = source.Facts(str(found.model), None, tuple(map(str, context.models)), offline=True, tokenizer=_shipped(context))
    place = source.find("Automatic", facts)
    made = load.load(chosen, place, found.device)
    say(0.8, chosen.name)
    loaded = context.held["pipeline"]
    swap.replace(loaded, made, tokenizer.find(None, made, facts, place))
    measured = measure.measure(made)
    sizes = {"bytes": measured.bytes, "bytes_16bit": measured.bytes_16bit, "linears": measured.linears, "linear4bit": measured.linear4bit}
    facts = {"encoder": chosen.id, "wanted": wanted.id, **sizes}
    small, full = units.size(measured.bytes), units.size(measured.bytes_16bit)
    if chosen is not wanted and wanted is not HOST_DEFAULT:
        said = messages.text("checks.encoder.other", name=chosen.name, wanted=wanted.name, size=small, full=full)
        return Outcome("warning", said, messages.text("checks.encoder.other.remedy", wanted=wanted.name), facts=facts)
    id = "checks.encoder.default" if wanted is HOST_DEFAULT else "checks.encoder.ok"
    return Outcome("ok", messages.text(id, name=chosen.name, wanted=wanted.shown, size=small, full=full), facts=facts)


def image(context: Context, say: Say) -> Outcome:
    """The step: a few steps of denoising; the picture is looked at."""
    import numpy
    import torch

    say(0.0, "")
    found = plan(context, say)
    loaded = context.held["pipeline"]
    pipeline.place(loaded, found.device)
    words = messages.text("checks.image.step", edge=found.edge)

    def stepped(_pipeline: Any, step: int, _timestep: Any, kept: dict[str, Any]) -> dict[str, Any]:
        say(0.2 + 0.7 * (step + 1) / _STEPS, words)
        return kept

    say(0.1, words)
    with torch.inference_mode():
        pixels = loaded(
            _PROMPT, width=found.edge, height=found.edge, num_inference_steps=_STEPS, output_type="np",
            generator=torch.Generator().manual_seed(0), callback_on_step_end=stepped,
        ).images[0]  # fmt: skip
    facts = {"edge": found.edge, "steps": _STEPS, "finite": bool(numpy.isfinite(pixels).all()), "tiny": found.tiny}
    facts |= {"deviation": float(pixels.std()) if facts["finite"] else 0.0, "mean": float(pixels.mean()) if facts["finite"] else 0.0}
    if not facts["finite"] or facts["deviation"] < _FLAT:
        kind = messages.text("checks.image.black" if facts["finite"] else "checks.image.nan")
        wrong = seen("image-black", {"kind": kind, "dtype": found.device.compute_dtype})
        return Outcome("failed", wrong.message, wrong.remedy, (wrong,), facts)
    lacks_t5 = getattr(loaded, "text_encoder_3", None) is None and choices.find(context.encoder) is not NONE
    said = messages.text("checks.image.clip" if lacks_t5 else "checks.image.ok", edge=found.edge)
    return Outcome("ok", messages.joined(said, messages.text("checks.image.tiny") if found.tiny else ""), facts=facts)


def plan(context: Context, say: Say = lambda fraction, text: None) -> Plan:
    """The first whole model, else the tiny one, and the device; worked out once in a run."""
    if "plan" not in context.held:
        where = device.detect_device(context.device, context.backend or context.device)
        models = files.found(context, say)
        meant = [one.path for one in models if one.path == context.model and not one.foreign]
        model = next((one for one in (*meant, *(one.path for one in models if one.complete))), None)
        if model is None:
            say(0.1, messages.text("checks.base.making"))
        place = model or tiny_sd3.ensure()
        kind = "tiny" if _is_tiny(place) else "cpu" if where.torch == "cpu" else "gpu"
        context.held["plan"] = Plan(place, place.name, kind == "tiny", model is None, where, _EDGE[kind])
    return context.held["plan"]


def in_child(
    steps: Iterable[Step],
    context: Context,
    progress: Callable[[Progress], None] = lambda progress: None,
    cancelled: Callable[[], bool] = lambda: False,
    before: Iterable[Result] = (),
) -> Iterator[Result]:
    """As runner.run, in a process of its own that leaves this one's model and device alone; `cancelled` ends it within a moment."""
    steps = tuple(steps)
    states: dict[str, State] = {result.id: result.state for result in before}
    inside = {step.id for step in steps}
    lack = next((need for step in steps for need in [blocked(step, states)] if need and need not in inside), None)
    if lack:
        yield from (unmade(step.id, "" if states[lack] == "cancelled" else lack) for step in steps)
        return
    done: list[str] = []
    end: Result | None = None

    def tick() -> None:
        if cancelled():
            raise Cancelled

    started = time.perf_counter()
    with Child(_arguments(context), {"SD3DEPLOY_INSIDE": "1"}) as child:
        try:
            for value in child.values(tick):
                if "progress" in value:
                    progress(Progress(**value["progress"]))
                elif "result" in value:
                    result = Result.of(value["result"])
                    done.append(result.id)
                    started = time.perf_counter()
                    yield result
        except Cancelled:
            pass
        else:
            if len(done) < len(steps):
                end = _ended(steps[len(done)], child.code, child.said, round(time.perf_counter() - started, 3), context)
    rest = steps[len(done) :]
    if end:
        yield end
        yield from (unmade(step.id, end.id) for step in rest[1:])
    else:
        yield from (unmade(step.id) for step in rest)


def _ended(step: Step, code: int | None, said: str, seconds: float, context: Context) -> Result:
    """The child is gone without an answer: the last words, or what its end alone tells."""
    lines = ending(said)
    findings = known(said, context)
    if not findings:
        id = "process-killed" if code in (-9, 137) else "process-ended"  # Linux ends so who takes too much memory
        findings = [seen(id, {"step": title(step.id), "code": code, "error": lines[-1] if lines else ""}, evidence=lines)]
    first = findings[0]
    return Result("failed", first.message, first.remedy, tuple(findings), id=step.id, title=title(step.id), seconds=seconds)


def _arguments(context: Context) -> list[str]:
    words = ["-m", "sd3deploy", "verify", "--only-run", "--lines", "--encoder", context.encoder]
    options = [("--host-root", context.host_root), ("--model", context.model), ("--device", context.device)]
    options += [("--backend", context.backend), *(("--models", folder) for folder in context.models)]
    return words + [word for option, value in options if value for word in (option, str(value))]


def _able(wanted: Choice, place: Device, context: Context) -> Choice:
    """The choice itself; where the device or a missing package does not let it run, the first of the table that runs."""
    return next((one for one in (wanted, *choices.CHOICES) if _runs(one, place, context)), NONE)


def _runs(choice: Choice, place: Device, context: Context) -> bool:
    if not choice.bytes or choices.unsuitable(choice, place):
        return False
    return all(context.installed.version(one.name) for one in requirements(choice.groups) if one.group)


def _shipped(context: Context) -> str:
    """The model folder without weights that the host ships; "" where nobody knows one."""
    folder = context.host_root / "configs" / "sd3" if context.host_root else None
    return str(folder) if folder and folder.is_dir() else ""


def _lack(found: Plan, chosen: Choice) -> Finding | None:
    return None if found.tiny else room.lack(found.model, chosen, found.device, capacity.read_capacity(found.device), found.edge)


def _refused(lack: Finding) -> Outcome:
    """Nothing is broken: this step is not tried because it would end badly."""
    return Outcome("skipped", messages.text("checks.refused", reason=lack.message), lack.remedy, (lack,))


def _is_tiny(path: Path) -> bool:
    return (path / "recipe.json").is_file()


def _free() -> None:
    """Give the memory back."""
    gc.collect()
    import torch

    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
