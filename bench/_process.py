"""A measurement in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

__all__ = ["answer"]

ROOT = Path(__file__).resolve().parent.parent


def answer(module: str, question: dict[str, Any], place: Path) -> dict[str, Any]:
    """What a module of this package prints as its last line when it is asked with JSON. Its temporary files lie in `place`, so that they
    are gone with it even when the process is killed. Raises RuntimeError with what the process said.
    """
    command = [sys.executable, "-m", module, json.dumps(question)]
    environment = os.environ | {"TMPDIR": str(place)}
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    if ended.returncode != 0:
        raise RuntimeError(f"{question} failed: {ended.stderr.strip()[-2000:]}")
    return json.loads(ended.stdout.splitlines()[-1])
