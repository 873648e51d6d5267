"""What this process has loaded of what is installed, and whether that is still what lies on disk."""

from __future__ import annotations

import logging
import os
import sys
import time
from functools import cache
from pathlib import Path
from types import ModuleType

from sd3deploy import installed
from sd3deploy.vendored import canonicalize_name, same_version

__all__ = ["is_replaced", "loaded_version", "note", "real_module"]

_noted: dict[str, str] = {}  # distribution → the version of which this process has loaded its modules


def real_module(name: str) -> ModuleType | None:
    """A loaded module with a file. A namespace, such as an empty leftover folder makes, does not count."""
    module = sys.modules.get(name)
    return module if isinstance(module, ModuleType) and vars(module).get("__file__") else None


def loaded_version(name: str) -> str:
    """The version of a loaded module, "?" when it does not say, "" when it is not loaded."""
    module = real_module(name)
    if module is None:
        return ""
    # The host cuts torch.__version__; torch.version keeps the whole one.
    for holder in (sys.modules.get(f"{name}.version"), sys.modules.get(f"{name}._version"), module):
        value = vars(holder).get("__version__") if isinstance(holder, ModuleType) else None
        if isinstance(value, str):
            return str(value)
    return "?"


def is_replaced(name: str, module: str, version: str) -> bool:
    """True when what is loaded as `module` is not what lies on disk as version `version` of the distribution `name` ("": nothing does).

    What was installed before this process began is what was loaded, whatever `__version__` says: that of an editable install may lag
    behind, and that of a library may differ from its metadata for good. After that the version decides which was loaded: the one that a
    former refresh has noted, else the one that the module tells.
    """
    loaded = loaded_version(module)
    if not loaded or not version:
        return loaded != ""
    if installed.snapshot().get(canonicalize_name(name), ("", 0))[1] <= _started() * 1e9:
        return False
    known = _noted.get(canonicalize_name(name)) or (version if loaded == "?" else loaded)
    return not same_version(known, version)


def note(name: str, version: str) -> None:
    """Remember that what is loaded of a distribution is this version of it."""
    _noted[canonicalize_name(name)] = version


@cache
def _started() -> float:
    """When the program in this process began, in seconds since the epoch; 0 where that can not be told, and then every
    installation counts as later. The host restarts by exec, which keeps the process.
    """
    program = float(getattr(logging, "_startTime", 0))  # set when logging is imported, the host's first step; in ns since Python 3.13
    program = program / 1e9 if program > 1e12 else program
    try:
        if sys.platform == "linux":  # psutil counts from the boot, whose time Linux tells in whole seconds
            ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])  # proc(5): starttime
            return max(program, time.time() - (time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")))
        import psutil

        return max(program, psutil.Process().create_time())
    except Exception:  # not there, or a system that does not tell
        return program
