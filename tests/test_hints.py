"""What stands beside the controls: each finding of each guard, in a few words."""

from __future__ import annotations

import ast
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sd3deploy import button, guards, hints, messages
from sd3deploy.guards import attention, prompt, resolution, sampling
from sd3deploy.guards.job import MODELS, Job, Misfit, Prompt
from sd3deploy.guards.request import job
from sd3deploy.memory.verdict import Change, Verdict

MEDIUM, LARGE, TURBO = (MODELS[name] for name in ("sd3.5-medium", "sd3.5-large", "sd3.5-large-turbo"))
MISFIT = Misfit("transformer.transformer_blocks.0.attn", "AttnProcessor2_0", "diffusers")


def asked(mode: str | None = None, judged: Verdict | None = None, *, about: Job | None = None, model=LARGE, **words):
    """(kind, severity, text) of each hint about a job in those words, with all guards in one mode."""
    made = about or job(model, **{"width": "1024", "height": "1024"} | words)
    outcome = guards.check(made, dict.fromkeys(guards.GUARDS, mode) if mode else {})
    return [(one.kind, one.severity, one.text) for one in hints.hints(made, outcome, judged)]


def test_a_good_job_needs_no_words():
    assert asked() == []


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ({"width": "1000", "height": "1000"}, [("size", "change", "1000×1000 → 1008×1008")]),
        ({"width": "4096", "height": "1024"}, [("size", "change", "4096×1024 → 3072×768"), ("area", "advice", "2.4 MP: far from 1 MP")]),
        ({"width": "2048", "height": "2048"}, [("area", "advice", "4.2 MP: far from 1 MP")]),
        ({"width": "256", "height": "256"}, [("area", "advice", "0.066 MP: far from 1 MP")]),
        ({"width": "many"}, [("size", "refuse", "many×1024 can not be made")]),
        ({"width": "100000", "height": "16"}, [("size", "refuse", "100000×16 can not be made")]),
        ({"width": "0"}, [("size", "change", "no size: 1024×1024")]),
        ({"hires": "2.51"}, [("size", "change", "second pass → 2576×2576")]),
        ({"hires": "1000", "height": "16"}, [("area", "advice", "0.016 MP: far from 1 MP"), ("size", "change", "second pass → 3072×48")]),
        ({"sampler": "DDIM"}, [("sampler", "change", "DDIM → Default")]),
        ({"steps": "none"}, [("steps", "change", "none steps → 28")]),
        ({"steps": "0", "model": TURBO, "guidance": "1"}, [("steps", "change", "0 steps → 4")]),
        ({"guidance": "1e9"}, [("guidance", "change", "guidance 1000000000 → 7")]),
        ({"guidance": "1"}, [("guidance", "advice", "guidance 1: the negative prompt is ignored")]),
        ({"guidance": "7", "model": TURBO}, [("guidance", "advice", "guidance 7: turbo models want 1")]),
        ({"prompt_attention": "xhinker", "encoder": "none"}, [("prompt", "change", "prompt attention xhinker → native")]),
    ],
)
def test_each_finding_in_a_few_words(words, expected):
    assert asked(**words) == expected


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ({"width": "1000", "height": "1000"}, ("size", "advice", "1000×1000: no multiple of 16")),
        ({"width": "5000", "height": "5000"}, ("size", "refuse", "5000×5000: at most 3072 px")),
        ({"sampler": "DDIM"}, ("sampler", "advice", "DDIM does not suit SD3")),
        ({"steps": "-3"}, ("steps", "advice", "-3 is no number of steps")),
        ({"guidance": "99"}, ("guidance", "advice", "guidance 99 is out of range")),
        ({"prompt_attention": "xhinker", "encoder": "none"}, ("prompt", "advice", "prompt attention xhinker needs T5")),
    ],
)
def test_a_guard_that_only_warns_promises_nothing(words, expected):
    assert expected in asked("warn", **words)


def test_a_guard_that_blocks_refuses():
    assert asked("block", width="1000", height="1000") == [("size", "refuse", "1000×1000: no multiple of 16")]


def test_a_guard_that_is_off_is_silent():
    assert asked("off", width="1000", height="1000", sampler="DDIM") == []


def test_the_attention_of_a_loaded_model():
    broken = replace(job(MEDIUM, "1024", "1024"), misfits=(MISFIT,))
    assert asked(about=broken) == [("attention", "change", "attention processors are put right")]
    assert asked("warn", about=broken) == [("attention", "refuse", "attention processors do not fit this model")]


def test_each_long_prompt_has_its_own_words():
    prompts = (Prompt(False, 20, 77, t5=20), Prompt(False, 90, 77, t5=300), Prompt(True, 90, 77, t5=400))
    long = replace(job(MEDIUM, "1024", "1024"), prompts=prompts)
    expected = [("prompt", "advice", "300 tokens, 256 are read"), ("prompt", "advice", "negative prompt: 400 tokens, 256 are read")]
    assert asked(about=long) == expected
    clip = replace(long, t5=False, prompts=(Prompt(False, 90, 77, t5=None), Prompt(True, 80, 77, t5=None)))
    assert [text for _, _, text in asked(about=clip)] == [
        "90 tokens, read in pieces of 77",
        "negative prompt: 80 tokens, read in pieces of 77",
    ]
    cut = asked(about=replace(clip, prompt_attention="fixed"))
    assert [text for _, _, text in cut] == ["90 tokens, 77 are read", "negative prompt: 80 tokens, 77 are read"]


