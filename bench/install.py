"""How long install.py takes when all is satisfied: it stands between the user and every full start of the host.

    python -m bench.install [--small]

In a throw-away environment that holds the real accelerate, sentencepiece, protobuf, packaging, bitsandbytes and NumPy,
linked from the running one where it has them, else installed by install.py itself.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from demo.environment import linked

__all__ = ["run"]

ROOT = Path(__file__).parents[1]
LIMIT = 0.3  # seconds


def run(small: bool) -> dict:
    """Seconds of whole processes: median, slowest, bare interpreter; whether torch was imported. small: 5 runs instead of 20."""
    with tempfile.TemporaryDirectory() as folder:
        python = linked(Path(folder) / "environment")
        first = _launch(python)  # installs what the running environment lacks
        if first.returncode:
            raise RuntimeError(first.stderr.strip())
        runs = 5 if small else 20
        seconds = [_timed(lambda: _launch(python)) for _ in range(runs)]
        empty = [_timed(lambda: subprocess.run([python, "-c", ""], check=True)) for _ in range(runs)]
        modules = subprocess.run([python, "-X", "importtime", str(ROOT / "install.py")], capture_output=True, text=True, cwd=ROOT).stderr
    return {
        "runs": runs,
        "median_s": round(statistics.median(seconds), 4),
        "slowest_s": round(max(seconds), 4),
        "interpreter_s": round(statistics.median(empty), 4),
        "limit_s": LIMIT,
        "torch_imported": any(line.rpartition("|")[2].strip() == "torch" for line in modules.splitlines()),
        "message": first.stderr.strip(),
    }


def _launch(python: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [python, str(ROOT / "install.py")], capture_output=True, text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": ""}
    )


def _timed(call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main() -> int:
    """Print the table; 1 when the promise is not kept."""
    result = run("--small" in sys.argv)
    print(f"install.py, all satisfied, {result['runs']} whole processes")
    print(f"  median              {result['median_s'] * 1000:7.0f} ms   (limit {LIMIT * 1000:.0f} ms)")
    print(f"  slowest             {result['slowest_s'] * 1000:7.0f} ms")
    print(f"  a bare interpreter  {result['interpreter_s'] * 1000:7.0f} ms")
    print(f"  torch imported      {'yes' if result['torch_imported'] else 'no':>7}")
    return int(result["median_s"] >= LIMIT or result["torch_imported"])


if __name__ == "__main__":
    sys.exit(main())
