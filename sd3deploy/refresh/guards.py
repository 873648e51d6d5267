"""Statements at the top level of a library that were skipped, or came out negative, because a package was absent.

    _bitsandbytes_available, _bitsandbytes_version = _is_package_available("bitsandbytes")     a flag
    if is_accelerate_available():                                                              a guarded import
        from accelerate import dispatch_model

Such a statement is run (again) in its module's own namespace when it mentions a changed package and what it would bind is
missing, None, False or "N/A". Nothing that has a value is touched: not what a host has patched, not a class that is in use.
"""

from __future__ import annotations
import __future__

import ast
import os
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType

from sd3deploy.refresh.caches import forget, modules_of
from sd3deploy.refresh.package import Package, pattern
from sd3deploy.refresh.private import HOST_ROOTS, STRUCTURE, TOKENIZER_NAMES

__all__ = ["placeholder", "replay"]

_ROUNDS = 4  # a flag may rest on a flag of a module that was imported later; two rounds settle all known cases
_MISSING = object()
_BODIES = re.compile(r"^(?:class |def |async def |@|from |import ).*\n(?:(?:[ \t)\]}#].*)?\n)*", re.M)
_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def placeholder(value: object) -> bool:
    """True for the classes that stand in for those of an absent package."""
    return type(value).__name__ == "DummyObject"


@cache
def _statements(path: str, changed: int, aliases: tuple[str, ...]) -> tuple[ast.stmt, ...]:
    """What may have to be run again in a file that speaks of a package. `changed`: its time stamp; an edited file is read again."""
    text = Path(path).read_text(encoding="utf-8", errors="replace")
    lower = text.lower()
    # To parse is what costs; most files speak of the package only in functions and imports, or not at all.
    if not any(alias in lower for alias in aliases) or not pattern(aliases).search(_BODIES.sub("", lower)):
        return ()
    return tuple(node for node in ast.parse(text).body if isinstance(node, (ast.If, ast.Try, ast.Assign)))


def replay(packages: list[Package], libraries: tuple[str, ...]) -> list[str]:
    """Bring flags and guarded imports of the libraries up to date. Returns what was run, as "module:line names"."""
    steps: list[str] = []
    for _ in range(_ROUNDS):
        forget(libraries)
        before = len(steps)
        for name, module in modules_of(libraries):
            path = vars(module).get("__file__")
            if not path or not path.endswith(".py") or STRUCTURE[0] in vars(module):  # lazy modules: see lazy.py
                continue
            for package in packages:
                try:
                    statements = _statements(path, os.stat(path).st_mtime_ns, package.aliases)
                    steps += [f"{name}:{line}" for line in _Module(module, path, package).run(statements)]
                except (OSError, SyntaxError) as error:
                    steps.append(f"{name}: not readable ({error})")
        if len(steps) == before:
            break
    forget(libraries)
    return steps


