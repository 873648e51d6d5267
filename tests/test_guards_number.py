"""Numbers out of requests, settings and widgets: whatever they are, what is made of them is finite and bounded."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sd3deploy import guards
from sd3deploy.guards import request
from sd3deploy.guards.job import MODELS, Job
from sd3deploy.guards.number import LARGEST, number
from sd3deploy.hints import hints

ANY = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=12), st.floats().map(str), st.integers().map(str))


@pytest.mark.parametrize(
    "value", [1e308, -1e308, 10**400, "9" * 5000, "1e400", "nan", math.inf, LARGEST * 2, None, True, "wide", "", object()]
)
def test_what_is_no_number_that_anything_here_can_be(value):
    assert number(value) is None


@pytest.mark.parametrize("value", [0, -5, 1.5, "7.0", " 8 ", LARGEST, -LARGEST, 2**53])
def test_numbers(value):
    assert number(value) == float(value)


@given(value=ANY)
def test_a_number_is_finite_and_bounded(value):
    found = number(value)
    assert found is None or (math.isfinite(found) and abs(found) <= LARGEST)


@settings(max_examples=300, deadline=None)
@given(model=st.sampled_from(list(MODELS)), width=ANY, height=ANY, hires=ANY, steps=ANY, guidance=ANY)
@example(model="sd3-medium", width=1024, height=None, hires="1e308", steps=20, guidance=6.0)
@example(model="sd3-medium", width=LARGEST, height=LARGEST, hires=LARGEST, steps=LARGEST, guidance=LARGEST)
@example(model="sd3-medium", width="1e-320", height="1e-320", hires="1e-320", steps=1, guidance=1)
def test_whatever_is_asked_is_answered(model, width, height, hires, steps, guidance):
    asked = request.job(MODELS[model], width, height, hires=hires, steps=steps, guidance=guidance)
    outcome = guards.check(asked, dict.fromkeys(guards.GUARDS, "fix"))
    assert all(isinstance(hint.text, str) for hint in hints(asked, outcome, None))
    json.dumps(outcome.report(), allow_nan=False)


@pytest.mark.parametrize("side", [float("nan"), float("inf")])
def test_a_side_that_is_no_number_is_reported_as_text(side):
    report = guards.check(Job(MODELS["sd3-medium"], side, 512)).report()
    assert (report["width"], report["height"]) == (str(side), 512)
