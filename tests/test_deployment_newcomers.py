"""What the webui installs by itself is made known at a quiet moment, and can not hurt the webui."""

from __future__ import annotations

import importlib
import logging
import sys
import threading

import pytest

from sd3deploy import installed
from sd3deploy.deployment import newcomers
from sd3deploy.deployment.locks import Busy
from sd3deploy.deployment.newcomers import Newcomers
from tests.test_refresh import FAKEPKG, LIBRARY, Site

WAIT = 60  # seconds: against a test that hangs


@pytest.fixture
def site(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = set(sys.modules)
    place = Site(tmp_path)
    place.install("fakelib", "1.0", LIBRARY)
    for module in ("verdict", "consumers"):
        monkeypatch.setattr(f"sd3deploy.refresh.{module}.LIBRARIES", ("fakelib",))
    importlib.import_module("fakelib.user")
    yield place
    for name in set(sys.modules) - before:
        if name.startswith("fake"):
            del sys.modules[name]


@pytest.fixture
def locks():
    return threading.Lock(), Busy()


@pytest.fixture
def ours(monkeypatch):
    """The package counts as one of those that this extension needs."""
    wanted = newcomers.deps.Requirement("fakepkg")
    monkeypatch.setattr(newcomers.deps, "requirements", lambda groups: (wanted,))


def newcomer(locks, verdicts):
    queue, busy = locks
    return Newcomers(lambda: queue, busy, verdicts.append)


def ended(thread):
    assert thread is not None
    thread.join(WAIT)
    assert not thread.is_alive()


def test_ours_is_imported_and_made_known_with_both_locks_held(site, locks, ours):
    held = []
    queue, busy = locks

    def tell(verdict):
        held.append((queue.locked(), busy.changing, verdict))

    site.install("fakepkg", "1.0", FAKEPKG)
    ended(Newcomers(lambda: queue, busy, tell).add(["fakepkg"]))
    ((locked, mine, verdict),) = held
    assert locked
    assert mine
    assert verdict.refreshed == ("fakepkg",)
    assert sys.modules["fakelib.user"].tool
    assert not queue.locked()


def test_it_waits_for_a_quiet_moment_and_gives_the_queue_back_between(site, locks, ours):
    """A job holds the queue, then a model is loaded: nothing is touched, and a picture can be made while the model loads."""
    queue, busy = locks
    verdicts = []
    site.install("fakepkg", "1.0", FAKEPKG)
    loading, loaded = threading.Event(), threading.Event()

    def load():
        with busy:
            loading.set()
            loaded.wait(WAIT)

    loader = threading.Thread(target=load)
    queue.acquire()
    thread = newcomer(locks, verdicts).add(["fakepkg"])
    assert thread is not None
    loader.start()
    assert loading.wait(WAIT)
    assert "fakepkg" not in sys.modules
    queue.release()
    for _ in range(5):
        assert queue.acquire(timeout=WAIT), "the queue is kept while a model is loaded"
        assert "fakepkg" not in sys.modules
        queue.release()
    assert thread.is_alive()
    assert verdicts == []
    loaded.set()
    loader.join(WAIT)
    ended(thread)
    assert verdicts[0].refreshed == ("fakepkg",)


def test_what_is_not_ours_is_not_imported(site, locks):
    """The libraries look for it anew all the same; what would need it to be there stays as it was."""
    checks = sys.modules["fakelib.import_utils"]
    assert not checks.is_fakepkg_available()
    site.install("fakepkg", "1.0", {"fakepkg/__init__.py": "raise AssertionError('ours to import')"})
    verdicts = []
    ended(newcomer(locks, verdicts).add(["fakepkg"]))
    assert verdicts == []
    assert "fakepkg" not in sys.modules
    assert checks.is_fakepkg_available()
    assert checks._fakepkg_available is False


def test_what_the_webui_has_imported_itself_is_made_known_as_a_whole(site, locks):
    site.install("fakepkg", "1.0", FAKEPKG)
    importlib.invalidate_caches()
    importlib.import_module("fakepkg")
    verdicts = []
    ended(newcomer(locks, verdicts).add(["fakepkg"]))
    assert verdicts[0].refreshed == ("fakepkg",)
    assert sys.modules["fakelib.user"].tool


def test_a_package_that_nobody_here_asks_about_is_left_alone(site, locks, ours):
    """Such as one that can not be imported because PortAudio is missing: it is no reason for a restart."""
    site.install("fakesound", "1.0", {"fakesound/__init__.py": "raise OSError('PortAudio library not found')"})
    verdicts = []
    ended(newcomer(locks, verdicts).add(["fakesound"]))
    assert verdicts == []
    assert "fakesound" not in sys.modules


def test_one_of_ours_that_can_not_be_imported_in_any_process_needs_no_restart(site, locks, ours):
    site.install("fakepkg", "1.0", {"fakepkg/__init__.py": "raise OSError('PortAudio library not found')"})
    verdicts = []
    ended(newcomer(locks, verdicts).add(["fakepkg"]))
    assert verdicts[0].restart == ()
    assert "PortAudio" in verdicts[0].failed[0].reason


@pytest.mark.parametrize("broken", ["is_asked_about", "refresh", "tell", "queue"])
def test_its_own_errors_are_logged_once_and_the_next_one_works(site, locks, ours, monkeypatch, caplog, broken):
    queue, busy = locks
    verdicts, failing = [], [True]

    def fail(original):
        def function(*args):
            if failing:
                raise LookupError("something of ours")
            return original(*args)

        return function

    def held():
        return queue

    place, tell = held, verdicts.append
    if broken == "queue":
        place = fail(held)
    elif broken == "tell":
        tell = fail(verdicts.append)
    else:
        monkeypatch.setattr(newcomers, broken, fail(getattr(newcomers, broken)))
    site.install("fakepkg", "1.0", FAKEPKG)
    watch = Newcomers(place, busy, tell)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            ended(watch.add(["fakepkg"]))
    (record,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert "something of ours" in str(record.exc_info)
    failing.clear()
    ended(watch.add(["fakepkg"]))
    assert verdicts[0].refreshed == ("fakepkg",)
    assert not queue.locked()


def test_what_comes_while_it_works_is_seen_to_as_well(site, locks, ours, monkeypatch):
    seen, first, go = [], threading.Event(), threading.Event()

    def refresh(names):
        seen.append(names)
        first.set()
        go.wait(WAIT)

    monkeypatch.setattr(newcomers, "refresh", refresh)
    site.install("fakepkg", "1.0", FAKEPKG)
    watch = newcomer(locks, [])
    thread = watch.add(["fakepkg"])
    assert first.wait(WAIT)
    assert watch.add(["fakepkg"]) is thread
    go.set()
    ended(thread)
    assert seen == [["fakepkg"], ["fakepkg"]]
    assert watch.add([]) is None


def test_a_dist_info_that_vanishes_meanwhile(tmp_path, monkeypatch):
    """pip removes the old one while the folder is read."""
    (tmp_path / "fake_there-1.0.dist-info").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    real = installed.os.listdir
    monkeypatch.setattr(installed.os, "listdir", lambda folder: ["fake_gone-1.0.dist-info", *real(folder)])
    found = installed.snapshot()
    assert found["fake-there"][0] == "1.0"
    assert "fake-gone" not in found
