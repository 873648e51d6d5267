"""The one reader of what is installed: distributions, their versions, files and needs, who owns a file, what the host pins.

Everything is read off the disk when it is asked for: what importlib.metadata remembers in a running process may be older than the disk.
Standard library and `packaging` only: install.py runs with it at every full start of the host. Nothing here changes or imports anything.
"""

from __future__ import annotations

import csv
import inspect
import os
import re
import site
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

from sd3deploy.lazy import lazy
from sd3deploy.vendored import InvalidRequirement, Specification, canonicalize_name

__all__ = [
    "SHARED_BY_HABIT",
    "Distribution",
    "distributions",
    "find",
    "folders",
    "import_name",
    "modules",
    "needs",
    "owners",
    "pins",
    "ranked",
    "residue",
    "snapshot",
    "version",
    "versions",
    "writable_site",
]

_INFO = lazy(r"^(?P<name>[A-Za-z0-9][\w.\-]*?)(?:-(?P<version>[^-]+)(?:-py[\d.]+)?)?\.(?:dist|egg)-info$")

# pip renames what it removes to "~" plus characters of this set plus the rest of the name (pip/_internal/utils/temp_dir.py,
# AdjacentTempDirectory.LEADING_CHARS); what is still there afterwards was left by a process that died or a file in use.
_LEADING = "-~.=%0123456789"

# Distributions whose module is not their own name with underscores. It counts only where no RECORD tells.
_IMPORT_NAMES = {
    "opencv-python": "cv2",
    "optimum-quanto": "optimum.quanto",
    "pillow": "PIL",
    "protobuf": "google.protobuf",
    "pyyaml": "yaml",
    "scikit-image": "skimage",
    "scikit-learn": "sklearn",
}

# Folders that many distributions put beside their package by mistake: nobody imports them, and each has its own files in them.
SHARED_BY_HABIT = frozenset({"test", "tests", "example", "examples", "doc", "docs", "bench", "benchmarks", "scripts", "tools"})


@dataclass(frozen=True)
class Distribution:
    """One metadata folder: the name as it is spelled there, the version, and the folder itself."""

    name: str
    version: str
    path: Path

    @property
    def key(self) -> str:
        """The name by which distributions are compared (PEP 503)."""
        return canonicalize_name(self.name)

    @property
    def site(self) -> Path:
        """The folder that holds its files."""
        return self.path.parent

    def record(self) -> dict[str, int | None] | None:
        """Path relative to the site folder, with "/" → size in bytes (None where the RECORD does not say). None without a RECORD."""
        if self._record is None:
            return None
        try:
            rows = [row for row in csv.reader(self._record.splitlines()) if row]
        except csv.Error:
            return None
        return {row[0]: int(row[2]) if len(row) > 2 and row[2].isdigit() else None for row in rows}

    def roots(self) -> tuple[str, ...]:
        """What it has to import, as paths in the site folder: "numpy", "google/protobuf" (`google` is shared by many), "six.py"."""
        try:
            seen = (self.path / "RECORD").stat()
        except OSError:
            return ()
        return _roots(self, seen.st_mtime_ns, seen.st_size)

    def modules(self) -> tuple[str, ...]:
        """The same as one writes it after `import`: "numpy", "google.protobuf", "six"."""
        return tuple(module for module in map(_module, self.roots()) if all(part.isidentifier() for part in module.split(".")))

    def top_level(self) -> frozenset[str]:
        """The names that setuptools has noted; none where another tool has built it."""
        return frozenset((self._read("top_level.txt") or "").split())

    def requires(self) -> tuple[str, ...]:
        """Its Requires-Dist lines; none of an egg-info, or where nothing can be read."""
        return tuple(line.partition(":")[2].strip() for line in self._head() if line.startswith("Requires-Dist:"))

    def installer(self) -> str:
        """Who has installed it, in lower case: "pip", "uv", "conda", …; "" where nobody says."""
        return (self._read("INSTALLER") or "").strip().lower()

    def described(self) -> bool:
        """Whether its METADATA or PKG-INFO can be read: without, importlib.metadata says that its version is None."""
        return bool(self._head())

    @cached_property
    def _record(self) -> str | None:
        text = self._read("RECORD")  # once for each look at the disk: such an object lives no longer
        return None if text is None else text.replace("\\", "/")  # as older pips have written it on Windows

    def _head(self) -> list[str]:
        text = self._read("METADATA") or self._read("PKG-INFO") or self._read("") or ""  # the last: an egg-info that is a single file
        return text.replace("\r\n", "\n").split("\n\n", 1)[0].splitlines()

    def _read(self, file: str) -> str | None:
        try:
            return (self.path / file).read_text(encoding="utf-8", errors="strict" if file == "RECORD" else "replace")
        except (OSError, UnicodeDecodeError):  # not there, not readable, or not what it should be: all the same to us
            return None


