"""Several questions, one answer."""

from __future__ import annotations

import threading

from sd3deploy.deployment import later


def test_what_is_asked_for_several_times_at_once_is_done_once_and_again_afterwards(monkeypatch):
    monkeypatch.setattr(later, "QUIET", 0.05)
    done = []
    one = later.Later(lambda: done.append(threading.current_thread().name))
    threads = [one.ask() for _ in range(5)]
    for thread in threads:
        thread.join()
    assert done == ["sd3-later"]
    one.ask().join()
    assert len(done) == 2


def test_what_is_asked_for_while_it_is_done_is_done_again(monkeypatch):
    monkeypatch.setattr(later, "QUIET", 0.01)
    begun, go, count = threading.Event(), threading.Event(), []

    def work():
        count.append(1)
        begun.set()
        assert go.wait(60)

    one = later.Later(work)
    first = one.ask()
    assert begun.wait(60)
    second = one.ask()
    go.set()
    first.join()
    second.join()
    assert first is not second
    assert len(count) == 2
