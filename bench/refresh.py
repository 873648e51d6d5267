"""Refresh: how long a running server pauses after an install, with the whole stack loaded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

from demo.environment import linked

__all__ = ["run"]

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "bitsandbytes"
CALLS = 30

# In the new process: the host's order of imports, a real install, then refresh again and again.
CHILD = """
import json, statistics, sys
import process
calls = int(sys.argv[1])
process.boot()
modules = len(sys.modules)
process.pip({requirement!r})
from sd3deploy.refresh import refresh
first = refresh([{package!r}])
assert first.ok, first
again = [refresh([{package!r}]).seconds for _ in range(calls)]
print("RESULT", json.dumps({{
    "modules_loaded": modules,
    "first_call_s": first.seconds,
    "median_s": statistics.median([first.seconds, *again]),
    "slowest_later_call_s": max(again),
    "calls": 1 + calls,
    "steps": len(first.steps),
}}))
"""


def run(small: bool) -> dict:
    """Seconds of the first call after a real install (the import of the package included) and of all calls."""
    requirement = f"{PACKAGE}=={metadata.version(PACKAGE)}"
    with tempfile.TemporaryDirectory() as folder:
        python = linked(Path(folder) / "environment", without=[PACKAGE])
        path = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "no_restart")])
        environment = {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}
        child = CHILD.format(requirement=requirement, package=PACKAGE)
        command = [str(python), "-c", child, str(5 if small else CALLS)]
        result = subprocess.run(command, env=environment, capture_output=True, text=True)
    if result.returncode != 0:
        raise RuntimeError(f"the measured process failed: {result.stderr.strip()[-2000:]}")
    return json.loads(result.stdout.rpartition("RESULT")[2])


if __name__ == "__main__":
    from bench.__main__ import main

    sys.exit(main())
