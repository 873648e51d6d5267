"""Running pip or uv: the command lines, the environment they get, their output line by line."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from sd3deploy.deps import stopping
from sd3deploy.deps.options import Options

__all__ = ["Progress", "fall_back", "install_command", "report_command", "run", "shown"]

Progress = Callable[[str], None]

# One retry instead of five: without network the cause is known after half a second instead of eight. With none, pip hides the cause.
_QUICK = ("--retries", "1", "--no-input", "--disable-pip-version-check")

_POLL = 0.1  # seconds between two looks whether to stop

# Building from source needs a compiler, takes minutes and fails in ways that help nobody.
_WHEELS_ONLY = ("--only-binary", ":all:")


def install_command(wanted: Iterable[str], options: Options, constraints: Path) -> tuple[str, ...]:
    """The one call that changes something. `--no-deps`: what else is needed has been looked at before and stands in `wanted`."""
    uv = _uv() if options.uv else None
    if uv:
        head = (uv, "pip", "install", "--python", sys.executable, "--no-progress")
    else:
        head = (*_pip(), "install", *_QUICK, "--progress-bar", "off", "--no-warn-script-location")
    return (*head, "--no-deps", *_WHEELS_ONLY, "-c", str(constraints), *options.extra, *wanted)


def _uv() -> str | None:
    """The one of this environment first: it may be there without being on PATH."""
    return shutil.which("uv", path=str(Path(sys.executable).parent)) or shutil.which("uv")


def report_command(wanted: Iterable[str], options: Options, constraints: Path, report: Path) -> tuple[str, ...]:
    """Ask which versions would be taken, and what they say they need; installs nothing. Always pip: uv has no such report."""
    dry = ("install", "--dry-run", "--ignore-installed", "--quiet", "--report", str(report))
    return (*_pip(), *dry, *_QUICK, "--no-deps", *_WHEELS_ONLY, "-c", str(constraints), *options.extra, *wanted)


def shown(command: tuple[str, ...]) -> str:
    """A command as its user can run it, in the words of the system's own shell."""
    return subprocess.list2cmdline(command) if os.name == "nt" else shlex.join(command)


def fall_back(command: tuple[str, ...], options: Options) -> Options | None:
    """As the host does: where uv can not, pip is asked. None when it was pip already."""
    from dataclasses import replace

    return replace(options, uv=False) if command[:2] != _pip()[:2] else None


def run(command: tuple[str, ...], options: Options, progress: Progress | None = None, inherit: int | None = None) -> tuple[int, str]:
    """Exit code and the whole output. progress gets each line. inherit: the lock's descriptor, which the child keeps holding.

    A return code of 0 proves nothing: look at the disk afterwards. Raises Stopped when it was ended on request (see stopping.stoppable).
    """
    stopping.check()
    lines = []
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
        env=_environment(),
        cwd=options.host_root,
        pass_fds=() if inherit is None or os.name == "nt" else (inherit,),
        creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
        start_new_session=stopping.possible(),  # so that its children can be told from ours
    ) as process:
        assert process.stdout is not None
        with _ended_on_request(process) as was_ended:
            for line in process.stdout:
                lines.append(line)
                if progress:
                    progress(line.rstrip())
    if was_ended():
        raise stopping.Stopped
    return process.returncode, "".join(lines)


@contextmanager
def _ended_on_request(process: subprocess.Popen[str]) -> Iterator[Callable[[], bool]]:
    """A thread that asks ten times a second whether to end it: pip may be silent for minutes. Gives whether that was done."""
    if not stopping.possible():
        yield lambda: False
        return
    asked, over, ended = stopping.stopped(), threading.Event(), threading.Event()

    def watch() -> None:
        while not over.wait(_POLL):
            if asked() and process.poll() is None:
                ended.set()
                stopping.end(process)
                return

    watcher = threading.Thread(target=watch, name="sd3-install-watch", daemon=True)
    watcher.start()
    try:
        yield ended.is_set
    finally:
        over.set()
        watcher.join()


def _pip() -> tuple[str, ...]:
    """This environment's pip; where it has none, as one that uv has made, the one that Python brings along for new environments: it runs
    from its wheel, and installs into this environment without being installed itself.
    """
    from importlib.util import find_spec

    if find_spec("pip") is None and (wheel := _brought_along()):
        return (sys.executable, str(wheel / "pip"))
    return (sys.executable, "-m", "pip")


@lru_cache
def _brought_along() -> Path | None:
    """The wheel of pip that belongs to `ensurepip`, or None: Linux distributions may keep it elsewhere, or in a package of its own."""
    from importlib.util import find_spec

    found = find_spec("ensurepip")
    folders = [Path(place, "_bundled") for place in (found.submodule_search_locations or ())] if found else []
    folders += [Path(place)] if (place := sysconfig.get_config_var("WHEEL_PKG_DIR")) else []
    return next((wheel for folder in folders for wheel in sorted(folder.glob("pip-*.whl"), reverse=True)), None)


def _environment() -> dict[str, str]:
    """The host sets UV_CONSTRAINT to a path relative to its own folder, which breaks uv anywhere else; ours is in the command."""
    environment = {name: value for name, value in os.environ.items() if name not in ("UV_CONSTRAINT", "PIP_EXTRA_ARGS")}
    return {**environment, "PYTHONIOENCODING": "utf-8", "PYTHONUNBUFFERED": "1"}
