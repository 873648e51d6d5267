"""No test asserts a time: a busy machine is no fault. What guards against a hang is tests/waiting.py and the timeout of pyproject.toml;
what happens in order is shown by events, and numbers belong to bench/.
"""

from __future__ import annotations

import ast
import textwrap
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CLOCKS = {"time", "monotonic", "perf_counter", "process_time", "thread_time", "now"}
CLOCKS |= {f"{name}_ns" for name in CLOCKS}
TIMED = {"seconds", "took", "elapsed", "duration"}  # how a time is called that somebody else has taken
LIMITS = (ast.Lt, ast.LtE, ast.Gt, ast.GtE)
SLEEPS = {"sleep", "wait_for_timeout"}
LEAST = 60  # seconds that a wait is left at least; one that has to end sooner asks without waiting

# File and function → why there is no way around it.
ALLOWED = {
    "waiting.py until": "the clock that guards against a hang",
    "conftest.py slow_disk": "what is tested is what goes on while a disk is slow",
    "test_screen_idle.py minutes": "the page's own clock is turned; the server's answers come when they come",
    "test_screen_idle.py test_a_message_on_a_page_that_rests_costs_nothing": "what does not happen has no event",
    "test_encoders_cache.py test_killed_at_any_moment_it_is_right_the_next_time": "a moment at random: what it meets is right in each",
    "test_deps_lock.py test_waits_and_says_for_what": "the patience that runs out is what is tested",
    "test_deps_lock.py test_an_installer_that_outlives_its_parent_still_holds_it": "the lock is held: the patience runs out",
    "test_deps_lock.py test_two_threads_of_one_process_take_turns_too": "the lock is held: the patience runs out",
    "test_deps_lock.py test_fasteners_would_not_hold_for_an_installer_that_outlives_its_parent": "the child sleeps until it is killed",
    "test_locks.py test_a_load_waits_for_a_change_and_a_change_in_its_own_load_does_not": "what does not happen has no event",
    "test_locks.py test_the_queue_is_free_while_a_load_is_waited_for": "the same",
    "test_locks.py test_whoever_waits_is_ended_by_cancel": "the same",
}


def called(node: ast.AST) -> str:
    """The last name of what a call calls."""
    function = node.func if isinstance(node, ast.Call) else None
    return function.attr if isinstance(function, ast.Attribute) else function.id if isinstance(function, ast.Name) else ""


def reads_a_clock(node: ast.AST) -> bool:
    return called(node) in CLOCKS and not node.args and "datetime.now" not in ast.unparse(node.func)


def names(node: ast.AST) -> set[str]:
    found = {one.id for one in ast.walk(node) if isinstance(one, ast.Name)}
    found |= {one.value for one in ast.walk(node) if isinstance(one, ast.Constant) and isinstance(one.value, str)}
    return found | {one.attr for one in ast.walk(node) if isinstance(one, ast.Attribute)}


def clocks(scope: ast.AST) -> set[str]:
    """The names that hold a time within a function, because it was read or worked out from one."""
    found: set[str] = set()
    while True:
        more = set(found)
        for node in ast.walk(scope):
            if isinstance(node, (ast.Assign, ast.AnnAssign, ast.NamedExpr, ast.Expr)) and node.value is not None:
                value = node.value
                if any(map(reads_a_clock, ast.walk(value))) or names(value) & found:
                    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
                    more |= {name for target in targets if target is not None for name in names(target)}
                    if called(value) == "append":  # a list of times
                        more |= names(value.func.value)
        if more == found:
            return found
        found = more


def faults(scope: ast.AST) -> list[tuple[int, str]]:
    """(line, what is wrong) in one function or, where scope is the module, outside of all."""
    found = []
    times = clocks(scope) | TIMED
    for node in parts(scope):
        limits = isinstance(node, ast.Compare) and any(isinstance(one, LIMITS) for one in node.ops)
        if limits and (any(map(reads_a_clock, ast.walk(node))) or names(node) & times):
            found.append((node.lineno, "compares a time"))
        if called(node) in SLEEPS:
            found.append((node.lineno, "sleeps"))
        if (code := parsed(text_of(node))) is not None:
            found += [(node.lineno, f"{what} in the code of a process") for _, inner in functions(code) for _, what in faults(inner)]
        if isinstance(node, ast.Call) and (limit := patience(node)) is not None and 0 < limit < LEAST:
            found.append((node.lineno, f"waits {limit:g} s"))
    return found