class _Module:
    """One module and one package: finds the statements to run and runs them."""

    def __init__(self, module: ModuleType, path: str, package: Package) -> None:
        self.names = vars(module)
        self.root = module.__name__.partition(".")[0]
        self.path = path
        self.package = package
        self.derived: set[str] = set()  # flags computed from the package's: _CAN_USE_SAGE_ATTN
        self.flags = self.names["annotations"].compiler_flag if self.names.get("annotations") is __future__.annotations else 0

    def run(self, statements: tuple[ast.stmt, ...] | list[ast.stmt], inside: bool = False) -> Iterator[str]:
        """`inside`: the statements stand in a guard that mentions the package."""
        for node in statements:
            if isinstance(node, ast.If):
                guard = inside or self.mentioned(node.test)
                taken = self.branch(node)
                if guard and self.stale(_bound(taken)):
                    yield from self.execute(node, _bound(taken))
                elif taken:
                    yield from self.run(taken, guard)
            elif isinstance(node, ast.Try):
                if (inside or any(map(self.mentioned, node.body))) and self.stale(_bound(node.body)):
                    yield from self.execute(node, _bound(node.body))
            elif isinstance(node, ast.Assign):
                targets = _bound([node])
                if (self.names["__name__"], *targets) == TOKENIZER_NAMES:
                    yield from self.complete(node, *targets)
                elif targets and (inside or self.mentioned(node)):
                    self.derived |= targets
                    if self.stale(targets):
                        yield from self.execute(node, targets)
            elif inside and isinstance(node, (ast.Import, ast.ImportFrom, *_DEFINITIONS)) and self.stale(_bound([node])):
                yield from self.execute(node, _bound([node]))

    def mentioned(self, node: ast.AST) -> bool:
        for part in ast.walk(node):
            for text in _words(part):
                if text in self.derived or self.package.mentioned_in(text):
                    return True
        return False

    def branch(self, node: ast.If) -> list[ast.stmt]:
        """The statements that the condition selects now; none when it can not be evaluated."""
        try:
            code = compile(ast.Expression(node.test), self.path, "eval", self.flags, True)
            return node.body if eval(code, self.names) else node.orelse
        except Exception:  # a condition over names that this module lost: not ours to judge
            return []

    def stale(self, names: set[str]) -> bool:
        return any(_negative(self.names.get(name, _MISSING)) for name in names)

    def execute(self, node: ast.stmt, bound: set[str]) -> Iterator[str]:
        before = {name: self.names.get(name, _MISSING) for name in bound}
        try:
            exec(compile(ast.Module([node], []), self.path, "exec", self.flags, True), self.names)
        except (Exception, SystemExit) as error:
            yield f"{node.lineno} failed: {error}"
            return
        changed = [name for name in sorted(bound) if self.names.get(name, _MISSING) is not before[name]]
        for name in changed:
            if before[name] is False:
                self.copy(name, self.names[name])
        if changed:
            yield f"{node.lineno} {' '.join(changed)}"

    def complete(self, node: ast.Assign, name: str) -> Iterator[str]:
        """A table of classes by name: fill in the ones that are None, in place, because others hold the table."""
        table = self.names[name]
        fresh = eval(compile(ast.Expression(node.value), self.path, "eval", self.flags, True), self.names)
        for key, value in fresh.items():
            old = table.get(key)
            if value != old and (old is None or (isinstance(old, tuple) and None in old)):
                table[key] = value
                yield f"{node.lineno} {name}[{key}]"

    def copy(self, flag: str, value: object) -> None:
        """Modules that took the flag by `from … import FLAG` keep a copy of it; private ones stay inside a library."""
        roots = (self.root,) if flag.startswith("_") else (self.root, *HOST_ROOTS)
        for _, module in modules_of(roots):
            if vars(module).get(flag) is False:
                setattr(module, flag, value)


def _negative(value: object) -> bool:
    return value is _MISSING or value is None or value is False or (isinstance(value, str) and value == "N/A") or placeholder(value)


def _bound(statements: list[ast.stmt]) -> set[str]:
    """The names that statements certainly bind: imports and definitions; assignments only where there is nothing else."""
    firm: set[str] = set()
    assigned: set[str] = set()
    for node in statements:
        if isinstance(node, ast.Import):
            firm |= {alias.asname or alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            firm |= {alias.asname or alias.name for alias in node.names if alias.name != "*"}
        elif isinstance(node, _DEFINITIONS):
            firm.add(node.name)
        elif isinstance(node, ast.Assign) and not (isinstance(node.value, ast.Constant) and not node.value.value):
            for target in node.targets:
                parts = target.elts if isinstance(target, ast.Tuple) else [target]
                assigned |= {part.id for part in parts if isinstance(part, ast.Name)}
    return firm or assigned


def _words(node: ast.AST) -> Iterator[str]:
    """Identifiers and strings of one node."""
    if isinstance(node, ast.Name):
        yield node.id
    elif isinstance(node, ast.Attribute):
        yield node.attr
    elif isinstance(node, ast.Constant) and isinstance(node.value, str) and len(node.value) < 60:  # not a docstring
        yield node.value
    elif isinstance(node, ast.alias):
        yield node.name
    elif isinstance(node, ast.ImportFrom):
        yield node.module or ""
