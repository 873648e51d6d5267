"""Imports that a library skipped because a package was absent.

    if is_accelerate_available():
        from accelerate import dispatch_model

The guard is asked, and what it guards is imported and bound: names that the module lacks. Nothing else of the block is run, and nothing
that has a value is touched: not what a host has patched, not a class that is in use.
"""

from __future__ import annotations

import ast
import os
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType

from sd3deploy.refresh.caches import modules_of, placeholder
from sd3deploy.refresh.package import Package, pattern

__all__ = ["Guard", "guards", "lacking", "make_up", "replace_namespaces"]

_ROUNDS = 4  # an import may need a name that another module makes up later; two rounds settle all known cases

# A guard: its condition as Python text, and the imports that are bound when it holds.
Guard = tuple[str, tuple[ast.Import | ast.ImportFrom, ...]]


def guards(packages: list[Package], libraries: tuple[str, ...]) -> Iterator[tuple[str, ModuleType, Guard]]:
    """The guarded imports at the top level of loaded modules that speak of the packages, with the module and its name."""
    aliases = tuple(alias for package in packages for alias in package.aliases)
    for name, module in modules_of(libraries):
        path = vars(module).get("__file__")
        if path and path.endswith(".py") and type(module) is ModuleType:  # a lazy module has no block of its own to make up
            try:
                for guard in _read(path, os.stat(path).st_mtime_ns, aliases):
                    yield name, module, guard
            except (OSError, SyntaxError):  # gone or half written: the library is being replaced, which is told elsewhere
                continue


@cache
def _read(path: str, changed: int, aliases: tuple[str, ...]) -> tuple[Guard, ...]:
    """`changed`: the file's time stamp; an edited file is read again."""
    text = Path(path).read_text(encoding="utf-8", errors="replace")
    # To parse is what costs; most files speak of the package only in functions, or not at all.
    if not re.search(rf"^if\b[^:]*{pattern(aliases).pattern}", text.lower(), re.M):
        return ()
    speaks = pattern(aliases)
    return tuple(
        (condition, imports)
        for node in ast.parse(text).body
        if isinstance(node, ast.If) and speaks.search((condition := ast.unparse(node.test)).lower())
        if (imports := tuple(one for one in node.body if isinstance(one, (ast.Import, ast.ImportFrom)) and one.names[0].name != "*"))
    )


def make_up(packages: list[Package], libraries: tuple[str, ...]) -> list[str]:
    """Bind what the guards that hold now have skipped. Returns "module: names" for each."""
    steps: list[str] = []
    for _ in range(_ROUNDS):
        before = len(steps)
        for name, module, (condition, imports) in guards(packages, libraries):
            missing = [node for node in imports if any(_lacks(module, bound) for bound in _bound(node))]
            if missing and _holds(condition, module):
                for node in missing:
                    try:
                        if bound := _bind(module, node):
                            steps.append(f"{name}: {' '.join(bound)}")
                    except Exception:  # what it imports is not complete yet, or fails for reasons of its own: the questions tell
                        continue
        if len(steps) == before:
            break
    return steps


def lacking(packages: list[Package], libraries: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Module and name of what the guards have left unbound."""
    for name, module, (_, imports) in guards(packages, libraries):
        for bound in (bound for node in imports for bound in _bound(node)):
            if _lacks(module, bound):
                yield name, bound


def _holds(condition: str, module: ModuleType) -> bool:
    try:
        return bool(eval(condition, vars(module)))
    except Exception:  # a condition over names that this module has lost: not ours to judge
        return False


def _lacks(module: ModuleType, name: str) -> bool:
    value = vars(module).get(name)
    return value is None or placeholder(value)


def _bound(node: ast.Import | ast.ImportFrom) -> list[str]:
    """The names that an import binds."""
    plain = isinstance(node, ast.Import)
    return [alias.asname or (alias.name.partition(".")[0] if plain else alias.name) for alias in node.names]


def _bind(module: ModuleType, node: ast.Import | ast.ImportFrom) -> list[str]:
    """Import the names that the module lacks, and none of the others. Returns those that it has then."""
    names = [alias for alias, bound in zip(node.names, _bound(node), strict=True) if _lacks(module, bound)]
    own = ast.Import(names) if isinstance(node, ast.Import) else ast.ImportFrom(node.module, names, node.level)
    code = compile(ast.fix_missing_locations(ast.Module([own], [])), str(module.__file__), "exec")
    exec(code, vars(module))
    return [bound for bound in _bound(own) if not _lacks(module, bound)]


def replace_namespaces(namespaces: dict[int, str]) -> list[str]:
    """Names of any module that are bound to a namespace that was no package (id → name) get the package."""
    steps = []
    for name, module in list(sys.modules.items()) if namespaces else ():
        for key, value in list(vars(module).items()) if isinstance(module, ModuleType) else ():
            if isinstance(value, ModuleType) and (real := sys.modules.get(namespaces.get(id(value), ""))):
                setattr(module, key, real)
                steps.append(f"{name}.{key}")
    return steps