def parts(scope: ast.AST):
    """The nodes of a scope without those of the test functions within it."""
    for node in ast.iter_child_nodes(scope):
        if not (isinstance(scope, ast.Module | ast.ClassDef) and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)):
            yield node
            yield from parts(node)


def text_of(node: ast.AST) -> str:
    """A string, with something for what is put into it."""
    if isinstance(node, ast.JoinedStr):
        return "".join(one.value if isinstance(one, ast.Constant) else "x" for one in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def parsed(text: str) -> ast.Module | None:
    """The code for another process that a string is; None where it is none, or has to do with no time."""
    if not any(name in text for name in (*SLEEPS, "perf_counter", "monotonic", "process_time", "time.time(")):
        return None
    try:
        return ast.parse(textwrap.dedent(text))
    except SyntaxError:
        return None


def patience(call: ast.Call) -> float | None:
    """Seconds that a call waits at most, where the number stands there."""
    given = [one.value for one in call.keywords if one.arg in ("timeout", "patience")]
    if isinstance(call.func, ast.Attribute) and call.func.attr in ("join", "wait", "result") and call.args:
        given.append(call.args[0])
    milliseconds = 1000 if called(call) in ("wait_for", "wait_for_selector", "wait_for_function", "set_default_timeout") else 1
    numbers = [one.value for one in given if isinstance(one, ast.Constant) and isinstance(one.value, int | float)]
    return min(numbers) / milliseconds if numbers else None


def functions(tree: ast.Module):
    """(name, scope): the module itself, and each function and method that is in no other one."""
    yield "", tree
    for node in tree.body:
        for one in [node, *(node.body if isinstance(node, ast.ClassDef) else ())]:
            if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef):
                yield one.name, one


def test_no_test_asserts_a_time():
    found, used = [], set()
    for file in sorted(HERE.rglob("*.py")):
        if file == Path(__file__) or file.parent.name == "no_restart":  # those are programs that say how long they took
            continue
        tree = ast.parse(file.read_text("utf-8"))
        for name, scope in functions(tree):
            place = f"{file.name} {name}"
            wrong = faults(scope)
            if wrong and place in ALLOWED:
                used.add(place)
            elif wrong:
                found += [f"{file.relative_to(HERE)}:{line} {name}: {what}" for line, what in wrong]
    assert not found, "\n".join(["Wait for an event (tests/waiting.py), or measure it in bench/:", *found])
    assert used == set(ALLOWED)  # nothing is allowed that nobody needs


@pytest.mark.parametrize(
    "code",
    [
        "b = time.monotonic()\nwork()\nassert time.monotonic() - b < 5",
        "b = perf_counter()\nwork()\ntook = perf_counter() - b\nassert took < 1",
        "all = []\nall.append(time.perf_counter())\nassert max(all) < 3",
        "def seconds(): return time.process_time()\nassert seconds() < 12 * seconds()",
        "state, seconds = lab.json(code)\nassert seconds < 0.25",
        "assert found['seconds'] < 4",
        "time.sleep(0.2)",
        "page.wait_for_timeout(1500)",
        "thread.join(5)",
        "process.communicate(timeout=20)",
        "page.wait_for_selector('#a', timeout=20_000)",
        "with install_lock(patience=1): pass",
        "run('import time; time.sleep(60)')",
        "host.run(f'import time; time.sleep({seconds})')",
        "lab.run('b = time.monotonic()\\nassert time.monotonic() - b < 5')",
        "while time.time() < end: pass",
    ],
)
def test_each_way_to_do_so_is_seen(code):
    tree = ast.parse(f"def test():\n    {code.replace(chr(10), chr(10) + '    ')}")
    (_, module), (_, function) = functions(tree)
    assert faults(module) == []
    assert faults(function)


@pytest.mark.parametrize(
    "code",
    [
        "assert until(lambda: thread_is_over())",
        "thread.join()",
        "page.wait_for_selector('#a', timeout=300_000)",
        "', '.join(words)",
        "times = [1, 2]\nassert times == sorted(times)",
        "os.utime(file, ns=(0, 1))",
        "monkeypatch.setattr(time, 'time', lambda: 5)",
        "assert datetime.now(UTC).tzinfo == UTC",
    ],
)
def test_what_is_no_clock_is_left_alone(code):
    tree = ast.parse(f"def test():\n    {code.replace(chr(10), chr(10) + '    ')}")
    assert [faults(scope) for _, scope in functions(tree)] == [[], []]
