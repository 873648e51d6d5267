"""How long install.py takes when all is satisfied, which stands before every start of the host, and how soon what fails or is stopped ends.

    python -m bench.install [--small]

In a throw-away environment that holds the real accelerate, sentencepiece, protobuf, packaging, bitsandbytes and NumPy,
linked from the running one where it has them, else installed by install.py itself. What fails, in an environment with nothing but pip.
"""

from __future__ import annotations

import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from demo.environment import linked

__all__ = ["run"]

ROOT = Path(__file__).parents[1]
LIMIT = 0.3  # seconds
# Whether NumPy's files are whole is looked at on the way.
_NUMPY = "import time; from sd3deploy import deps; b = time.perf_counter(); deps.diagnose_numpy(); print(1000 * (time.perf_counter() - b))"


def run(small: bool) -> dict:
    """Seconds of whole processes: median, slowest, bare interpreter; whether torch was imported; the look at NumPy's files; the ends of
    installations. small: 5 runs instead of 20.
    """
    with tempfile.TemporaryDirectory() as folder:
        python = linked(Path(folder) / "environment")
        first = _launch(python)  # installs what the running environment lacks
        if first.returncode:
            raise RuntimeError(first.stderr.strip())
        runs = 5 if small else 20
        ours = {**os.environ, "PYTHONPATH": str(ROOT)}
        seconds = [_timed(lambda: _launch(python)) for _ in range(runs)]
        empty = [_timed(lambda: subprocess.run([python, "-c", ""], check=True)) for _ in range(runs)]
        looked_at = [float(subprocess.check_output([python, "-c", _NUMPY], text=True, env=ours)) for _ in range(runs)]
        modules = subprocess.run([python, "-X", "importtime", str(ROOT / "install.py")], capture_output=True, text=True, cwd=ROOT).stderr
    return {
        "runs": runs,
        "median_s": round(statistics.median(seconds), 4),
        "slowest_s": round(max(seconds), 4),
        "interpreter_s": round(statistics.median(empty), 4),
        "limit_s": LIMIT,
        "torch_imported": any(line.rpartition("|")[2].strip() == "torch" for line in modules.splitlines()),
        "message": first.stderr.strip(),
        "numpy_looked_at_ms": round(statistics.median(looked_at), 1),
        **_ended(3 if small else 10),
    }


# In an environment with nothing but pip: seconds until the installation has ended, since its start, or since it was told to stop.
_ENDED = """
import time
from pathlib import Path
from sd3deploy.deps.stopping import stoppable
since = [time.perf_counter()]
def told():
    if not (stop := Path(os.environ["STOP"]).exists()):
        since[0] = time.perf_counter()
    return stop
started = time.perf_counter()
with stoppable(told):
    id = attempt("sd3toy")["id"]
ended = time.perf_counter()
print(json.dumps([id, ended - started, ended - since[0]]))
"""


def _ended(times: int) -> dict[str, float]:
    """Seconds, medians: until it is known that there is no network, and from a stop until an installer that hears nothing has ended."""
    from tests import deps_lab

    found: dict[str, list[float]] = {"no_network_s": [], "stopped_s": []}
    with tempfile.TemporaryDirectory() as place, socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor(1) as pool:
        lab, stop = deps_lab.bare(Path(place)), Path(place) / "stop"
        silent = f"--index-url http://127.0.0.1:{server.getsockname()[1]}/simple --timeout 3600"
        for _ in range(times):
            id, seconds, _ = lab.json(_ENDED, EXTRA=deps_lab.NOWHERE, STOP=str(stop))
            found["no_network_s"].append(_of(id, "deps.no_network", seconds))
            stopped = pool.submit(lab.json, _ENDED, EXTRA=silent, STOP=str(stop))
            connection, _ = server.accept()  # pip waits for the first word of it
            stop.touch()
            id, _, seconds = stopped.result()
            found["stopped_s"].append(_of(id, "deps.cancelled", seconds))
            connection.close()
            stop.unlink()
    return {name: round(statistics.median(values), 3) for name, values in found.items()}


def _of(id: str, expected: str, seconds: float) -> float:
    if id != expected:
        raise RuntimeError(f"{id} instead of {expected}")
    return seconds


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
    print(f"  the look at NumPy   {result['numpy_looked_at_ms']:7.0f} ms")
    print(f"  no network          {result['no_network_s'] * 1000:7.0f} ms")
    print(f"  stopped             {result['stopped_s'] * 1000:7.0f} ms")
    print(f"  torch imported      {'yes' if result['torch_imported'] else 'no':>7}")
    return int(result["median_s"] >= LIMIT or result["torch_imported"])


if __name__ == "__main__":
    sys.exit(main())
