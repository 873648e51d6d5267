"""Memory on one server, through its API: what is said beforehand, what is refused, what is watched, and what happens when it runs out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from demo import server
from tests.contract.conftest import AUTH, PROBE, ProbedHost, start


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    folder = tmp_path_factory.mktemp("memory")
    data = server.data_folder(folder / "data", sd3_memory="often", sd3_memory_retry="yes")
    shutil.copytree(PROBE, data / "extensions" / "sd3-probe", ignore=shutil.ignore_patterns("__pycache__"))
    started = start(folder, "data", auth=AUTH)
    yield ProbedHost(started.data, started.url, started.process, started.auth)
    started.stop()


@pytest.fixture
def told(news):
    """What was said since the start of the test, but for small pictures: `told()` gives [(id, severity, message, remedy)]."""
    names = ("id", "severity", "message", "remedy")
    return lambda: [tuple(event[name] for name in names) for event in news() if event["id"] != "size.small"]


@pytest.fixture
def little(host):
    """A machine with `little(free)` bytes of RAM to use, as far as the extension can tell."""
    host.run("from sd3deploy.memory import capacity; sd3probe.ram = capacity._ram")

    def set_free(free):
        host.run(f"from sd3deploy.memory import capacity; capacity._ram = lambda: (64 * 10**9, {free})")

    yield set_free
    host.run("from sd3deploy.memory import capacity; capacity._ram = sd3probe.ram")


@pytest.fixture
def limit(host):
    """A device that fails: `limit(phase, size, times)`, see probe/sd3probe/limit.py."""

    def put(phase, size=0, times=1):
        host.run(f"from sd3probe import limit; limit.put({phase!r}, {size}, {times})")

    yield put
    host.run("from sd3probe import limit; limit.lift()")


def ask(host, **values):
    """The answer to a small job."""
    body = {"prompt": "a cat", "width": 128, "height": 128, "steps": 2, "seed": 1, "sampler_name": "Default"} | values
    return host.client.post("/sdapi/v1/txt2img", json=body)


def pictures(answer):
    assert answer.status_code == 200, answer.text
    return len(answer.json()["images"])


def memory(host, **question):
    return host.get("/sdapi/v1/sd3/memory", params=question)


def test_modes_that_mean_nothing_are_answered_with_a_sentence_and_the_default(host):
    ids = {event["id"] for event in host.get("/sdapi/v1/sd3/events")["events"]}
    assert {"setting.memory-unknown", "setting.wrong-type"} <= ids
    assert host.set(sd3_memory="seldom") == {"sd3_memory": False}
    assert host.run("from modules import shared; result = [shared.opts.sd3_memory, shared.opts.sd3_memory_retry]") == ["warn", False]


# Beforehand


def test_the_answer_about_memory_is_complete_and_its_parts_add_up(host):
    found = memory(host, width=1024, height=1024)
    assert sum(found["parts"].values()) == found["total"] > 0
    assert found["verdict"]["answer"] == "fits"
    assert set(found["phases"]) == {"load", "encode", "denoise", "decode"}
    assert found["recommendation"] == "T5 BF16"
    assert set(found["choices"]) == {"bf16", "q8", "q6", "int8", "fp8", "q5", "q4", "nf4", "fp4", "none"}
    assert found["capacity"]["ram_usable"] <= found["capacity"]["ram_total"]
    smaller = memory(host, width=512, height=512)
    assert smaller["phases"]["decode"]["activation"] < found["phases"]["decode"]["activation"]
    assert memory(host, width=1024, height=1024, encoder="none")["total"] < found["total"]


def test_the_parts_are_those_of_the_loaded_model(host):
    code = """
        from modules import modeldata
        from sd3deploy.encoders.measure import tensors
        pipe = modeldata.model_data.sd_model
        names = ("transformer", "text_encoder", "text_encoder_2", "text_encoder_3", "vae")
        result = {name: sum(t.numel() * t.element_size() for t in tensors(getattr(pipe, name))) for name in names}
    """
    assert memory(host)["parts"] == host.run(code)


def test_a_published_model_can_be_asked_about(host):
    found = memory(host, model="sd3.5-large", encoder="fp4", offload="none")
    assert found["parts"]["text_encoder_3"] == 2_652_519_584


@pytest.mark.parametrize("question", [{"model": "sd4"}, {"encoder": "t6"}, {"offload": "sideways"}])
def test_a_question_that_means_nothing_is_answered_with_the_remedy(host, question):
    answer = host.client.get("/sdapi/v1/sd3/memory", params=question)
    assert answer.status_code == 422
    assert "sd3-medium" in answer.text or "T5" in answer.text or "balanced" in answer.text or "Host default" in answer.text


def test_what_will_not_fit_is_said_to_a_script_and_runs(host, told, little):
    little(10**6)
    assert pictures(ask(host)) == 1
    (event,) = told()
    assert event[:2] == ("memory.verdict.no", "warning")
    assert "can be used" in event[2]
    assert event[3]


def test_in_mode_block_it_is_refused_with_a_sentence(host, told, little):
    little(10**6)
    host.set(sd3_memory="block")
    try:
        answer = ask(host)
    finally:
        host.set(sd3_memory="warn")
    assert answer.status_code == 422
    assert "Does not fit" in answer.json()["detail"]
    assert "Nothing was generated" in answer.json()["detail"]
    assert [event[0] for event in told()] == ["memory.verdict.no"]
    assert pictures(ask(host, override_settings={"sd3_memory": "off"})) == 1


def test_in_mode_off_nothing_is_said(host, told, little):
    little(10**6)
    assert pictures(ask(host, override_settings={"sd3_memory": "off"})) == 1
    assert told() == []


def test_a_refusal_names_the_change_that_helps(host, little):
    need = memory(host, width=1024, height=1024)["phases"]["decode"]["ram"]
    little(need - memory(host)["total"] - 10**7)  # what the model takes in RAM already counts as usable
    host.set(sd3_memory="block")
    try:
        answer = ask(host, width=1024, height=1024)
        assert answer.status_code == 422
        assert "VAE tiling" in answer.json()["detail"]
    finally:
        host.set(sd3_memory="warn")


@pytest.mark.parametrize(("mode", "answers"), [("off", [True]), ("warn", [True]), ("ask", [False, True]), ("block", [False, False])])
def test_an_encoder_that_will_not_fit(host, told, little, mode, answers):
    """In mode warn it is said and the encoder is loaded; in mode ask it is held back once, and choosing it again loads it."""
    little(10**6)
    host.set(sd3_memory=mode)
    try:
        assert [host.set(sd3_text_encoder="T5 BF16")["sd3_text_encoder"] for _ in answers] == answers
        assert host.get("/sdapi/v1/sd3/status")["encoder"] == ("T5 BF16" if answers[-1] else "Host default")
    finally:
        host.set(sd3_memory="warn")
        little(10**10)
        host.set(sd3_text_encoder="Host default")
    said = [event for event in told() if event[0] == "memory.encoder"]
    severities = {"off": [], "warn": ["warning"], "ask": ["error"], "block": ["error", "error"]}
    assert [severity for _, severity, _, _ in said] == severities[mode]
    assert all("T5 BF16" in message for _, _, message, _ in said)
    assert all(("30 seconds" in remedy) == (mode == "ask") for _, _, _, remedy in said)


def test_another_encoder_than_the_one_that_was_held_back_is_held_back_too(host, little):
    little(10**6)
    host.set(sd3_memory="ask")
    try:
        names = ["T5 BF16", "T5 NF4", "T5 BF16", "T5 BF16"]
        assert [host.set(sd3_text_encoder=name)["sd3_text_encoder"] for name in names] == [False, False, False, True]
    finally:
        host.set(sd3_memory="warn", sd3_text_encoder="Host default")


def test_a_choice_says_of_its_packages_whether_they_come_when_it_is_chosen(host):
    """The environment of the test is without bitsandbytes."""

    def said(id):
        found = host.get("/sdapi/v1/sd3/memory")["choices"][id]
        return found["answer"], found["short"]

    answer, short = said("fp4")
    assert (answer, short.partition(", ")[2]) == ("fits", "installs bitsandbytes")
    host.set(sd3_auto_install=False)
    assert said("fp4") == ("no", "needs bitsandbytes, and installing is switched off")
    host.set(sd3_auto_install=True, offline_mode=True)
    try:
        assert said("fp4") == ("no", "needs bitsandbytes, which can not be installed offline")
        chosen = host.get("/sdapi/v1/sd3/memory", params={"encoder": "T5 FP4"})
        assert (chosen["verdict"]["answer"], chosen["verdict"]["short"]) == said("fp4")
        assert chosen["line"] == "T5 FP4 needs bitsandbytes, which can not be installed offline."
        assert chosen["bars"] == []
        assert host.get("/sdapi/v1/sd3/status")["encoder"] != "T5 FP4"
        hint = host.get("/sdapi/v1/sd3/check", params={"encoder": "T5 FP4", "width": 1024, "height": 1024})["hints"][-1]
        assert (hint["kind"], hint["severity"], hint["text"]) == ("encoder", "change", "T5 FP4 can not be had")
        assert hint["sentence"].startswith(chosen["line"] + " The picture is made with ")
        assert said("q4")[0] == "fits"
        host.run("from sd3deploy.deps import lacking; sd3probe.check = lacking.check; lacking.check = lambda those: []")
        assert said("fp4") == ("fits", "fits")
    finally:
        host.run("from sd3deploy.deps import lacking; lacking.check = getattr(sd3probe, 'check', lacking.check)")
        host.set(offline_mode=False)


def test_the_recommendation_is_applied_by_one_request(host):
    assert "T5 BF16" in host.post("/sdapi/v1/sd3/memory/apply")["done"]
    assert host.get("/sdapi/v1/sd3/status")["encoder"] == "T5 BF16"
    assert "already" in host.post("/sdapi/v1/sd3/memory/apply")["done"]
    host.set(sd3_text_encoder="Host default")


def test_the_recommendation_goes_by_what_was_measured_on_the_loaded_weights(host):
    assert "random weights" in memory(host)["advice"]
    file = host.run("""
        from pathlib import Path
        from modules import modeldata, paths, sd_models
        from sd3deploy.device import Device
        from sd3deploy.encoders import source
        from sd3deploy.encoders.cache import Cache, folder_for
        from sd3deploy.encoders.choices import CHOICES
        from sd3deploy.encoders.weights import open_weights
        from sd3deploy.quality.beside import Measured
        from sd3deploy.quality.kept import Kept
        place = str(sd_models.path_to_repo(modeldata.model_data.sd_model.sd_checkpoint_info))
        weights = open_weights(source.find("Model", source.Facts(place)))
        cache = Cache(folder_for(Path(paths.models_path)))
        errors = {one.id: 0.1 if one.id == "fp8" else 0.5 for one in CHOICES if one.bytes}
        found = {id: {"a": Measured(error, 0.9, 1.0), "b": Measured(error, 0.9, 1.0)} for id, error in errors.items()}
        Kept(cache, weights.fingerprint(), Device("cpu", "cpu", "CPU")).add(found)
        (file,) = cache.folder.glob("quality-*.json")
        result = str(file)
    """)
    try:
        found = memory(host)
        assert found["recommendation"] == "T5 FP8"
        assert found["advice"].endswith("measured on these weights with 2 prompts.")
    finally:
        Path(file).unlink()
    assert memory(host)["recommendation"] == "T5 BF16"


# While it runs


def test_a_job_is_watched_phase_by_phase(host):
    assert pictures(ask(host, steps=3, prompt="a dog that nobody has asked for yet")) == 1
    run = host.get("/sdapi/v1/sd3/memory/runs")[-1]
    assert (run["kind"], run["outcome"]) == ("job", "done")
    assert list(run["phases"]) == ["prepare", "encode", "denoise", "decode"]
    assert [mark["step"] for mark in run["marks"] if mark["phase"] == "denoise"][:3] == [1, 2, 3]
    assert len(run["times"]) == len(run["readings"]["ram"]) > 3
    assert all(peak["ram"] > 10**8 for peak in run["phases"].values())
    assert all(run["expected"].values())


def test_loads_are_watched_too_and_twenty_runs_are_kept(host):
    host.set(sd3_text_encoder="T5 NF4")
    last = memory(host)["runs"][-1]
    assert (last["kind"], last["title"]) == ("load", "T5 NF4")
    host.set(sd3_text_encoder="Host default")
    for _ in range(20):
        ask(host, width=64, height=64, steps=1)
    runs = memory(host)["runs"]
    assert len(runs) == 20
    assert [run["number"] for run in runs] == list(range(runs[0]["number"], runs[0]["number"] + 20))


def test_no_thread_watches_while_nothing_runs(host):
    names = "import threading; result = [thread.name for thread in threading.enumerate() if thread.name == 'sd3-memory']"
    assert host.run(names) == []


def test_a_real_run_corrects_the_estimate_until_it_is_told_to_forget(host):
    host.client.delete("/sdapi/v1/sd3/memory/corrections").raise_for_status()
    before = memory(host)
    assert before["corrections"] == {}
    for _ in range(2):  # with the first one libraries come in
        assert pictures(ask(host, width=1024, height=1024, steps=1)) == 1
    after = memory(host)
    assert set(after["corrections"]) >= {"decode"}
    factor = after["corrections"]["decode"]
    assert after["phases"]["decode"]["activation"] == pytest.approx(before["phases"]["decode"]["activation"] * factor, rel=1e-3)
    assert list((host.data / "data").glob("sd3-deploy-memory.json"))
    host.client.delete("/sdapi/v1/sd3/memory/corrections").raise_for_status()
    assert memory(host)["corrections"] == {}


# When it runs out


@pytest.mark.parametrize(("phase", "size"), [("prepare", 0), ("encode", 0), ("denoise", 0), ("decode", 0)])
def test_running_out_is_explained_and_the_model_stays_usable(host, told, limit, phase, size):
    """Wherever it fails: outside of what the host guards, in its prompt parser, after which it tries another way, in its pipeline, …"""
    prompt = f"out of memory in {phase} {size}"
    limit(phase, size, times=2)
    answer = ask(host, prompt=prompt)
    assert answer.status_code == 507, answer.text[:500]
    ((id, severity, message, remedy),) = told()
    assert (id, severity) == ("memory.exhausted", "error")
    assert {"prepare": "preparing", "encode": "encoding", "denoise": "denoising", "decode": "decoding"}[phase] in message
    assert "1.0 GB were missing" in message
    assert "The estimate had said" in message
    assert remedy
    assert message in answer.json()["detail"]
    assert memory(host)["runs"][-1]["outcome"] == "out of memory"
    assert host.run("from sd3probe import limit; limit.lift(); result = limit.limit.alive()") == 0
    assert pictures(ask(host, prompt=prompt)) == 1


def test_nothing_is_left_of_what_did_not_fit(host, limit):
    """Bytes, not just the tensors of the last job: the same failure ten times over takes no more memory than once."""
    sizes = []
    for number in range(10):
        limit("decode")
        assert ask(host, prompt=f"number {number}", width=512, height=512).status_code == 507
        lift = "import psutil; from sd3probe import limit; limit.lift(); limit.limit.alive(); result = psutil.Process().memory_info().rss"
        sizes.append(host.run(lift))
    assert sizes[-1] - sizes[2] < 64 * 2**20, sizes


def test_other_failures_are_no_matter_of_memory(host, told):
    code = """
        from modules import modeldata
        def fail(module, arguments):
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")
        sd3probe.handle = modeldata.model_data.sd_model.transformer.register_forward_pre_hook(fail)
    """
    host.run(code)
    try:
        assert pictures(ask(host)) == 0  # what the host makes of it
    finally:
        host.run("sd3probe.handle.remove()")
    assert [event[0] for event in told()] == []
    assert memory(host)["runs"][-1]["outcome"] == "no picture"
    assert pictures(ask(host)) == 1


def test_once_more_with_the_cheapest_change_when_the_user_wants_that(host, told, limit):
    host.set(sd3_memory_retry=True)
    limit("decode")
    try:
        answer = ask(host, prompt="try again", width=1024, height=1024, steps=1)
    finally:
        host.set(sd3_memory_retry=False)
    assert pictures(answer) == 1
    assert [event[0] for event in told()] == ["memory.exhausted", "memory.retry"]
    assert "VAE tiling" in told()[1][2]
    options = host.run("from modules import shared; result = [shared.opts.diffusers_vae_tiling, shared.opts.diffusers_vae_tile_size]")
    assert options == [False, 0]


def test_the_second_try_can_be_one_with_another_encoder(host, told, limit):
    """The error does not say how much is missing: then a little less has to do, and a narrower T5 is the cheapest way."""
    host.set(sd3_memory_retry=True)
    limit("encode", times=2)
    host.run("from sd3probe import limit; limit.limit.message = 'HIP out of memory'")
    try:
        answer = ask(host, prompt="with another encoder")
    finally:
        host.set(sd3_memory_retry=False)
    assert pictures(answer) == 1
    assert "T5 BF16" in next(event for event in told() if event[0] == "memory.retry")[2]
    assert host.get("/sdapi/v1/sd3/status")["encoder"] == "Host default"
    assert pictures(ask(host, prompt="as before")) == 1


MODES = ["no_grad", "inference_mode"]  # of the host, as its setting says


@pytest.fixture
def narrower(host, limit):
    """A host in one of torch's modes, whose device once fails in a way that T5 Q4 helps against: `narrower(mode)`."""

    def put(mode):
        assert host.client.post("/sdapi/v1/sd3/encoder", json={"encoder": "T5 Q8"}).status_code == 200
        host.set(sd3_memory_retry=True)
        host.run(f"""
            import dataclasses, torch
            from modules import devices
            from sd3deploy.encoders import choices
            from sd3deploy.memory import verdict
            sd3probe.before = devices.inference_context, verdict.cheapest
            devices.inference_context = torch.{mode}
            q4 = choices.find("q4")
            verdict.cheapest = lambda setup, *_: verdict.Change({{"encoder": q4.name}}, dataclasses.replace(setup, encoder=q4))
        """)
        limit("encode", times=2)
        host.run("from sd3probe import limit; limit.limit.message = 'HIP out of memory'")

    yield put
    host.run("""
        from modules import devices
        from sd3deploy.memory import verdict
        devices.inference_context, verdict.cheapest = sd3probe.before
    """)
    host.set(sd3_memory_retry=False, sd3_text_encoder="Host default")


