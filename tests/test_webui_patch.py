from __future__ import annotations

import ast
import contextlib
import functools
import gc
import re
import threading
import types
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
from fastapi import HTTPException

from sd3deploy import messages
from sd3deploy.errors import JobRefused
from sd3deploy.webui.host.contract import TABLE
from sd3deploy.webui.host.feature import Features
from sd3deploy.webui.host.patch import Patch

ROOT = Path(__file__).parent.parent


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


def test_put_back_under_somebody_elses_wrapper_it_works_once(module):
    patch = Patch(module, "load", lambda original, *args: f"<{original(*args)}>")
    patch.apply()
    ours = module.load
    module.load = lambda *args: f"other {ours(*args)}"
    patch.undo()
    assert patch.apply()
    assert module.load("a") == "<other host a>"


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


@pytest.mark.parametrize("code", [
    "def around(load):\n    return lambda *args, **kwargs: load(*args, **kwargs) + '!'\nload = around(load)",
    "before = load\ndef load(*args, **kwargs):\n    return before(*args, **kwargs) + '!'",
])  # fmt: skip
def test_a_wrapper_of_another_extension_that_takes_anything_is_looked_through(module, code):
    """Many are made without functools.wraps."""
    for _ in range(2):
        space = {"load": module.load}
        exec(code, space)
        module.load = space["load"]
    patch = Patch(module, "load", lambda original, *args, **kwargs: (original.argument("repo"), original(*args, **kwargs)), ("repo",))
    assert patch.apply()
    assert module.load("a") == ("a", "host a!!")
    patch.undo()
    assert module.load("a") == "host a!!"


def test_where_nobody_tells_what_is_called_it_steps_aside(module):
    load = module.load
    module.load = functools.partial(lambda *args, **kwargs: load(*args, **kwargs))
    assert not Patch(module, "load", louder, ("repo",)).apply()


# What becomes of the host's function when the wrapper fails


class Wrong(Exception):
    """An exception of ours."""


class Theirs(Exception):
    """An exception of the host's function."""


class Host:
    """A module with one function, `run`, that keeps with what it was called."""

    def __init__(self, raises: BaseException | None = None, parameters: str = "p, more=None"):
        self.module = types.ModuleType("host")
        self.calls, self.raises, self.failed = [], raises, []
        exec(f"def run({parameters}):\n    return inside(locals())", self.module.__dict__)
        self.module.inside = self.inside

    def inside(self, given):
        self.calls.append(given)
        if self.raises:
            raise self.raises
        return f"picture of {given['p']}"

    def patched(self, wrapper, *expects):
        self.patch = Patch(self.module, "run", wrapper, expects, self.failed.append)
        assert self.patch.apply()
        return lambda *args, **kwargs: self.module.run(*args, **kwargs)

    def told(self):
        return [type(error) for error in self.failed]


def before(original, *args, **kwargs):
    raise Wrong


def after(original, *args, **kwargs):
    original(*args, **kwargs)
    raise Wrong


def on_enter(original, *args, **kwargs):
    with failing("enter"):
        return original(*args, **kwargs)


def on_exit(original, *args, **kwargs):
    with failing("exit"):
        return original(*args, **kwargs)


def on_exit_by_class(original, *args, **kwargs):
    with FailingExit():
        return original(*args, **kwargs)


def in_its_handler(original, *args, **kwargs):
    try:
        return original(*args, **kwargs)
    except Theirs:
        raise Wrong from None
    finally:
        released.append("in its handler")


def after_swallowing(original, *args, **kwargs):
    with contextlib.suppress(Theirs):
        original(*args, **kwargs)
    raise Wrong


def wrong_arguments(original, *args, **kwargs):
    original.argument("gone")


FAILING = [before, after, on_enter, on_exit, on_exit_by_class, after_swallowing, wrong_arguments]
released = []


@contextlib.contextmanager
def failing(where):
    if where == "enter":
        raise Wrong
    try:
        yield
    finally:
        released.append(where)
        raise Wrong


class FailingExit:
    def __enter__(self): ...

    def __exit__(self, *values):
        raise Wrong


