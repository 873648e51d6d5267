from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sd3deploy.guards.job import MODELS, Hires, Job
from sd3deploy.guards.sampling import check, matches_flow

MEDIUM, TURBO = MODELS["sd3-medium"], MODELS["sd3.5-large-turbo"]


def found(model=MEDIUM, **job):
    return {one.id: dict(one.change) for one in check(Job(model, 1024, 1024, **job))}


def test_a_sampler_that_matches_no_flow_is_named_and_replaced():
    assert found(sampler="DDIM", not_flow=frozenset({"DDIM"})) == {"sampler.not-flow": {"sampler": "Default"}}
    assert "DDIM" in check(Job(MEDIUM, 64, 64, sampler="DDIM", not_flow=frozenset({"DDIM"})))[0].message


def test_that_of_the_hires_pass_counts_where_there_is_one():
    job = {"sampler": "Default", "hires_sampler": "DDIM", "not_flow": frozenset({"DDIM"})}
    assert found(**job) == {}
    assert found(**job, hires=Hires(2)) == {"sampler.not-flow": {"hires_sampler": "Default"}}
    both = {"sampler": "DDIM", "hires_sampler": "DDIM", "not_flow": frozenset({"DDIM"}), "hires": Hires(2)}
    assert found(**both) == {"sampler.not-flow": {"sampler": "Default", "hires_sampler": "Default"}}


@pytest.mark.parametrize("steps", [0, -1, 0.5, None, "abc", float("nan"), True, []])
def test_no_number_of_steps(steps):
    assert found(steps=steps) == {"steps.none": {"steps": 28}}
    assert found(TURBO, steps=steps, guidance=1) == {"steps.none": {"steps": 4}}


@pytest.mark.parametrize("guidance", [31, 1e9, None, "abc", float("nan"), float("inf")])
def test_absurd_guidance(guidance):
    assert found(guidance=guidance) == {"guidance.absurd": {"guidance": 7.0}}
    assert found(TURBO, guidance=guidance) == {"guidance.absurd": {"guidance": 1.0}}


def test_guidance_that_is_off_or_too_much_is_only_said():
    assert found(guidance=0) == {"guidance.none": {}}
    assert found(guidance=1) == {"guidance.none": {}}
    assert found(TURBO, guidance=0) == {}  # as published
    assert found(TURBO, guidance=6) == {"guidance.turbo": {}}
    assert found(guidance=-1) == found(guidance=-0.1) == {}  # below 0: the host's word for the default of the pipeline
    assert found(guidance=4.5) == {}


def test_where_guidance_begins_to_be_off_too_much_and_absurd():
    assert found(guidance=1.01) == found(guidance=30) == found(TURBO, guidance=1) == found(TURBO, guidance=2) == {}
    assert found(TURBO, guidance=2.01) == found(TURBO, guidance=30) == {"guidance.turbo": {}}
    assert found(guidance=30.01) == {"guidance.absurd": {"guidance": 7.0}}


anything = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20), st.lists(st.integers(), max_size=2))


@given(anything, anything)
def test_anything_gets_an_answer_in_words(steps, guidance):
    assert all(one.message and one.remedy for one in check(Job(MEDIUM, 64, 64, steps=steps, guidance=guidance)))


USABLE = ["Default", "", "Same as primary", "Euler FlowMatch", "euler", "UniPC", "ER-SDE 2M"]
NOT = ["Euclidean Flow", "Heun", "Heun FlowMatch", "PeRFlow", "DDIM", "Euler a", "DPM++ 2M"]


@pytest.mark.parametrize(("name", "fits"), [*((name, True) for name in USABLE), *((name, False) for name in NOT)])
def test_samplers_by_their_names(name, fits):
    assert matches_flow(name) is fits
