"""The two locks: who waits for what, and that nobody takes them elsewhere."""

from __future__ import annotations

import ast
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest

from sd3deploy.deployment import locks
from tests.contract.probe.sd3probe import locks as double

ROOT = Path(__file__).parent.parent
LONG = 60  # seconds until a test that hangs is given up


class Thread:
    """A thread that is in a context until the test ends it."""

    def __init__(self, context):
        self.inside, self.end = threading.Event(), threading.Event()
        self.given = None
        self.thread = threading.Thread(target=self._run, args=(context,), daemon=True)
        self.thread.start()

    def _run(self, context):
        with context as self.given:
            self.inside.set()
            assert self.end.wait(LONG)

    def leave(self):
        self.end.set()
        self.thread.join(LONG)
        assert not self.thread.is_alive()


@pytest.fixture
def running():
    """`running(context)`: a thread inside of it; all of them have ended with the test."""
    threads = []

    def start(context):
        threads.append(Thread(context))
        return threads[-1]

    yield start
    for one in threads:
        one.leave()


@contextmanager
def change(busy):
    assert busy.acquire(0)
    try:
        yield
    finally:
        busy.release()


@contextmanager
def load_with_change(busy):
    with busy, change(busy):
        yield


def never():
    return False


def test_loads_do_not_wait_for_each_other(running):
    busy = locks.Busy()
    first, second = running(busy), running(busy)
    assert first.inside.wait(LONG)
    assert second.inside.wait(LONG)


def test_a_change_is_alone(running):
    busy = locks.Busy()
    load = running(busy)
    assert load.inside.wait(LONG)
    assert not busy.acquire(0)
    load.leave()
    assert busy.acquire(0)
    busy.release()
    other = running(change(busy))
    assert other.inside.wait(LONG)
    assert not busy.acquire(0)
    other.leave()
    assert busy.acquire(0)
    busy.release()


def test_a_load_waits_for_a_change_and_a_change_in_its_own_load_does_not(running):
    busy = locks.Busy()
    with change(busy):
        load = running(busy)
        assert not load.inside.wait(0.5)
        with busy:  # of this thread
            pass
    assert load.inside.wait(LONG)
    load.leave()
    with busy, change(busy), change(busy):
        pass


def test_a_load_does_not_wait_for_the_change_within_another_load(running):
    busy = locks.Busy()
    first = running(load_with_change(busy))
    assert first.inside.wait(LONG)
    second = running(busy)
    assert second.inside.wait(LONG)


def test_the_queue_is_free_while_a_load_is_waited_for(running):
    busy, queue, waits = locks.Busy(), threading.Lock(), []

    @contextmanager
    def waiting(what):
        waits.append(what)
        yield

    load = running(busy)
    assert load.inside.wait(LONG)
    waiter = running(locks.both(queue, busy, never, waiting))
    for _ in range(3):  # a picture, an API job, a token counter
        assert queue.acquire(timeout=LONG)
        assert not waiter.inside.wait(0.3)
        queue.release()
    load.leave()
    assert waiter.inside.wait(LONG)
    assert waiter.given is True
    assert queue.locked()
    assert not busy.acquire(0)
    waiter.leave()
    assert not queue.locked()
    assert waits[0] == "model"


@pytest.mark.parametrize("of", ["job", "model"])
def test_whoever_waits_is_ended_by_cancel(running, of):
    busy, queue, cancelled, waits = locks.Busy(), threading.Lock(), threading.Event(), []

    @contextmanager
    def waiting(what):
        waits.append(what)
        yield

    with queue if of == "job" else change(busy):
        waiter = running(locks.both(queue, busy, cancelled.is_set, waiting))
        assert not waiter.inside.wait(0.5)
        cancelled.set()
        assert waiter.inside.wait(LONG)
        assert waiter.given is False
        waiter.leave()
    assert waits == [of]
    assert queue.acquire(blocking=False)
    assert busy.acquire(0)
    busy.release()


def test_an_error_inside_gives_both_back():
    busy, queue = locks.Busy(), threading.Lock()
    with pytest.raises(KeyError), locks.both(queue, busy, never):
        raise KeyError
    assert queue.acquire(blocking=False)
    assert busy.acquire(0)
    busy.release()


def test_the_queue_alone():
    queue = threading.Lock()
    with locks.taken(queue, never) as mine:
        assert mine
        assert queue.locked()
    assert not queue.locked()
    with queue, locks.taken(queue, lambda: True) as mine:
        assert not mine
    assert not queue.locked()
    with locks.taken(queue, lambda: True) as mine:  # who has cancelled already does not wait, but does not need to either
        assert mine


# The double


def broken(act):
    """What the double says about `act`, called on a thread of its own."""
    thread = threading.Thread(target=act)
    thread.start()
    thread.join(LONG)
    found = [*double.violations]
    double.violations.clear()
    return found


def test_the_double_notices_the_wrong_order():
    busy, queue = locks.Busy(), threading.Lock()

    def wrong():
        with busy, locks.taken(queue, never):
            pass

    assert broken(wrong) == ["queue: taken by a thread that has Busy, which is the wrong order"]


def test_the_double_notices_a_wait_with_the_queue_held():
    busy, queue = locks.Busy(), threading.Lock()

    def wrong():
        with locks.taken(queue, never):
            busy.acquire(0.1)
            busy.release()

    assert broken(wrong) == ["busy: waited for with the queue held"]


def test_the_double_notices_a_wait_without_end():
    busy = locks.Busy()

    def wrong():
        busy.acquire(60)
        busy.release()

    assert broken(wrong) == ["busy: waits for 60 s without a look at Cancel"]


def test_the_double_notices_a_queue_that_is_taken_twice():
    queue = threading.Lock()

    def wrong():
        with locks.taken(queue, never), locks.taken(queue, lambda: True):
            pass

    assert broken(wrong) == ["queue: taken twice by one thread, which would wait for ever"]


# Nobody else

SOURCES = sorted(path for path in ROOT.glob("sd3deploy/**/*.py") if path.name != "locks.py")


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_hosts_queue_is_only_handed_to_those_that_take_it_or_look_at_it(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    handed = {
        id(argument)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in ("taken", "both", "in_use")
        for argument in node.args
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "queue":
            assert id(node) in handed, f"line {node.lineno}"
        if isinstance(node, ast.Attribute) and node.attr == "queue_lock":
            assert path.name == "adapter.py"
        if isinstance(node, ast.Attribute) and node.attr in ("wrap_queued_call", "get_lock", "wrap_gradio_gpu_call"):
            raise AssertionError(f"line {node.lineno}")
