"""The bars of an estimate: they add up to what is judged."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sd3deploy import units
from sd3deploy.encoders.choices import CHOICES, find
from sd3deploy.memory.bars import SEGMENTS, bars
from sd3deploy.memory.capacity import GIB, Capacity, card
from sd3deploy.memory.estimate import OFFLOADS, PHASES, Setup, balanced_defaults, estimate
from sd3deploy.memory.sizes import MODELS
from sd3deploy.memory.verdict import judge, recommend

MEDIUM = MODELS["sd3.5-medium"]


@pytest.mark.parametrize("offload", OFFLOADS)
@pytest.mark.parametrize("kind", ["cuda", "cpu"])
@pytest.mark.parametrize("gib", [6, 12, 24])
def test_every_bar_adds_up_to_what_is_needed_in_its_phase(kind, offload, gib):
    place = card(gib, 64) if kind == "cuda" else Capacity("cpu", ram_total=gib * GIB, ram_usable=gib * GIB)
    for choice in CHOICES:
        found = estimate(Setup(MEDIUM, choice, kind=kind, offload=offload, **balanced_defaults(gib * GIB)))
        made = bars(found, place)
        assert [bar.verdict.phase for bar in made] == list(PHASES)
        assert max(made, key=lambda bar: bar.verdict.need / bar.verdict.usable).verdict == judge(found, place)
        for bar in made:
            need = found.phases[bar.verdict.phase]
            assert sum(bar.segments.values()) == bar.verdict.need == (need.gpu if bar.verdict.where == "gpu" else need.ram)
            assert list(bar.segments) == [name for name in SEGMENTS if name in bar.segments]


def test_one_memory_holds_what_is_on_the_device_and_what_waits():
    found = estimate(Setup(MEDIUM, find("q4"), kind="mps", offload="balanced"))
    place = Capacity("mps", total=32 * GIB, usable=32 * GIB, ram_total=32 * GIB, ram_usable=32 * GIB, unified=True)
    for bar in bars(found, place):
        assert sum(bar.segments.values()) == bar.verdict.need
    denoise = bars(found, place)[2]
    assert denoise.segments["text_encoder_3"] == found.parts["text_encoder_3"]  # it waits, in the same memory


def test_a_device_that_does_not_tell_its_memory_has_a_bar_without_a_limit():
    bar = bars(estimate(Setup(MEDIUM, find("q4"), kind="directml")), Capacity("unknown", ram_total=64 * GIB, ram_usable=64 * GIB))[2]
    assert (bar.verdict.answer, bar.verdict.where, bar.verdict.usable) == ("unknown", "gpu", 0)
    assert "can be used" not in bar.sentence


def test_the_sentence_says_all_that_the_bar_shows():
    bar = bars(estimate(Setup(MEDIUM, find("q4"))), card(12, 64))[2]
    sizes = [units.size(size) for size in (bar.verdict.need, bar.verdict.usable)]
    for part in ("denoising", "GPU memory", "fits", "Transformer", "work space", *sizes):
        assert part in bar.sentence


def test_the_recommendation_says_why():
    small, large = (Setup(MEDIUM, **balanced_defaults(gib * GIB)) for gib in (6, 24))
    advice = recommend(large, card(24, 64))
    left = next(verdict for choice, verdict in advice.considered if choice is advice.choice).left
    assert advice.sentence.startswith(f"{advice.choice.shown} is recommended here: the closest to the original")
    assert f"{units.size(left)} to spare at 1024×1024" in advice.sentence
    tight = recommend(small, replace(card(6, 64), usable=estimate(replace(small, encoder=find("fp4"))).gpu))
    assert "only 0 GB to spare" in tight.sentence
    alone = recommend(small, replace(card(6, 64), usable=estimate(replace(small, encoder=find("none"))).gpu))
    assert "no T5 leaves enough memory for 1024×1024" in alone.sentence
    assert "does not tell how much memory" in recommend(small, Capacity("unknown")).sentence
