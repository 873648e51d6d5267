"""Hundreds of changes of the text encoder with pictures in between, then several clients at once: nothing lost, nothing that grows.

    swaps     every choice that this machine can run, in turn, a picture after each: 200 changes
    clients   three that change the encoder while two generate: ten minutes

On the stand-in; on a real SD.Next where SDNEXT_ROOT and SDNEXT_PYTHON say where it is. The model is the tiny one.
"""

from __future__ import annotations

import itertools
import math
import os
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import httpx

__all__ = ["COUNTERS", "run", "trend"]

SWAPS, SMALL_SWAPS = 200, 16
SETTLED = 50  # changes after which memory pools, caches and lazily imported modules are what they will be
CHANGING, GENERATING = 3, 2
MINUTES, SMALL_MINUTES = 10.0, 0.2
COUNTERS = ("rss", "descriptors", "threads", "maps")


def run(small: bool = False) -> dict[str, Any]:
    """Counters are those of the host's process: rss in bytes, the others in pieces. growth: from the first to the last change after the
    settling, as the fitted line has it; noise: twice the standard error of that; flat: growth is within noise.
    """
    with tempfile.TemporaryDirectory() as folder:
        host = _started(Path(folder))
        try:
            choices = _choices(host)
            return {
                "host": "real SD.Next" if "SDNEXT_ROOT" in os.environ else "stand-in",
                "choices": len(choices),
                "swaps": _swaps(host, choices, SMALL_SWAPS if small else SWAPS),
                "clients": _clients(host, choices, 60 * (SMALL_MINUTES if small else MINUTES)),
            }
        finally:
            host.stop()


def trend(rounds: Sequence[float]) -> dict[str, Any]:
    """Whether a counter grows: a line through its mean of each round of all choices. A round is one reading, because the choices differ in
    size. Fewer than four rounds show nothing: flat is None.
    """
    count = len(rounds)
    if count < 4:
        return {"growth": 0.0, "noise": 0.0, "flat": None, "first": rounds[0] if rounds else 0, "last": rounds[-1] if rounds else 0}
    slope, intercept = statistics.linear_regression(range(count), rounds)
    residuals = [value - (intercept + slope * number) for number, value in enumerate(rounds)]
    spread = math.sqrt(sum((number - (count - 1) / 2) ** 2 for number in range(count)))
    error = math.sqrt(sum(one * one for one in residuals) / (count - 2)) / spread
    growth, noise = slope * (count - 1), 2 * error * (count - 1)
    return {"growth": growth, "noise": noise, "flat": growth <= noise, "first": rounds[0], "last": rounds[-1]}


def _started(folder: Path) -> Any:
    from demo import environment, server

    real = "SDNEXT_ROOT" in os.environ
    python = Path(os.environ["SDNEXT_PYTHON"]) if real else None
    linked = environment.linked(folder / "venv", without=["bitsandbytes"], source=python.parent.parent if python else None)
    root = Path(os.environ["SDNEXT_ROOT"]) if real else server.STAND_IN
    data = server.data_folder(folder / "data", samples_save=False)
    return server.start(data, root=root, python=linked, timeout=600)


def _choices(host: Any) -> list[str]:
    """Those that this machine can run; all of them are loaded once, which installs what they need."""
    from sd3deploy.encoders.choices import CHOICES, HOST_DEFAULT

    names = []
    for choice in CHOICES:
        answer = host.client.post("/sdapi/v1/sd3/encoder", json={"encoder": choice.name})
        if answer.status_code == 200:
            names.append(choice.name)
        elif answer.json().get("body", {}).get("id") != "encoder.unsuitable":
            raise RuntimeError(f"{choice.name}: {answer.text[:500]}")
    _change(host, HOST_DEFAULT.name)
    return names


def _change(host: Any, name: str) -> None:
    found = host.post("/sdapi/v1/sd3/encoder", {"encoder": name})["encoder"]
    if found != name:
        raise RuntimeError(f"{found} in place of {name}")


def _picture(host: Any, seed: int) -> None:
    images = host.txt2img(seed=seed)["images"]
    if len(images) != 1:
        raise RuntimeError(f"{len(images)} pictures in place of one")


def _swaps(host: Any, choices: list[str], count: int) -> dict[str, Any]:
    """A failure ends nothing: it is counted, and the next change is tried."""
    readings: list[dict[str, int]] = []
    failures: Counter[str] = Counter()
    for number, name in zip(range(count), itertools.cycle(choices), strict=False):
        _tried(failures, partial(_change, host, name))
        _tried(failures, partial(_picture, host, number))
        readings.append(_counters(host.process.pid))
    settled = readings[min(SETTLED, count // 4) :]
    whole = [settled[start : start + len(choices)] for start in range(0, len(settled) - len(choices) + 1, len(choices))]
    rounds = {counter: [statistics.mean(one[counter] for one in part) for part in whole] for counter in COUNTERS}
    return {"changes": count, "pictures": count, "failures": dict(failures), **{name: trend(values) for name, values in rounds.items()}}


def _clients(host: Any, choices: list[str], seconds: float) -> dict[str, Any]:
    """What goes wrong is counted by what is said of it."""
    end = time.monotonic() + seconds
    before = _counters(host.process.pid)

    def client(works: Iterable[Callable[[], None]]) -> tuple[int, Counter[str]]:
        done, failures = 0, Counter[str]()
        for work in works:
            if time.monotonic() > end:
                break
            done += _tried(failures, work)
        return done, failures

    def changes(own: int) -> Iterator[Callable[[], None]]:
        return (partial(_change, host, name) for name in itertools.islice(itertools.cycle(choices), 2 * own, None))

    def pictures(own: int) -> Iterator[Callable[[], None]]:
        return (partial(_picture, host, seed) for seed in itertools.count(100_000 * own))

    with ThreadPoolExecutor(CHANGING + GENERATING) as pool:
        found = list(pool.map(client, [*map(changes, range(CHANGING)), *map(pictures, range(GENERATING))]))
    return {
        "minutes": seconds / 60,
        "changes": sum(done for done, _ in found[:CHANGING]),
        "pictures": sum(done for done, _ in found[CHANGING:]),
        "failures": dict(sum((failures for _, failures in found), Counter())),
        "before": before,
        "after": _counters(host.process.pid),
    }


def _tried(failures: Counter[str], work: Callable[[], None]) -> bool:
    try:
        work()
    except (RuntimeError, httpx.HTTPError) as error:
        answer = error.response.text[:300] if isinstance(error, httpx.HTTPStatusError) else ""
        failures[f"{type(error).__name__}: {error} {answer}"[:400]] += 1
        return False
    return True


def _counters(pid: int) -> dict[str, int]:
    """Of a process of this machine."""
    import psutil

    process = psutil.Process(pid)
    with process.oneshot():
        files = process.num_fds() if hasattr(process, "num_fds") else 0
        maps = len(process.memory_maps(grouped=False)) if hasattr(process, "memory_maps") else 0
        return {"rss": process.memory_info().rss, "descriptors": files, "threads": process.num_threads(), "maps": maps}
