"""dev.py and what stands around the demo."""

import ast
import re
import subprocess
import sys

import pytest

import dev
from bench.__main__ import names, rows
from demo import environment, server


def test_dev_needs_the_standard_library_only():
    tree = ast.parse((server.ROOT / "dev.py").read_text())
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in imported} <= sys.stdlib_module_names


def test_every_package_of_the_environment_is_pinned_for_new_pythons():
    lines = [line for line in dev.REQUIREMENTS.read_text().splitlines() if line and not line.startswith("#")]
    loose = [line for line in lines if not re.match(r"[\w.-]+==[\w.]+( ; .+)?$", line)]
    assert all(line.endswith('; python_version < "3.11"') for line in loose)


def test_the_newest_environment_is_about_packages_and_tests_that_there_are():
    pinned = {re.split(r"[ =;]", line)[0] for line in dev.REQUIREMENTS.read_text().splitlines()}
    assert set(dev.MOVING) <= pinned
    assert all(list(server.ROOT.glob(f"tests/test_{name}*.py")) for name in dev.OF_LIBRARIES)


@pytest.mark.parametrize(("words", "named"), [([], False), (["-k", "x"], False), (["tests/test_guards.py"], True),
                                              (["tests/test_guards.py::test_one", "-x"], True)])  # fmt: skip
def test_newest_runs_the_tests_of_what_the_libraries_decide_about_or_those_that_are_named(monkeypatch, words, named):
    run = []
    monkeypatch.setattr(dev, "prepare_newest", lambda: dev.PYTHON)
    monkeypatch.setattr(dev, "versions", lambda python: {name.replace("_", "-"): "1" for name in dev.MOVING})
    monkeypatch.setattr(dev, "run", lambda *all, python: run.append((all, python)) or 7)
    assert dev.newest(words) == 7
    ((all, python),) = run
    assert python == dev.PYTHON
    assert list(all[:2]) == ["-m", "pytest"]
    assert set(words) <= set(all)
    assert any(word.endswith("test_encoders_load.py") for word in all) != named


@pytest.mark.parametrize("words", [[], ["nonsense"]])
def test_a_wrong_command_names_the_right_ones(words):
    done = subprocess.run([sys.executable, "dev.py", *words], cwd=server.ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert all(command in done.stderr for command in ("demo", "test", "bench", "lint"))


def test_a_prepared_environment_is_left_alone(monkeypatch):
    monkeypatch.setattr(dev, "step", lambda *args: pytest.fail("it was made again"))
    dev.prepare()


def test_benchmarks_are_found_and_their_results_become_rows():
    assert "__main__" not in names()
    assert rows({"a": {"b": 1.5, "c": [{"d": 2}]}, "e": "x"}) == [("a.b", "1.5"), ("a.c[0].d", "2"), ("e", "x")]


def test_a_linked_environment_lacks_what_was_left_out_and_has_pip(tmp_path):
    python = environment.linked(tmp_path / "venv", without=["bitsandbytes"])
    code = "import importlib.util as u; print([u.find_spec(n) is not None for n in ('bitsandbytes', 'torch', 'pip')])"
    assert subprocess.run([python, "-c", code], capture_output=True, text=True).stdout.strip() == "[False, True, True]"
