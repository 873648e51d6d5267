"""Startup: what the extension adds to a start of the host, which modules it brings in, what hooks and idle threads cost after it.

In the stand-in, with its whole world loaded (torch, diffusers, gradio) and its page built, in processes of their own. Timed is all that
the host calls of ours on its way: preload.py, the script with everything that it imports, the panels, the settings, the API's routes.
Modules of the host that ours only loads earlier than the first model or picture would are timed for themselves, and so is the comparison
of the host with the contract, which is a part of the script's time. A full pass of Python's garbage collector goes over all that the host
has made and is due after so many allocations of all: where one falls into a call of ours, it is counted apart. The first process is left
out: it may compile what the others find compiled. What is said of hooks is measured as in bench/guards.py and bench/memory.py.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

__all__ = ["judged", "run"]

ROOT = Path(__file__).resolve().parent.parent
PROCESSES = 10
START, CONTRACT, HOOKS, IDLE = 0.15, 20, 1.0, 0.1  # s, ms, ms for each image, percent of a core
STEPS = 28  # of an image; SD3's usual
EARLIER = ("pipelines.generic", "pipelines.model_sd3", "modules.processing_diffusers", "modules.sd_hijack_te")  # of the host

# The host's own start, line by line as in its launch.py and webui.py, with a clock around each call that reaches a file of ours.
CHILD = """
import gc, importlib, json, os, pathlib, sys, threading, time
from collections import Counter

root, host, data, seconds, earlier = {root!r}, {host!r}, {data!r}, {seconds!r}, {earlier!r}
sys.path.insert(0, host)
os.chdir(host)
from demo import server
sys.argv = ["launch.py", "--skip-all", "--data-dir", data, "--port", str(server.free_port()), "--theme", "standard/black-teal"]
sys.path.remove(root)
for name in [name for name in sys.modules if name.partition(".")[0] in ("demo", "sd3deploy")]:
    del sys.modules[name]  # the host has none of ours yet

import installer
from modules import cmd_args, script_loading

taken, computed, brought = Counter(), Counter(), []
collected, begun, taken_by_collector = [0.0], [0.0], [0.0]


def collecting(phase, about):
    if about["generation"] == 2:
        begun[0] = time.perf_counter() if phase == "start" else begun[0]
        collected[0] += time.perf_counter() - begun[0]


gc.callbacks.append(collecting)


def timed(name, call):
    def inner(*args, **kwargs):
        before, started, cpu, full = set(sys.modules), time.perf_counter(), time.thread_time(), collected[0]
        try:
            return call(*args, **kwargs)
        finally:
            full = collected[0] - full
            taken[name] += time.perf_counter() - started - full
            computed[name] += time.thread_time() - cpu - full
            taken_by_collector[0] += full
            brought.extend(sorted(set(sys.modules) - before))

    return inner


parser = cmd_args.parser
installer.args, _ = parser.parse_known_args()
installer.read_options()
installer.extensions_preload = timed("preload", installer.extensions_preload)
installer.extensions_preload(parser)
installer.args = installer.parse_args(parser)
import launch
launch.args, launch.parser = installer.args, parser
brought.clear()  # what the host's own loader imports to read a preload.py
import webui
from modules import script_callbacks, scripts_manager

started = time.perf_counter()
for name in earlier:
    importlib.import_module(name)
earlier = time.perf_counter() - started
there = {{name.partition(".")[0] for name in sys.modules}}
script_loading.load_module = timed("script", script_loading.load_module)
webui.initialize()
ours = [entry for entry in scripts_manager.scripts_data if entry.path.startswith(data)]
assert ours, "the extension was not loaded"
for entry in ours:
    for name in ("show", "ui"):
        setattr(entry.script_class, name, timed("panels", getattr(entry.script_class, name)))
for name, entries in script_callbacks.callback_map.items():
    entries[:] = [entry._replace(callback=timed(name.removeprefix("callbacks_"), entry.callback)) for entry in entries]
webui.initialize = lambda: None
webui.webui()
time.sleep(1)
threads = [thread for thread in threading.enumerate() if thread.name.startswith("sd3-")]


def cpu():
    if sys.platform != "linux":
        return 0.0
    return sum(int(pathlib.Path(f"/proc/self/task/{{t.native_id}}/schedstat").read_text().split()[0]) for t in threads) / 1e9


