#!/usr/bin/env python3
"""Everything that a developer runs: `python3 dev.py demo | test | bench | mutants | pictures | docs | lint | release`, on a
fresh machine too.

The first call makes a virtual environment in `.venv` and fills it from demo/requirements.txt; later calls find it ready.
Standard library only.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
REQUIREMENTS = ROOT / "demo" / "requirements.txt"
STAMP = VENV / "requirements.sha256"
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
PIP = [str(PYTHON), "-m", "pip", "--disable-pip-version-check", "--no-input"]


def main() -> int:
    parser = argparse.ArgumentParser(prog="dev.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("demo", add_help=False, help="the stand-in host, from nothing to an image with a 4-bit T5: demo --help")
    commands.add_parser("test", add_help=False, help="all tests; what follows goes to pytest")
    commands.add_parser("bench", add_help=False, help="the numbers of the pages: bench [NAME] [--small] [--json FILE] | --list")
    commands.add_parser("mutants", add_help=False, help="which changed lines no test notices: mutants [PATH …] [--minutes N]")
    commands.add_parser("pictures", add_help=False, help="the pictures of the pages, taken anew from the demo: pictures [--docs DIR]")
    commands.add_parser("docs", add_help=False, help="the tables of the pages that are made from data: docs [--check]")
    commands.add_parser("lint", add_help=False, help="ruff and pyright")
    commands.add_parser("release", add_help=False, help="version, changelog, tag, and a zip without tests: release X.Y.Z")
    args, rest = parser.parse_known_args()
    prepare()
    return {work.__name__: work for work in (demo, test, bench, mutants, pictures, docs, lint, release)}[args.command](rest)


def demo(rest: list[str]) -> int:
    return run("-m", "demo", *rest)


def test(rest: list[str]) -> int:
    """pytest on two processes; tests of one group, such as those that share a server, stay together."""
    if os.environ.get("CI") == "true":
        browser()
    chosen = any(word.startswith("-n") or word == "no:xdist" for word in rest)
    return run("-m", "pytest", *([] if chosen else ["-n", "2", "--dist", "loadgroup"]), *rest)


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
        subprocess.run([*PIP, "install", "--quiet", "--target", str(made), "cosmic-ray==8.7.0"], check=True)
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


def run(*words: str) -> int:
    """Run Python of the environment in the root of the repository. Returns its exit code."""
    try:
        return subprocess.call([str(PYTHON), *words], cwd=ROOT)
    except KeyboardInterrupt:
        return 130


def prepare() -> None:
    """Make `.venv` unless it fits the requirements already. Ends the program with a remedy when that fails."""
    wanted = hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()
    if PYTHON.exists() and STAMP.exists() and STAMP.read_text().strip() == wanted:
        return
    if not (3, 10) <= sys.version_info[:2] <= (3, 13):
        sys.exit(f"Python {sys.version.split()[0]} is too {'old' if sys.version_info < (3, 10) else 'new'} for the libraries of the host. "
                 "Run this with Python 3.10 to 3.13, for example: python3.12 dev.py …")  # fmt: skip
    started = time.monotonic()
    print(f"Preparing {VENV} (once; some minutes and about 3 GB)", flush=True)
    if subprocess.run([*PIP, "--version"], capture_output=True).returncode if PYTHON.exists() else True:
        shutil.rmtree(VENV, ignore_errors=True)  # none, or half of one; a whole one is brought up to date in place
        step("[1/3] virtual environment", lambda _: venv.EnvBuilder(with_pip=True, symlinks=os.name != "nt").create(VENV))
    torch = next(line for line in REQUIREMENTS.read_text().splitlines() if line.startswith("torch=="))
    step(f"[2/3] {torch}", lambda show: install(show, "-c", str(REQUIREMENTS), torch))
    step("[3/3] the other packages", lambda show: install(show, "--no-deps", "-r", str(REQUIREMENTS)))
    STAMP.write_text(wanted)
    print(f"Ready after {time.monotonic() - started:.0f} s", flush=True)


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


def install(show, *words: str) -> None:
    """pip, line by line. Ends the program with the end of its output when it fails."""
    process = subprocess.Popen([*PIP, "install", "--progress-bar", "off", *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                               text=True, encoding="utf-8", errors="replace")  # fmt: skip
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