# What is there


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


def distributions(name: str | None = None, folder: Path | None = None) -> tuple[Distribution, ...]:
    """All (of one name, or of all; in one folder, or in all), in the order in which Python finds them. One listing per folder."""
    wanted = canonicalize_name(name) if name else None
    found = []
    for place in (folder,) if folder else folders():
        for entry in _listing(place):
            match = _INFO.match(entry) if entry.endswith("-info") else None
            if match and wanted in (None, canonicalize_name(match["name"])):
                found.append(Distribution(match["name"], _version(match["version"], place / entry), place / entry))
    return tuple(found)


def find(name: str) -> Distribution | None:
    """The one that Python takes, None when there is none."""
    return next(iter(distributions(name)), None)


def version(name: str) -> str | None:
    """The installed version of a distribution, None when there is none."""
    found = find(name)
    return found.version if found else None


def versions() -> dict[str, str]:
    """Canonical name → version of everything that this environment holds; the first on sys.path counts."""
    found: dict[str, str] = {}
    for one in distributions():
        found.setdefault(one.key, one.version)
    return found


def snapshot() -> dict[str, tuple[str, int]]:
    """Canonical name → (version, time of its installation in ns): a millisecond or two.

    Two snapshots that differ tell what somebody has installed, reinstalled or upgraded in between. Raises nothing: what vanishes
    meanwhile is not there.
    """
    found: dict[str, tuple[str, int]] = {}
    for one in distributions():
        try:
            folder = one.path.stat()
        except OSError:
            continue
        # Whoever copies an environment keeps the times of the content; that of the change of the folder itself can not be kept.
        found.setdefault(one.key, (one.version, max(folder.st_mtime_ns, folder.st_ctime_ns)))
    return found


def residue(folder: Path, names: set[str]) -> tuple[Path, ...]:
    """What pip renamed away and never removed, for these top-level names ("numpy", "numpy.libs", "numpy-*.dist-info")."""
    left = [entry for entry in _listing(folder) if entry.startswith("~")]
    return tuple(folder / entry for entry in left if any(_renamed(entry, name) for name in names))


# Who owns a file, and who brings a module


def owners(folder: Path, paths: Iterable[str], but: str = "") -> dict[str, tuple[Distribution, ...]]:
    """Relative path → the distributions that own it, for every existing file at or below `paths` in one site folder, those of the
    distribution `but` left out. A distribution without RECORD owns as a whole whatever its top_level.txt names.

    Reads every RECORD in the folder: 10 to 150 ms, so it is asked only where something looks wrong.
    """
    paths = tuple(paths)
    inside = tuple(f"{path}/" for path in paths)
    found: dict[str, list[Distribution]] = {}
    for one in distributions(folder=folder):
        if but and one.key == canonicalize_name(but):
            continue
        if one._record is None:
            names = one.top_level()
            files = [path for path in paths if path.partition("/")[0].removesuffix(".py") in names]
        elif any(path in one._record for path in paths):
            files = [file for file in one.record() or () if file in paths or file.startswith(inside)]
        else:
            continue
        for file in files:
            if os.path.lexists(folder / file):
                found.setdefault(file, []).append(one)
    return {file: tuple(who) for file, who in found.items()}


def ranked(candidates: Iterable[Distribution], path: str) -> tuple[Distribution, ...]:
    """Distributions that own the same path, first the one whose files really lie there: the last one that was installed."""
    candidates = tuple(candidates)
    return candidates if len(candidates) < 2 else tuple(sorted(candidates, key=lambda one: _fit(one, path), reverse=True))


def modules() -> dict[str, tuple[Distribution, ...]]:
    """Importable name ("numpy", "google.protobuf", "six") → who brings it, of the first folder that has it; the real one first.

    Reads every RECORD that it has not seen before: 50 to 200 ms the first time.
    """
    found: dict[str, dict[Path, list[Distribution]]] = {}
    for one in distributions():
        for root in one.roots():
            if os.path.lexists(one.site / root):
                found.setdefault(root, {}).setdefault(one.site, []).append(one)
    brought: dict[str, tuple[Distribution, ...]] = {}
    for root, places in found.items():
        brought.setdefault(_module(root), ranked(next(iter(places.values())), root))
    return brought


