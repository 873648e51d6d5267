#!/usr/bin/env python3
"""Everything that a developer runs: `python3 dev.py demo | test | bench | mutants | pictures | docs | lint | release`, on a
fresh machine too.

The first call makes a virtual environment in `.venv` and fills it from demo/requirements.txt; later calls find it ready.
`test --newest` has a second one in `.venv-newest`: the host's libraries are the newest that the registry has today, all else is as pinned.
Standard library only.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent
REQUIREMENTS = ROOT / "demo" / "requirements.txt"
IN_VENV = Path("Scripts/python.exe" if os.name == "nt" else "bin/python")
VENV = ROOT / ".venv"
PYTHON = VENV / IN_VENV
NEWEST = ROOT / ".venv-newest"
# The host moves these up with its releases; what they need in turn comes with them.
MOVING = ("torch", "transformers", "diffusers", "accelerate", "bitsandbytes", "sdnq", "peft", "huggingface_hub", "safetensors")
# What the libraries decide about: the tests that the newest ones have to pass. The rest is about the host or about us.
OF_LIBRARIES = ("containers", "deployment", "encoders", "folder", "forms", "guards", "handover", "identity", "memory_estimate",
                "memory_truth", "quality", "refresh", "tiny_sd3", "weights")  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(prog="dev.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("demo", add_help=False, help="the stand-in host, from nothing to an image with a 4-bit T5: demo --help")
    commands.add_parser("test", add_help=False, help="all tests; what follows goes to pytest. test --newest: with the newest libraries")
    commands.add_parser("bench", add_help=False, help="the numbers of the pages: bench [NAME] [--small] [--json FILE] | --list")
    commands.add_parser("mutants", add_help=False, help="which changed lines no test notices: mutants [PATH …] [--minutes N]")
    commands.add_parser("pictures", add_help=False, help="the pictures of the pages, taken anew from the demo: pictures [--docs DIR]")
    commands.add_parser("docs", add_help=False, help="the tables of the pages that are made from data: docs [--check]")
    commands.add_parser("lint", add_help=False, help="ruff and pyright")
    commands.add_parser("release", add_help=False, help="version, changelog, tag, and a zip without tests: release X.Y.Z")
    args, rest = parser.parse_known_args()
    if args.command == "test" and "--newest" in rest:
        return newest([word for word in rest if word != "--newest"])
    prepare()
    return {work.__name__: work for work in (demo, test, bench, mutants, pictures, docs, lint, release)}[args.command](rest)


def demo(rest: list[str]) -> int:
    return run("-m", "demo", *rest)


def test(rest: list[str]) -> int:
    """pytest on two processes; tests of one group, such as those that share a server, stay together."""
    if os.environ.get("CI") == "true":
        browser()
    return run("-m", "pytest", *spread(rest), *rest)


def newest(rest: list[str]) -> int:
    """The tests of what the libraries decide about, or those that are named, with the newest libraries; ends with their versions."""
    python = prepare_newest()
    named = any((ROOT / word.partition("::")[0]).exists() for word in rest)
    files = [] if named else sorted(str(file) for name in OF_LIBRARIES for file in ROOT.glob(f"tests/test_{name}*.py"))
    code = run("-m", "pytest", *spread(rest), *rest, *files, python=python)
    found = versions(python)
    print("with", ", ".join(f"{name} {found[name.replace('_', '-')]}" for name in MOVING), flush=True)
    return code


def spread(rest: list[str]) -> list[str]:
    chosen = any(word.startswith("-n") or word == "no:xdist" for word in rest)
    return [] if chosen else ["-n", "2", "--dist", "loadgroup"]


def browser() -> None:
    """Chromium, for the tests that look at the page: in CI they may not be skipped. Elsewhere the user's packages are the user's."""
    if any(map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))) or not shutil.which("apt-get"):
        return
    for words in (["update"], ["install", "--yes", "--no-install-recommends", "chromium"]):
        command = ["apt-get", "--quiet", "--quiet", *words]
        step(f"apt-get {words[0]}, for Chromium", lambda _, command=command: subprocess.run(command, check=True))


def bench(rest: list[str]) -> int:
    return run("-m", "bench", *rest)


def mutants(rest: list[str]) -> int:
    """cosmic-ray lies in a folder of its own: the packages of the environment stay as they are, and tests that make one see none of it."""
    site = VENV / "mutants" / "site"
    if not site.exists():
        made = site.with_name("part")
        shutil.rmtree(made, ignore_errors=True)
        subprocess.run([*pip(PYTHON), "install", "--quiet", "--target", str(made), "cosmic-ray==8.7.0"], check=True)
        made.rename(site)
    return run(".ci/mutants.py", "--site", str(site), *rest)


def pictures(rest: list[str]) -> int:
    return run("-m", "demo.pictures", *rest)


def docs(rest: list[str]) -> int:
    return run("-m", "publish.pages", *rest)


def release(rest: list[str]) -> int:
    return run("-m", "publish.release", *rest)


def lint(rest: list[str]) -> int:
    return max(run("-m", "ruff", "check", *(rest or ["."])), run("-m", "pyright", *rest))


def run(*words: str, python: Path = PYTHON) -> int:
    """Run Python of the environment in the root of the repository. Returns its exit code."""
    try:
        return subprocess.call([str(python), *words], cwd=ROOT)
    except KeyboardInterrupt:
        return 130


def prepare() -> None:
    """Make `.venv` unless it fits the requirements already. Ends the program with a remedy when that fails."""
    if filled(VENV):
        return
    started = begin(VENV, "about 3 GB")
    torch = next(line for line in REQUIREMENTS.read_text().splitlines() if line.startswith("torch=="))
    step(f"[2/3] {torch}", lambda show: install(PYTHON, show, "-c", str(REQUIREMENTS), torch))
    step("[3/3] the other packages", lambda show: install(PYTHON, show, "--no-deps", "-r", str(REQUIREMENTS)))
    end(VENV, started)


def prepare_newest() -> Path:
    """Make `.venv-newest`, or bring it up to date: the registry is asked each time. Returns its interpreter.

    It shares no file with `.venv`: pip removes the files of an old version one by one, through links too.
    """
    python = NEWEST / IN_VENV
    fits = filled(NEWEST)
    started = time.monotonic() if fits else begin(NEWEST, "on Linux about 6 GB: the registry has PyTorch for graphics cards alone")
    step("[2/3] the newest of the host's libraries", lambda show: install(python, show, "--upgrade", *MOVING))
    if not fits:
        taken = versions(python)
        lines = [line for line in REQUIREMENTS.read_text().splitlines() if line and not line.startswith("#")]
        left = [line for line in lines if re.split(r"[ =;]", line)[0].replace("_", "-").lower() not in taken]
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "requirements.txt")
            file.write_text("\n".join(left))
            step("[3/3] the other packages", lambda show: install(python, show, "--no-deps", "-r", str(file)))
        end(NEWEST, started)
    return python


def versions(python: Path) -> dict[str, str]:
    """What is installed there: name → version."""
    done = subprocess.run([*pip(python), "list", "--format", "json"], capture_output=True, text=True, check=True)
    return {entry["name"].replace("_", "-").lower(): entry["version"] for entry in json.loads(done.stdout)}


def wanted() -> str:
    return hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()


def filled(folder: Path) -> bool:
    """Whether an environment was filled from the requirements of today."""
    stamp = folder / "requirements.sha256"
    return (folder / IN_VENV).exists() and stamp.exists() and stamp.read_text().strip() == wanted()


def begin(folder: Path, size: str) -> float:
    """Make the virtual environment, or keep a whole one to bring it up to date in place. Returns when that began."""
    if not (3, 10) <= sys.version_info[:2] <= (3, 13):
        sys.exit(f"Python {sys.version.split()[0]} is too {'old' if sys.version_info < (3, 10) else 'new'} for the libraries of the host. "
                 "Run this with Python 3.10 to 3.13, for example: python3.12 dev.py …")  # fmt: skip
    started = time.monotonic()
    python = folder / IN_VENV
    print(f"Preparing {folder} (once; some minutes and {size})", flush=True)
    if subprocess.run([*pip(python), "--version"], capture_output=True).returncode if python.exists() else True:
        shutil.rmtree(folder, ignore_errors=True)  # none, or half of one
        step("[1/3] virtual environment", lambda _: venv.EnvBuilder(with_pip=True, symlinks=os.name != "nt").create(folder))
    return started


def end(folder: Path, started: float) -> None:
    (folder / "requirements.sha256").write_text(wanted())
    print(f"Ready after {time.monotonic() - started:.0f} s", flush=True)


def pip(python: Path) -> list[str]:
    return [str(python), "-m", "pip", "--disable-pip-version-check", "--no-input"]


def step(title: str, work) -> None:
    """Do one step and say how long it took. On a terminal, `work` may show what it is at."""
    started = time.monotonic()
    live = sys.stdout.isatty()
    print(f"  {title} …", end="" if live else "\n", flush=True)

    def show(text: str) -> None:
        if live:
            print(f"\r\033[K  {title} … {text[:60]}", end="", flush=True)

    work(show)
    print(f"{chr(13) if live else ''}  {title}: {time.monotonic() - started:.0f} s{'' if not live else chr(27) + '[K'}", flush=True)


def install(python: Path, show, *words: str) -> None:
    """pip, line by line. Ends the program with the end of its output when it fails."""
    process = subprocess.Popen([*pip(python), "install", "--progress-bar", "off", *words], stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, text=True, encoding="utf-8", errors="replace")  # fmt: skip
    lines: list[str] = []
    found = 0
    for line in process.stdout or ():
        lines.append(line)
        if line.startswith("Collecting "):
            found += 1
            show(f"{found}: {line.split()[1]}")
        elif line.startswith("Installing collected"):
            show(f"writing {found} packages")
    if process.wait() != 0:
        sys.exit("".join(lines[-15:]) + "\npip could not install the packages. With a working connection, run the same command again.")


if __name__ == "__main__":
    sys.exit(main())
