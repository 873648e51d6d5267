from __future__ import annotations

import pytest

from sd3deploy.diagnosis.finding import Finding
from sd3deploy.errors import DependencyError, SettingError
from sd3deploy.events import Events


def test_events_are_numbered_and_announced():
    heard = []
    events = Events(heard.append)
    first = events.tell("info", "encoder.loading", name="T5 FP4")
    second = events.tell("success", "encoder.none-ready")
    assert [first, second] == heard == events.since(0)
    assert events.since(first.seq) == [second]
    assert first.message == "Loading T5 FP4…"


def test_an_error_brings_its_remedy_and_a_success_clears_it():
    events = Events()
    events.fail(SettingError("setting.weights-unknown", value=1, known="Model"))
    assert events.last_error is not None
    assert events.last_error.remedy == "Choose one of: Model."
    events.tell("success", "encoder.none-ready")
    assert events.last_error is None


def test_an_error_of_one_job_is_not_the_last_one_and_one_before_it_is():
    events = Events()
    first = events.fail(SettingError("setting.weights-unknown", value=1, known="Model"))
    events.add("error", "memory.exhausted", "One picture.", "", job=True)
    events.tell("warning", "encoder.none-ready")
    assert events.last_error is first


@pytest.mark.parametrize(
    ("action", "package", "offered"),
    [("install", "bitsandbytes", "install"), ("install", "torch", ""), ("restart", "torch", "restart"), ("none", "", "none")],
)
def test_what_is_found_offers_to_install_our_packages_alone(action, package, offered):
    event = Events().found(Finding("a-rule", "unknown", action, package, "What is wrong.", "What to do.", ()), "warning", job=True)
    assert (event.id, event.severity, event.message, event.remedy) == ("rule.a-rule", "warning", "What is wrong.", "What to do.")
    assert (event.action, event.job) == (offered, True)


def test_a_foreign_error_is_told_with_its_type():
    event = Events().fail(ValueError("no such thing"))
    assert event.id == "unexpected"
    assert "ValueError: no such thing" in event.message


def test_the_ring_is_bounded_and_the_numbers_go_on():
    events = Events()
    for _ in range(250):
        events.tell("info", "encoder.none-ready")
    assert [event.seq for event in events.since(0)] == list(range(151, 251))


def test_errors_print_themselves():
    error = SettingError("setting.weights-unknown", value=1, known="Model")
    assert str(error) == "1 is not a source of T5 weights. Choose one of: Model."
    assert not isinstance(error, DependencyError)


def test_what_has_failed_is_over_when_what_is_wanted_is_there():
    events = Events()
    events.tell("error", "setting.weights-unknown", value="x", known="Model")
    events.settle()
    assert events.last_error is None
    assert events.over == 1
    events.tell("error", "setting.weights-unknown", value="x", known="Model")
    assert events.last_error is not None


def test_a_success_ends_what_has_failed_before_it():
    events = Events()
    events.add("error", "x", "It failed.", "")
    assert events.over == 0
    done = events.add("success", "y", "It is there.", "")
    assert (events.over, events.last_error) == (done.seq, None)
    events.add("info", "z", "Something else.", "")
    assert events.over == done.seq
