"""Answers that libraries keep: cached checks, maps from package to distribution, tables of versions."""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Iterator
from types import ModuleType

from sd3deploy.refresh.package import Package, normal
from sd3deploy.refresh.private import HOST_FLAGS, LIBRARIES, PACKAGE_MAPS, VERSION_TABLES

__all__ = ["correct_tables", "forget", "modules_of"]

_CHECK = re.compile(r"^_?is_|avail|version")
_CACHED = type(functools.lru_cache(lambda: None))


def modules_of(roots: tuple[str, ...]) -> Iterator[tuple[str, ModuleType]]:
    """The loaded modules of some top-level packages, in the order of their import."""
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] in roots and isinstance(module, ModuleType):
            yield name, module


def forget(libraries: tuple[str, ...] = LIBRARIES) -> int:
    """Clear the caches of the libraries' checks for availability and version. Returns how many there are."""
    found = {}
    for _, module in modules_of(libraries):
        for name, value in list(vars(module).items()):
            if type(value) is _CACHED and _CHECK.search(name):
                found[id(value)] = value
    for function in found.values():
        function.cache_clear()
    return len(found)


def correct_tables(packages: list[Package]) -> list[str]:
    """Enter the packages into the tables that were made at import and that nothing else would make again."""
    steps = []
    for module, name in PACKAGE_MAPS:
        table = _value(module, name)
        if isinstance(table, dict):
            for package in packages:
                for top in {module.partition(".")[0] for module in package.imports}:
                    owners = table.setdefault(top, [])
                    if package.name not in map(normal, owners):
                        owners.append(package.name)
                        steps.append(f"{module}.{name}[{top}]")
    for module, name, candidates in VERSION_TABLES:
        table, known = _value(module, name), _value(module, candidates)
        if isinstance(table, dict) and isinstance(known, dict):
            for package in packages:
                for key, names in known.items():
                    if normal(package.name) in map(normal, names) and table.get(key) != package.version:
                        table[key] = package.version
                        steps.append(f"{module}.{name}[{key}]")
    for (module, name), distribution in HOST_FLAGS.items():
        if _value(module, name) is False and distribution in [normal(package.name) for package in packages]:
            setattr(sys.modules[module], name, True)
            steps.append(f"{module}.{name}")
    return steps


def _value(module: str, name: str) -> object:
    loaded = sys.modules.get(module)
    return vars(loaded).get(name) if isinstance(loaded, ModuleType) else None
