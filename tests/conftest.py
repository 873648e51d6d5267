"""A skip is a hole in the net: where CI=true only what needs a GPU or a real SD.Next may be skipped; the rest fails instead."""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

from sd3deploy.deployment import locks
from tests.contract.probe.sd3probe import locks as double

# SDNQ would compile its kernels for each new shape, some seconds each; what is tested here is not their speed.
os.environ.setdefault("SDNQ_USE_TORCH_COMPILE", "0")
# The models are tiny and the processes many: threads of one would only wait for those of another.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Hypothesis would end an example that takes 0.2 s, as any does on a busy machine.
settings.register_profile("no clock", deadline=None)
settings.load_profile("no clock")

ALLOWED = {"gpu", "real"}
double.install(locks)


@pytest.fixture(autouse=True)
def lock_rules():
    """In no test are the two locks taken in the wrong order, or waited for in a way that locks.py forbids. Gives the acquisitions."""
    double.violations.clear()
    double.acquisitions.clear()
    yield double.acquisitions
    assert not double.violations


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    outcome = yield
    report = outcome.get_result()
    if report.skipped and os.environ.get("CI") == "true" and not ALLOWED & {mark.name for mark in item.iter_markers()}:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} may not be skipped in CI. {reason}"
