"""The walls: what the core may import, and what an import may do."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CORE = [path for path in ROOT.glob("sd3deploy/**/*.py") if "webui" not in path.parts]
HEAVY = {"torch", "transformers", "diffusers", "accelerate", "bitsandbytes", "gradio", "modules", "pipelines", "numpy", "fastapi"}


@pytest.mark.parametrize("path", CORE, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_core_never_imports_the_host(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            roots = {name.split(".")[0] for name in names}
            assert not roots & {"modules", "pipelines", "gradio", "installer"}
            assert not any(name.startswith("sd3deploy.webui") for name in names)


def test_importing_the_core_brings_in_nothing_heavy_and_prints_nothing():
    modules = [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in CORE if path.stem != "__main__"]
    code = f"import sys\nfor name in {modules!r}: __import__(name)\nprint(sorted(set(sys.modules) & {HEAVY!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert done.stderr == ""


@pytest.mark.parametrize("path", CORE, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_module_says_what_is_public(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assignments = {getattr(node.targets[0], "id", ""): node.value for node in tree.body if isinstance(node, ast.Assign)}
    public = ast.literal_eval(assignments["__all__"]) if "__all__" in assignments else None
    if path.name == "__init__.py" and public is None:
        assert len(tree.body) <= 1  # a docstring alone
    else:
        assert public is not None
        assert public == sorted(public, key=lambda name: (not name.isupper(), not name[0].isupper(), name))