@pytest.mark.parametrize("mode", MODES)
def test_a_picture_of_the_second_try_names_the_encoder_that_it_was_made_with(host, told, narrower, mode):
    narrower(mode)
    answer = ask(host, prompt=f"tried twice in {mode}", n_iter=2)
    assert pictures(answer) == 2
    assert [event[0] for event in told() if event[0].startswith("memory")] == ["memory.exhausted", "memory.retry"]
    first, second = json.loads(answer.json()["info"])["infotexts"]
    assert "T5: T5 Q4, T5 state: " in first
    assert "T5: T5 Q8, T5 state: " in second
    assert host.get("/sdapi/v1/sd3/status")["encoder"] == "T5 Q8"


def test_what_can_not_be_loaded_is_no_second_try_and_the_next_picture_has_its_encoder(host, told, narrower, little):
    narrower("no_grad")
    little(10**8)  # one alone
    host.run("""
        from sd3deploy.encoders import load
        sd3probe.quantize = load.quantize
        def fail(*_):
            raise MemoryError
        load.quantize = fail
    """)
    host.set(sd3_cache=False)
    try:
        assert ask(host, prompt="not even a second try").status_code == 507
    finally:
        host.run("from sd3deploy.encoders import load; load.quantize = sd3probe.quantize")
    said = [event[0] for event in told()]
    assert "encoder.out-of-memory" in said
    assert "memory.retry" not in said
    try:
        assert "T5: T5 Q8" in ask(host, prompt="the next one").json()["info"]
    finally:
        host.set(sd3_cache=True)


