"""The kind “Repository”, what Automatic makes of it, the command, and how fast it is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sd3deploy.deployment.speed import Speed
from sd3deploy.deployment.undertaking import Progress
from sd3deploy.deployment.wanted import Settings, Wanted
from sd3deploy.encoders import choices, source
from sd3deploy.encoders.hub.spec import DEFAULT
from sd3deploy.encoders.weights import open_weights
from sd3deploy.errors import EncoderError
from sd3deploy.events import Events
from tests import t5
from tests.hub_server import with_a_model

ROOT = Path(__file__).parent.parent
FILE = "org/t5:encoders/t5.safetensors"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    t5.make(folder)
    return folder


@pytest.fixture
def hub(model, monkeypatch):
    with with_a_model(model, monkeypatch) as server:
        yield server


def automatic(model, repository=FILE, shared=None, caches=(), offline=False):
    return source.find("Automatic", source.Facts(str(model), shared, caches, offline), repository=repository)


def test_automatic_prefers_what_is_on_this_disk(hub, model):
    assert automatic(model).place == str(model)
    assert automatic(model / "t5.safetensors").file == model / "t5.safetensors"
    assert automatic("org/sd3", shared=("org/shared", {})).place == "org/shared"
    assert hub.requests == []


def test_automatic_reads_the_repository_where_no_t5_is_on_the_disk(hub, model, tmp_path):
    from safetensors.torch import save_file
    from torch import zeros

    save_file({"x": zeros(3)}, tmp_path / "sd3.safetensors")
    for place in ("org/sd3", tmp_path, tmp_path / "sd3.safetensors"):
        found = automatic(place)
        assert (found.name, found.place, found.file) == (FILE, None, None)
        assert [file.path for file in open_weights(found).files] == [None]


def test_automatic_does_not_where_the_setting_is_empty_or_the_host_is_offline(hub, tmp_path):
    for values in ({"repository": ""}, {"offline": True}):
        assert automatic("org/sd3", **values).place == "org/sd3"
        with pytest.raises(EncoderError, match="has no T5 in it"):
            automatic(tmp_path, **values)


def test_automatic_reads_a_model_that_is_cached_as_before(hub, tmp_path):
    snapshot = tmp_path / "models--org--sd3" / "snapshots" / "abc"
    (snapshot / "text_encoder_3").mkdir(parents=True)
    (snapshot / "text_encoder_3" / "config.json").write_text("{}")
    (tmp_path / "models--org--sd3" / "refs").mkdir()
    (tmp_path / "models--org--sd3" / "refs" / "main").write_text("abc")
    assert automatic("org/sd3", caches=(str(tmp_path),)).place == "org/sd3"


def test_only_the_model_is_meant_by_model(hub):
    assert source.find("Model", source.Facts("org/sd3"), repository=FILE).place == "org/sd3"


@pytest.mark.parametrize(("words", "id"), [("", "hub.unset"), ("t5.safetensors", "hub.spec")])
def test_a_repository_has_a_name(words, id):
    with pytest.raises(EncoderError) as caught:
        source.find("Repository", source.Facts(""), repository=words)
    assert caught.value.id == id


def test_what_the_settings_ask_for():
    stored = {"sd3_text_encoder": "T5 FP4", "sd3_weights": "repository", "sd3_weights_repository": FILE, "sd3_weights_keep": True}
    settings = Settings(stored.get, Events())
    fp4 = choices.find("fp4")
    assert settings.wanted() == Wanted(fp4, "Repository", "", FILE)
    assert settings.wanted().keep
    stored |= {"sd3_weights_keep": False}
    assert settings.wanted() == Wanted(fp4, "Repository", "", FILE, True)  # another place for the source is no other encoder
    stored |= {"sd3_weights": "Model"}
    assert settings.wanted() == Wanted(fp4, "Model")
    stored |= {"sd3_weights": "Local file", "sd3_weights_file": "/t5.safetensors"}
    assert settings.wanted() == Wanted(fp4, "Local file", "/t5.safetensors")


def test_the_command_takes_a_repository(hub, model, tmp_path):
    """In a process of its own: HF_ENDPOINT is what a user sets."""
    environ = {**os.environ, "HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
    made = []
    for src in (FILE, str(model / "t5.safetensors")):
        out = tmp_path / f"out{len(made)}"
        command = [sys.executable, "-m", "sd3deploy", "quantize", src, "--encoder", "fp8", "--out", str(out), "--json"]
        done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        made.append(json.loads(done.stdout))
    assert made[0]["sha256"] == made[1]["sha256"]
    assert not list((tmp_path / "home").rglob("*.safetensors"))
    assert json.loads((tmp_path / "out0" / "manifest.json").read_text())["source"] == FILE


def test_the_command_says_what_is_wrong(hub, tmp_path):
    environ = {**os.environ, "HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
    command = [sys.executable, "-m", "sd3deploy", "quantize", "org/t5:no.safetensors", "--encoder", "fp8", "--out", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True)
    assert done.returncode == 2
    assert "There is no org/t5:no.safetensors" in done.stderr
    assert not (tmp_path / "out").exists()


def test_speed_and_time_left():
    at = [0.0]
    speed = Speed(lambda: at[0])
    assert speed.add(0) == 0
    at[0] = 1.0
    assert speed.add(10**6) == 0  # too soon to say
    at[0] = 10.0
    assert speed.add(10**7) == 10**6
    at[0] = 1000.0
    assert speed.add(10**7) < 10**6  # it hangs
    assert Progress(10**9, 4 * 10**9, 5e6).report()["text"] == "1.0 GB of 4.0 GB, 5.0 MB per second, 10:00 left"
    assert Progress(0, 4 * 10**9, 1e6).report()["text"].endswith("1:06:40 left")
    assert Progress(10**9, 4 * 10**9).report()["text"] == "1.0 GB of 4.0 GB"


def test_the_default_is_a_repository():
    assert source.find("Repository", source.Facts(""), repository=DEFAULT).name == DEFAULT
