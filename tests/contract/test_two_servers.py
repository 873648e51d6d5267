"""SD.Next started twice in the same second, in one environment and with one data folder: both work, and what they share stays whole."""

from __future__ import annotations

import contextlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from demo import environment, server
from tests.contract.conftest import LIKE, REAL
from tests.waiting import until


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    """Both servers. The name keeps this module on one process of the tests, as every one with servers of its own."""
    folder = tmp_path_factory.mktemp("two")
    data = server.data_folder(folder / "data")
    source = Path(os.environ["SDNEXT_PYTHON"]).parents[1] if REAL else None
    python = environment.linked(folder / "venv", without=["bitsandbytes"], source=source)
    root, flags = (Path(os.environ["SDNEXT_ROOT"]), ()) if REAL else (server.STAND_IN, ("--like", LIKE))
    temporary = [folder / f"tmp-{number}" for number in range(2)]  # SD.Next empties gradio's folder in it at its start
    for one in temporary:
        one.mkdir()
    with ThreadPoolExecutor() as pool:
        def begin(one: Path):
            return server.start(data, root=root, python=python, flags=flags, TMPDIR=str(one))

        both = list(pool.map(begin, temporary))
    for one in both:
        up(one)
    yield both
    for one in both:
        one.stop()


def up(one: server.Host) -> None:
    """Wait for its API: both write to one log, so the first that is up looks like both."""

    def answers() -> bool:
        with contextlib.suppress(httpx.TransportError):
            return one.client.get("/sdapi/v1/sd3/status").status_code == 200
        return False

    assert until(answers), one.log()[-3000:]


def at_once(both, work):
    with ThreadPoolExecutor() as pool:
        return list(pool.map(work, both))


def test_both_install_what_one_needs_and_both_load_it(host):
    assert at_once(host, lambda one: one.set(sd3_text_encoder="T5 FP4")) == [{"sd3_text_encoder": True}] * 2
    for one in host:
        status = one.get("/sdapi/v1/sd3/status")
        assert (status["encoder"], status["packages"]["bitsandbytes"] is not None) == ("T5 FP4", True)
    errors = [event for one in host for event in one.get("/sdapi/v1/sd3/events")["events"] if event["severity"] == "error"]
    assert errors == []


def test_what_is_kept_is_kept_once_and_whole(host):
    kept = list((host[0].data / "models" / "SD3 Deploy").rglob("*.safetensors"))
    assert len(kept) == 1
    assert at_once(host, lambda one: one.set(sd3_text_encoder="None (CLIP only)")) == [{"sd3_text_encoder": True}] * 2
    assert at_once(host, lambda one: one.set(sd3_text_encoder="T5 FP4")) == [{"sd3_text_encoder": True}] * 2
    damaged = [event for one in host for event in one.get("/sdapi/v1/sd3/events")["events"] if event["id"].startswith("cache.damaged")]
    assert damaged == []


def test_both_make_the_same_picture_at_the_same_time(host):
    first, second = at_once(host, lambda one: one.txt2img())
    assert first["images"] == second["images"]
    assert all("T5: T5 FP4" in one["info"]["infotexts"][0] for one in (first, second))


def test_the_settings_that_both_write_can_be_read(host):
    for mode in ("warn", "off", "fix"):
        assert all(sum(one.values()) == 1 for one in at_once(host, lambda one, mode=mode: one.set(sd3_guard_size=mode)) if one)
    stored = json.loads((host[0].data / "config.json").read_text("utf-8"))
    assert stored["sd3_text_encoder"] == "T5 FP4"
    memory = list((host[0].data).rglob("sd3-deploy-memory.json"))
    assert all(isinstance(json.loads(file.read_text("utf-8")), dict) for file in memory)
