"""Everything on disk that belongs to one distribution: its metadata, its packages, its other files, what pip left of it."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

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
        files = recorded(info) or {}
        roots = _roots(files)
        packages.update(dict.fromkeys(site / root for root in roots))
        libraries = [f"{root}.libs" for root in roots]  # the wheel tools put shared libraries there
        loose.update(dict.fromkeys(site / folder for folder in libraries))
        inside = tuple(f"{folder}/" for folder in (*roots, *libraries))
        loose.update(dict.fromkeys(site / file for file in files if not file.startswith(inside) and _is_loose(file)))
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


def _roots(files: Iterable[str]) -> list[str]:
    """The outermost folders with an __init__.py: "numpy", but "google/protobuf", because `google` is shared by many."""
    inits = sorted(
        file.removesuffix("/__init__.py") for file in files if file.endswith("/__init__.py") and not file.startswith(("..", "/"))
    )
    roots: list[str] = []
    for folder in sorted(inits):  # a parent sorts before what is in it
        if not folder.startswith(tuple(f"{root}/" for root in roots)):
            roots.append(folder)
    return roots


def _is_loose(file: str) -> bool:
    """Neither metadata nor outside of the site folder. Scripts (`../../bin/…`) stay: pip writes over them."""
    return not file.startswith(("..", "/")) and not file.endswith(".pyc") and ".dist-info" not in file.partition("/")[0]


def _top_names(name: str, packages: tuple[Path, ...]) -> set[str]:
    stem = normal(name).replace("-", "_")
    tops = {path.name for path in packages} | {import_name(name).split(".")[-1]}
    return tops | {f"{top}.libs" for top in tops} | {f"{stem}-*.dist-info"}


def _exists(path: Path) -> bool:
    return path.is_symlink() or path.exists()
