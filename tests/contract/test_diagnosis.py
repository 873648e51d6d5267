"""Failures on one server, explained: while they happen, afterwards from its log, and before they happen by the checks."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import psutil
import pytest

from demo import server
from sd3deploy import tiny_sd3
from sd3deploy.diagnosis import checks, installed, logfile, matcher
from tests.contract.conftest import AUTH, PROBE, ProbedHost, start
from tests.waiting import until

TOKEN = "hf_" + "aBcDeFgHiJkLmNoPqRsTuVwXyZ012345"
BROKEN = "Diffusers/broken-sd3"

# Every layer of the loaded model gets a processor that was made for a UNet, and loses it again.
MISFIT = """
    from modules import modeldata
    from diffusers.models.attention_processor import AttnProcessor
    transformer = modeldata.model_data.sd_model.transformer
    sd3probe.processors = dict(transformer.attn_processors)
    transformer.set_attn_processor(AttnProcessor())
"""
MEND = """
    from modules import modeldata
    modeldata.model_data.sd_model.transformer.set_attn_processor(dict(sd3probe.processors))
"""


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    folder = tmp_path_factory.mktemp("diagnosis")
    data = server.data_folder(folder / "data", sd3_guard_attention="off")
    broken = data / "models" / BROKEN
    shutil.copytree(tiny_sd3.ensure(), broken)
    weights = broken / "transformer" / "diffusion_pytorch_model.safetensors"
    os.truncate(weights, weights.stat().st_size // 2)
    shutil.copytree(PROBE, data / "extensions" / "sd3-probe", ignore=shutil.ignore_patterns("__pycache__"))
    started = start(folder, "data", auth=AUTH)
    yield ProbedHost(started.data, started.url, started.process, started.auth)
    started.stop()


@pytest.fixture
def misfit(host):
    host.run(MISFIT)
    yield
    host.run(MEND)


def ask(host, **values):
    body = {"prompt": "a cat", "width": 128, "height": 128, "steps": 2, "seed": 1, "sampler_name": "Default"} | values
    return host.client.post("/sdapi/v1/txt2img", json=body)


def told(news):
    return [(event["id"], event["severity"], event["message"], event["remedy"]) for event in news() if event["id"].startswith("rule.")]


def report(host, **question):
    return host.client.get("/sdapi/v1/sd3/report", params=question)


def finished(host):
    """The checks when they are over, with every state that was seen on the way."""
    seen = []

    def over():
        job = host.get("/sdapi/v1/sd3/verify")
        seen.append((job["fraction"], job["text"]))
        return job if job["state"] != "running" else None

    job = until(over)
    assert job, seen[-1]
    return job, seen


# While it happens


def test_a_job_that_fails_is_explained_and_answered_as_the_host_does(host, news, misfit):
    answer = ask(host)
    assert (answer.status_code, answer.json().get("images")) in [(200, []), (200, None)] or answer.status_code == 500
    (event,) = told(news)
    assert event[1] == "error"
    (found,) = [one for one in report(host).json()["findings"] if f"rule.{one['rule']}" == event[0]]
    assert found["cause"] == "attention-processor"
    assert found["message"] == event[2]
    assert found["remedy"] == event[3]
    assert any("unpack" in line or "size of tensor" in line for line in found["evidence"])


def test_the_next_job_is_none_the_worse(host, news):
    assert len(ask(host).json()["images"]) == 1
    assert told(news) == []


def test_it_is_told_again_in_another_job_and_kept_once(host, news, misfit):
    ask(host)
    ask(host, seed=2)
    assert len({event[0] for event in told(news)}) == 1
    assert [one["cause"] for one in host.get("/sdapi/v1/sd3/status")["findings"]].count("attention-processor") == 1


def test_a_model_that_can_not_be_loaded_is_explained(host, news):
    host.set(sd_model_checkpoint=BROKEN)
    events = told(news)
    assert events, host.log()[-4000:]
    assert events[0][1] == "error"
    assert "transformer" in json.dumps(events) or "file" in json.dumps(events)
    assert any(f"rule.{one['rule']}" == events[0][0] for one in report(host).json()["findings"])
    host.set(sd_model_checkpoint=server.MODEL)
    assert len(ask(host).json()["images"]) == 1


def test_an_error_on_the_way_to_the_pipeline_is_explained_too(host, news):
    host.run("""
        from modules import processing
        sd3probe.init = processing.StableDiffusionProcessingTxt2Img.init
        def init(self, *args, **kwargs):
            raise OSError(28, "No space left on device")
        processing.StableDiffusionProcessingTxt2Img.init = init
    """)
    try:
        ask(host)
    finally:
        host.run("from modules import processing; processing.StableDiffusionProcessingTxt2Img.init = sd3probe.init")
    assert [event[0] for event in told(news)] == ["rule.disk-full"]


def test_an_error_of_another_model_is_none_of_ours(host, news):
    host.run("""
        from modules import errors
        try:
            raise ImportError("No module named 'bitsandbytes'")
        except ImportError as error:
            errors.display(error, "something else")
    """)
    assert told(news) == []


# The report


def test_the_report_has_everything_but_secrets(host):
    host.set(huggingface_token=TOKEN)
    answers = {form: report(host, format=form) for form in ("json", "text", "markdown")}
    assert all(answer.status_code == 200 for answer in answers.values())
    found = answers["json"].json()
    assert found["packages"]["diffusers"]
    assert "sd3_text_encoder" in found["settings"]
    assert found["runs"]
    assert found["events"]
    for answer in answers.values():
        assert TOKEN not in answer.text
    assert report(host, format="pdf").status_code == 422


@pytest.mark.parametrize(("method", "path"), [("GET", "report"), ("GET", "verify"), ("POST", "verify"), ("POST", "cancel")])
def test_nobody_gets_in_without_the_password(host, method, path):
    import httpx

    answer = httpx.request(method, f"{host.url}/sdapi/v1/sd3/{path}", trust_env=False)
    assert answer.status_code == 401


# The checks


def test_the_checks_run_one_by_one_and_leave_the_loaded_model_alone(host):
    same = "from modules import modeldata; result = [id(modeldata.model_data.sd_model), id(modeldata.model_data.sd_model.text_encoder_3)]"
    before = host.run(same)
    number = host.post("/sdapi/v1/sd3/verify")["job"]
    assert host.post("/sdapi/v1/sd3/verify")["job"] == number
    job, seen = finished(host)
    assert job["state"] == "done"
    assert [one["id"] for one in job["results"]] == [step.id for step in checks.STEPS]
    assert [(one["id"], one["state"], one["message"]) for one in job["results"] if one["state"] not in ("ok", "warning")] == []
    assert job["healthy"]
    fractions = [fraction for fraction, _ in seen]
    assert fractions == sorted(fractions)
    assert len({text for _, text in seen if text}) >= 3
    assert host.run(same) == before
    assert [one["id"] for one in report(host).json()["checks"]] == [step.id for step in checks.STEPS]
    assert len(ask(host).json()["images"]) == 1


def test_a_damaged_model_is_found_without_loading_it(host):
    host.post("/sdapi/v1/sd3/verify", {"model": str(host.data / "models" / BROKEN)})
    job, _ = finished(host)
    states = {one["id"]: one["state"] for one in job["results"]}
    assert states["files"] == "failed"
    assert states["base"] == "skipped"
    assert not job["healthy"]


def test_checks_that_are_cancelled_leave_nothing_behind(host):
    host.post("/sdapi/v1/sd3/verify")
    assert until(lambda: len(host.get("/sdapi/v1/sd3/verify")["results"]) >= len(checks.QUICK))
    assert host.post("/sdapi/v1/sd3/cancel") == {"cancelled": True, "jobs": ["verify"]}
    job, _ = finished(host)
    assert job["state"] == "cancelled"
    assert len(job["results"]) == len(checks.STEPS)
    assert {"cancelled"} <= {one["state"] for one in job["results"]}
    assert not [child for child in psutil.Process(host.process.pid).children(recursive=True) if "verify" in " ".join(child.cmdline())]
    assert host.post("/sdapi/v1/sd3/cancel") == {"cancelled": False, "jobs": []}


def test_checks_wait_for_a_job_and_can_be_cancelled_meanwhile(host):
    host.run("from modules import call_queue; call_queue.queue_lock.acquire()")
    try:
        host.post("/sdapi/v1/sd3/verify")
        assert until(lambda: len(host.get("/sdapi/v1/sd3/verify")["results"]) >= len(checks.QUICK))
        waiting = host.get("/sdapi/v1/sd3/verify")
        assert (waiting["state"], len(waiting["results"])) == ("running", len(checks.QUICK))
        assert "job" in waiting["text"]
        host.post("/sdapi/v1/sd3/cancel")
        job, _ = finished(host)
    finally:
        host.run("from modules import call_queue; call_queue.queue_lock.release()")
    assert job["state"] == "cancelled"
    assert len(ask(host).json()["images"]) == 1


@pytest.mark.parametrize("question", [{"encoder": "t6"}, {"model": "/no/such/model"}])
def test_checks_of_what_is_not_there_are_refused_with_the_remedy(host, question):
    answer = host.client.post("/sdapi/v1/sd3/verify", json=question)
    assert answer.status_code == 422
    assert "model_index.json" in answer.text or "Settings → SD3 Deploy" in answer.text


# From outside


def test_the_failure_is_read_out_of_the_hosts_log(host, misfit):
    ask(host, seed=3)
    found = matcher.read(logfile.blocks(host.data / "sdnext.log"), since_start=True)
    assert "attention-processor" in [one.cause for one in found]


def doctor(host, *arguments):
    root = os.environ.get("SDNEXT_ROOT", server.STAND_IN)
    python = host.data.parent / "venv-data" / "bin" / "python"
    command = [sys.executable, "-m", "sd3deploy", "doctor", "--sdnext", root, "--python", python, "--data", host.data, *arguments]
    return subprocess.run([*map(str, command)], cwd=server.ROOT, capture_output=True, text=True)


def test_the_doctor_looks_at_this_host_from_another_python(host, misfit):
    ask(host, seed=4)
    done = doctor(host, "--json")
    assert done.returncode == 1, done.stderr
    found = json.loads(done.stdout)
    assert str(host.data.parent / "venv-data") in found["python"]["executable"]
    assert "attention-processor" in [one["cause"] for one in found["findings"]]
    assert "file-truncated" in [one["rule"] for one in found["findings"]]  # of the damaged model
    shutil.rmtree(host.data / "models" / BROKEN)
    (host.data / "sdnext.log").rename(host.data / "before.log")
    try:
        healthy = doctor(host)
        assert healthy.returncode == 0, healthy.stdout + healthy.stderr
    finally:
        (host.data / "before.log").rename(host.data / "sdnext.log")


# The last one: it installs bitsandbytes into this host


def test_bitsandbytes_that_was_installed_beside_the_running_server(host, news):
    """It asks once, and remembers that there is none; somebody installs it in a terminal, and reloads the model as the finding says."""
    reload = "from modules import sd_models; sd_models.reload_model_weights(force=True)"
    host.run("from modules import shared; shared.opts.data.update(sd3_text_encoder='T5 FP4', sd3_auto_install=False)")
    host.run(f"import transformers.utils; assert not transformers.utils.is_bitsandbytes_available(); {reload}")
    assert host.get("/sdapi/v1/sd3/status")["encoder"] != "T5 FP4"
    python = host.data.parent / "venv-data" / "bin" / "python"
    done = subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", "bitsandbytes==0.50.2"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    error = """
        from transformers import BitsAndBytesConfig, T5EncoderModel
        from modules import modeldata
        import traceback
        try:
            place = modeldata.model_data.sd_model.sd_checkpoint_info.path
            T5EncoderModel.from_pretrained(place, subfolder="text_encoder_3", quantization_config=BitsAndBytesConfig(load_in_4bit=True))
            result = ""
        except ImportError:
            result = traceback.format_exc()
    """
    text = host.run(error)
    (found,) = matcher.diagnose(text, lambda: installed.Installed({"bitsandbytes": "0.50.2", "accelerate": "1.14.0"}))
    assert found.cause == "stale-availability"
    assert "Reload model" in found.remedy
    host.run(reload)
    assert host.get("/sdapi/v1/sd3/status")["encoder"] == "T5 FP4"
    assert len(ask(host, seed=5).json()["images"]) == 1
