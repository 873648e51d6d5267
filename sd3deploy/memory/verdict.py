"""Whether a job fits, what would make it fit, and which T5 to take."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from sd3deploy import messages, units
from sd3deploy.encoders.choices import CHOICES, NONE, Choice, find
from sd3deploy.memory.capacity import Capacity
from sd3deploy.memory.estimate import Estimate, Setup, estimate
from sd3deploy.memory.sizes import tiled

__all__ = ["Advice", "Change", "Verdict", "cheapest", "judge", "judge_phases", "recommend"]

Answer = Literal["fits", "tight", "no", "unknown"]

TIGHT = 0.9  # of what is usable: estimates are good to about a tenth (bench/RESULTS.md, memory)
TILE = 512  # px, for a VAE that is told to decode in tiles: its own, 1024, saves nothing up to a megapixel


@dataclass(frozen=True)
class Verdict:
    """answer: fits, tight, no, or unknown where the device does not tell its memory. For the phase that comes nearest to the limit
    (or is furthest beyond it): where, "gpu" or "ram", and bytes needed and usable.
    """

    answer: Answer
    phase: str = ""
    where: str = "gpu"
    need: int = 0
    usable: int = 0

    @property
    def missing(self) -> int:
        """Bytes; 0 where it fits."""
        return max(0, self.need - self.usable)

    @property
    def left(self) -> int:
        """Bytes that stay free; 0 where it does not fit."""
        return max(0, self.usable - self.need)

    @property
    def sentence(self) -> str:
        """For the screen."""
        sizes = {"need": self.need, "usable": self.usable, "missing": self.missing}
        values: dict[str, object] = {name: units.size(bytes, max(sizes.values())) for name, bytes in sizes.items()}
        names = {"where": messages.text(f"memory.where.{self.where}"), "phase": messages.text(f"memory.phase.{self.phase or 'denoise'}")}
        return messages.text(f"memory.verdict.{self.answer}", **values, **names)

    @property
    def short(self) -> str:
        """For a cell of a table."""
        return messages.text(f"memory.short.{self.answer}")


def judge(found: Estimate, capacity: Capacity) -> Verdict:
    """Compare an estimate with what there is, phase by phase."""
    known = [one for phase in found.phases for one in _places(found, phase, capacity) if one.answer != "unknown"]
    worst = max(known, key=_share, default=Verdict("unknown"))
    if capacity.kind == "unknown" and worst.answer == "fits":
        return Verdict("unknown")  # RAM suffices, of the device nothing is known
    return worst


def judge_phases(found: Estimate, capacity: Capacity) -> dict[str, Verdict]:
    """Phase → its verdict, for the place that comes nearest to its limit then; "unknown" with what is needed where that is not known."""
    return {phase: max(_places(found, phase, capacity), key=_share, default=Verdict("unknown", phase)) for phase in found.phases}


def _places(found: Estimate, phase: str, capacity: Capacity) -> Iterator[Verdict]:
    """The verdict of a phase for the device and for RAM, where anything is needed there."""
    need = found.phases[phase]
    gpu = need.gpu
    if capacity.unified:  # while a model is loaded the same bytes move from the one to the other
        gpu = max(need.gpu, need.ram) if phase == "load" else need.gpu + need.ram
    for where, wanted, usable in (("gpu", gpu, capacity.usable), ("ram", need.ram, capacity.ram_usable)):
        known = capacity.total if where == "gpu" else capacity.ram_total and not capacity.unified
        if not wanted or (where == "ram" and capacity.unified):
            continue
        ratio = wanted / max(1, usable)
        answer = "unknown" if not known else "no" if ratio > 1 else "tight" if ratio > TIGHT else "fits"
        yield Verdict(answer, phase, where, wanted, usable if known else 0)


def _share(one: Verdict) -> float:
    """Of what is usable; what is not known comes after what fits."""
    return TIGHT if one.answer == "unknown" else one.need / max(1, one.usable)


@dataclass(frozen=True)
class Change:
    """What makes it fit. fields: of the setup → their new values: encoder (name), offload, tiling, width and height, batch."""

    fields: Mapping[str, Any]
    setup: Setup

    @property
    def steps(self) -> str:
        """What to do, as the part of a sentence."""
        order = ("encoder", "offload", "tiling", "width", "batch")
        shown = dict(self.fields)
        if "encoder" in shown:
            shown["encoder"] = find(shown["encoder"]).shown
        steps = [messages.text(f"memory.change.{name}", **shown) for name in order if name in shown]
        return messages.text("memory.change.and").join(steps)

    @property
    def sentence(self) -> str:
        """What to do, as one instruction."""
        return messages.text("memory.change", steps=self.steps)


def cheapest(setup: Setup, capacity: Capacity, suitable: Iterable[Choice] = CHOICES) -> Change | None:
    """The change that costs the user least and makes it fit: another encoder, offload, VAE tiling, size, batch, in that order; no T5 at all
    comes last. An encoder that is only tight comes after those that fit, as in `recommend`. Where no single change does, they add up. None
    when nothing helps. suitable: the choices that the device can run.
    """
    steps = _steps(setup, list(suitable))
    for fields in steps[0]:
        if found := _fitting(setup, fields, capacity, ("no", "tight")):
            return found
    for step in steps:
        for fields in step:
            if found := _fitting(setup, fields, capacity):
                return found
    gathered: dict[str, Any] = {}
    for step in (steps[1], steps[2], steps[0], steps[3], steps[4], steps[5]):
        for fields in step:
            if _fitting(setup, gathered | fields, capacity):
                return _needed(setup, gathered | fields, capacity)
        # Not what makes it worse: a T5 in 4 bit stays on the device whole in sequential mode, where a wide one does not.
        before = _ratio(setup, gathered, capacity)
        useful = [fields for fields in step if _ratio(setup, gathered | fields, capacity) <= before]
        gathered |= useful[-1] if useful else {}
    return None


def _needed(setup: Setup, fields: dict[str, Any], capacity: Capacity) -> Change | None:
    """The change without the steps that it can do without."""
    for names in (("encoder",), ("batch",), ("width", "height"), ("tiling",), ("offload",)):
        fewer = {name: value for name, value in fields.items() if name not in names}
        if _fitting(setup, fewer, capacity):
            fields = fewer
    return _fitting(setup, fields, capacity)


def _ratio(setup: Setup, fields: Mapping[str, Any], capacity: Capacity) -> float:
    """Need to what is usable, where they are furthest apart."""
    judged = judge(estimate(_apply(setup, fields)), capacity)
    return judged.need / max(1, judged.usable)


def _fitting(setup: Setup, fields: Mapping[str, Any], capacity: Capacity, refused: tuple[str, ...] = ("no",)) -> Change | None:
    changed = _apply(setup, fields)
    return None if judge(estimate(changed), capacity).answer in refused else Change(fields, changed)


def _apply(setup: Setup, fields: Mapping[str, Any]) -> Setup:
    values = dict(fields)
    if "encoder" in values:
        values["encoder"] = next(choice for choice in CHOICES if choice.name == values["encoder"])
        measured = {name: size for name, size in setup.weights.measured.items() if name != "text_encoder_3"}
        setup = replace(setup, weights=replace(setup.weights, measured=measured))
    if "tiling" in values:
        setup = replace(setup, weights=tiled(setup.weights, TILE))
    return replace(setup, **values)


def _steps(setup: Setup, suitable: list[Choice]) -> list[list[dict[str, Any]]]:
    """For each kind of change its possible values, from the least to the strongest."""
    # Also those that are larger: in sequential mode a T5 in 4 bit is on the device as a whole, and a wide one in parts.
    encoders = [choice for choice in setup.errors.order(suitable) if choice is not setup.encoder]
    modes = [mode for mode in ("balanced", "model", "sequential") if mode != setup.offload and setup.offload != "sequential"]
    return [
        [{"encoder": choice.name} for choice in encoders],
        [{"offload": mode} for mode in modes] if setup.kind != "cpu" else [],
        [{"tiling": True}] if not setup.tiling else [],
        [{"width": width, "height": height} for width, height in _smaller(setup.width, setup.height)],
        [{"batch": count} for count in _fewer(setup.batch)],
        [{"encoder": NONE.name}] if setup.encoder is not NONE else [],
    ]


def _smaller(width: int, height: int) -> Iterator[tuple[int, int]]:
    """The same shape with less pixels, in multiples of 16, down to a quarter of a megapixel."""
    for percent in range(90, 10, -10):
        made = int(width * percent / 100) // 16 * 16, int(height * percent / 100) // 16 * 16
        if made[0] * made[1] < 512 * 512:
            return
        yield made


def _fewer(batch: int) -> Iterator[int]:
    """Less pictures at a time, down to one: one less each, of more than twenty a tenth."""
    while batch > 1:
        batch -= max(1, batch // 10)
        yield batch


def _t5(setup: Setup, choice: Choice) -> int:
    return setup.weights.t5.bytes(choice, setup.compute) if setup.weights.t5 else 0


@dataclass(frozen=True)
class Advice:
    """Which T5 to take. choice: None when not even CLIP alone fits. considered: each choice with its verdict, best fidelity first.
    change: what would make it run at all, where nothing fits. basis: by which errors the choices are in that order, as a sentence.
    pixels: the size of the picture that it is for, as "1024×1024".
    """

    choice: Choice | None
    considered: tuple[tuple[Choice, Verdict], ...]
    change: Change | None = None
    basis: str = ""
    pixels: str = ""

    @property
    def sentence(self) -> str:
        """Which one, and why this one; what to do where none fits."""
        if self.choice is None:
            return self.change.sentence if self.change else messages.text("memory.nothing")
        taken = next(verdict for choice, verdict in self.considered if choice is self.choice)
        kind = "none" if self.choice is NONE else taken.answer
        why = messages.text(f"memory.why.{kind}", left=units.size(taken.left), size=self.pixels)
        return messages.text("memory.recommended", name=self.choice.shown, why=why)

    @property
    def reasons(self) -> list[str]:
        """One sentence for each choice."""
        return [messages.text("memory.considered", name=choice.shown, verdict=verdict.sentence) for choice, verdict in self.considered]


def recommend(setup: Setup, capacity: Capacity, suitable: Iterable[Choice] = CHOICES) -> Advice:
    """Among the choices that fit the one with the smallest output error, by `setup.errors`; one that is tight only where none fits. Where
    the memory is not known, the smallest one that needs no package.
    """
    suitable = list(suitable)
    considered = tuple(
        (choice, judge(estimate(_apply(setup, {"encoder": choice.name})), capacity)) for choice in [*setup.errors.order(suitable), NONE]
    )
    with_t5, (_, without) = considered[:-1], considered[-1]
    basis, pixels = setup.errors.sentence(choice for choice, _ in with_t5), f"{setup.width}×{setup.height}"
    for answer in ("fits", "tight"):
        for choice, verdict in with_t5:
            if verdict.answer == answer:
                return Advice(choice, considered, None, basis, pixels)
    if with_t5 and with_t5[-1][1].answer == "unknown":
        smallest = min((choice for choice, _ in with_t5), key=lambda choice: (bool(choice.groups), _t5(setup, choice)))
        return Advice(smallest, considered, None, basis, pixels)
    if without.answer != "no":
        return Advice(NONE, considered, None, basis, pixels)
    change = cheapest(_apply(setup, {"encoder": NONE.name}), capacity, suitable)
    if change is None:
        return Advice(None, considered, None, basis, pixels)
    best = recommend(change.setup, capacity, suitable).choice or NONE  # with the change there may be room for a T5 again
    fields = {} if best is setup.encoder else {"encoder": best.name}
    return Advice(None, considered, _fitting(setup, fields | dict(change.fields), capacity), basis, pixels)
