"""Do the tests notice a changed line? `python3 dev.py mutants [PATH …] [--minutes N]` changes modules of sd3deploy/, one place at a time,
with the operators of cosmic-ray, and runs the tests that cover them. On Linux: each mutant is a fork of a process that has all libraries.

The tree is copied: nothing changes here. Mutants are drawn in an order that is the same each time, so a longer run goes on where a shorter
one ended. Those that survive are shown as a difference; whether one is equivalent, a person has to say.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent

LEFT = (".git", ".venv", ".cache", ".pytest_cache", "__pycache__", "build")
# What is mutated → the tests that cover it, the quick ones first. A module stands with the first entry that fits.
TESTS = {
    "guards/attention.py": ["guards_attention"],
    "guards/prompt.py": ["guards_prompt", "guards"],
    "guards/resolution.py": ["guards_resolution", "guards", "commands_check"],
    "guards/sampling.py": ["guards_sampling", "guards"],
    "guards/": ["guards", "guards_number", "guards_sampling", "guards_prompt", "guards_resolution", "hints", "commands_check"],
    "memory/capacity.py": ["memory_capacity"],
    "memory/correction.py": ["memory_monitor"],
    "memory/exhausted.py": ["memory_exhausted"],
    "memory/heap.py": ["memory_heap"],
    "memory/monitor.py": ["memory_monitor"],
    "memory/phases.py": ["memory_monitor", "memory_exhausted"],
    "memory/bars.py": ["memory_bars"],
    "memory/sizes.py": ["memory_sizes", "memory_estimate"],
    "memory/t5_shape.py": ["memory_estimate", "memory_sizes"],
    "memory/errors.py": ["quality", "commands_quality"],
    "memory/": ["memory_estimate", "memory_verdict", "commands_memory"],
    "encoders/four_bit.py": ["encoders_four_bit"],
    "encoders/source.py": ["encoders_source"],
    "encoders/forms/": ["forms", "forms_shapes", "forms_mutations"],
    "encoders/choices.py": ["encoders_choices", "memory_estimate", "memory_verdict"],
    "encoders/cache/journal.py": ["hub_journal"],
    "encoders/cache/": ["encoders_cache"],
    "encoders/containers/": ["containers_gguf", "containers_torch", "containers_foreign", "encoders_header"],
    "encoders/header.py": ["encoders_header"],
    "encoders/folder.py": ["folder", "weights_agree"],
    "encoders/hub/spec.py": ["hub_spec"],
    "encoders/hub/": ["hub_reading", "hub_source"],
    "encoders/identity.py": ["identity", "weights_agree"],
    "encoders/outlook.py": ["outlook"],
    "encoders/parts.py": ["quality"],
    "encoders/weights.py": ["weights_agree", "forms", "folder", "identity"],
    "encoders/handover.py": ["handover_exact", "deployment"],
    "encoders/load.py": ["encoders_load", "encoders_cache", "hub_journal"],
    "encoders/mapped.py": ["deployment"],
    "encoders/need.py": ["deployment"],
    "encoders/stopping.py": ["hub_reading", "hub_journal"],
    "encoders/tokenizer.py": ["encoders_tokenizer"],
    "encoders/swap.py": ["deployment"],
    "quality/": ["quality", "commands_quality", "quality_pictures"],
    "encoders/": ["encoders_choices", "encoders_quantize", "encoders_load", "encoders_source", "encoders_cache"],
    "deployment/offers.py": ["outlook"],
    "deployment/newcomers.py": ["deployment_newcomers"],
    "deployment/": ["deployment"],
    "refresh/": ["refresh_import_errors", "refresh"],
    "deps/belongings.py": ["deps_damage", "installed"],
    "deps/": ["deps_requirement", "deps_status", "deps_planning", "deps_candidate", "deps_damage", "deps_lock", "deps_failure",
              "deps_proof", "deps_execution"],
    "events.py": ["events"],
}
DEFAULT = ["guards", "memory", *(f"encoders/{name}.py" for name in ("four_bit", "quantize", "storage", "recipe", "choices", "measure")),
           "encoders/source.py", "encoders/t5.py", "events.py"]  # fmt: skip
# They would change names that are never read, or remove what nothing but a type checker looks at.
LEFT_OUT = ("VariableReplacer", "VariableInserter", "NoOp")
COMPARED = {"Eq": ("NotEq",), "NotEq": ("Eq",), "Is": ("IsNot",), "IsNot": ("Is",), "In": ("NotIn",), "NotIn": ("In",),
            "Lt": ("LtE", "GtE"), "LtE": ("Lt", "Gt"), "Gt": ("GtE", "LtE"), "GtE": ("Gt", "Lt")}  # fmt: skip
ARITHMETIC = {"Add": "Sub", "Sub": "Add", "Mul": "Div", "Div": "Mul", "FloorDiv": "Mul", "Mod": "Mul", "Pow": "Mul",
              "BitOr": "BitAnd", "BitAnd": "BitOr", "BitXor": "BitAnd", "LShift": "RShift", "RShift": "LShift"}  # fmt: skip
HANG = 300  # seconds; a mutant that takes longer hangs, which somebody would notice too


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="*", default=DEFAULT, help="files or folders of sd3deploy/")
    parser.add_argument("--minutes", type=float, default=25)
    parser.add_argument("--site", help="the folder with cosmic-ray")
    parser.add_argument("--slow", action="store_true", help="tests with other processes and whole models too")
    args = parser.parse_args()
    sys.path += [args.site] if args.site else []
    with tempfile.TemporaryDirectory(prefix="sd3-mutants-") as place:
        tree = Path(place) / "tree"
        shutil.copytree(ROOT, tree, symlinks=True, ignore=shutil.ignore_patterns(*LEFT))
        os.chdir(tree)
        return run(tree, [one for path in args.paths for one in modules(tree / "sd3deploy" / path)], args.minutes, args.slow)


def modules(path: Path) -> list[Path]:
    return sorted(path.rglob("*.py")) if path.is_dir() else [path]


def run(tree: Path, files: list[Path], minutes: float, slow: bool) -> int:
    preload()
    queues, broken = [], set()
    for file in files:
        made = mutants(file)
        random.Random(str(file.relative_to(tree))).shuffle(made)
        if made:
            queues.append((file, made))
        print(f"{file.relative_to(tree)!s:<44} {len(made):>4} places, {', '.join(tests_of(file))}", flush=True)
    for file in {tuple(tests_of(file)): file for file, _ in queues}.values():
        if tested(file, slow, tree.parent / "output") != "survived":
            broken |= {one for one, _ in queues if tests_of(one) == tests_of(file)}
            print(f"{file.relative_to(tree)}: its tests fail without any change", (tree.parent / "output").read_text()[-1500:], sep="\n")
    score: dict[str, int] = {}
    of: dict[Path, dict[str, int]] = {}
    end = time.monotonic() + 60 * minutes
    turns = [(file, made[number]) for number in range(max((len(made) for _, made in queues), default=0)) for file, made in queues
             if number < len(made) and file not in broken]  # fmt: skip
    # Each module in turn: however short the time is, all have their share.
    known = {file: {meaning(file.read_text("utf-8"))} for file, _ in queues}
    for file, (line, kind, number) in turns:
        if time.monotonic() > end:
            break
        before = file.read_text("utf-8")
        if (code := changed(before, kind, number, known[file])) is None:
            continue
        file.write_text(code, "utf-8")
        try:
            how = tested(file, slow, os.devnull)
        finally:
            file.write_text(before, "utf-8")
        score[how] = score.get(how, 0) + 1
        of.setdefault(file, {})[how] = of.get(file, {}).get(how, 0) + 1
        if how == "survived":
            lines = difflib.unified_diff(before.splitlines(), code.splitlines(), n=0, lineterm="")
            print(f"\nsurvived: {file.relative_to(tree)}:{line}", *list(lines)[3:], sep="\n  ", flush=True)
    print()
    for file, counts in of.items():
        print(f"{file.relative_to(tree)!s:<44} {counts}")
    print(f"\n{sum(score.values())} mutants tried, of at most {sum(len(made) for _, made in queues)}: {score}", flush=True)
    return int("survived" in score)


def mutants(file: Path) -> list[tuple[int, Any, int]]:
    """(line, operator, which of the places that it has in the file)."""
    import cosmic_ray.plugins
    from cosmic_ray.ast import ast_nodes, get_ast

    nodes = list(ast_nodes(get_ast(file.read_text("utf-8"))))
    found = []
    for name in cosmic_ray.plugins.operator_names():
        kind = cosmic_ray.plugins.get_operator(name)
        if sensible(name) and not kind.arguments():
            places = [start for node in nodes for start, _ in kind().mutation_positions(node)]
            found += [(line, kind, number) for number, (line, _) in enumerate(places)]
    return found


def changed(source: str, kind: Any, number: int, known: set[str]) -> str | None:
    """The code with that change; None where it is none, as in a type, or where it has been tried."""
    from cosmic_ray.mutating import mutate_code

    code = mutate_code(source, kind(), number)
    try:
        this = meaning(code or source)
    except SyntaxError:
        return None
    if this in known:
        return None
    known.add(this)
    return code


def sensible(name: str) -> bool:
    """Of the many replacements of an operator those that somebody could write by mistake: not the order of two strings, say."""
    if any(one in name for one in LEFT_OUT):
        return False
    if "ReplaceBinaryOperator" in name:
        before, after = name.rpartition("ReplaceBinaryOperator_")[2].split("_")
        return ARITHMETIC.get(before) == after
    if "ReplaceComparisonOperator" in name:
        before, after = name.rpartition("ReplaceComparisonOperator_")[2].split("_")
        return after in COMPARED[before]
    return True


def meaning(code: str) -> str:
    """The code without types and words for people."""
    tree = ast.parse(code)
    for node in ast.walk(tree):
        if isinstance(node, ast.arg | ast.AnnAssign):
            node.annotation = ast.Constant(None)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            node.returns = None
        for body in [getattr(node, "body", None)]:
            if isinstance(body, list) and body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
                body[0].value.value = ""
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = [ast.Pass()]
    return ast.dump(tree)


def tests_of(file: Path) -> list[str]:
    name = str(file).rpartition("/sd3deploy/")[2]
    return [f"tests/test_{one}.py" for one in next(names for start, names in TESTS.items() if name.startswith(start))]


def preload() -> None:
    """What every fork would load anew."""
    sys.dont_write_bytecode = True
    os.environ |= {"PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    import bitsandbytes  # noqa: F401
    import diffusers  # noqa: F401
    import hypothesis  # noqa: F401
    import pytest  # noqa: F401
    import schemathesis.pytest.plugin  # noqa: F401
    import torch  # noqa: F401
    import transformers  # noqa: F401
    from diffusers import StableDiffusion3Pipeline  # noqa: F401
    from transformers import T5EncoderModel  # noqa: F401


def tested(file: Path, slow: bool, output: str | Path) -> str:
    """killed, survived, or hangs: what the tests of a module say to it as it is now."""
    child = os.fork()
    if not child:
        os.setsid()
        said = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for descriptor in (1, 2):
            os.dup2(said, descriptor)
        sys.path.insert(0, os.getcwd())
        import pytest

        words = ["-x", "-q", "-n0", "-p", "no:cacheprovider", "--hypothesis-seed=0", *tests_of(file)]
        code = 2
        try:
            code = int(pytest.main(words if slow else [*words, "-k", QUICK]))
        finally:
            os._exit(code)
    try:
        return wait(child)
    finally:
        try:
            os.killpg(child, signal.SIGKILL)
        except ProcessLookupError:
            pass


# Without those that start whole processes or make whole models: what they notice, a quick one should.
SLOW = ("no_traceback", "killed", "without_any_heavy", "older_versions", "memory_is_that_of", "real_run_is", "truth", "real_pipeline",
        "edge_is_where", "real_environment", "real_index", "upgrades_downgrades", "refuses_rather", "goes_down_until", "read_only",
        "package_that_changed", "uv_installs", "switched_off", "becomes_usable", "our_own_encoders", "nothing_heavy")
QUICK = " and ".join(f"not {name}" for name in SLOW)


def wait(child: int) -> str:
    end = time.monotonic() + HANG
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return "survived" if os.waitstatus_to_exitcode(status) == 0 else "killed"
        time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "hangs"


if __name__ == "__main__":
    sys.exit(main())
