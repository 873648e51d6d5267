"""Who waits for whom on a server, and that every pipeline of a model changes its encoder. Order is shown by events; nothing is timed."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest

from demo import server
from tests.contract.conftest import AUTH, PROBE, start
from tests.waiting import until

LONG = 120  # seconds until a test that hangs is given up


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    folder = tmp_path_factory.mktemp("waiting")
    data = server.data_folder(folder / "data", diffusers_offload_mode="none", sd3_cache=False)
    shutil.copytree(PROBE, data / "extensions" / "sd3-probe", ignore=shutil.ignore_patterns("__pycache__"))
    started = start(folder, "data", auth=AUTH)
    started.run("""
        import gc
        from sd3deploy.deployment import Deployment
        sd3probe.deployment = next(one for one in gc.get_objects() if type(one) is Deployment)
    """)
    yield started
    started.stop()


@pytest.fixture(autouse=True)
def as_before(host):
    """Each test begins with a loaded model and the host's own encoder."""
    host.run("from modules import shared; shared.sd_model")
    assert host.set(sd3_text_encoder="Host default") in ({"sd3_text_encoder": True}, {"sd3_text_encoder": False})
    assert status(host)["encoder"] == "Host default"


@pytest.fixture
def pool():
    with ThreadPoolExecutor() as threads:
        yield threads


@pytest.fixture
def slow_load(host):
    """`slow_load()`: the host begins to load its model on a thread of its own, as at its start; `slow_load.end()` lets it go on."""
    host.run("""
        import threading
        from pipelines import model_sd3
        sd3probe.inside, sd3probe.gate, sd3probe.load_sd3 = threading.Event(), threading.Event(), model_sd3.load_sd3
        def slow(*values, **words):
            sd3probe.inside.set()
            assert sd3probe.gate.wait(300)
            return sd3probe.load_sd3(*values, **words)
        model_sd3.load_sd3 = slow
    """)

    def begin():
        assert host.run(f"""
            import threading
            from modules import sd_models, shared
            sd_models.unload_model_weights()
            sd3probe.load = threading.Thread(target=lambda: shared.sd_model)
            sd3probe.load.start()
            result = sd3probe.inside.wait({LONG})
        """)

    def end():
        assert host.run(f"""
            sd3probe.gate.set()
            sd3probe.load.join({LONG})
            result = not sd3probe.load.is_alive()
        """)

    begin.end = end
    yield begin
    host.run("from pipelines import model_sd3; sd3probe.gate.set(); model_sd3.load_sd3 = sd3probe.load_sd3")


def status(host):
    return host.get("/sdapi/v1/sd3/status")


def ids(news):
    return [event["id"] for event in news() if not event["id"].startswith("cache.")]


def test_while_a_model_loads_a_change_waits_and_everything_else_answers(host, pool, news, slow_load):
    slow_load()
    change = pool.submit(host.set, sd3_text_encoder="T5 FP8")
    assert until(lambda: "encoder.waiting-model" in ids(news))
    assert status(host)["busy"] == "T5 FP8 will be loaded as soon as the model is there that is being loaded."
    for _ in range(3):  # the queue is free: a job of the host itself, and a picture, which the host answers in its own way without a model
        assert host.run(f"""
            from modules import call_queue
            result = call_queue.queue_lock.acquire(timeout={LONG})
            call_queue.queue_lock.release()
        """)
    body = {"prompt": "a cat", "width": 128, "height": 128, "steps": 2, "sampler_name": "Default"}
    assert pool.submit(host.client.post, "/sdapi/v1/txt2img", json=body).result(LONG) is not None
    assert not change.done()
    slow_load.end()
    assert change.result(LONG) == {"sd3_text_encoder": True}
    assert status(host)["encoder"] == "T5 FP8"
    assert len(host.txt2img()["images"]) == 1