@pytest.mark.parametrize("wrapper", FAILING)
def test_the_host_gets_what_its_function_returns_and_it_runs_once(wrapper):
    host = Host()
    run = host.patched(wrapper)
    assert run("a cat") == "picture of a cat"
    assert len(host.calls) == 1
    assert len(host.failed) == 1
    assert run("a dog") == "picture of a dog"  # off: it passes through
    assert len(host.calls) == 2
    assert len(host.failed) == 1
    assert host.module.run.__name__ == "run"


@pytest.mark.parametrize("raised", [Theirs("gone"), KeyboardInterrupt(), SystemExit(3), OSError(28, "full"), HTTPException(422, "no")])
@pytest.mark.parametrize("wrapper", [*FAILING, in_its_handler])
def test_the_host_gets_what_its_function_raises_and_it_runs_once(wrapper, raised):
    host = Host(raised)
    run = host.patched(wrapper)
    with pytest.raises(type(raised)) as caught:
        run("a cat")
    assert (str(caught.value), caught.value.args) == (str(raised), raised.args)
    assert len(host.calls) == 1


@pytest.mark.parametrize("wrapper", [on_exit, on_exit_by_class, in_its_handler])
def test_what_was_under_way_when_ours_failed_is_the_very_exception_with_its_frames(wrapper):
    host = Host(Theirs("gone"))
    with pytest.raises(Theirs) as caught:
        host.patched(wrapper)("a cat")
    assert caught.value is host.raises
    assert "inside" in [frame.name for frame in caught.traceback]
    assert host.told() == [Wrong]


def test_an_exception_that_the_wrapper_has_dealt_with_is_raised_after_all_where_the_wrapper_then_fails():
    class Odd(Exception):
        def __init__(self, one, two):
            super().__init__(f"{one} {two}")

    def wrapper(original, *args, **kwargs):
        with contextlib.suppress(Exception):
            original(*args, **kwargs)
        raise Wrong

    host = Host(Odd("out of", "memory"))
    with pytest.raises(Odd, match="out of memory"):
        host.patched(wrapper)("a cat")


def test_no_frame_of_a_failed_run_is_kept_while_the_wrapper_frees_memory_for_the_next():
    class Tensor: ...

    alive = []

    def wrapper(original, *args, **kwargs):
        try:
            original(*args, **kwargs)
        except Theirs:
            pass
        gc.collect()
        alive.append(seen[-1]())
        return original.again(*args, **kwargs)

    seen = []
    host = Host()

    def inside(given):
        tensor = Tensor()
        seen.append(weakref.ref(tensor))
        if len(seen) == 1:
            raise Theirs
        return "picture"

    host.module.inside = inside
    assert host.patched(wrapper)("a cat") == "picture"
    assert alive == [None]
    assert len(seen) == 2


@pytest.mark.parametrize("raised", [Theirs(), KeyboardInterrupt(), SystemExit(), HTTPException(422), GeneratorExit()])
def test_what_the_function_raises_passes_as_it_is_and_the_patch_stays(raised):
    host = Host(raised)
    with pytest.raises(type(raised)) as caught:
        host.patched(lambda original, *args, **kwargs: original(*args, **kwargs))("a cat")
    assert caught.value is raised
    assert host.patch.active
    assert host.failed == []


@pytest.mark.parametrize("raised", [JobRefused("size.wrong", "No.", "Smaller."), HTTPException(507), KeyboardInterrupt(), SystemExit(1)])
def test_what_the_wrapper_raises_on_purpose_passes_and_leaves_the_function_alone(raised):
    def wrapper(original, *args, **kwargs):
        raise raised

    host = Host()
    with pytest.raises(type(raised)) as caught:
        host.patched(wrapper)("a cat")
    assert caught.value is raised
    assert (host.calls, host.failed, host.patch.active) == ([], [], True)


def test_a_refusal_may_stand_in_place_of_what_the_function_raises():
    def wrapper(original, *args, **kwargs):
        try:
            return original(*args, **kwargs)
        except JobRefused as error:
            raise HTTPException(422, str(error)) from None

    host = Host(JobRefused("size.wrong", "No.", "Smaller."))
    with pytest.raises(HTTPException):
        host.patched(wrapper)("a cat")
    assert host.failed == []


def test_a_wrapper_may_answer_without_the_function():
    host = Host()
    assert host.patched(lambda original, *args, **kwargs: "ours")("a cat") == "ours"
    assert host.calls == []


