"""kill -9 in the middle of an install of bitsandbytes and of a repair of NumPy, ten moments each; two hosts on one environment.

    python -m bench.kills [--small]

A throw-away environment, the real install.py, the real pip; the wheels of bitsandbytes and NumPy come from the package index once.
Half of the kills take install.py alone, as when a server is killed: its pip goes on. The others take both, as a lack of memory may.
After each the next start is made twice: without any wheel, where it has to be right already or to name what to do, then with the
wheels, where everything has to be right. Two hosts: two starts at once, and two of which one is killed.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Scene", "killed", "run", "scenes", "together", "wrong"]

ROOT = Path(__file__).parents[1]
MOMENTS, SMALL_MOMENTS = 10, 2
PATIENCE = 600  # seconds: no start takes longer, or it hangs
NUMPY, OTHER_NUMPY, BITSANDBYTES = "2.1.2", "1.26.4", "0.50.2"


@dataclass(frozen=True)
class Scene:
    """An environment to which something has to be done. lab: of tests/deps_lab.py; start: the site folder as it is before the start."""

    name: str
    lab: Any
    start: Path

    @property
    def work(self) -> Path:
        """Where installs keep their lock and what they have moved out of the way."""
        return self.lab.site.parents[2] / ".sd3deploy"

    def reset(self) -> None:
        """As it was before the first start."""
        shutil.rmtree(self.work, ignore_errors=True)
        for entry in self.lab.site.iterdir():
            if not entry.is_symlink():
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        shutil.copytree(self.start, self.lab.site, dirs_exist_ok=True, copy_function=os.link)

    def launch(self, *, wheels: bool = True) -> subprocess.Popen[str]:
        """Begin install.py as the host runs it, in a session of its own. wheels: whether pip can have any."""
        from tests.deps_lab import clean

        where = self.lab.wheels if wheels else self.lab.folder / "nothing"
        extra = f"--no-index --no-compile --find-links {where}"
        environ = {**clean(), "PYTHONPATH": str(self.lab.folder), "PIP_EXTRA_ARGS": extra}
        command = [self.lab.python, str(ROOT / "install.py")]
        return subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environ, cwd=ROOT, start_new_session=True
        )

    def begin(self, *, wheels: bool = True) -> tuple[int, str]:
        """One whole start: its exit code, and what it says."""
        process = self.launch(wheels=wheels)
        said = process.communicate(timeout=PATIENCE)[1]
        return process.returncode, said.strip()


def run(small: bool = False) -> dict[str, Any]:
    """For each scene: how many moments, after how many the next start without wheels was right already, after how many it named a remedy,
    and after how many the start with wheels left anything wrong. small: toys in place of the real packages, two moments.
    """
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for scene in scenes(Path(folder), small):
            rows = list(killed(scene, SMALL_MOMENTS if small else MOMENTS))
            found[scene.name] = {
                "moments": len(rows),
                "right_at_once": sum(row["offline"] == "right" for row in rows),
                "named_a_remedy": sum(row["offline"] not in ("right", "silent") for row in rows),
                "wrong": sum(bool(row["wrong"]) or row["offline"] == "silent" for row in rows),
                "rows": rows,
                "two_at_once": together(scene),
                "two_of_which_one_is_killed": together(scene, kill=True),
            }
    return found


def scenes(folder: Path, small: bool) -> Iterator[Scene]:
    """An install of bitsandbytes where all else is there, and a repair of a NumPy that lies over another one."""
    from tests.deps_lab import bare, clean, overlay, wheel

    lab = bare(folder)
    for name in ("accelerate", "protobuf", "sentencepiece", "packaging"):
        wheel(lab.wheels, name, "99.0")
    (folder / "constraints.txt").write_text(f"numpy=={NUMPY}\n", encoding="utf-8")
    wanted = (("numpy", NUMPY), ("numpy", OTHER_NUMPY), ("bitsandbytes", BITSANDBYTES))
    for name, version in wanted:
        if small:
            wheel(lab.wheels, name, version, size=40_000_000)
        else:
            command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary", ":all:", "-d", str(lab.wheels)]
            subprocess.run([*command, f"{name}=={version}"], check=True, env=clean())
    for name, version in wanted:
        (made,) = lab.wheels.glob(f"{name}-{version}-*.whl")
        shutil.unpack_archive(made, folder / f"{name}-{version}", "zip")
    base = folder / "base"
    for name in ("accelerate", "protobuf", "sentencepiece"):
        shutil.unpack_archive(lab.wheels / f"{name}-99.0-py3-none-any.whl", base, "zip")
    install, repair = folder / "install", folder / "repair"
    shutil.copytree(base, install)
    shutil.copytree(base, repair)
    for version in (OTHER_NUMPY, NUMPY):  # two descriptions, files of both
        source = folder / f"numpy-{version}"
        overlay(source, repair, *(entry.name for entry in source.iterdir()))
    source = folder / f"bitsandbytes-{BITSANDBYTES}"
    overlay(source, repair, *(entry.name for entry in source.iterdir()))
    yield Scene("install of bitsandbytes", lab, install)
    yield Scene("repair of NumPy", lab, repair)


def killed(scene: Scene, count: int) -> Iterator[dict[str, Any]]:
    """Kill a start at `count` moments, evenly over the time in which it changes something; say what the next starts make of it."""
    first, last = _span(scene)
    for number in range(count):
        alone, at, in_time = number % 2 == 0, 0.0, False
        while not in_time:  # a start that was over before its moment has shown how long it takes now
            at = first + (last - first) * (number + 0.5) / count
            scene.reset()
            began = time.monotonic()
            process = scene.launch()
            try:
                process.wait(at)
                last = max(first, time.monotonic() - began)
            except subprocess.TimeoutExpired:
                os.kill(process.pid, signal.SIGKILL) if alone else os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            in_time = process.returncode == -signal.SIGKILL
        yield {"at_s": round(at, 2), "killed": "install.py" if alone else "install.py and pip"} | after(scene)


def after(scene: Scene) -> dict[str, Any]:
    """What the next start without wheels says ("right": nothing was left to do, "silent": wrong without a word), and what is wrong after
    the start with wheels.
    """
    code, said = scene.begin(wheels=False)
    ids = said.partition("[")[2].partition("]")[0]
    offline = ids or ("right" if not wrong(scene) else "silent")
    code, said = scene.begin()
    return {"offline": offline, "wrong": "; ".join([*([f"exit code {code}: {said}"] if code else []), *wrong(scene)])}


def together(scene: Scene, *, kill: bool = False) -> str:
    """Two starts at once on one environment; one of them killed in the middle. "right", or what is wrong afterwards."""
    first, last = _span(scene) if kill else (0.0, 0.0)
    scene.reset()
    both = [scene.launch(), scene.launch()]
    if kill:
        try:
            both[0].wait((first + last) / 2)
        except subprocess.TimeoutExpired:
            os.killpg(both[0].pid, signal.SIGKILL)
    said = [process.communicate(timeout=PATIENCE)[1] for process in both]
    bad = [f"{text.strip()}" for process, text in zip(both, said, strict=True) if process.returncode not in (0, -signal.SIGKILL)]
    return "; ".join([*bad, *wrong(scene)]) or "right"


def wrong(scene: Scene) -> list[str]:
    """What is not as it should be on disk: by the hash of every file that a RECORD lists, not by the eyes of the code under test."""
    site, found = scene.lab.site, []
    for entry in sorted(site.iterdir()):
        if entry.name.startswith("~"):
            found.append(f"left behind: {entry.name}")
        elif entry.suffix == ".dist-info" and not entry.is_symlink():
            found += _against_record(site, entry)
    for name, version in (("numpy", NUMPY), ("bitsandbytes", BITSANDBYTES)):
        there = [entry.name for entry in site.glob(f"{name}-*.dist-info")]
        needed = name == "bitsandbytes" or (scene.start / name).exists()
        if there != ([f"{name}-{version}.dist-info"] if needed else []):
            found.append(f"{name}: {there}")
    found += [f"quarantined: {path.name}" for path in scene.work.glob("quarantine/*")]
    if (site / "numpy").exists():
        done = subprocess.run([scene.lab.python, "-c", "import numpy; print(numpy.__version__)"], capture_output=True, text=True)
        if done.stdout.strip() != NUMPY:
            found.append(f"NumPy: {(done.stdout + done.stderr).strip()[-200:]}")
    return found


def _against_record(site: Path, info: Path) -> list[str]:
    try:
        rows = list(csv.reader((info / "RECORD").read_text(encoding="utf-8").splitlines()))
    except OSError as error:
        return [str(error)]
    found, listed = [], set()
    for file, digest, _ in rows:
        listed.add(file)
        if digest:
            try:
                data = (site / file).read_bytes()
            except OSError as error:
                found.append(str(error))
                continue
            if base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode() != digest.partition("=")[2]:
                found.append(f"another content: {file}")
    for top in {file.partition("/")[0] for file in listed if file.endswith("/__init__.py")}:
        files = (path.relative_to(site).as_posix() for path in (site / top).rglob("*.py"))
        found += [f"not listed: {file}" for file in files if file not in listed]
    return found


def _span(scene: Scene) -> tuple[float, float]:
    """Seconds after its begin at which an undisturbed start first changes something, and at which it is over."""
    scene.reset()
    began = time.monotonic()
    process, first = scene.launch(), None
    while process.poll() is None:
        if first is None and (scene.work / "constraints.txt").exists():
            first = time.monotonic() - began
        time.sleep(0.005)
    said = process.communicate()[1]
    if process.returncode or wrong(scene):
        raise RuntimeError(f"{scene.name}, undisturbed: {said} {wrong(scene)}")
    return first or 0.0, time.monotonic() - began


if __name__ == "__main__":
    import json

    print(json.dumps(run(small="--small" in sys.argv), indent=2))
