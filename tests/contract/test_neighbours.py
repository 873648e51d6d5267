"""Beside extensions that make prompts, make pictures again, set attention processors, load models and wrap the same functions of the host.

They are tried where they are loaded before this extension, and where they are loaded after it.
"""

from __future__ import annotations

import base64
import io
import shutil
from pathlib import Path

import pytest
from PIL import Image

from demo import server
from tests.contract.conftest import PROBE, ProbedHost, start

NEIGHBOURS = Path(__file__).parent / "neighbours"
OURS = "sd-extension-sd3"


@pytest.fixture(scope="module", params=["before", "after"])
def host(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(f"neighbours-{request.param}")
    data = server.data_folder(folder / "data", diffusers_offload_mode="none", sd3_text_encoder="T5 Q8")
    ignored = shutil.ignore_patterns("__pycache__")
    for name, source in (("a-probe", PROBE), ("b-neighbours" if request.param == "before" else "z-neighbours", NEIGHBOURS)):
        shutil.copytree(source, data / "extensions" / name, ignore=ignored)
    started = start(folder, "data")
    yield ProbedHost(started.data, started.url, started.process, started.auth)
    started.stop()


@pytest.fixture(autouse=True)
def healthy(host, news, switches):
    """Whatever the neighbours did: nothing of this extension is off, nothing was told as a fault of it, and the next job is as ever."""
    yield
    host.run("sd3probe.switches.clear()")
    told = [event["id"] for event in news() if event["id"].startswith("host.") or event["severity"] == "error"]
    assert [id for id in told if not id.startswith("size.")] == []
    made = host.txt2img()
    assert len(made["images"]) == 1
    assert "T5: T5 Q8" in made["info"]["infotexts"][0]


def sizes(made):
    return [Image.open(io.BytesIO(base64.b64decode(image))).size for image in made["images"]]


def test_the_neighbours_are_where_they_should_be(host):
    host.count()
    before = host.count()
    assert len(host.txt2img()["images"]) == 1
    assert "around" in [name for name, _ in host.events(before)]


def test_many_prompts_of_one(host, switches, news):
    switches(prompts=["red", "green", "blue"])
    made = host.txt2img(width=200, height=136)
    assert sizes(made) == [(208, 144)] * 3
    texts = made["info"]["infotexts"]
    assert [word for word in ("red", "green", "blue") if any(word in text for text in texts)] == ["red", "green", "blue"]
    assert all("T5: T5 Q8" in text and "SD3 size: 200x136" in text for text in texts)
    assert [event["id"] for event in news()].count("size.not-multiple") == 1


def test_a_picture_that_is_made_again_by_a_job_of_its_own(host, switches):
    switches(details=160)
    made = host.txt2img()
    assert sizes(made) == [(128, 128)]
    text = made["info"]["infotexts"][0]
    assert "Details: 160" in text
    assert "T5: T5 Q8" in text
    runs = host.get("/sdapi/v1/sd3/memory")["runs"]
    assert runs[-1]["outcome"] == "done"


def test_a_size_of_the_inner_job_that_does_not_fit_is_mended_for_it_alone(host, switches):
    switches(details=100)
    made = host.txt2img()
    assert sizes(made) == [(128, 128)]
    assert "SD3 size" not in made["info"]["infotexts"][0]


def test_both_at_once(host, switches):
    switches(prompts=["red", "green"], details=160)
    made = host.txt2img()
    assert sizes(made) == [(128, 128)] * 2
    assert all("Details: 160" in text for text in made["info"]["infotexts"])


@pytest.mark.parametrize("kind", ["AttnProcessor", "AttnProcessor2_0"])
def test_processors_of_another_kind_of_model(host, switches, news, kind):
    switches(processors=kind)
    assert len(host.txt2img()["images"]) == 1
    assert [event["id"] for event in news() if event["id"].startswith("attention.")] == ["attention.other"]


def test_processors_that_fit_stay(host, switches, news):
    switches(processors="PAGJointAttnProcessor2_0")
    host.txt2img()
    assert [event["id"] for event in news() if event["id"].startswith("attention.")] == []
    assert host.run("""
        from modules import modeldata
        result = sorted({type(one).__name__ for one in modeldata.model_data.sd_model.transformer.attn_processors.values()})
    """) == ["PAGJointAttnProcessor2_0"]
    host.run("from modules import sd_models; sd_models.reload_model_weights(force=True)")


@pytest.mark.parametrize("when", ["before_process", "process", "text encoder"])
def test_a_model_that_is_loaded_in_the_middle_of_a_job(host, switches, when):
    """The queue is held there; the text encoder of the settings is in the new model as in the old one."""
    switches(reload=when)
    made = host.txt2img()
    assert len(made["images"]) == 1
    assert "T5: T5 Q8" in made["info"]["infotexts"][0]
    assert host.get("/sdapi/v1/sd3/status")["encoder"] == "T5 Q8"


OURS_AROUND = """
from modules import processing
current, result = processing.process_images_inner, 0
while current is not None:
    result += hasattr(current, "__sd3deploy_original__") and current.__wrapped__ is current.__sd3deploy_original__
    current = getattr(current, "__wrapped__", None)
"""


def refused(host, news):
    """A job that only the wrapper around it can refuse as it should: with 422, and one event."""
    before = len(news())
    body = {"prompt": "a cat", "width": 200, "height": 136, "steps": 1, "override_settings": {"sd3_guard_size": "block"}}
    answer = host.client.post("/sdapi/v1/txt2img", json=body)
    assert [event["id"] for event in news()[before:]] == ["size.not-multiple"]
    return answer.status_code == 422 and "200" in answer.json()["detail"]


def test_a_neighbour_that_takes_its_wrapper_away(host, news):
    """It leaves what it found when it was loaded: the host's own function where that was before ours. The next job puts ours back."""
    host.run("sd3probe.take_away()")
    assert len(host.txt2img()["images"]) == 1
    assert host.run(OURS_AROUND) == 1
    assert refused(host, news)


@pytest.mark.parametrize("parameters", ["p", "*values"])
def test_neighbours_that_do_not_say_what_they_wrap(host, news, parameters):
    host.run(f"""
        from modules import processing
        for _ in range(5):
            before = processing.process_images_inner
            processing.process_images_inner = lambda {parameters}, before=before: before({parameters})
    """)
    for _ in range(3):
        assert len(host.txt2img()["images"]) == 1
    assert refused(host, news)
    assert host.run(OURS_AROUND) <= 1
