"""Several questions, one answer."""

from __future__ import annotations

import threading

from sd3deploy.deployment import later
from sd3deploy.deployment.undertaking import Undertakings
from sd3deploy.events import Events


def test_what_is_asked_for_several_times_at_once_is_done_once_and_again_afterwards(monkeypatch):
    monkeypatch.setattr(later, "QUIET", 0.05)
    done, under_way = [], Undertakings(Events())
    one = later.Later(under_way, lambda under: done.append(threading.current_thread().name))
    threads = [one.ask() for _ in range(5)]
    for thread in threads:
        thread.join()
    assert done == ["sd3-later"]
    one.ask().join()
    assert len(done) == 2
    assert not under_way


def test_what_is_asked_for_while_it_is_done_is_done_again(monkeypatch):
    monkeypatch.setattr(later, "QUIET", 0.01)
    begun, go, count = threading.Event(), threading.Event(), []

    def work(under):
        count.append(1)
        begun.set()
        assert go.wait(60)

    one = later.Later(Undertakings(Events()), work)
    first = one.ask()
    assert begun.wait(60)
    second = one.ask()
    go.set()
    first.join()
    second.join()
    assert first is not second
    assert len(count) == 2


def test_it_is_under_way_from_the_question_on_and_what_is_asked_for_after_cancel_is_done(monkeypatch):
    monkeypatch.setattr(later, "QUIET", 60)
    done, under_way = [], Undertakings(Events())
    one = later.Later(under_way, lambda under: done.append(under.cancelled()))
    first = one.ask()
    assert under_way.cancel()
    monkeypatch.setattr(later, "QUIET", 0.01)
    second = one.ask()
    first.join(60)
    second.join(60)
    assert done.count(False) == done.count(True) == 1
    assert not under_way.cancel()
