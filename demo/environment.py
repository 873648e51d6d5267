"""Throw-away Python environments in a second: a new virtual environment whose packages are links into a full one.

The demo needs a host without bitsandbytes, the tests need hosts without accelerate, with two NumPys, with older
libraries. Installing torch for each would take minutes; linking takes a second, and pip installs on top what was left out.
What pip is to replace must be left out or copied: it follows links, and would take the files of the full environment away.
Standard library only.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

__all__ = ["linked", "python_of", "site_of"]


def python_of(environment: Path) -> Path:
    """The interpreter of a virtual environment, on any platform."""
    return environment / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def site_of(environment: Path) -> Path:
    """The site-packages folder of a virtual environment, on any platform."""
    scheme = "nt" if os.name == "nt" else "posix_prefix"
    return Path(sysconfig.get_path("purelib", scheme, vars={"base": str(environment), "platbase": str(environment)}))


def linked(target: Path, *, without: Iterable[str] = (), copied: Iterable[str] = (), source: Path | None = None) -> Path:
    """Make `target` a virtual environment with the packages of `source` (default: the running one). Returns its interpreter.

    without: distributions to leave out. copied: distributions to copy instead of linking, for those that a test damages.
    An existing `target` is replaced.
    """
    site = site_of(source) if source else Path(sysconfig.get_path("purelib"))
    shutil.rmtree(target, ignore_errors=True)
    venv.EnvBuilder(with_pip=False, symlinks=os.name != "nt").create(target)
    left_out = _entries(site, without)
    real = _entries(site, copied)
    destination = site_of(target)
    for entry in site.iterdir():
        if entry.name in left_out or entry.name == "__pycache__":
            continue
        if entry.name in real or entry.suffix == ".pth":
            _copy(entry, destination / entry.name)
        else:
            _link(entry, destination / entry.name)
    return python_of(target)


def _entries(site: Path, names: Iterable[str]) -> set[str]:
    """Top-level files and folders in `site` that belong to the named distributions."""
    wanted = {_normal(name) for name in names}
    found = set()
    for distribution in metadata.distributions(path=[str(site)]):
        if _normal(distribution.name or "") in wanted:  # None: the leftovers of an install that was killed
            found |= {file.parts[0] for file in distribution.files or () if file.parts[0] not in ("..", "__pycache__")}
    return found


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _link(entry: Path, to: Path) -> None:
    try:
        to.symlink_to(entry, target_is_directory=entry.is_dir())
    except OSError:  # Windows without the privilege: hard links, which pip replaces safely too
        _copy(entry, to, os.link)


def _copy(entry: Path, to: Path, copy_file=shutil.copy2) -> None:
    if entry.is_dir():
        shutil.copytree(entry, to, copy_function=copy_file, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        copy_file(entry, to)


if __name__ == "__main__":  # python -m demo.environment TARGET [distribution to leave out …]
    print(linked(Path(sys.argv[1]), without=sys.argv[2:]))
    subprocess.run([str(python_of(Path(sys.argv[1]))), "-m", "pip", "--version"], check=True)
