"""Quality measured beside a running server: begun, seen, held on for a picture, cancelled, gone on with, and what comes of it."""

from __future__ import annotations

import shutil

import psutil
import pytest

from demo import server
from sd3deploy import messages
from tests.contract.conftest import AUTH, PROBE, ProbedHost, start
from tests.waiting import until

PATH = "/sdapi/v1/sd3/quality"
WORDS = [f"a photo of a {word}" for word in ("cat", "dog", "red sign", "house", "1", "2", "3", "4", "5", "6", "7", "8")]


def few_prompts(host, folder):
    """Twelve of them in place of the hundred: the tests of what is measured are elsewhere."""
    (folder / "prompts.txt").write_text("\n".join(WORDS), encoding="utf-8")
    host.run(f"""
        from pathlib import Path
        from sd3deploy.quality import prompts
        prompts.OWN = Path({str(folder / "prompts.txt")!r})
    """)


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    folder = tmp_path_factory.mktemp("measuring")
    data = server.data_folder(folder / "data")
    shutil.copytree(PROBE, data / "extensions" / "sd3-probe", ignore=shutil.ignore_patterns("__pycache__"))
    started = start(folder, "data", auth=AUTH)
    probed = ProbedHost(started.data, started.url, started.process, started.auth)
    few_prompts(probed, folder)
    yield probed
    probed.stop()


@pytest.fixture
def held(host):
    """`held()` takes the host's queue, as a picture does, until the test is over or `held(False)`."""
    mine = []

    def hold(yes=True):
        host.run(f"from modules import call_queue; call_queue.queue_lock.{'acquire' if yes else 'release'}()")
        mine.append(1) if yes else mine.pop()

    yield hold
    if mine:
        hold(False)


def over(host):
    """The measurement when it is over, with all that was seen on the way."""
    seen = []

    def done():
        seen.append(host.get(PATH))
        return seen[-1]["state"] != "running" and seen[-1]

    assert until(done, every=0.2), seen[-1]
    return seen[-1], seen


def children(host):
    return [one for one in psutil.Process(host.process.pid).children(recursive=True) if "sd3deploy.quality.apart" in one.cmdline()]


def refused(host, id):
    answer = host.client.post(PATH, json={})
    assert answer.status_code == 409, answer.text
    assert answer.json()["body"]["id"] == id
    assert answer.json()["body"]["remedy"]
    return answer.json()["body"]["message"]


def test_before_anything_there_is_no_result_and_no_page(host):
    assert (host.get(PATH)["state"], host.get(PATH)["rows"]) == ("none", [])
    assert host.get("/sdapi/v1/sd3/memory")["advice"].endswith(messages.text("memory.by-table"))
    answer = host.client.get(PATH, params={"format": "html"})
    assert (answer.status_code, answer.json()["body"]["id"]) == (422, "quality.no-result")


def test_weights_that_are_not_on_this_disk_are_refused(host):
    host.run("""
        from modules import shared
        shared.opts.data.update(sd3_weights="Repository", sd3_weights_repository="nobody/nothing:t5.safetensors")
    """)
    try:
        assert "nobody/nothing" in refused(host, "quality.remote")
    finally:
        host.run("from modules import shared; shared.opts.data.update(sd3_weights='Automatic')")
    assert host.get(PATH)["state"] == "none"


def test_without_a_model_there_is_nothing_to_measure(host):
    host.run("from modules import modeldata; sd3probe.model, modeldata.model_data.sd_model = modeldata.model_data.sd_model, None")
    try:
        refused(host, "source.no-model")
    finally:
        host.run("from modules import modeldata; modeldata.model_data.sd_model = sd3probe.model; del sd3probe.model")


def test_memory_that_is_short_is_refused_with_the_need(host):
    host.run("""
        from sd3deploy.memory import capacity
        sd3probe.read_free, capacity.read_free = capacity.read_free, lambda device: (10**9, None)
    """)
    try:
        assert "2.0 GB" in refused(host, "quality.memory")
    finally:
        host.run("from sd3deploy.memory import capacity; capacity.read_free = sd3probe.read_free")
    assert children(host) == []


