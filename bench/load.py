"""Load: T5 from its source and from the cache, seconds and peak memory, ours beside plain transformers, bitsandbytes and SDNQ.

Full shapes write 9.5 GB of random weights and 5 GB of copies to a temporary folder and take a quarter of an hour on a CPU. The
environment variable SD3DEPLOY_BENCH_T5 names a model folder with full shapes that is there already; nothing in it is changed. Each load
has a process of its own, in which libraries are loaded and used before the clock starts (`--small`: one process for all, and tiny shapes).
The source lies in the system's memory, as far as there is room; "cold" is a copy of which nothing does.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from bench import _memory, _weights
from bench._process import answer
from bench._ways import Job, device, done, quantized_copy

__all__ = ["judged", "run"]

FOUR_BIT = ("fp4", "nf4")
FROM_CACHE = ("ours, from the cache", "load_file", "raw read", "raw read, thrown away")
RESIDENT = 2.70e9  # bytes
SDNQ_SHARE = 0.75  # of SDNQ's bytes, which leave `wo` in 16 bit
SOURCE_PEAK, CACHE_PEAK = 600e6, 300e6  # bytes above what is resident


def run(small: bool = False, four_bit: Sequence[str] = FOUR_BIT, times: int | None = None) -> dict[str, Any]:
    """{"machine": …, "from_source": {row: …}, "from_cache": {"warm" or "cold": {row: …}}, "wanted": {line: {…, "met": bool}}}.

    Rows are medians over processes: of the cache `times` (5; small: 1), from the source as many as time allows. See bench/_ways.py for
    what their columns mean; "above_resident" is the growth of the process at its peak beyond what stays.
    """
    times = times or (1 if small else 5)
    shape = _weights.SMALL if small else _weights.FULL
    with _weights.orderly(), tempfile.TemporaryDirectory(prefix="sd3deploy-bench-") as place, _weights.weights(shape) as folder:
        children = Children(None if small else Path(place))
        source = _from_source(str(folder), Path(place), children, four_bit, 1 if small else 3)
        cache = _from_cache(str(folder), Path(place), children, four_bit[0], times)
    shapes = "small: what is wanted is meant for T5-XXL's" if small else "T5-XXL"
    result = {"machine": _machine(), "shapes": shapes, "from_source": source, "from_cache": cache}
    return result | {"wanted": judged(result)}


def _from_source(folder: str, place: Path, children: Children, four_bit: Sequence[str], times: int) -> dict[str, Any]:
    """Peers and ours by turns, so that what else the machine does meets all of them. The copies of the last turn stay in `place`."""
    jobs = [
        *(Job("transformers + bitsandbytes", choice, folder) for choice in four_bit),
        *(Job("ours", choice, folder) for choice in four_bit),
        *(Job("ours, written behind", choice, folder, str(place / choice)) for choice in four_bit),
        Job("ours", "q5", folder),
        Job("SDNQ", "uint4", folder),
        Job("from_pretrained", "bf16", folder),
        Job("ours", "bf16", folder),
    ]
    once = {"transformers + bitsandbytes", "from_pretrained", "ours, written behind"}  # minutes each, or judged by nothing
    files = sorted(Path(folder, "text_encoder_3").glob("*.safetensors"))
    found: dict[str, list[dict[str, Any]]] = {}
    for turn in range(times):
        for job in jobs:
            if turn == 0 or (job.way not in once and job.choice in (*four_bit, "q5", "uint4")):
                _memory.read_through(files)
                found.setdefault(f"{job.way} {job.choice}", []).append(children.do(job))
    return {name: medians(rows) for name, rows in found.items()}


def _from_cache(folder: str, place: Path, children: Children, choice: str, times: int) -> dict[str, Any]:
    """The same copy in each way by turns, cold and warm."""
    copy = quantized_copy(str(place / choice))
    found: dict[str, Any] = {"bytes_of_the_file": copy.stat().st_size, "warm": {}, "cold": {}}
    dropped = True
    for _ in range(times):
        for way in FROM_CACHE:
            for state in ("cold", "warm"):
                if state == "cold":
                    dropped &= _memory.drop([copy])
                else:
                    _memory.read_through([copy])
                row = children.do(Job(way, choice, folder, str(place / choice)), state)
                if way == FROM_CACHE[0] and not row["cached"]:
                    raise RuntimeError("the quantized copy was not used")
                found[state].setdefault(way, []).append(row)
    for state in ("warm", "cold"):
        found[state] = {way: medians(rows) for way, rows in found[state].items()}
    found["cold_is_cold"] = dropped if dropped else "no: this system keeps the file in memory whatever it is asked"
    return found


def medians(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """One row of several; of bytes at the peak the most."""
    row: dict[str, Any] = {"processes": len(rows)}
    for key, value in rows[0].items():
        values = [other[key] for other in rows]
        middle = statistics.median if isinstance(value, float) else statistics.median_low  # bytes stay whole
        row[key] = max(values) if "peak" in key else middle(values)
    for key in ("peak", "peak_anonymous"):
        if key in row:
            row[f"{key}_above_resident"] = row[key] - row["bytes"]
    return row


class Children:
    """Does jobs in processes of their own, whose temporary files lie in `place`, or all of them in this one (None)."""

    def __init__(self, place: Path | None) -> None:
        self.place = place

    def do(self, job: Job, note: str = "") -> dict[str, Any]:
        """The result of a job; a line about it goes to stderr, for whoever waits. Raises RuntimeError with what the process said."""
        row = answer("bench.load", asdict(job), self.place) if self.place else done(job)
        print(f"  … {job.way} {job.choice} {note}: {row}", file=sys.stderr, flush=True)
        return row


def _machine() -> dict[str, Any]:
    libraries = {name: metadata.version(name) for name in ("torch", "transformers", "bitsandbytes", "sdnq", "safetensors")}
    return {"device": device().name, "cores": os.cpu_count(), "python": platform.python_version(), **libraries}


# What is wanted of it


def judged(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Each promise as a line: what was found, what is wanted, whether that is met.

    A mapped file is no loaded one: times from the cache are those until every page has been touched, and they are compared with ways that
    end with all of it in memory, too. The lines with "thrown_away" compare with a read into one buffer of 16 MiB, after which nothing is.
    """
    source, warm, cold = result["from_source"], result["from_cache"]["warm"], result["from_cache"]["cold"]
    ours, file, raw, thrown_away = FROM_CACHE
    cached, sdnq = warm[ours]["touched_s"], source["SDNQ uint4"]["s"]
    four_bit = [choice for choice in FOUR_BIT if f"ours {choice}" in source]
    first = four_bit[0]
    lines = {
        "from_cache_vs_transformers_bnb": _least(source[f"transformers + bitsandbytes {first}"]["s"] / cached, 50),
        "from_cache_vs_sdnq": _least(sdnq / cached, 10),
        "q5_resident_vs_sdnq": _most(source["ours q5"]["bytes"] / source["SDNQ uint4"]["bytes"], SDNQ_SHARE),
    }
    for name, rows in (("warm", warm), ("cold", cold)):
        usable, touched = rows[ours]["s"], rows[ours]["touched_s"]
        lines[f"from_cache_vs_raw_read_{name}"] = _most(touched / rows[raw]["s"], 1.3)
        lines[f"from_cache_vs_load_file_{name}"] = _most(touched / rows[file]["touched_s"], 1.3)
        lines[f"usable_from_cache_vs_raw_read_thrown_away_{name}"] = _most(usable / rows[thrown_away]["s"], 1.3)
        lines[f"from_cache_vs_raw_read_thrown_away_{name}"] = _most(touched / rows[thrown_away]["s"], 1.3)
        lines[f"from_cache_peak_{name}"] = _bytes(rows[ours], CACHE_PEAK)
    for choice in four_bit:
        row = source[f"ours {choice}"]
        lines[f"{choice}_from_source_vs_transformers_bnb"] = _least(source[f"transformers + bitsandbytes {choice}"]["s"] / row["s"], 8)
        lines[f"{choice}_from_source_vs_sdnq"] = _least(sdnq / row["s"], 1.8)
        for name in (f"ours {choice}", f"ours, written behind {choice}"):
            lines[f"{name.replace(', ', '_').replace(' ', '_')}_peak"] = _bytes(source[name], SOURCE_PEAK)
        lines[f"{choice}_resident"] = {"bytes": row["bytes"], "wanted_at_most": RESIDENT, "met": row["bytes"] <= RESIDENT}
    return lines


def _least(ratio: float, wanted: float) -> dict[str, Any]:
    return {"ratio": round(ratio, 2), "wanted": wanted, "met": ratio >= wanted}


def _most(ratio: float, wanted: float) -> dict[str, Any]:
    return {"ratio": round(ratio, 2), "wanted_at_most": wanted, "met": ratio <= wanted}


def _bytes(row: dict[str, Any], wanted: float) -> dict[str, Any]:
    """Of all that is resident, mapped files included, and beside it of what is the process's alone."""
    above, alone = row["peak_above_resident"], row["peak_anonymous_above_resident"]
    return {"above_resident": above, "anonymous_above_resident": alone, "wanted_at_most": wanted, "met": above <= wanted}


def main(arguments: Iterable[str]) -> None:
    print(json.dumps(done(Job(**json.loads(next(iter(arguments)))))))


if __name__ == "__main__":
    main(sys.argv[1:])
