"""What real runs on this machine have shown: factors for the activations of each phase, kept in a file, one set for each device."""

from __future__ import annotations

import json
import os
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sd3deploy.memory.estimate import Estimate
from sd3deploy.memory.monitor import Run

__all__ = ["Corrections", "measured_factors"]

LEAST = 64 * 2**20  # bytes of estimated activation; below it a run measures noise, such as the memory of libraries loaded on the way
RANGE = (0.5, 3.0)  # one run does not talk the estimate out of more than that


def measured_factors(run: Run, found: Estimate) -> dict[str, float]:
    """Phase → activation in the run, relative to the estimate before any correction. Phases that a run can not tell about are left out."""
    factors = {}
    peaks, setup = run.peaks(), found.setup
    for phase, need in found.phases.items():
        plain = need.activation / setup.factors.get(phase, 1.0)
        if phase == "load" or phase not in peaks or plain < LEAST:
            continue
        peak, weights = peaks[phase], need.gpu - need.activation
        grown = peak["ram"] - run.level().ram if setup.kind == "cpu" else peak["allocated"] - weights
        if grown > 0:
            factors[phase] = min(max(grown / plain, RANGE[0]), RANGE[1])
    return factors


class Corrections:
    """Device → phase → factor, in the JSON file `path`. A file that can not be read or written is an empty one: it is a cache of facts."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()

    def of(self, device: str) -> dict[str, float]:
        """The factors for a device, by its name."""
        stored = self._read().get(device, {})
        least, most = RANGE
        return {phase: float(factor) for phase, factor in stored.items() if isinstance(factor, (int, float)) and least <= factor <= most}

    def learn(self, device: str, factors: Mapping[str, float]) -> None:
        """Keep what the latest run has shown."""
        if not factors:
            return
        with self._lock:
            stored = self._read()
            stored[device] = {**stored.get(device, {}), **{phase: round(factor, 3) for phase, factor in factors.items()}}
            self._write(stored)

    def forget(self) -> None:
        """Back to the estimates as published."""
        with self._lock:
            self.path.unlink(missing_ok=True)

    def _read(self) -> dict[str, Any]:
        try:
            stored = json.loads(self.path.read_text("utf-8"))
        except (OSError, ValueError):
            return {}
        return {name: factors for name, factors in stored.items() if isinstance(factors, dict)} if isinstance(stored, dict) else {}

    def _write(self, stored: Mapping[str, Any]) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            handle, scratch = tempfile.mkstemp(dir=self.path.parent, suffix=".json")
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump(stored, file, indent=1)
            try:
                os.replace(scratch, self.path)
            finally:
                Path(scratch).unlink(missing_ok=True)
        except OSError:
            pass