before = cpu()
time.sleep(seconds)
idle = cpu() - before
result = {{"taken": taken, "computed": sum(computed.values()), "earlier": earlier, "there": sorted(there), "brought": sorted(set(brought))}}
result["collector"] = taken_by_collector[0]
result["contract"] = sys.modules["sd3deploy.webui.host.reach"].state.ms
result |= {{"threads": [t.name for t in threads], "idle_cpu_s": idle}}
print("RESULT", json.dumps(result), flush=True)
os._exit(0)
"""


def run(small: bool = False, processes: int | None = None) -> dict[str, Any]:
    """{"start_s": {part: s}, "start_total_s": …, "start_total_cpu_s": …, "collector_s": …, "contract_ms": …, "host_modules_earlier_s": …,
    "brought_in": {…}, "idle": {…}, "hooks_ms": {…}, "wanted": {line: {…, "met": bool}}}; medians over processes.
    """
    from bench import guards, memory

    processes = processes or (1 if small else PROCESSES)
    seconds = 2 if small else 5
    with tempfile.TemporaryDirectory(prefix="sd3deploy-bench-") as folder:
        extension = Path(folder) / "sd-extension-sd3"
        shutil.copytree(ROOT, extension, ignore=shutil.ignore_patterns(".*", "build", "__pycache__"))
        starts = [_start(extension, seconds) for _ in range(processes + 1)][1:]
    parts = {name: round(statistics.median(start["taken"][name] for start in starts), 4) for name in starts[0]["taken"]}
    brought = starts[0]["brought"]
    libraries = {name.partition(".")[0] for name in brought} - {*starts[0]["there"], "sd3deploy"} - set(sys.stdlib_module_names)
    medium = guards.run(small)["sd3_medium"]
    hooks = {
        "guards": medium["all_guards_short_prompt_us"] / 1e3,
        "estimate_and_verdict": memory.judging(3 if small else 30)["estimate_and_judge"],
        "marks_of_a_job": (STEPS + 5) * memory.watching(0.5)["mark_us"] / 1e3,
    }
    result = {
        "processes": processes,
        "start_s": parts,
        "start_total_s": round(statistics.median(sum(start["taken"].values()) for start in starts), 4),
        "start_total_cpu_s": round(statistics.median(start["computed"] for start in starts), 4),
        "collector_s": round(statistics.median(start["collector"] for start in starts), 4),
        "contract_ms": round(statistics.median(start["contract"] for start in starts), 2),
        "host_modules_earlier_s": round(statistics.median(start["earlier"] for start in starts), 4),
        "brought_in": {
            "modules": len(brought),
            "of_ours": sum(name.startswith("sd3deploy") for name in brought),
            "libraries": sorted(libraries),
        },
        "idle": {"threads": starts[0]["threads"], "percent_of_a_core": _percent(starts, seconds)},
        "hooks_ms": {name: round(value, 3) for name, value in hooks.items()} | {"together": round(sum(hooks.values()), 3)},
    }
    return result | {"wanted": judged(result)}


def _percent(starts: list[dict[str, Any]], seconds: float) -> float:
    return round(100 * statistics.median(start["idle_cpu_s"] for start in starts) / seconds, 4)


def _start(extension: Path, seconds: float) -> dict[str, Any]:
    """One start of the stand-in with the extension in that folder, and so many idle seconds after it."""
    from demo import server

    with tempfile.TemporaryDirectory(prefix="sd3deploy-bench-") as folder:
        data = server.data_folder(Path(folder) / "data", extension=extension)
        child = CHILD.format(root=str(ROOT), host=str(server.STAND_IN), data=str(data), seconds=seconds, earlier=EARLIER)
        environment = server.os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "HF_HOME": str(data / "hf")}
        environment |= {"SD_LOG": str(data / "sdnext.log"), "GRADIO_ANALYTICS_ENABLED": "False"}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)  # a user's second start finds compiled what the first one has compiled
        done = subprocess.run([sys.executable, "-c", child], env=environment, capture_output=True, text=True)
    if "RESULT" not in done.stdout:
        raise RuntimeError(f"the measured process failed: {(done.stdout + done.stderr).strip()[-2000:]}")
    return json.loads(done.stdout.rpartition("RESULT")[2])


def judged(result: dict[str, Any]) -> dict[str, Any]:
    """Each promise as a line: what was found, what is wanted, whether that is met."""
    start, hooks, idle = result["start_total_s"], result["hooks_ms"]["together"], result["idle"]["percent_of_a_core"]
    libraries, contract = result["brought_in"]["libraries"], result["contract_ms"]
    return {
        "start": {"s": start, "wanted_below": START, "met": start < START},
        "contract_checked": {"ms": contract, "wanted_below": CONTRACT, "met": contract < CONTRACT},
        "no_library_that_was_not_there": {"libraries": libraries, "met": not libraries},
        "hooks_of_an_image": {"ms": hooks, "wanted_below": HOOKS, "met": hooks < HOOKS},
        "idle": {"percent_of_a_core": idle, "wanted_below": IDLE, "met": idle < IDLE},
    }


if __name__ == "__main__":
    from bench.__main__ import main

    sys.exit(main())
