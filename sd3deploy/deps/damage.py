"""Whether the files of one distribution are what its RECORD says. The look costs a stat per file: 30 to 50 ms for NumPy."""

from __future__ import annotations

import os
from enum import Enum
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

from sd3deploy.deps.belongings import Belongings
from sd3deploy.deps.quarantine import interrupted
from sd3deploy.installed import Distribution

__all__ = ["Damage", "damage"]

_NATIVE = (*EXTENSION_SUFFIXES, ".dll", ".dylib", ".so")

# Other package managers keep the list of files elsewhere: without RECORD theirs are not broken.
_KEEP_THEIR_OWN_LIST = {"conda", "debian", "rpm", "apk"}

# One or two Python files of another size are somebody's own edit, which a reinstall would lose; more is a mixture.
_EDITS = 2


class Damage(Enum):
    """What can be wrong; the value is the id of its sentence."""

    DUPLICATE = "deps.damage.duplicate"  # metadata of two versions
    NO_RECORD = "deps.damage.no_record"  # nobody knows which files belong to it
    NO_METADATA = "deps.damage.no_metadata"  # a dist-info without METADATA: its version reads as None
    UNOWNED = "deps.damage.unowned"  # files, but no metadata at all
    MISSING_FILES = "deps.damage.missing_files"
    MIXED_FILES = "deps.damage.mixed_files"  # sizes of another version
    ORPHANS = "deps.damage.orphans"  # importable files that no RECORD lists
    RESIDUE = "deps.damage.residue"  # `~…` of a pip that was stopped
    INTERRUPTED = "deps.damage.interrupted"  # a repair of ours was stopped half-way


def damage(name: str, own: Belongings) -> tuple[tuple[Damage, str], ...]:
    """Everything wrong with a distribution, each with an example path or version; () for a healthy or an absent one.

    What another distribution has put there is no damage: two that bring the same module lie over each other on purpose.
    """
    found: list[tuple[Damage, str]] = []
    if interrupted(name):
        found.append((Damage.INTERRUPTED, name))
    if own.residue:
        found.append((Damage.RESIDUE, own.residue[0].name))
    if not own.infos:
        if own.packages and not own.brought:
            found.append((Damage.UNOWNED, own.packages[0].name))
        return tuple(found)
    first = own.infos[0]
    if len(own.infos) > 1:
        found.append((Damage.DUPLICATE, " + ".join(info.version for info in own.infos)))
    if first.path.suffix == ".dist-info":  # the older kinds have no list of files to compare with
        found += _against_record(first, own)
    return tuple(found)


def _against_record(info: Distribution, own: Belongings) -> list[tuple[Damage, str]]:
    found: list[tuple[Damage, str]] = []
    if not info.described():
        found.append((Damage.NO_METADATA, info.path.name))
    sizes = info.record()
    if sizes is None:
        if info.installer() not in _KEEP_THEIR_OWN_LIST:
            found.append((Damage.NO_RECORD, info.path.name))
        return found
    site = info.path.parent
    missing: list[str] = []
    other: list[str] = []  # of another size than recorded
    for file, size in sizes.items():
        if not _matters(file):
            continue
        try:
            actual = os.stat(site / file).st_size
        except OSError:
            missing.append(file)
            continue
        if size is not None and actual != size:
            other.append(file)
    orphans = _orphans(site, own, sizes)
    if other or orphans:
        other = [file for file in other if file not in own.others]
        orphans = [file for file in orphans if file not in own.others]
    native = [file for file in other if file.endswith(_NATIVE)]
    if missing:
        found.append((Damage.MISSING_FILES, missing[0]))
    if native or len(other) > _EDITS:
        found.append((Damage.MIXED_FILES, (native or other)[0]))
    if orphans:
        found.append((Damage.ORPHANS, orphans[0]))
    return found


def _matters(file: str) -> bool:
    """Importable or native, inside the site folder, and not a test: slim images leave tests out on purpose."""
    return file.endswith((".py", *_NATIVE)) and not file.startswith(("..", "/")) and not {"tests", "test"} & set(file.split("/")[:-1])


def _orphans(site: Path, own: Belongings, sizes: dict[str, int | None]) -> list[str]:
    """Importable files inside the packages that the RECORD does not list: leftovers of another version, which Python may prefer."""
    found = []
    for package in own.packages:
        for folder, folders, files in os.walk(package):
            folders[:] = [one for one in folders if one != "__pycache__"]
            relative = Path(folder).relative_to(site).as_posix()
            for file in files:
                if file.endswith((".py", *EXTENSION_SUFFIXES)) and f"{relative}/{file}" not in sizes:
                    found.append(f"{relative}/{file}")
        if package.suffix == ".py" and package.relative_to(site).as_posix() not in sizes:
            found.append(package.name)
    return sorted(found)
