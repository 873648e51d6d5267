"""Which distributions the folders of sys.path hold: one listing per folder, no file is opened."""

from __future__ import annotations

import os
import re
import site
import sys
from dataclasses import dataclass
from pathlib import Path

from sd3deploy.deps.requirement import normal

__all__ = ["Info", "folders", "infos", "installed", "residue", "writable_site"]

_INFO = re.compile(r"^(?P<name>[A-Za-z0-9][\w.\-]*?)-(?P<version>[^-]+)(?:-py[\d.]+)?\.(?:dist|egg)-info$")

# pip renames what it removes to "~" plus characters of this set plus the rest of the name (pip/_internal/utils/temp_dir.py,
# AdjacentTempDirectory.LEADING_CHARS); what is still there afterwards was left by a process that died or a file in use.
_LEADING = "-~.=%0123456789"


@dataclass(frozen=True)
class Info:
    """One metadata folder: whose it is, of which version, where."""

    name: str
    version: str
    path: Path


def folders() -> tuple[Path, ...]:
    """The folders in which Python looks for packages, in its order, the user's own folder included."""
    paths = [*sys.path]
    if site.ENABLE_USER_SITE:
        paths.append(site.getusersitepackages())
    return tuple(Path(path) for path in dict.fromkeys(paths) if path and os.path.isdir(path))


def writable_site() -> Path:
    """The folder that pip installs into: the environment's, or the user's where that one is read-only."""
    import sysconfig

    main = Path(sysconfig.get_path("purelib"))
    return main if os.access(main, os.W_OK) or not site.ENABLE_USER_SITE else Path(site.getusersitepackages())


def infos(name: str | None = None, folder: Path | None = None) -> tuple[Info, ...]:
    """All metadata folders (of one distribution, or of all; in one folder, or in all), in the order in which Python finds them."""
    wanted = normal(name) if name else None
    found = []
    for place in (folder,) if folder else folders():
        for entry in _listing(place):
            match = _INFO.match(entry)
            if match and wanted in (None, normal(match["name"])):
                found.append(Info(match["name"], _unescaped(match["version"]), place / entry))
    return tuple(found)


def installed() -> dict[str, str]:
    """Normalized name → version of everything that this environment holds; the first on sys.path counts."""
    versions: dict[str, str] = {}
    for info in infos():
        versions.setdefault(normal(info.name), info.version)
    return versions


def residue(folder: Path, names: set[str]) -> tuple[Path, ...]:
    """What pip renamed away and never removed, for these top-level names ("numpy", "numpy.libs", "numpy-*.dist-info")."""
    left = [entry for entry in _listing(folder) if entry.startswith("~")]
    return tuple(folder / entry for entry in left if any(_renamed(entry, name) for name in names))


def _renamed(entry: str, name: str) -> bool:
    """Whether `entry` is what pip makes of `name`; "-*.dist-info" at the end of a name stands for any version."""
    if name.endswith("-*.dist-info"):
        stem = entry.removesuffix(".dist-info").rpartition("-")[0]
        return entry.endswith(".dist-info") and _renamed(stem, name.removesuffix("-*.dist-info"))
    rest = entry.lstrip(_LEADING)
    return bool(rest) and (len(entry) == len(name) or entry.endswith(name)) and name.lower().endswith(rest.lower())


def _unescaped(version: str) -> str:
    """Old wheels write "1.0_local" for "1.0+local" in the name of the folder."""
    return version if "+" in version else version.replace("_", "+", 1)


def _listing(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:  # an entry of sys.path that vanished or may not be read holds nothing for us
        return []