def test_a_second_call_by_mistake_runs_nothing_and_one_on_purpose_does():
    def twice(original, *args, **kwargs):
        return original(*args, **kwargs), original(*args, **kwargs), original.again("another"), original("x")

    host = Host()
    assert host.patched(twice)("a cat") == ("picture of a cat", "picture of a cat", "picture of another", "picture of another")
    assert [call["p"] for call in host.calls] == ["a cat", "another"]


def test_of_two_runs_the_one_that_returned_counts():
    def wrapper(original, *args, **kwargs):
        first = original(*args, **kwargs)
        host.raises = Theirs()
        with contextlib.suppress(Theirs):
            original.again(*args, **kwargs)
        raise Wrong(first)

    host = Host()
    assert host.patched(wrapper)("a cat") == "picture of a cat"
    assert len(host.calls) == 2


@pytest.mark.parametrize(("args", "kwargs"), [
    (("a cat",), {}), ((), {"p": "a cat"}), (("a cat", 1), {}), (("a cat",), {"more": 1}), ((), {"more": 1, "p": "a cat"}),
])  # fmt: skip
def test_arguments_are_handed_on_and_found_by_name(args, kwargs):
    def wrapper(original, *args, **kwargs):
        return original.argument("p"), original(*args, **kwargs)

    host = Host()
    assert host.patched(wrapper, "p")(*args, **kwargs) == ("a cat", "picture of a cat")
    assert host.calls == [{"p": "a cat", "more": 1 if args[1:] or "more" in kwargs else None}]
    assert host.failed == []


def test_an_argument_is_found_wherever_its_parameter_stands():
    host = Host(parameters="state, p, *rest, more=None")
    run = host.patched(lambda original, *args, **kwargs: (original.argument("p"), original.argument("more", "none")), "p")
    assert run("state", "a cat", 7) == ("a cat", "none")
    assert run("state", p="a cat", more=2) == ("a cat", 2)


def test_a_call_that_the_function_itself_refuses_is_refused_in_its_words():
    host = Host()
    run = host.patched(lambda original, *args, **kwargs: (original.argument("p"), original(*args, **kwargs)), "p")
    with pytest.raises(TypeError, match="required positional argument"):
        run()


def test_what_can_not_be_told_of_does_not_hurt_either():
    """The log or the events may be what is broken; see Features.tell."""
    host = Host()
    events = SimpleNamespace(tell=lambda *args, **values: 1 / 0)
    feature = Features(events).get("load")
    host.failed = SimpleNamespace(append=feature.fail)
    assert host.patched(before)("a cat") == "picture of a cat"
    assert not feature.active


def test_a_patch_inside_of_another_fails_alone():
    inner, outer = Host(), Host()
    run_inner = inner.patched(after)
    outer.module.inside = lambda given: run_inner(given["p"])
    run = outer.patched(lambda original, *args, **kwargs: original(*args, **kwargs))
    assert run("a cat") == "picture of a cat"
    assert (inner.told(), outer.told()) == ([Wrong], [])
    assert (inner.patch.active, outer.patch.active) == (False, True)


def test_one_exception_on_its_way_through_two_patches_belongs_to_both():
    error = Theirs()
    inner, outer = Host(error), Host()
    passing = lambda original, *args, **kwargs: original(*args, **kwargs)  # noqa: E731
    run_inner = inner.patched(passing)
    outer.module.inside = lambda given: run_inner(given["p"])
    with pytest.raises(Theirs) as caught:
        outer.patched(passing)("a cat")
    assert caught.value is error
    assert (inner.failed, outer.failed) == ([], [])


THREADS = 24


def together(work):
    """`work(number)` on many threads that all begin at once; their results in order."""
    gate = threading.Barrier(THREADS, timeout=60)

    def run(number):
        gate.wait()
        return work(number)

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(run, range(THREADS)))


