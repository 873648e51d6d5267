from __future__ import annotations

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
