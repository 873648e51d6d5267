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


def failed(events, **words):
    return events.add("error", "x", "It failed.", "", **words)


def test_what_is_settled_is_no_state_any_more_and_what_has_ended_has_not_to_be_read():
    events = Events()
    first, second = failed(events, about="encoder"), failed(events, about="model")
    events.settle([second])
    assert (events.last_error, events.over) == (first, [])
    events.end(events.errors("encoder", first.seq))
    assert (events.last_error, events.over) == (None, [first.seq])
    third = failed(events, about="encoder")
    assert (events.last_error, events.over) == (third, [first.seq])


def test_a_success_ends_the_errors_about_the_same_alone():
    events = Events()
    install, encoder = failed(events, about="install"), failed(events, about="encoder")
    events.add("success", "y", "It is there.", "")
    assert (events.last_error, events.over) == (encoder, [])
    events.add("success", "y", "It is installed.", "", about="install")
    assert (events.last_error, events.over) == (encoder, [install.seq])


def test_of_an_error_about_nothing_any_success_is_the_end_but_it_has_still_to_be_read():
    events = Events()
    assert events.last_error is None
    one = failed(events)
    assert events.last_error is one
    events.add("success", "y", "It is there.", "")
    assert (events.last_error, events.over) == (None, [])


def test_numbers_of_events_that_are_forgotten_are_forgotten():
    events = Events()
    events.end([failed(events, about="encoder")])
    for _ in range(100):
        events.add("info", "z", "Something else.", "")
    events.end([failed(events, about="model")])
    assert (events.over, len(events._settled), len(events._over)) == ([102], 1, 1)