def test_cancel_ends_a_change_that_waits_for_a_model(host, pool, news, slow_load):
    slow_load()
    change = pool.submit(host.set, sd3_text_encoder="T5 FP8")
    assert until(lambda: "encoder.waiting-model" in ids(news))
    assert host.post("/sdapi/v1/sd3/cancel", {}) == {"cancelled": True, "jobs": ["encoder"]}
    assert change.result(LONG) == {"sd3_text_encoder": False}
    assert host.run("result = sd3probe.load.is_alive()")  # it has not waited for the load
    assert ids(news)[-1] == "encoder.cancelled"
    assert (status(host)["wanted"], status(host)["busy"]) == ("Host default", None)
    slow_load.end()
    assert len(host.txt2img()["images"]) == 1
    assert status(host)["encoder"] == "Host default"


def test_cancel_ends_a_request_that_waits_for_another_ones_change(host, pool, news, slow_load):
    slow_load()
    asked = [pool.submit(host.client.post, "/sdapi/v1/sd3/encoder", json={"encoder": name}) for name in ("T5 FP8", "T5 BF16")]
    assert until(lambda: "encoder.waiting-model" in ids(news))
    assert until(lambda: host.run("result = len(sd3probe.deployment._under_way._running) == 3"))
    assert host.post("/sdapi/v1/sd3/cancel", {})["cancelled"]
    answers = [one.result(LONG) for one in asked]
    assert [one.status_code for one in answers] == [409, 409]
    assert {one.json()["body"]["id"] for one in answers} == {"encoder.cancelled", "api.cancelled"}
    assert host.run("result = sd3probe.load.is_alive()")
    assert status(host)["wanted"] == "Host default"
    slow_load.end()


def test_cancel_ends_a_change_that_waits_for_a_job(host, pool, news):
    assert host.run("""
        import threading
        from modules import call_queue
        inside, sd3probe.gate = threading.Event(), threading.Event()
        def job():
            with call_queue.queue_lock:
                inside.set()
                assert sd3probe.gate.wait(300)
        threading.Thread(target=job).start()
        result = inside.wait(60)
    """)
    try:
        change = pool.submit(host.set, sd3_text_encoder="T5 FP8")
        assert until(lambda: "encoder.waiting" in ids(news))
        assert host.post("/sdapi/v1/sd3/cancel", {})["cancelled"]
        assert change.result(LONG) == {"sd3_text_encoder": False}
    finally:
        host.run("sd3probe.gate.set()")
    assert status(host)["encoder"] == "Host default"


def test_what_fails_after_the_change_stands_with_its_setting(host, news):
    host.run("""
        from sd3deploy.memory import heap
        sd3probe.trim = heap.trim
        def fails():
            raise OSError("no such function in this libc")
        heap.trim = fails
    """)
    try:
        assert host.set(sd3_text_encoder="T5 FP8") == {"sd3_text_encoder": True}
        now = status(host)
        assert (now["encoder"], now["wanted"], now["busy"]) == ("T5 FP8", "T5 FP8", None)
        assert ids(news)[-2:] == ["encoder.afterwards", "encoder.ready-smaller"]
    finally:
        host.run("from sd3deploy.memory import heap; heap.trim = sd3probe.trim")
    assert len(host.txt2img()["images"]) == 1


def test_every_pipeline_of_a_model_changes_its_encoder_and_none_keeps_the_old_one(host, news):
    """As Control does: a pipeline with a ControlNet in place of the first one, which waits elsewhere."""
    found = host.run("""
        import gc, types, weakref
        import diffusers
        from modules import call_queue, modeldata, shared
        base = shared.sd_model
        controlnet = diffusers.SD3ControlNetModel.from_transformer(base.transformer, num_layers=1)
        names = ["vae", "transformer", "scheduler", *(f"{kind}{n}" for kind in ("text_encoder", "tokenizer") for n in ("", "_2", "_3"))]
        control = diffusers.StableDiffusion3ControlNetPipeline(controlnet=controlnet, **{name: getattr(base, name) for name in names})
        control.sd_checkpoint_info = base.sd_checkpoint_info
        elsewhere = types.SimpleNamespace(original_pipeline=base)
        del base
        result = []
        with call_queue.queue_lock:
            modeldata.model_data.sd_model = control
            for name in ("T5 FP8", "None (CLIP only)", None):
                old = weakref.ref(control.text_encoder_3) if control.text_encoder_3 is not None else lambda: None
                sd3probe.deployment.reconcile(name)
                gc.collect()
                alive = sum(type(one).__name__ == "T5EncoderModel" for one in gc.get_objects())
                same = elsewhere.original_pipeline.text_encoder_3 is control.text_encoder_3
                result.append([sd3probe.deployment.placed(control).choice.name, same, old() is None, alive])
            modeldata.model_data.sd_model = elsewhere.original_pipeline
    """)
    assert found == [["T5 FP8", True, True, 1], ["None (CLIP only)", True, True, 0], ["Host default", True, True, 1]]
    assert "encoder.kept-alive" not in ids(news)
    assert len(host.txt2img()["images"]) == 1


