"""The ground that everything stands on: Python, the disk, and who may write where."""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sd3deploy import messages, units
from sd3deploy.diagnosis.checks.context import Context
from sd3deploy.diagnosis.checks.result import Outcome, Say, conclude
from sd3deploy.diagnosis.checks.rules import seen
from sd3deploy.diagnosis.finding import Finding
from sd3deploy.installed import writable_site
from sd3deploy.vendored import SpecifierSet, version

__all__ = ["Facts", "Folder", "check", "gather", "judge"]

_PYPROJECT = Path(__file__).parents[3] / "pyproject.toml"

# Bytes. The wheels of this extension take 138 MB on disk (deps/planning.py), and pip unpacks beside them before it moves; SD3 medium as
# diffusers reads it is 15.2 GB (bench/RESULTS.md, sizes of the parts), without T5 5.7 GB. Below `_FULL` nothing can be written at all.
_ENVIRONMENT = 500_000_000
_MODEL = 16_000_000_000
_FULL = 200_000_000


@dataclass(frozen=True)
class Folder:
    """path: the folder, or the nearest one above it that exists. free: bytes, None where nobody knows. writable: by this account."""

    path: Path
    free: int | None
    writable: bool


@dataclass(frozen=True)
class Facts:
    """python, supported: version, and what pyproject.toml asks for. virtual: a virtual environment. owned: packages can be installed
    into this Python without one (a container, conda). site: where they go; models: where models go, None where nobody knows; wanted:
    bytes that a model has yet to take there.
    """

    python: str
    supported: str
    virtual: bool
    owned: bool
    site: Folder
    models: Folder | None = None
    wanted: int = 0


def check(context: Context, say: Say) -> Outcome:
    """The step."""
    say(0.0, "")
    facts = gather(context)
    failed, warned = judge(facts)
    known = {
        "python": facts.python,
        "executable": sys.executable,
        "virtual": facts.virtual,
        "platform": platform.platform(),
        "site": str(facts.site.path),
        "site_free": facts.site.free,
        "models": str(facts.models.path) if facts.models else None,
        "models_free": facts.models.free if facts.models else None,
    }
    free = units.size((facts.models or facts.site).free or 0)
    return conclude(messages.text("checks.environment.ok", python=facts.python, free=free), failed, warned, known)


def gather(context: Context) -> Facts:
    """Look at this process and at the disk."""
    from sd3deploy.diagnosis.checks import files

    place = context.models[0] if context.models else context.data_dir / "models" if context.data_dir else None
    return Facts(
        python=platform.python_version(),
        supported=_supported(),
        virtual=sys.prefix != sys.base_prefix,
        owned=not (Path(os.__file__).parent / "EXTERNALLY-MANAGED").exists(),  # PEP 668
        site=_folder(writable_site()),
        models=_folder(place) if place else None,
        wanted=0 if context.model or any(found.complete for found in files.found(context)) else _MODEL,
    )


def judge(facts: Facts) -> tuple[list[Finding], list[Finding]]:
    """Pure: what fails, and what should only be known."""
    failed: list[Finding] = []
    warned: list[Finding] = []
    found = version(facts.python)
    if found and not SpecifierSet(facts.supported).contains(found, prereleases=True):
        failed.append(seen("python-unsupported", {"python": facts.python, "supported": facts.supported}))
    for full, low in _space(facts):
        (failed if full else warned).append(low)
    for folder in _unwritable(facts):
        warned.append(seen("no-permission", {"folder": folder.path}))
    if not facts.virtual and not facts.owned:
        warned.append(seen("no-virtual-environment", {"executable": sys.executable}))
    return failed, warned


def _space(facts: Facts) -> Iterator[tuple[bool, Finding]]:
    """(nothing can be written at all, finding); two folders on one disk are one complaint, that of the larger want."""
    asked = [(facts.models, facts.wanted), (facts.site, _ENVIRONMENT)]
    told: set[int] = set()
    for folder, wanted in asked:
        if folder is None or folder.free is None or folder.free >= max(wanted, _FULL) or folder.free in told:
            continue
        told.add(folder.free)
        values = {"folder": folder.path, "free": units.size(folder.free), "wanted": units.size(max(wanted, _FULL))}
        yield folder.free < _FULL, seen("disk-low", values)


def _unwritable(facts: Facts) -> Iterator[Folder]:
    yield from (folder for folder in (facts.site, facts.models) if folder and not folder.writable)


def _folder(path: Path) -> Folder:
    nearest = next((one for one in (path, *path.absolute().parents) if one.is_dir()), path)
    try:
        free: int | None = shutil.disk_usage(nearest).free
    except OSError:  # a network drive that is gone
        free = None
    return Folder(nearest, free, os.access(nearest, os.W_OK) and not _read_only(nearest))


def _read_only(path: Path) -> bool:
    """Mounted so: to root everything looks writable."""
    try:
        return bool(os.statvfs(path).f_flag & os.ST_RDONLY)
    except (AttributeError, OSError):  # Windows
        return False


def _supported() -> str:
    """requires-python; by its line, because not every Python has a reader for the format."""
    found = re.search(r'^requires-python\s*=\s*"([^"]+)"', _PYPROJECT.read_text(encoding="utf-8"), re.MULTILINE)
    return found[1] if found else ""
