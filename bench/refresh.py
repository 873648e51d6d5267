"""Refresh: how long a running server pauses after an install, with the whole stack loaded."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

from demo.environment import linked

__all__ = ["run"]

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "bitsandbytes"
PROCESSES = 5

# In a new process: the host's order of imports, a real install, the import of the package (which is the package's own time, and
# has to be paid with or without us), the refresh that has everything to do, and another that has nothing to do.
CHILD = """
import importlib, json, sys, time
import process
process.boot()
modules = len(sys.modules)
process.pip({requirement!r})
from sd3deploy.refresh import finders, refresh
finders.invalidate()
started = time.perf_counter()
importlib.import_module({package!r})
imported = time.perf_counter() - started
first, again = refresh([{package!r}]), refresh([{package!r}])
assert first.ok and first.steps and not again.steps, (first, again)
print("RESULT", json.dumps([modules, imported, first.seconds, again.seconds, len(first.steps)]))
"""


def run(small: bool) -> dict:
    """Medians over processes, each with a real install: seconds of the package's import, of the refresh after it, of a second one."""
    rows = [measured() for _ in range(1 if small else PROCESSES)]
    modules, imported, first, again, steps = (statistics.median(column) for column in zip(*rows, strict=True))
    return {
        "processes": len(rows),
        "modules_loaded": modules,
        "import_of_the_package_s": imported,
        "refresh_s": first,
        "slowest_refresh_s": max(row[2] for row in rows),
        "refresh_with_nothing_to_do_s": again,
        "steps": steps,
    }


def measured() -> list[float]:
    """One process: modules loaded, the three times in seconds, the number of steps."""
    requirement = f"{PACKAGE}=={metadata.version(PACKAGE)}"
    with tempfile.TemporaryDirectory() as folder:
        python = linked(Path(folder) / "environment", without=[PACKAGE])
        path = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "no_restart")])
        environment = {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}
        child = CHILD.format(requirement=requirement, package=PACKAGE)
        result = subprocess.run([str(python), "-c", child], env=environment, capture_output=True, text=True)
    if result.returncode != 0:
        raise RuntimeError(f"the measured process failed: {result.stderr.strip()[-2000:]}")
    return json.loads(result.stdout.rpartition("RESULT")[2])


if __name__ == "__main__":
    from bench.__main__ import main

    sys.exit(main())