def import_name(name: str) -> str:
    """What one writes after `import` for a distribution that may not be there: "google.protobuf" for "protobuf"."""
    return _IMPORT_NAMES.get(canonicalize_name(name)) or re.sub(r"[-.]+", "_", name).lower()


# What it needs, and what the host wants


def needs(lines: Iterable[str]) -> tuple[Specification, ...]:
    """Of Requires-Dist lines those that apply here; what belongs to an extra, or can not be read, does not."""
    found = []
    for line in lines:
        try:
            need = Specification(line.strip())
        except InvalidRequirement:
            continue
        if need.marker is None or need.marker.evaluate({"extra": ""}):
            found.append(need)
    return tuple(found)


def pins(host_root: Path | None) -> Mapping[str, str]:
    """Canonical name → the exact version that the host wants. Its constraints count before its requirements."""
    found: dict[str, str] = {}
    for file in ("requirements.txt", "constraints.txt"):
        try:
            lines = (host_root / file).read_text(encoding="utf-8").splitlines() if host_root else []
        except OSError:  # not every version of the host has both
            continue
        for wanted in needs(line.partition("#")[0] for line in lines):  # options and addresses of indexes are no specifications
            exact = [one.version for one in wanted.specifier if one.operator == "==" and "*" not in one.version]
            if exact:
                found[canonicalize_name(wanted.name)] = exact[0]
    return found


# Small things


@lru_cache(4096)
def _roots(one: Distribution, changed: int, size: int) -> tuple[str, ...]:
    """The outermost folders with an __init__.py, and the single modules, of a RECORD as it was at that time, of that size. Kept, because
    all of them are asked for with each error that is explained: 70 ms the first time, 5 ms later (bench/diagnosis.py).
    """
    record = (one._read("RECORD") or "").replace("\\", "/")  # the key is kept: it must not hold the text
    packages: list[str] = []
    # split, not parsed: of ten thousand lines a few hundred are of interest
    inits = {part.rpartition("\n")[2].lstrip('"') for part in record.split("/__init__.py,")[:-1]}
    for folder in sorted(folder for folder in inits if not folder.startswith(("..", "/"))):  # a parent sorts before what is in it
        if not folder.startswith(tuple(f"{package}/" for package in packages)):
            packages.append(folder)
    single = [file for file in re.findall(r"^([^/,\"\n]+),", record, re.MULTILINE) if inspect.getmodulename(file)]
    return (*packages, *(file for file in single if not file.startswith(("_editable", "__editable__"))))


def _module(root: str) -> str:
    folder, _, last = root.rpartition("/")
    return ".".join(filter(None, (*folder.split("/"), inspect.getmodulename(last) or last)))


def _fit(one: Distribution, path: str) -> tuple[float, int]:
    """How much of what a RECORD says about a path is true on disk, 0 to 1, then the time of the installation."""
    sizes = {file: size for file, size in (one.record() or {}).items() if file == path or file.startswith(f"{path}/")}
    true = 0
    for file, size in sizes.items():
        try:
            true += size is not None and os.stat(one.site / file).st_size == size
        except OSError:
            continue
    try:
        return true / max(1, len(sizes)), one.path.stat().st_mtime_ns
    except OSError:
        return 0.0, 0


def _renamed(entry: str, name: str) -> bool:
    """Whether `entry` is what pip makes of `name`; "-*.dist-info" at the end of a name stands for any version."""
    if name.endswith("-*.dist-info"):
        stem = entry.removesuffix(".dist-info").rpartition("-")[0]
        return entry.endswith(".dist-info") and _renamed(stem, name.removesuffix("-*.dist-info"))
    rest = entry.lstrip(_LEADING)
    return bool(rest) and (len(entry) == len(name) or entry.endswith(name)) and name.lower().endswith(rest.lower())


def _version(said: str | None, path: Path) -> str:
    """As the folder says it (old wheels write "1.0_local" for "1.0+local"); of a checkout on sys.path, as its PKG-INFO does."""
    if said is None:
        head = Distribution("", "", path)._head()
        return next((line.partition(":")[2].strip() for line in head if line.startswith("Version:")), "")
    return said if "+" in said else said.replace("_", "+", 1)


def _listing(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:  # an entry of sys.path that vanished or may not be read holds nothing for us
        return []
