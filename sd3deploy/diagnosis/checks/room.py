"""Whether there is memory for what is about to be tried."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from sd3deploy import messages
from sd3deploy.device import Device
from sd3deploy.diagnosis.checks.rules import seen
from sd3deploy.diagnosis.finding import Finding
from sd3deploy.encoders import choices
from sd3deploy.encoders.choices import Choice
from sd3deploy.errors import SettingError
from sd3deploy.memory import sizes, verdict
from sd3deploy.memory.capacity import Capacity
from sd3deploy.memory.estimate import Setup, constants, estimate

__all__ = ["alone", "lack"]


def alone(capacity: Capacity) -> Capacity:
    """The same machine with nothing else in its memory."""
    usable = max(0, capacity.total - constants(capacity.kind if capacity.kind != "unknown" else "cuda").context)
    return replace(capacity, usable=usable if capacity.total else 0, others=0, ram_usable=capacity.ram_total)


def lack(model: Path, encoder: Choice, device: Device, capacity: Capacity, edge: int) -> Finding | None:
    """What is missing for a picture of `edge` × `edge` px, with the remedy; None where it fits, or nobody knows.

    One part at a time on the device (model offload), which is the least that still computes at full speed.
    """
    try:
        weights = sizes.read_model(model)
    except (SettingError, ImportError):  # what is wrong with it is said elsewhere
        return None
    kind = capacity.kind if capacity.kind != "unknown" else device.backend
    dtype, offload = device.compute_dtype, "none" if kind == "cpu" else "model"
    setup = Setup(weights, encoder, kind=kind, dtype=dtype, compute=dtype, product=device.product_dtype, width=edge, height=edge,
                  offload=offload, wide_vae=dtype == "float16")  # fmt: skip
    judged = verdict.judge(estimate(setup), capacity)
    if judged.answer != "no":
        return None
    change = verdict.cheapest(setup, capacity, choices.suitable(device))
    remedy = change.sentence if change else messages.text("memory.nothing")
    return seen("memory-too-small", {"verdict": judged.sentence, "encoder": encoder.name, "model": weights.name, "remedy": remedy})