@pytest.mark.parametrize(("answer", "severity"), [("fits", "ok"), ("tight", "advice"), ("no", "refuse")])
def test_the_memory_in_a_few_words(answer, severity):
    found = asked(None, Verdict(answer, "denoise", "gpu", 17_100_000_000, 11_400_000_000))
    assert found == [("memory", severity, "needs 17.1 GB, 11.4 GB free")]


def test_what_does_not_fit_names_its_remedy_or_says_that_there_is_none():
    judged = Verdict("no", "denoise", "gpu", 17_100_000_000, 11_400_000_000)
    about = job(MEDIUM, "1024", "1024")
    (found,) = hints.hints(about, guards.check(about, {}), judged)
    assert messages.text("memory.nothing") in found.sentence
    change = Change({"encoder": "T5 Q4"}, None)
    (found,) = hints.hints(about, guards.check(about, {}), judged, change)
    assert found.sentence.endswith("To make it fit: take T5 Q4 as text encoder.")


def test_a_device_that_does_not_tell_its_memory_has_no_hint_about_it():
    assert asked(None, Verdict("unknown")) == []


def test_every_finding_of_every_guard_has_its_words():
    """Each id in the sources of the guards that is one of a sentence is known here."""
    found = set()
    for module in (attention, prompt, resolution, sampling):
        for node in ast.walk(ast.parse(Path(module.__file__).read_text("utf-8"))):
            is_id = isinstance(node, ast.Constant) and isinstance(node.value, str) and f"{node.value}.remedy" in messages.catalogue("en")
            found |= {node.value} if is_id else set()
    assert found | {"size.default"} == set(hints._KINDS)


anything = st.one_of(st.text(max_size=12), st.integers().map(str), st.floats().map(str), st.none())


@given(width=anything, height=anything, hires=anything, steps=anything, guidance=anything, mode=st.sampled_from(guards.MODES))
def test_nothing_that_a_page_can_send_is_too_strange(width, height, hires, steps, guidance, mode):
    words = {"width": width, "height": height, "hires": hires, "steps": steps, "guidance": guidance}
    for kind, severity, text in asked(mode, **words):
        assert kind in hints.KINDS
        assert severity in hints.SEVERITIES
        assert 0 < len(text) < 100




@pytest.mark.parametrize(
    ("words", "label", "fields"),
    [
        ({"width": "512", "height": "512"}, "Use 1024×1024", {"width": 1024, "height": 1024}),
        ({"width": "2048", "height": "1024"}, "Use 1456×720", {"width": 1456, "height": 720}),
        ({"guidance": "1"}, "Use guidance 7", {"guidance": 7.0}),
        ({"guidance": "7", "model": TURBO}, "Use guidance 1", {"guidance": 1.0}),
    ],
)
def test_a_value_that_is_only_advised_is_a_button_and_changes_nothing_by_itself(words, label, fields):
    made = job(words.pop("model", LARGE), **{"width": "1024", "height": "1024"} | words)
    for mode in ("warn", "fix", "block"):
        outcome = guards.check(made, dict.fromkeys(guards.GUARDS, mode))
        (hint,) = hints.hints(made, outcome)
        assert [(one.id, one.label, dict(one.fields)) for one in hint.buttons] == [("use", label, fields)]
        assert (outcome.change, outcome.code) == ({}, 0)


def test_what_can_be_taken_over_is_a_button():
    made = job(LARGE, width="1000", height="1000", steps="0", guidance="1e9", sampler="DDIM")
    found = {one.kind: one for one in hints.hints(made, guards.check(made))}
    labels = {kind: [each.label for each in one.buttons] for kind, one in found.items()}
    assert labels == {"size": ["Use 1008×1008"], "sampler": [], "steps": ["Use 28 steps"], "guidance": ["Use guidance 7"]}
    assert found["size"].buttons[0].fields == {"width": 1008, "height": 1008}
    assert found["size"].sentence.endswith("The picture is made at 1008×1008 instead.")
    assert found["guidance"].sentence.endswith("made with a guidance scale of 7 instead.")


def test_a_change_of_the_size_alone_is_the_jobs_own_and_another_one_is_named():
    size, both = ({"width": 608, "height": 608}, {"width": 608, "height": 608, "offload": "balanced"})
    assert [one.label for one in button.change(size, "")] == ["Make it 608×608"]
    (applied,) = button.change(both, "set the model offload mode to “balanced”, and make it 608×608")
    assert (applied.id, applied.label) == ("apply", "Apply: set the model offload mode to “balanced”, and make it 608×608")
    assert button.change({}, "") == ()
