"""Everything on disk that belongs to one distribution and to nobody else: its metadata, packages and other files, what pip left of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from sd3deploy.installed import SHARED_BY_HABIT, Distribution, distributions, folders, import_name, owners, ranked, residue
from sd3deploy.vendored import canonicalize_name

__all__ = ["Belongings", "belongings"]


@dataclass(frozen=True)
class Belongings:
    """What one distribution has in the one folder from which Python would take it. All paths existed when this was made.

    infos: metadata folders; packages: importable folders or single modules; loose: other recorded files and `*.libs` folders;
    residue: what pip renamed to `~…` and left. packages and loose may have files of others in them: see `others`.
    """

    name: str
    site: Path | None
    infos: tuple[Distribution, ...] = ()
    packages: tuple[Path, ...] = ()
    loose: tuple[Path, ...] = ()
    residue: tuple[Path, ...] = ()

    @cached_property
    def others(self) -> dict[str, tuple[Distribution, ...]]:
        """Files among these that other distributions own too, relative to the site folder. The first look reads every RECORD there."""
        if self.site is None or not (self.packages or self.loose):
            return {}
        return owners(self.site, (path.relative_to(self.site).as_posix() for path in (*self.packages, *self.loose)), but=self.name)

    @cached_property
    def owners(self) -> tuple[Distribution, ...]:
        """Other distributions that own files of its packages, first the one whose files lie there. Where there is any, the packages are
        never repaired, moved or deleted: it brings them, or both do.
        """
        for package in self.packages:
            root = package.relative_to(self.site).as_posix()  # pyright: ignore[reportArgumentType]  packages lie in a site
            found = dict.fromkeys(one for file, who in self.others.items() if file == root or file.startswith(f"{root}/") for one in who)
            if found and package.name not in SHARED_BY_HABIT:
                return ranked(found, root)
        return ()

    @property
    def brought(self) -> Distribution | None:
        """The other distribution that brings its module in its place: triton-windows for triton. None where it is there itself, or where
        others have no more than added files to it.
        """
        for package in self.packages if not self.infos else ():
            root = package.relative_to(self.site).as_posix()  # pyright: ignore[reportArgumentType]  packages lie in a site
            if found := self.others.get(f"{root}/__init__.py") or self.others.get(root):
                return ranked(found, root)[0]
        return None

    def all(self) -> tuple[Path, ...]:
        """What has to be moved so that nothing of the distribution remains. Nothing that another one owns is among it."""
        if not self.others:
            return (*self.packages, *self.loose, *(info.path for info in self.infos), *self.residue)
        kept: dict[Path, None] = {}
        for path in (*self.packages, *self.loose):
            kept.update(dict.fromkeys(self._without_others(path)))
        return (*kept, *(info.path for info in self.infos), *self.residue)

    def _without_others(self, path: Path) -> Iterable[Path]:
        """The path itself, or of a folder that others use too the files that only the own RECORDs list."""
        assert self.site is not None
        root = path.relative_to(self.site).as_posix()
        if not any(file == root or file.startswith(f"{root}/") for file in self.others):
            return (path,)
        own = dict.fromkeys(file for info in self.infos for file in info.record() or ())
        mine = (self.site / file for file in own if file.startswith(f"{root}/") and file not in self.others)
        return () if root in self.others else [file for file in mine if _exists(file)]


def belongings(name: str) -> Belongings:
    """Gather them from the RECORDs, and by the import name where no RECORD tells. The first folder that has any counts:
    what lies in later ones (the system's, below a virtual environment) is not what Python would import."""
    rest = Belongings(name, None)
    for folder in folders():
        own = _in(folder, name)
        if own.infos or own.packages:
            return own
        if own.residue and not rest.residue:
            rest = own
    return rest


def _in(site: Path, name: str) -> Belongings:
    found = distributions(name, site)
    packages: dict[Path, None] = {}
    loose: dict[Path, None] = {}
    for info in found:
        files = info.record() or {}
        roots = [root for root in info.roots() if root not in files]  # without single modules
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
    tops = set(existing)
    others = tuple(path for path in loose if not tops.intersection((path, *path.parents)) and _exists(path))
    return Belongings(name, site, found, existing, others, residue(site, _top_names(name, existing)))


def _is_loose(file: str) -> bool:
    """Neither metadata nor outside of the site folder. Scripts (`../../bin/…`) stay: pip writes over them."""
    return not file.startswith(("..", "/")) and not file.endswith(".pyc") and ".dist-info" not in file.partition("/")[0]


def _top_names(name: str, packages: tuple[Path, ...]) -> set[str]:
    stem = canonicalize_name(name).replace("-", "_")
    tops = {path.name for path in packages} | {import_name(name).split(".")[-1]}
    return tops | {f"{top}.libs" for top in tops} | {f"{stem}-*.dist-info"}


def _exists(path: Path) -> bool:
    return path.is_symlink() or path.exists()