def test_an_encoder_that_was_compiled_is_not_loaded_a_second_time(host, news):
    assert host.set(sd3_text_encoder="T5 FP8") == {"sd3_text_encoder": True}
    compiled = """
        import torch
        from modules import modeldata
        pipe = modeldata.model_data.sd_model
        pipe.text_encoder_3 = torch.compile(pipe.text_encoder_3, backend="eager")
        result = type(pipe.text_encoder_3).__name__
    """
    assert host.run(compiled) == "OptimizedModule"
    before = len(ids(news))
    assert "T5: T5 FP8" in host.txt2img()["info"]["infotexts"][0]
    assert not [id for id in ids(news)[before:] if id.startswith("encoder.")]
    kind = "from modules import modeldata; result = type(modeldata.model_data.sd_model.text_encoder_3).__name__"
    assert host.run(kind) == "OptimizedModule"


@pytest.mark.real
def test_control_with_a_controlnet_and_an_encoder_for_this_job(host, news):
    """SD.Next's own Control, from its unit to the picture."""
    made = host.run("""
        import gc
        import diffusers
        from PIL import Image
        from modules import call_queue, modeldata, shared
        from modules.control import run, unit
        from modules.control.units import controlnet
        folder = controlnet.os.path.join(shared.opts.control_dir, "controlnet", "tiny")
        values = {"num_layers": 1, "num_extra_conditioning_channels": 0}
        diffusers.SD3ControlNetModel.from_transformer(shared.sd_model.transformer, **values).save_pretrained(folder)
        controlnet.find_models()
        units = []  # two of them: with one the host hands SD3's pipeline a number where that wants a list
        for index in (1, 2):
            units.append(unit.Unit(index=index, enabled=True, unit_type="controlnet", strength=1.0))
            units[-1].controlnet = controlnet.ControlNet(device=shared.device, dtype=None)
            units[-1].controlnet.load("tiny")
        base = id(modeldata.model_data.sd_model)
        sd3probe.seen = []
        script = next(s for s in run.scripts_manager.scripts_control.alwayson_scripts if s.title() == "SD3 Deploy")
        before = script.process
        def process(p, *values):
            before(p, "T5 FP8")
            pipe, kept = modeldata.model_data.sd_model, run.original_pipeline
            sd3probe.seen.append([type(pipe).__name__, type(kept).__name__, pipe.text_encoder_3 is kept.text_encoder_3])
        script.process = process
        try:
            with call_queue.queue_lock:
                made = run.control_run(
                    units=units, inputs=[Image.new("RGB", (128, 128), "red")], inits=None, unit_type="controlnet", is_generator=False,
                    prompt="a cat", steps=2, width_before=128, height_before=128, sampler_index=0, input_type=0,
                )
                while True:
                    next(made)  # a generator that yields nothing and returns what it has made
        except StopIteration as end:
            made = end.value
        finally:
            script.process = before
        gc.collect()
        pipe = modeldata.model_data.sd_model
        alive = sum(type(one).__name__ == "T5EncoderModel" for one in gc.get_objects())
        result = [len(made[0] or []), sd3probe.seen, id(pipe) == base, sd3probe.deployment.placed(pipe).choice.name, alive]
    """)
    assert made == [1, [["StableDiffusion3ControlNetPipeline", "StableDiffusion3Pipeline", True]], True, "T5 FP8", 1]
    assert "encoder.kept-alive" not in ids(news)
    assert "T5:" not in host.txt2img()["info"]["infotexts"][0]  # the next job begins with the encoder of the settings
    assert host.run("""
        import gc
        gc.collect()
        result = sum(type(one).__name__ == "T5EncoderModel" for one in gc.get_objects())
    """) == 1
