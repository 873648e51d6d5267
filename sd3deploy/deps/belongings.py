"""Everything on disk that belongs to one distribution: its metadata, its packages, its other files, what pip left of it."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from sd3deploy.deps.requirement import import_name, normal
from sd3deploy.deps.site_folders import Info, folders, infos, residue

__all__ = ["Belongings", "belongings", "recorded"]


@dataclass(frozen=True)
class Belongings:
    """What one distribution has in the one folder from which Python would take it. All paths existed when this was made.

    infos: metadata folders; packages: importable folders or single modules; loose: other recorded files and `*.libs` folders;
    residue: what pip renamed to `~…` and left.
    """

    site: Path | None
    infos: tuple[Info, ...] = ()
    packages: tuple[Path, ...] = ()
    loose: tuple[Path, ...] = ()
    residue: tuple[Path, ...] = ()

    def all(self) -> tuple[Path, ...]:
        """What has to be moved so that nothing of the distribution remains."""
        return (*self.packages, *self.loose, *(info.path for info in self.infos), *self.residue)


def belongings(name: str) -> Belongings:
    """Gather them from the RECORDs, and by the import name where no RECORD tells. The first folder that has any counts:
    what lies in later ones (the system's, below a virtual environment) is not what Python would import."""
    rest = Belongings(None)
    for folder in folders():
        own = _in(folder, name)
        if own.infos or own.packages:
            return own
        if own.residue and not rest.residue:
            rest = own
    return rest


def _in(site: Path, name: str) -> Belongings:
    found = infos(name, site)
    packages: dict[Path, None] = {}
    loose: dict[Path, None] = {}
    for info in found:
        files = [PurePosixPath(file) for file in recorded(info) or {}]
        roots = _roots(files)
        packages.update(dict.fromkeys(site / root for root in roots))
        loose.update(dict.fromkeys(site / f"{root}.libs" for root in roots))  # the wheel tools put shared libraries there
        loose.update(dict.fromkeys(site / file for file in files if _is_loose(file, roots)))
    if site.name in ("site-packages", "dist-packages"):  # a project folder on sys.path may hold sources of the same name
        top = site.joinpath(*import_name(name).split("."))
        packages.update(dict.fromkeys((top, top.with_name(f"{top.name}.py"))))
        loose[top.with_name(f"{top.name}.libs")] = None
    existing = tuple(path for path in packages if _exists(path))
    others = tuple(path for path in loose if path not in existing and _exists(path))
    return Belongings(site, found, existing, others, residue(site, _top_names(name, existing)))


def recorded(info: Info) -> dict[str, int | None] | None:
    """Path relative to the site folder → size in bytes (None where the RECORD does not say). None without a RECORD."""
    try:
        with open(info.path / "RECORD", newline="", encoding="utf-8") as file:
            rows = [row for row in csv.reader(file) if row]
    except (OSError, UnicodeDecodeError, csv.Error):
        return None
    return {row[0].replace("\\", "/"): int(row[2]) if len(row) > 2 and row[2].isdigit() else None for row in rows}


def _roots(files: list[PurePosixPath]) -> set[PurePosixPath]:
    """The outermost folders with an __init__.py: "numpy", but "google/protobuf", because `google` is shared by many."""
    inits = {file.parent for file in files if file.name == "__init__.py" and ".." not in file.parts}
    return {folder for folder in inits if folder.parts and not any(parent in inits for parent in folder.parents)}


def _is_loose(file: PurePosixPath, roots: set[PurePosixPath]) -> bool:
    """A file of the distribution outside of its packages and its metadata. Scripts (`../../bin/…`) stay: pip writes over them."""
    outside = ".." in file.parts or file.is_absolute() or file.suffix == ".pyc"
    return not outside and not file.parts[0].endswith(".dist-info") and not any(root in file.parents for root in roots)


def _top_names(name: str, packages: tuple[Path, ...]) -> set[str]:
    stem = normal(name).replace("-", "_")
    tops = {path.name for path in packages} | {import_name(name).split(".")[-1]}
    return tops | {f"{top}.libs" for top in tops} | {f"{stem}-*.dist-info"}


def _exists(path: Path) -> bool:
    return path.is_symlink() or path.exists()
