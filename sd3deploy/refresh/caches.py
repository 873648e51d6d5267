"""Answers that libraries keep: cached checks, flags, maps from package to distribution, lists of missing backends. Data alone is corrected
here; no statement of a library is run.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from sd3deploy.lazy import lazy
from sd3deploy.refresh.package import Package, pattern
from sd3deploy.refresh.private import MISSING_BACKENDS, PACKAGE_MAP
from sd3deploy.vendored import canonicalize_name

__all__ = ["correct_backends", "correct_flags", "correct_map", "forget", "modules_of", "placeholder"]

_CHECK = lazy(r"^_?is_|avail|version")
_CACHED = type(functools.lru_cache(lambda: None))


def modules_of(roots: tuple[str, ...]) -> Iterator[tuple[str, ModuleType]]:
    """The loaded modules of some top-level packages, in the order of their import."""
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] in roots and isinstance(module, ModuleType):
            yield name, module


def placeholder(value: object) -> bool:
    """True for the classes that stand in for those of an absent package."""
    return type(value).__name__ == "DummyObject"


def forget(packages: list[Package], libraries: tuple[str, ...]) -> int:
    """Clear the caches of the libraries' checks for availability and version. Returns how many there are."""
    named = pattern(tuple(alias for package in packages for alias in package.aliases))
    found = {}
    for _, module in modules_of(libraries):
        for name, value in list(vars(module).items()):
            if type(value) is _CACHED and (_CHECK.search(name) or named.search(name.lower())):
                found[id(value)] = value
    for function in found.values():
        function.cache_clear()
    return len(found)


def correct_map(packages: list[Package]) -> list[str]:
    """Enter the packages into the table of distributions that transformers has made at its import. Returns what was entered."""
    module, name = PACKAGE_MAP
    table = vars(sys.modules[module]).get(name) if module in sys.modules else None
    steps: list[str] = []
    if not isinstance(table, dict):
        return steps
    for package in packages:
        for top in {module.partition(".")[0] for module in package.imports}:
            owners = table.setdefault(top, [])
            if package.name not in {canonicalize_name(one) for one in owners}:
                owners.append(package.name)
                steps.append(f"{name}[{top}]")
    return steps


def correct_flags(packages: list[Package], libraries: tuple[str, ...]) -> list[str]:
    """Set `_x_available` (transformers 4 for gguf: `_is_x_available`) and `_x_version`, which diffusers and transformers 4 compute once,
    and every copy of them. Returns which.
    """
    steps = []
    for name, module in modules_of(libraries):
        for package in packages:
            for alias in package.aliases:
                for flag in (f"_{alias}_available", f"_is_{alias}_available"):
                    if vars(module).get(flag) is False:
                        setattr(module, flag, True)
                        if f"_{alias}_version" in vars(module):
                            setattr(module, f"_{alias}_version", package.version)
                        steps.append(f"{name}.{flag}")
    return steps


def correct_backends(libraries: tuple[str, ...]) -> list[str]:
    """Strike the backends that are there now from transformers' lazy modules, and drop the placeholders that waited for them; the next
    access finds the class. Returns the names of the modules that changed.
    """
    attribute, library, mapping = MISSING_BACKENDS
    checks = vars(sys.modules[library]).get(mapping, {}) if library in sys.modules else {}
    answers: dict[str, bool] = {}

    def missing(backend: Any) -> bool:
        key = str(getattr(backend, "backend_requirement", backend))
        if key not in answers:
            try:
                answers[key] = not (checks[backend][0]() if isinstance(backend, str) else backend.is_satisfied())
            except Exception:  # what the library itself counts as missing
                answers[key] = True
        return answers[key]

    steps = []
    for name, module in modules_of(libraries):
        tables = vars(module)
        waiting = tables.get(attribute)
        if not isinstance(waiting, dict):
            continue
        for key, backends in list(waiting.items()):
            rest = [backend for backend in backends if missing(backend)]
            if len(rest) == len(backends):
                continue
            if rest:
                waiting[key] = rest
            else:
                del waiting[key]
            if placeholder(tables.get(key)):
                del tables[key]
            if name not in steps:
                steps.append(name)
    return steps
