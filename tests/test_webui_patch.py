from __future__ import annotations

import functools
import types

import pytest

from sd3deploy.webui.host.patch import Patch


@pytest.fixture
def module():
    module = types.ModuleType("host")
    exec("def load(repo, cls=None):\n    return f'host {repo}'", module.__dict__)
    return module


def louder(original, *args, **kwargs):
    return original(*args, **kwargs).upper()


def test_apply_and_undo(module):
    before = module.load
    patch = Patch(module, "load", louder)
    assert patch.apply()
    assert module.load("a") == "HOST A"
    assert module.load.__name__ == "load"
    patch.undo()
    assert module.load is before


def test_a_second_patch_replaces_the_first(module):
    Patch(module, "load", louder).apply()
    again = Patch(module, "load", lambda original, *args: f"<{original(*args)}>")
    assert again.apply()
    assert module.load("a") == "<host a>"
    again.undo()
    assert module.load("a") == "host a"


def test_a_wrapper_around_the_wrapper_survives_the_undo(module):
    patch = Patch(module, "load", louder)
    patch.apply()
    ours = module.load
    module.load = lambda *args: f"other {ours(*args)}"
    patch.undo()
    assert module.load("a") == "other host a"


def test_a_patch_keeps_what_somebody_else_has_wrapped_around_the_one_before(module):
    first = Patch(module, "load", louder)
    first.apply()
    ours = module.load

    @functools.wraps(ours)
    def other(*args):
        return f"other {ours(*args)}"

    module.load = other
    first.undo()
    Patch(module, "load", lambda original, *args: f"<{original(*args)}>").apply()
    assert module.load("a") == "<other host a>"


@pytest.mark.parametrize(("name", "expects"), [("gone", ()), ("load", ("checkpoint_info",))])
def test_it_steps_aside_where_the_host_differs(module, name, expects):
    before = dict(vars(module))
    assert not Patch(module, name, louder, expects).apply()
    assert dict(vars(module)) == before
