"""Waiting for an event. Here is the only clock of the tests, and it guards against a hang alone: no test is faster or slower than right."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

__all__ = ["HANG", "until"]

HANG = 300.0  # seconds: far beyond what a machine with other work needs for anything that a test waits for


def until(done: Callable[[], Any], every: float = 0.02) -> Any:
    """Return what `done` gives as soon as it is something; None when it is nothing for HANG seconds. So: `assert until(…)`.

    every: seconds between two looks.
    """
    end = time.monotonic() + HANG
    while time.monotonic() < end:
        if found := done():
            return found
        time.sleep(every)
    return None
