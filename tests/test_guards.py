"""Finding → action → outcome: what is changed, what is refused, what is said."""

from __future__ import annotations

import json

import pytest

from sd3deploy import guards
from sd3deploy.errors import JobRefused, SettingError
from sd3deploy.guards.finding import Finding, action
from sd3deploy.guards.job import MODELS, Job, Misfit, known

MEDIUM = MODELS["sd3-medium"]
MENDABLE = {"width": 1024, "height": 512}


def outcome(mode="fix", **job):
    return guards.check(Job(MEDIUM, **job), dict.fromkeys(guards.GUARDS, mode))


@pytest.mark.parametrize(
    ("severity", "change", "actions"),  # in the modes warn, fix, block
    [
        ("advice", {}, ("tell", "tell", "tell")),
        ("advice", MENDABLE, ("tell", "apply", "tell")),
        ("warning", {}, ("tell", "tell", "tell")),
        ("warning", MENDABLE, ("tell", "apply", "refuse")),
        ("error", MENDABLE, ("refuse", "apply", "refuse")),
        ("error", {}, ("refuse", "refuse", "refuse")),
    ],
)
def test_what_each_mode_does(severity, change, actions):
    found = Finding("x", severity, "", "", change)
    assert tuple(action(mode, found) for mode in ("warn", "fix", "block")) == actions


def test_the_job_is_answered_as_it_is_after_the_changes():
    found = outcome(width=1000, height=1000, sampler="DDIM", not_flow=frozenset({"DDIM"}))
    assert (found.job.width, found.job.height, found.job.sampler) == (1008, 1008, "Default")
    assert found.change == {"width": 1008, "height": 1008, "sampler": "Default"}
    assert found.code == 1
    found.raise_refused()


def test_nothing_to_say():
    found = outcome(width=1024, height=1024)
    assert (found.told, found.change, found.code) == ([], {}, 0)


def test_an_advice_alone_runs_as_asked():
    found = outcome(width=512, height=512)
    assert [one.severity for one, _ in found.told] == ["advice"]
    assert found.code == 0


def test_of_a_job_that_is_refused_only_the_reasons_are_said():
    found = outcome(width=-1, height=1024, sampler="DDIM", not_flow=frozenset({"DDIM"}))
    assert [one.id for one, _ in found.told] == ["size.no-number"]
    assert found.code == 2
    with pytest.raises(JobRefused) as raised:
        found.raise_refused()
    assert raised.value.id == "size.no-number"
    assert str(raised.value).endswith(raised.value.remedy)
    assert "Nothing was generated." in raised.value.message


def test_all_the_reasons_are_said():
    with pytest.raises(JobRefused, match=r"1000×1000.*DDIM"):
        outcome("block", width=1000, height=1000, sampler="DDIM", not_flow=frozenset({"DDIM"})).raise_refused()


def test_mode_off_looks_at_nothing():
    found = outcome("off", width="abc", height=-1, steps=0)
    assert (found.decided, found.code) == ((), 0)


def test_mode_warn_changes_nothing():
    found = outcome("warn", width=1000, height=1000)
    assert (found.job.width, found.change, found.code) == (1000, {}, 0)
    assert "is set to warn only" in found.told[0][0].told("tell")


def test_what_was_done_is_said_where_there_was_something_to_do():
    mendable, advice, plain = (Finding("x", kind, "So it is.", "", change) for kind, change in
                               (("warning", MENDABLE), ("advice", MENDABLE), ("warning", {})))  # fmt: skip
    assert mendable.told("apply") == "So it is. The picture is made at 1024×512 instead."
    assert mendable.told("refuse").endswith("Nothing was generated.")
    assert mendable.told("tell").endswith("set to warn only.")
    assert advice.told("apply") == plain.told("tell") == "So it is."


def test_each_guard_has_a_mode_of_its_own():
    job = Job(MEDIUM, 1000, 1000, steps=0)
    assert guards.check(job, {"size": "off"}).change == {"steps": 28}
    assert guards.check(job, {"size": "off"}, ["size"]).change == {}


def test_the_report_is_json():
    found = outcome(width=1000, height=1000, misfits=(Misfit("transformer.a", "AttnProcessor", "x"),))
    report = json.loads(json.dumps(found.report()))
    assert report.keys() == {"findings", "width", "height", "sampler", "code"}
    assert {one["id"] for one in report["findings"]} == {"size.not-multiple", "attention.other"}
    assert report["findings"][0].keys() == {"id", "severity", "message", "remedy", "change", "offer", "action", "told"}


def test_a_finding_is_frozen():
    with pytest.raises(AttributeError):
        Finding("x", "advice", "", "").id = "y"  # type: ignore[misc]


def test_a_published_model_by_its_name():
    assert known(" SD3.5-Medium ").pos_embed_max_size == 384
    with pytest.raises(SettingError, match="sd3-medium"):
        known("sd3-medum")