def test_the_larger_pass_of_a_job_counts(host, told, little):
    """Of hires and of img2img, whose pictures bring their own size."""
    need = memory(host, width=512, height=512)["phases"]["decode"]["ram"] - memory(host)["total"]
    little(need + 10**7)
    assert pictures(ask(host, width=512, height=512, steps=1)) == 1
    assert told() == []
    hires = {"enable_hr": True, "hr_force": True, "hr_upscaler": "Latent Bilinear", "hr_scale": 2.0, "denoising_strength": 0.5}
    assert pictures(ask(host, width=512, height=512, steps=1, hr_resize_mode=1, hr_second_pass_steps=1, **hires)) == 1
    assert [event[0] for event in told()] == ["memory.verdict.no"]


def test_it_is_tried_again_only_once(host, told, limit):
    host.set(sd3_memory_retry=True)
    limit("decode", times=5)
    try:
        answer = ask(host, prompt="try again and again", width=1024, height=1024, steps=1)
    finally:
        host.set(sd3_memory_retry=False)
    assert answer.status_code == 507
    assert [event[0] for event in told()] == ["memory.exhausted", "memory.retry", "memory.exhausted"]


def test_a_model_that_does_not_fit_is_announced_before_it_is_loaded(host, told, little):
    little(10**6)
    host.run("from modules import sd_models; sd_models.unload_model_weights(); sd_models.reload_model_weights()")
    assert next(event[:2] for event in told()) == ("memory.model", "warning")
    assert host.get("/sdapi/v1/sd3/status")["model"] == "Diffusers/tiny-sd3"


