"""Where the memory goes while a model is loaded or a picture is made: ten readings a second, the phases marked, the peaks of each.

A thread reads while something runs, and there is none while nothing does. The allocator's own peak counters are read and never reset:
the host resets them and reports them (its memmon.py).
"""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from sd3deploy.device import Device

__all__ = ["HZ", "Monitor", "Reading", "Run", "reader"]

HZ = 10
_KEPT = 20


@dataclass(frozen=True)
class Reading:
    """Bytes. allocated, reserved: by tensors of this process on the device, and by torch for them. used: on the device by everybody.
    ram: of this process. allocated_peak, ram_peak: counters that only grow, until somebody else resets them; 0: there is none.
    """

    allocated: int = 0
    reserved: int = 0
    used: int = 0
    ram: int = 0
    allocated_peak: int = 0
    ram_peak: int = 0


def reader(device: Device, torch: Any = None) -> Callable[[], Reading]:
    """The function that reads this process and its device; a reading takes well below a millisecond (bench/memory.py)."""
    import psutil

    if torch is None:
        import torch
    process = psutil.Process()
    gpu = _GPU.get(device.torch.partition(":")[0])

    def read() -> Reading:
        memory = process.memory_info()
        on_device = gpu(torch, device.torch) if gpu else {}
        return Reading(**on_device, ram=memory.rss, ram_peak=_ram_peak(memory))

    return read


def _cuda(torch: Any, device: str) -> dict[str, int]:
    if not torch.cuda.is_initialized():
        return {}
    stats = torch.cuda.memory_stats_as_nested_dict(device)
    allocated, reserved = stats["allocated_bytes"]["all"], stats["reserved_bytes"]["all"]
    free, total = torch.cuda.mem_get_info(device)
    return {
        "allocated": allocated["current"],
        "reserved": reserved["current"],
        "used": total - free,
        "allocated_peak": allocated["peak"],
    }


def _xpu(torch: Any, device: str) -> dict[str, int]:
    stats = torch.xpu.memory_stats(device)
    allocated, reserved = stats.get("allocated_bytes.all.current", 0), stats.get("reserved_bytes.all.current", 0)
    return {"allocated": allocated, "reserved": reserved, "used": reserved, "allocated_peak": stats.get("allocated_bytes.all.peak", 0)}


def _mps(torch: Any, device: str) -> dict[str, int]:
    driver = torch.mps.driver_allocated_memory()
    return {"allocated": torch.mps.current_allocated_memory(), "reserved": driver, "used": driver}


_GPU = {"cuda": _cuda, "xpu": _xpu, "mps": _mps}