@pytest.mark.parametrize("wrapper", FAILING)
def test_on_many_threads_each_call_runs_once_and_the_failure_is_told_once(wrapper):
    """All of them are inside when the first one fails."""
    host = Host()
    inside = threading.Barrier(THREADS, timeout=60)
    told = []
    feature = Features(SimpleNamespace(tell=lambda *args, **values: told.append((args, values)))).get("batch")

    def waiting(original, *args, **kwargs):
        inside.wait()
        return wrapper(original, *args, **kwargs)

    host.failed = SimpleNamespace(append=feature.fail)
    run = host.patched(waiting)
    assert together(run) == [f"picture of {number}" for number in range(THREADS)]
    assert sorted(call["p"] for call in host.calls) == list(range(THREADS))
    assert len(told) == 1
    assert told[0][0] == ("warning", "host.feature-off")
    assert (told[0][1]["feature"], told[0][1]["lost"]) == (messages.text("feature.batch"), messages.text("feature.batch.lost"))


def test_on_many_threads_each_gets_what_its_own_call_has_come_to():
    """One of them fails with an exception of ours, some with one of the host, all at the same time."""
    host = Host()
    inside = threading.Barrier(THREADS, timeout=60)

    def work(given):
        inside.wait()
        if given["p"] % 3 == 0:
            raise Theirs(given["p"])
        return f"picture of {given['p']}"

    def wrapper(original, *args, **kwargs):
        try:
            return original(*args, **kwargs)
        finally:
            if args[0] == 6 or args[0] == 7:
                raise Wrong

    def ask(number):
        try:
            return run(number)
        except Theirs as error:
            return error.args[0]

    host.module.inside = work
    run = host.patched(wrapper)
    assert together(ask) == [number if number % 3 == 0 else f"picture of {number}" for number in range(THREADS)]
    assert set(host.told()) == {Wrong}


def test_a_lock_of_ours_around_the_function_is_released_whatever_fails():
    lock = threading.RLock()

    def wrapper(original, *args, **kwargs):
        with lock, failing("exit"):
            return original(*args, **kwargs)

    host = Host()
    assert host.patched(wrapper)("a cat") == "picture of a cat"
    assert together(lambda number: lock.acquire(timeout=60) and lock.release() is None) == [True] * THREADS


# Callbacks


def test_a_shielded_callback_raises_nothing_and_is_called_no_more():
    told, calls = [], []
    features = Features(SimpleNamespace(tell=lambda *args, **values: told.append(values["error"])))

    def callback(p):
        calls.append(p)
        raise Wrong("no")

    shielded = features.shield("process", callback)
    assert together(lambda number: shielded(number)) == [None] * THREADS
    count = len(calls)
    assert count >= 1
    assert shielded("another") is None
    assert len(calls) == count
    assert told == ["Wrong: no"]
    assert shielded.__name__ == "callback"


@pytest.mark.parametrize("raised", [JobRefused("size.wrong", "No.", "Smaller."), HTTPException(422), KeyboardInterrupt()])
def test_what_a_callback_raises_on_purpose_passes(raised):
    def callback():
        raise raised

    features = Features(SimpleNamespace(tell=lambda *args, **values: pytest.fail("told")))
    with pytest.raises(type(raised)):
        features.shield("process", callback)()
    assert features.get("process").active


def test_nothing_is_called_and_nothing_told_once_the_whole_has_ended():
    features = Features(SimpleNamespace(tell=lambda *args, **values: pytest.fail("told")))
    features.ended = True
    assert features.shield("process", lambda: pytest.fail("called"))() is None
    features.get("load").fail(Wrong())


def hooks():
    """The table of the script's hooks; the module itself imports the host."""
    tree = ast.parse((ROOT / "sd3deploy/webui/page/panel.py").read_text("utf-8"))
    return next(ast.literal_eval(node.value) for node in tree.body if isinstance(node, ast.Assign) and node.targets[0].id == "_HOOKS")


@pytest.mark.parametrize("language", messages.languages())
def test_every_part_has_a_name_and_says_what_is_lost(language):
    ids = {id.removesuffix(".lost") for id in messages.catalogue(language) if id.startswith("feature.")}
    assert ids
    assert all(f"{id}.lost" in messages.catalogue(language) and id in messages.catalogue(language) for id in ids)
    sources = "\n".join(path.read_text("utf-8") for path in (*ROOT.glob("sd3deploy/webui/**/*.py"), ROOT / "extension.py"))
    used = set(re.findall(r'(?:features\.(?:get|shield)|\bpatch)\("([a-z0-9-]+)"', sources)) | set(hooks().values())
    used |= {need.feature for need in TABLE if need.feature}
    assert used == {id.removeprefix("feature.") for id in ids}
