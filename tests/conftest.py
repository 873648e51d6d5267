"""A skip is a hole in the net: where CI=true only what needs a GPU or a real SD.Next may be skipped; the rest fails instead."""

from __future__ import annotations

import os

import pytest

ALLOWED = {"gpu", "real"}


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    outcome = yield
    report = outcome.get_result()
    if report.skipped and os.environ.get("CI") == "true" and not ALLOWED & {mark.name for mark in item.iter_markers()}:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} may not be skipped in CI. {reason}"
