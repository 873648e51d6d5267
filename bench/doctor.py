"""How much the doctor knows: excerpts of reported failures without the rules made for them, and every `raise` of the libraries.

A finding is right where cause and package are those that the excerpt expects. `families alone` leaves out every rule that knows a sentence;
`without its own rule` leaves out the one of the excerpt: what is right then was not written from it. A `raise` counts where its text can be
built from the source; placeholders are filled with a word or a number.
"""

from __future__ import annotations

import ast
import importlib.util
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

__all__ = ["run"]

LIBRARIES = ("diffusers", "transformers", "accelerate", "bitsandbytes", "peft")
_NAMES, _FILES = frozenset(("names", "pip", "native")), frozenset(("files", "network"))
DECIDED = {  # types that decide by themselves, and the families that are right for them
    "ImportError": _NAMES, "ModuleNotFoundError": _NAMES, "MemoryError": frozenset(("memory",)),
    "OSError": _FILES, "EnvironmentError": _FILES, "FileNotFoundError": _FILES, "PermissionError": _FILES, "ConnectionError": _FILES,
    "LocalEntryNotFoundError": _FILES, "OutOfMemoryError": frozenset(("memory",)),
}  # fmt: skip


def run(small: bool = False) -> dict[str, Any]:
    """{"excerpts": {which rules: {right, wrong, not known, healthy, precision, recall}}, "raises": {library: …, "all": …}}"""
    return {"excerpts": excerpts(), "raises": raises(LIBRARIES[2:] if small else LIBRARIES)}


def excerpts() -> dict[str, dict[str, Any]]:
    """Over tests/knowledge: all that match. Precision: right of those that were called something; recall: right of all."""
    from sd3deploy.diagnosis import families, matcher
    from sd3deploy.diagnosis.knowledge import RULES
    from tests.test_diagnosis_knowledge import EXCERPTS, installed, parsed

    counts = {"all rules": Counter(), "without its own rule": Counter(), "families alone": Counter()}
    kept = matcher.JUDGES
    try:
        for path in EXCERPTS:
            if not path.name.startswith("match"):
                continue
            facts, text = parsed(path)
            there = installed(facts)
            own = path.parent.name
            chosen = {"all rules": RULES, "without its own rule": [rule for rule in RULES if rule.id != own], "families alone": ()}
            expected = facts.get("expect", "")
            for name, rules in chosen.items():
                matcher.JUDGES = (*(rule.judge for rule in rules), *families.JUDGES)
                found = matcher.read([text], lambda there=there: there)
                expected = expected or next(f"{one.cause} {one.package}".strip() for one in found if one.rule == own)
                counts[name][_verdict(found, expected)] += 1
    finally:
        matcher.JUDGES = kept
    return {name: _scores(count) for name, count in counts.items()}


def _verdict(found: Sequence[Any], expected: str) -> str:
    from sd3deploy.vendored import canonicalize_name

    known = [one for one in found if one.rule != "unknown"]
    if not known:
        return "not known" if found else "healthy"
    cause, _, package = expected.partition(" ")
    same = known[0].cause == cause and (not package or canonicalize_name(known[0].package) == canonicalize_name(package))
    return "right" if same else "wrong"


def _scores(count: Counter[str]) -> dict[str, Any]:
    said = count["right"] + count["wrong"]
    words = {name: count[name] for name in ("right", "wrong", "not known", "healthy")}
    return {**words, "precision": count["right"] / max(1, said), "recall": count["right"] / max(1, count.total())}


def raises(libraries: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What comes of each `raise`: called something else than "not known"; of those whose type decides, in the right family; missed: not
    even "not known".
    """
    from sd3deploy.diagnosis import families, matcher

    found = {}
    total: Counter[str] = Counter()
    family_of = {id: family for family, kinds in families.BY_NAME.items() for id in kinds}
    for library in libraries:
        count: Counter[str] = Counter()
        for path, function, name, text in _raised(library):
            log = (
                f'Traceback (most recent call last):\n  File "/venv/lib/python3.11/site-packages/{library}/{path}", line 1, in {function}\n'
                f"    raise {name}(\n{name}: {text}\n"
            )
            findings = matcher.read([log])
            rule = findings[0].rule if findings else "none"
            count["raises"] += 1
            count["missed"] += not findings
            count["known"] += rule not in ("unknown", "none")
            if right := DECIDED.get(name):
                count["decided"] += 1
                count["decided right"] += family_of.get(rule, "names" if rule.startswith("bnb-") else "") in right
        found[library] = _shares(count)
        total += count
    return {**found, "all": _shares(total)}


def _shares(count: Counter[str]) -> dict[str, Any]:
    share = lambda part, whole: round(count[part] / max(1, count[whole]), 3)  # noqa: E731
    return {
        "raises": count["raises"],
        "missed": count["missed"],
        "known": share("known", "raises"),
        "whose type decides": count["decided"],
        "of these in the right family": share("decided right", "decided"),
    }


def _raised(library: str) -> Iterator[tuple[str, str, str, str]]:
    """(file, function, class, text) of each `raise` in an installed library whose text can be built."""
    spec = importlib.util.find_spec(library)
    if spec is None or not spec.submodule_search_locations:
        return
    root = Path(next(iter(spec.submodule_search_locations)))
    for path in sorted(root.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for function in (node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))):
            for node in ast.walk(function):
                call = node.exc if isinstance(node, ast.Raise) else None
                if isinstance(call, ast.Call) and call.args and (text := _text(call.args[0])):
                    name = getattr(call.func, "id", getattr(call.func, "attr", ""))
                    yield path.relative_to(root).as_posix(), function.name, name, " ".join(text.split())


def _text(node: ast.expr) -> str:
    """The text of an expression, "" where it is made elsewhere."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part) if isinstance(part, ast.Constant) else _filled(part) for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        left, right = _text(node.left), _text(node.right)
        return left + right if left and right else ""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "format":
        return _text(node.func.value).replace("{}", "value")
    return ""


def _filled(part: ast.expr) -> str:
    words = ast.unparse(part).lower()
    number = any(word in words for word in ("len", "shape", "size", "dim", "num"))
    return "17" if number else "/models/thing" if "path" in words else "value"
