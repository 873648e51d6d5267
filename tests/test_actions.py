"""The buttons of a message: only what helps."""

from __future__ import annotations

import pytest

from sd3deploy.events import Event
from sd3deploy.webui.page.actions import ACTIONS, buttons


def offered(id, severity="error"):
    return [button.id for button in buttons(Event(1, id, severity, "", ""))]


@pytest.mark.parametrize("id", ["deps.offline", "deps.not_allowed", "deps.forbidden", "deps.shared", "deps.no_wheel"])
def test_what_only_the_user_can_allow_has_no_button_that_would_fail_again(id):
    assert offered(id) == []
    assert offered("deps.failed") == ["install"]


@pytest.mark.parametrize(("action", "ids"), ACTIONS.items())
def test_a_failure_has_the_button_that_helps(action, ids):
    assert offered(ids[0]) == [action]
    assert offered(ids[0], "info") == []