def _ram_peak(memory: Any) -> int:
    if hasattr(memory, "peak_wset"):  # Windows
        return memory.peak_wset
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@dataclass
class Run:
    """One load or one job. times: seconds since `started` (seconds since the epoch), one for each reading. marks: (seconds, phase, step)
    at which a phase, or a step of denoising, began. facts: what the run was about, as JSON-able values, such as the estimate.
    """

    number: int
    kind: str
    title: str
    started: float
    times: list[float] = field(default_factory=list)
    readings: list[Reading] = field(default_factory=list)
    marks: list[tuple[float, str, int]] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    outcome: str = "running"

    @property
    def phases(self) -> list[str]:
        """In the order in which they began."""
        return list(dict.fromkeys(phase for _, phase, _ in self.marks))

    def peaks(self) -> dict[str, dict[str, int]]:
        """Phase → the highest allocated, reserved, used and ram, in bytes. A peak between two readings counts where a counter has it."""
        found: dict[str, dict[str, int]] = {}
        before: Reading | None = None
        for at, reading in zip(self.times, self.readings, strict=True):
            phase = next((phase for begun, phase, _ in reversed(self.marks) if begun < at), self.phases[0] if self.marks else self.kind)
            peak = found.setdefault(phase, {"allocated": 0, "reserved": 0, "used": 0, "ram": 0})
            for name in peak:
                peak[name] = max(peak[name], getattr(reading, name))
            if before and reading.allocated_peak > before.allocated_peak:
                peak["allocated"] = max(peak["allocated"], reading.allocated_peak)
            if before and reading.ram_peak > before.ram_peak:
                peak["ram"] = max(peak["ram"], reading.ram_peak)
            before = reading
        return found

    def level(self) -> Reading:
        """The first reading: what was there before the run began."""
        return self.readings[0] if self.readings else Reading()

    @property
    def base(self) -> int:
        """Bytes of RAM that are not the model's, where the run was a job on a processor: what the server itself takes; else 0."""
        return 0 if self.facts.get("on_device", True) else max(0, self.level().ram - self.facts.get("weights", 0))

    def compared(self) -> dict[str, dict[str, int]]:
        """Phase → "expected" and "measured": the estimate and the peak of the same thing, in bytes. On a device that is what tensors took
        there, in RAM what the process took above `base`. Phases without an estimate are left out.
        """
        expected = self.facts.get("expected", {})
        on_device = self.facts.get("on_device", True)
        measured = {phase: peak["allocated"] if on_device else max(0, peak["ram"] - self.base) for phase, peak in self.peaks().items()}
        return {phase: {"expected": expected[phase], "measured": measured[phase]} for phase in measured if expected.get(phase)}

    def summary(self) -> dict[str, Any]:
        """As JSON-able values, without the readings."""
        seconds = self.times[-1] if self.times else 0.0
        return {
            "number": self.number,
            "kind": self.kind,
            "title": self.title,
            "started": self.started,
            "seconds": round(seconds, 3),
            "outcome": self.outcome,
            "phases": self.peaks(),
            "base": self.base,
            "compared": self.compared(),
            **self.facts,
        }

    def report(self) -> dict[str, Any]:
        """All of it as JSON-able values: `readings` are lists of numbers, one for each of `times`."""
        names = ("allocated", "reserved", "used", "ram")
        readings = {name: [getattr(reading, name) for reading in self.readings] for name in names}
        marks = [{"at": at, "phase": phase, "step": step} for at, phase, step in self.marks]
        return self.summary() | {"times": [round(at, 3) for at in self.times], "readings": readings, "marks": marks}


class Monitor:
    """Keeps the last twenty runs. One run at a time: what begins inside of a run is a phase of it."""

    def __init__(self, read: Callable[[], Reading] | None = None) -> None:
        self.read = read
        self.runs: deque[Run] = deque(maxlen=_KEPT)
        self.running: Run | None = None
        self._lock = threading.Lock()
        self._count = 0
        self._clock = 0.0

    @contextmanager
    def run(self, kind: str, title: str = "") -> Iterator[Run]:
        """Watch what is done inside. kind: "load" or "job". An error of it passes through; an error of ours is none of the caller's."""
        if self.running is not None:
            if kind == "load":
                self.mark("load")
            yield self.running
            return
        self._count += 1
        run = Run(self._count, kind, title, time.time())
        self._clock = time.perf_counter()
        self.running = run
        self.mark("load" if kind == "load" else "prepare")
        done = threading.Event()
        thread = threading.Thread(target=self._watch, args=(run, done), name="sd3-memory", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # no more threads: then there are readings at the marks alone
            thread = None
        try:
            yield run
            run.outcome = "done" if run.outcome == "running" else run.outcome
        except BaseException as error:
            run.outcome = type(error).__name__ if run.outcome == "running" else run.outcome
            raise
        finally:
            self._sample(run)
            self.running = None
            done.set()
            if thread:
                thread.join(1)
            self.runs.append(run)

    def mark(self, phase: str, step: int = 0) -> None:
        """A phase begins, or a step of it; a reading is taken right before. Outside of a run nothing happens."""
        run = self.running
        if run is None or (run.marks and run.marks[-1][1:] == (phase, step)):
            return
        self._sample(run)
        run.marks.append((time.perf_counter() - self._clock, phase, step))

    @property
    def last(self) -> Run | None:
        """The latest run that has ended."""
        return self.runs[-1] if self.runs else None

    def _watch(self, run: Run, done: threading.Event) -> None:
        while not done.wait(1 / HZ):
            self._sample(run)

    def _sample(self, run: Run) -> None:
        if self.read is None:
            return
        with self._lock:  # around the reading too: one from before a mark must not be stored behind it
            try:
                reading = self.read()
            except Exception:  # a driver that does not answer must not end a picture
                return
            run.times.append(time.perf_counter() - self._clock)
            run.readings.append(reading)
