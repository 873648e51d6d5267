"""Patterns that are compiled at their first use: all of them are right, and none is compiled by an import."""

from __future__ import annotations

import gc
import importlib
import pkgutil
import re
import subprocess
import sys

import pytest

import sd3deploy
from sd3deploy.lazy import _Lazy, lazy

ALL = """
import gc, importlib, pkgutil, sd3deploy
from sd3deploy.lazy import _Lazy
for module in pkgutil.walk_packages(sd3deploy.__path__, "sd3deploy."):
    if "__main__" not in module.name:
        importlib.import_module(module.name)
print([one for one in gc.get_objects() if type(one) is _Lazy and len(vars(one)) > 2])
"""


def test_it_is_used_as_a_pattern_is():
    found = lazy(r"(\d+) GB", re.IGNORECASE)
    assert found.search("16 gb")[1] == "16"
    assert found.pattern == r"(\d+) GB"
    assert (found.sub("", "16 GB"), found.groups, found.flags) == ("", 1, re.compile("", re.IGNORECASE).flags)
    assert lazy(rb"<html").match(b"<html>")
    with pytest.raises(AttributeError):
        found.nothing  # noqa: B018


def test_a_method_is_looked_for_once():
    found = lazy("a")
    assert found.search("a")
    assert "search" in vars(found)


def test_each_of_them_can_be_compiled():
    for module in pkgutil.walk_packages(sd3deploy.__path__, "sd3deploy."):
        if "__main__" not in module.name:
            importlib.import_module(module.name)
    patterns = [one for one in gc.get_objects() if type(one) is _Lazy]
    assert len(patterns) > 150
    for one in patterns:
        re.compile(one.pattern, one._flags)


def test_no_import_compiles_one():
    done = subprocess.run([sys.executable, "-c", ALL], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