def test_running_out_while_a_model_is_loaded_is_explained(host, told):
    code = """
        import torch, diffusers
        from modules import sd_models
        def fail(*args, **kwargs):
            raise torch.OutOfMemoryError("HIP out of memory. Tried to allocate 512.00 MiB.")
        original = diffusers.StableDiffusion3Pipeline.from_pretrained
        diffusers.StableDiffusion3Pipeline.from_pretrained = fail
        try:
            sd_models.unload_model_weights()
            sd_models.reload_model_weights()
        finally:
            diffusers.StableDiffusion3Pipeline.from_pretrained = original
    """
    host.run(code)
    found = [event for event in told() if event[0] == "memory.exhausted"]
    assert len(found) == 1
    assert "while loading" in found[0][2]
    assert "0.5 GB were missing" in found[0][2]
    assert memory(host)["runs"][-1]["outcome"] == "out of memory"
    host.run("from modules import sd_models; sd_models.reload_model_weights()")
    assert pictures(ask(host)) == 1


@pytest.mark.parametrize("change", [{"offload": "balanced"}, {"offload": "model"}, {"tiling": True}, {"encoder": "T5 NF4"}])
def test_each_kind_of_change_can_be_made_for_good_and_for_one_job(host, change):
    """What a click and what the second try do; the settings are as before afterwards, and the model works in between and after."""
    keys = ("diffusers_offload_mode", "diffusers_vae_tiling", "diffusers_vae_tile_size")
    read = f"from modules import shared; result = [getattr(shared.opts, key) for key in {keys}]"
    before = host.run(read)
    code = f"""
        from modules import call_queue, shared
        from sd3probe import limit
        service = limit.watching()
        with call_queue.queue_lock:
            with service.host.changed({change!r}, service.forecast.deployment.instead) as possible:
                result = [possible, [getattr(shared.opts, key) for key in {keys}], service.forecast.deployment.status()["encoder"]]
    """
    possible, inside, encoder = host.run(code)
    assert possible
    assert inside != before or encoder == "T5 NF4"
    assert host.run(read) == before
    assert host.get("/sdapi/v1/sd3/status")["encoder"] == "Host default"
    assert pictures(ask(host, prompt=f"after {change}")) == 1
    assert host.run(f"from sd3probe import limit; result = limit.watching().host.apply({change!r})") is True
    assert pictures(ask(host, prompt=f"with {change}")) == 1
    host.set(diffusers_vae_tiling=before[1], diffusers_vae_tile_size=before[2], sd3_text_encoder="Host default")
    host.run(f"from sd3probe import limit; result = limit.watching().host.apply({{'offload': {before[0]!r}}})")
    assert host.run(read) == before
    assert pictures(ask(host)) == 1


def test_a_size_is_the_jobs_own_and_no_setting(host):
    assert host.run("from sd3probe import limit; result = limit.watching().host.apply({'width': 512, 'height': 512})") is False
