"""Lazy modules: tables made at import that leave out, or replace by placeholders, what needs an absent package."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from sd3deploy.refresh.caches import modules_of
from sd3deploy.refresh.guards import placeholder
from sd3deploy.refresh.package import Package
from sd3deploy.refresh.private import HOST_ROOTS, MISSING_BACKENDS, STRUCTURE

__all__ = ["correct_lazy_modules", "replace_copies"]


def correct_lazy_modules(packages: list[Package], libraries: tuple[str, ...]) -> list[str]:
    """Recompute the tables of every lazy module that speaks of the packages. Returns the names of those that changed."""
    steps = []
    for name, module in modules_of(libraries):
        tables = vars(module)
        if STRUCTURE[0] not in tables:
            continue
        try:
            changed = _backends(tables)
            if _lacking(tables, packages):
                changed = _again(name, module) or changed
        except (Exception, SystemExit) as error:
            steps.append(f"{name}: {error}")
        else:
            if changed:
                steps.append(name)
    return steps


def _backends(tables: dict) -> bool:
    """transformers: strike the backends that are there now, then drop the placeholders that waited for them."""
    attribute, library, mapping = MISSING_BACKENDS
    missing = tables.get(attribute)
    checks = vars(sys.modules[library]).get(mapping, {}) if library in sys.modules else {}
    if not isinstance(missing, dict):
        return False
    answers: dict[str, bool] = {}

    def there(backend: Any) -> bool:
        key = str(getattr(backend, "backend_requirement", backend)) if not isinstance(backend, str) else backend
        if key not in answers:
            try:
                answers[key] = bool(checks[backend][0]() if isinstance(backend, str) else backend.is_satisfied())
            except Exception:  # what the library itself counts as missing
                answers[key] = False
        return answers[key]

    changed = False
    for key, backends in list(missing.items()):
        rest = [backend for backend in backends if not there(backend)]
        if len(rest) == len(backends):
            continue
        changed = True
        if rest:
            missing[key] = rest
        else:
            del missing[key]
        if placeholder(tables.get(key)):
            del tables[key]
    return changed


def _lacking(tables: dict, packages: list[Package]) -> bool:
    """True when a table still names the module of placeholders for one of the packages, or holds such a placeholder."""
    structure = tables[STRUCTURE[0]]
    if any("dummy" in str(key) and package.mentioned_in(str(key)) for key in structure for package in packages):
        return True
    return any(placeholder(value) and _waits_for(value, packages) for value in tables.values())


def _waits_for(stand_in: type, packages: list[Package]) -> bool:
    return any(package.mentioned_in(str(backend)) for backend in vars(stand_in).get("_backends", ()) for package in packages)


def _again(name: str, module: ModuleType) -> bool:
    """Run the package's __init__.py under another name and take the tables of the lazy module that it makes."""
    tables = vars(module)
    path = tables["__file__"]
    other = f"{name}.__refreshed__"
    scratch = {"__name__": other, "__package__": name, "__spec__": tables["__spec__"], "__file__": path, "__path__": tables["__path__"]}
    try:
        sys.modules[other] = ModuleType(other)
        exec(compile(Path(path).read_bytes(), path, "exec", dont_inherit=True), scratch)
        fresh = vars(sys.modules[other])
    finally:
        sys.modules.pop(other, None)
    if STRUCTURE[0] not in fresh or fresh[STRUCTURE[0]] == tables[STRUCTURE[0]]:
        return False
    for table in STRUCTURE:
        if table in fresh:
            tables[table] = fresh[table]
    for key, value in list(tables.items()):
        if placeholder(value) and not placeholder(fresh.get(key)):
            del tables[key]  # the next access finds the real one through the tables
    return True


def replace_copies(packages: list[Package], libraries: tuple[str, ...], namespaces: dict[int, str]) -> list[str]:
    """Names that other modules bound to a placeholder, or to a namespace that was no package, get the real thing."""
    steps = []
    for name, module in modules_of((*libraries, *HOST_ROOTS)):
        for key, value in list(vars(module).items()):
            real = None
            if id(value) in namespaces and isinstance(value, ModuleType):
                real = sys.modules.get(namespaces[id(value)])
            elif placeholder(value) and value.__module__ != name and _waits_for(value, packages):
                real = _real(value)
            if real is not None and real is not value:
                setattr(module, key, real)
                steps.append(f"{name}.{key}")
    return steps


def _real(value: type) -> object:
    """What the library offers under the placeholder's name now; None when that is a placeholder still."""
    library = sys.modules.get(value.__module__.partition(".")[0])
    try:
        found = getattr(library, value.__name__)
    except Exception:  # not offered there, or it needs something else that is missing
        return None
    return None if placeholder(found) else found