def test_a_picture_goes_first_and_cancel_ends_it_with_what_is_measured_kept(host, held, news):
    held()
    number = host.post(PATH)["job"]
    assert host.post(PATH)["job"] == number  # one at a time
    waiting = messages.text("verify.waiting")
    assert until(lambda: host.get(PATH)["text"] == waiting)
    assert children(host) == []  # it does not even begin beside a picture
    assert host.get("/sdapi/v1/sd3/events")["measuring"]
    held(False)
    assert until(lambda: host.get(PATH)["fraction"] > 0.5)  # the first six of twelve are kept
    held()
    assert until(lambda: waiting in host.get(PATH)["text"])
    (child,) = children(host)
    paused = [host.get(PATH)["fraction"]]
    assert until(lambda: paused.append(host.get(PATH)["fraction"]) or (len(paused) > 20 and len(set(paused[-10:])) == 1), every=0.2)
    assert host.post("/sdapi/v1/sd3/cancel") == {"cancelled": True, "jobs": ["quality"]}
    found, _ = over(host)
    assert (found["state"], found["rows"], found["text"]) == ("cancelled", [], messages.text("quality.stopped"))
    assert not child.is_running()
    assert [event["id"] for event in news()] == ["quality.stopped"]
    assert len(list(host.data.glob("models/*/quality-*.json"))) == 1
    assert host.post("/sdapi/v1/sd3/cancel") == {"cancelled": False, "jobs": []}


def test_it_goes_on_to_its_numbers_and_the_recommendation_goes_by_them(host, news):
    before = host.get("/sdapi/v1/sd3/memory")["advice"]
    assert before.endswith(messages.text("memory.by-measured", count=6))  # as far as it came
    host.post(PATH)
    found, seen = over(host)
    assert (found["state"], found["fraction"], found["error"]) == ("done", 1.0, None)
    fractions = [one["fraction"] for one in seen]
    assert fractions == sorted(fractions)
    said = {one["text"] for one in seen if one["fraction"] and one["state"] == "running"}
    assert said
    assert all(" of 12 prompts" in text for text in said)
    means = [row["error"]["mean"] for row in found["rows"]]
    assert means == sorted(means)
    for row in found["rows"]:
        assert row["bytes"] > 0
        assert row["encode_s"] > 0
        assert row["error"]["worst"] >= row["error"]["mean"]
        assert row["cosine"]["worst"] <= row["cosine"]["mean"] <= 1.0001
    assert {row["id"] for row in found["rows"]} == {"bf16", "fp8", "q4", "q5", "q6", "q8"}  # this host is without bitsandbytes
    (note,) = found["notes"]
    assert note.startswith("Not measured: T5 FP4, T5 NF4, T5 INT8: bitsandbytes is needed")
    assert str(host.data.parent) not in str(found)
    assert found["title"].startswith(f"T5 of {server.MODEL} (FP16)")
    (event,) = news()
    assert (event["id"], event["severity"]) == ("quality.measured", "success")
    assert found["rows"][0]["name"] in event["message"]
    page = host.client.get(PATH, params={"format": "html"})
    assert page.headers["content-type"].startswith("text/html")
    assert all(row["name"] in page.text for row in found["rows"])
    assert host.get("/sdapi/v1/sd3/memory")["advice"].endswith(messages.text("memory.by-measured", count=len(WORDS)))
    assert children(host) == []


def test_pressed_again_it_is_there_at_once(host):
    before = host.get(PATH)
    assert host.post(PATH)["job"] == before["job"] + 1
    found, seen = over(host)
    assert found["rows"] == before["rows"]
    assert {one["fraction"] for one in seen} <= {0.0, 1.0}


def test_a_process_that_is_killed_is_told(host, held):
    held()
    host.run("from sd3deploy.quality import prompts; prompts.OWN = prompts.OWN.with_name('other.txt')")
    (host.data.parent / "other.txt").write_text("another prompt")
    host.post(PATH)
    held(False)
    assert until(lambda: children(host))
    children(host)[0].kill()
    found, _ = over(host)
    assert (found["state"], found["error"]["id"]) == ("failed", "quality.killed")
    assert found["error"]["remedy"]
