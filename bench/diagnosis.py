"""Diagnosis: how fast logs are read and secrets taken out, what an error costs while the server runs, what the commands take.

Logs of 300 MB are made on the spot (`--small`: 5 MB): healthy with a failure every now and then, the same in UTF-16, and nothing but one
failure.
"""

from __future__ import annotations

import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

__all__ = ["run"]

ROOT = Path(__file__).resolve().parent.parent
LOGS = ROOT / "tests" / "logs"

CHILD = """
import json, sys, time
from sd3deploy.diagnosis import logfile, matcher
started = time.perf_counter()
found = matcher.read(logfile.blocks(sys.argv[1]))
seconds = time.perf_counter() - started
used = [int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")]
print(json.dumps([seconds, used[0] / 1024, len(found)]))
"""


def run(small: bool = False) -> dict[str, Any]:
    """{"reading": {kind of log: {seconds, mb_per_second, peak_mb, findings}}, "an_error_ms": …, "installed_ms": …, "redacting": …,
    "commands_s": …}; medians.
    """
    times = 3 if small else 20
    return {
        "reading": reading(5e6 if small else 300e6),
        "an_error_ms": an_error(3 if small else 30),
        "installed_ms": installed(times),
        "redacting": redacting(100_000 if small else 1_000_000),
        "commands_s": commands(1 if small else 5),
    }


def redacting(size: int) -> dict[str, Any]:
    """The kind of hard text that takes longest, in seconds for `size` characters, and how many times as long as for a fifth of them: 5
    where time grows with the length alone.
    """
    from sd3deploy.redact import Redactor
    from tests.test_redact import HARD

    redact = Redactor()

    def seconds(kind: str, length: int) -> float:
        text = HARD[kind] * (length // len(HARD[kind]))
        started = time.process_time()
        redact(text)
        return time.process_time() - started

    found = {kind: seconds(kind, size) for kind in HARD}
    growth = {kind: found[kind] / max(seconds(kind, size // 5), 1e-6) for kind in HARD if found[kind] > 0.1}
    slowest = max(found, key=lambda kind: found[kind])
    return {"characters": size, "slowest": slowest, "seconds": found[slowest], "most growth": max(growth.values(), default=0.0)}


def commands(times: int) -> dict[str, float]:
    """Whole processes in this environment, verify on the tiny model: seconds."""
    from sd3deploy import tiny_sd3

    words = {"verify": ["verify", "--model", str(tiny_sd3.ensure())], "verify --quick": ["verify", "--quick"], "doctor": ["doctor"]}
    found = {}
    for name, arguments in words.items():
        taken = []
        for _ in range(times):
            started = time.perf_counter()
            subprocess.run([sys.executable, "-m", "sd3deploy", *arguments], cwd=ROOT, capture_output=True)
            taken.append(time.perf_counter() - started)
        found[name] = statistics.median(taken)
    return found


def reading(size: float) -> dict[str, Any]:
    """Each log in a process of its own, because the peak of memory only grows."""
    from sd3deploy.diagnosis import logfile

    quiet = "".join(logfile.blocks(LOGS / "healthy.log.gz")).splitlines(keepends=True)
    failure = (LOGS / "attention-file.log").read_text(encoding="utf-8")
    draw = random.Random(1)
    parts = ["".join(draw.choices(quiet, k=2000)) for _ in range(20)]
    kinds = {
        "healthy, some failures": ("utf-8", lambda: draw.choice(parts) + (failure if draw.random() < 0.1 else "")),
        "the same in UTF-16": ("utf-16-le", lambda: draw.choice(parts) + (failure if draw.random() < 0.1 else "")),
        "one failure over and over": ("utf-8", lambda: failure),
    }
    found = {}
    for name, (encoding, make) in kinds.items():
        with tempfile.TemporaryDirectory(prefix="sd3deploy-bench-") as folder:
            path = Path(folder) / "sdnext.log"
            with open(path, "w", encoding=encoding) as file:
                written = 0.0
                while written < size:
                    text = make()
                    file.write(text)
                    written += len(text) * (2 if encoding.startswith("utf-16") else 1)
            done = subprocess.run([sys.executable, "-c", CHILD, str(path)], cwd=ROOT, capture_output=True, text=True, check=True)
        seconds, peak, findings = json.loads(done.stdout)
        found[name] = {"seconds": seconds, "mb_per_second": round(size / 1e6 / seconds), "peak_mb": round(peak), "findings": findings}
    return found


def an_error(times: int) -> dict[str, float]:
    """What an exception costs that a rule knows, and one that none does: every rule is asked, in a text of 60 lines."""
    from sd3deploy.diagnosis import matcher

    known = (LOGS / "attention-console.log").read_text(encoding="utf-8")
    known = known[known.index("Traceback") :]
    nobody = known.replace("too many values to unpack", "the moon is full")
    return {"known": _ms(lambda: matcher.diagnose(known), times), "unknown": _ms(lambda: matcher.diagnose(nobody), times)}


def installed(times: int) -> float:
    """Reading the descriptions of everything that is installed."""
    from sd3deploy.diagnosis import installed

    return _ms(lambda: installed.read_installed(), times)


def _ms(work: Any, times: int) -> float:
    work()
    found = []
    for _ in range(times):
        started = time.perf_counter()
        work()
        found.append((time.perf_counter() - started) * 1e3)
    return statistics.median(found)
