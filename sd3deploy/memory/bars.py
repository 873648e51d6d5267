"""An estimate as bars: for each phase what is where it is tightest, against what can be used there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sd3deploy import messages, units
from sd3deploy.memory.capacity import Capacity
from sd3deploy.memory.estimate import Estimate
from sd3deploy.memory.verdict import Verdict, judge_phases

__all__ = ["SEGMENTS", "Bar", "bars"]

# Segment of a bar → the entries of `Estimate.stacks` that it is made of, in the order in which a bar has them.
SEGMENTS = {
    "transformer": ("transformer",),
    "clip": ("text_encoder", "text_encoder_2"),
    "text_encoder_3": ("text_encoder_3",),
    "vae": ("vae",),
    "kept": ("kept",),
    "activation": ("activation",),
}


@dataclass(frozen=True)
class Bar:
    """One phase. verdict: need, what can be used, and where. segments: name of SEGMENTS → bytes, without those of nothing."""

    verdict: Verdict
    segments: Mapping[str, int]

    @property
    def sentence(self) -> str:
        """All of it, for whoever does not see it."""
        one = self.verdict
        most = max(one.need, one.usable)
        parts = ", ".join(f"{messages.text(f'memory.part.{name}')} {units.size(size, most)}" for name, size in self.segments.items())
        values = {"need": units.size(one.need, most), "usable": units.size(one.usable, most), "short": one.short, "parts": parts}
        names = {"phase": messages.text(f"memory.phase.{one.phase}"), "where": messages.text(f"memory.where.{one.where}")}
        id = "memory.bar" if one.usable else "memory.bar.unknown"
        return messages.text(id, **values, **names)


def bars(found: Estimate, capacity: Capacity) -> list[Bar]:
    """One for each phase, in the order of the phases."""
    made = []
    for verdict in judge_phases(found, capacity).values():
        stack = _stack(found, verdict, capacity)
        sizes = {name: sum(stack.get(part, 0) for part in parts) for name, parts in SEGMENTS.items()}
        made.append(Bar(verdict, {name: size for name, size in sizes.items() if size}))
    return made


def _stack(found: Estimate, verdict: Verdict, capacity: Capacity) -> dict[str, int]:
    """What is there at the peak. Where device and RAM are one memory, both; while loading the same bytes move from the one to the other."""
    stacks = found.stacks[verdict.phase]
    gpu, ram = stacks["gpu"], stacks["ram"]
    if not capacity.unified:
        return dict(stacks[verdict.where])
    if verdict.phase == "load":
        return dict(max(gpu, ram, key=lambda stack: sum(stack.values())))
    return {name: gpu.get(name, 0) + ram.get(name, 0) for name in {**gpu, **ram}}
