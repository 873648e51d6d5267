"""How much memory there is: of the device and in RAM, and how much of it this process may still take."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sd3deploy.device import Device
from sd3deploy.memory.estimate import constants

__all__ = ["GIB", "Capacity", "card", "read_capacity", "read_free"]

GIB = 2**30


@dataclass(frozen=True)
class Capacity:
    """All in bytes.

    kind: cuda, rocm, xpu, mps, cpu, or unknown where the device tells nothing. total: of the device. usable: what the tensors of this
    process may take there, with what they take already. others: what other programs hold. ram_total, ram_usable: the same for RAM;
    0: not known. unified: device and RAM are the same memory. spills: beyond `usable` the driver takes RAM, and everything
    gets ten times slower (Windows).
    """

    kind: str
    name: str = ""
    total: int = 0
    usable: int = 0
    others: int = 0
    ram_total: int = 0
    ram_usable: int = 0
    unified: bool = False
    spills: bool = False


def card(gib: float, ram_gib: float = 0) -> Capacity:
    """A CUDA card of that many GiB with nothing else on it, for questions about a machine that is not this one."""
    total, ram = int(gib * GIB), int(ram_gib * GIB)
    return Capacity("cuda", f"{gib:g} GB", total, max(0, total - constants("cuda").context), 0, ram, ram)


def read_capacity(device: Device, *, fraction: float = 0.0, in_ram: int = 0, torch: Any = None) -> Capacity:
    """The capacity of this machine now. fraction: the host's limit for this process (its cuda_mem_fraction), 0 for none.
    in_ram: bytes of the model that are in RAM already, and can be used again. torch: the library, for tests.
    """
    if torch is None:
        import torch
    ram_total, ram_free = _ram()
    ram_usable = min(ram_total, ram_free + in_ram)
    kind = {"ipex": "xpu"}.get(device.backend, device.backend)
    if kind in ("cpu", "openvino"):
        return Capacity("cpu", device.name, ram_total=ram_total, ram_usable=ram_usable)
    found = _FACTS.get(kind, _none)(torch, device.torch)
    if found is None:
        return Capacity("unknown", device.name, ram_total=ram_total, ram_usable=ram_usable)
    free, total, own = found
    usable = free + own
    others = max(0, total - free - own - constants(kind).context)
    if fraction > 0:
        usable = min(usable, int(total * fraction))
    spills = sys.platform == "win32" and kind in ("cuda", "rocm", "zluda")
    return Capacity(kind, device.name, total, usable, others, ram_total, ram_usable, kind == "mps", spills)


def read_free(device: Device, torch: Any = None) -> tuple[int, int | None]:
    """What another process could take now, in bytes: of RAM, and of the device; None for one that has no memory of its own, or that does
    not tell. torch: the library, for tests.
    """
    if torch is None:
        import torch
    kind = {"ipex": "xpu"}.get(device.backend, device.backend)
    found = None if kind == "mps" else _FACTS.get(kind, _none)(torch, device.torch)
    return _ram()[1], found[0] if found else None


# Each gives (free, total, what the tensors of this process hold), or None where the device does not tell.


def _cuda(torch: Any, device: str) -> tuple[int, int, int] | None:
    free, total = torch.cuda.mem_get_info(device)  # makes the context of this process if there is none yet: it is no longer free
    return free, total, torch.cuda.memory_reserved(device)


def _xpu(torch: Any, device: str) -> tuple[int, int, int] | None:
    own = torch.xpu.memory_reserved(device)
    if hasattr(torch.xpu, "mem_get_info"):
        free, total = torch.xpu.mem_get_info(device)
    else:  # before torch 2.6 there is no telling what other programs hold
        total = torch.xpu.get_device_properties(device).total_memory
        free = total - own
    return free, total, own


def _mps(torch: Any, device: str) -> tuple[int, int, int] | None:
    total, own = torch.mps.recommended_max_memory(), torch.mps.driver_allocated_memory()
    return max(0, total - own), total, own


def _none(torch: Any, device: str) -> None:
    return None


_FACTS = {"cuda": _cuda, "rocm": _cuda, "zluda": _cuda, "xpu": _xpu, "mps": _mps}


def _ram() -> tuple[int, int]:
    """Total and available, within the limit of a container, which psutil does not see."""
    import psutil

    memory = psutil.virtual_memory()
    limit, used = _container()
    return min(memory.total, limit), max(0, min(memory.available, limit - used))


def _container(root: Path = Path("/sys/fs/cgroup")) -> tuple[int, int]:
    """The limit of a Linux container (control groups, version 2 or 1) and what is used of it but for cached files."""
    for limit, usage, cached in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),
    ):
        try:
            most, used = int((root / limit).read_text()), int((root / usage).read_text())
            stat = dict(line.split() for line in (root / limit).with_name("memory.stat").read_text().splitlines())
            return most, max(0, used - int(stat.get(cached, 0)))
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return sys.maxsize, 0
