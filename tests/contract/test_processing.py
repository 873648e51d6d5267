"""One job: the order of hooks, what they may change, and how failures end."""

import base64
import io

import httpx
import pytest
from PIL import Image

ORDER = ["before_process", "on_before_process", "process_images_inner", "process", "before_process_batch", "process_batch",
         "process_images",
         "postprocess_batch", "postprocess_batch_list", "postprocess_image", "postprocess", "on_after_process"]  # fmt: skip


def job(host, **values):
    start = host.count()
    result = host.txt2img(**values)
    return result, host.events(start)


def test_hooks_come_in_this_order(host):
    result, events = job(host)
    assert len(result["images"]) == 1
    assert [name for name, _ in events if name in ORDER] == ORDER


def test_setup_is_never_called(host):
    _, events = job(host)
    assert "setup" not in [name for name, _ in events]


def test_defaults_of_the_panel_are_asked_for_in_a_panel_of_nowhere(host):
    job(host)
    assert len([name for name, facts in host.events() if name == "ui"]) == 5  # three tabs, and twice for the first request


def test_arguments_come_from_the_panel_or_from_the_request(host):
    _, events = job(host)
    assert dict(events)["process"]["args"] == ["from the panel"]
    _, events = job(host, alwayson_scripts={"SD3 PROBE": {"args": ["from the request"]}})
    assert dict(events)["process"]["args"] == ["from the request"]


def test_an_unknown_script_in_the_request_is_refused(host):
    with pytest.raises(httpx.HTTPStatusError, match="422"):
        host.txt2img(alwayson_scripts={"nobody": {"args": []}})


def test_the_size_is_cut_to_multiples_of_16_before_process(host):
    result, events = job(host, width=141, height=130)
    assert dict(events)["before_process"]["size"] == [141, 130]
    assert dict(events)["process"]["size"] == [128, 128]
    assert image(result).size == (128, 128)


@pytest.mark.parametrize("hook", ["before_process", "process"])
def test_a_hook_may_change_the_size(host, switches, hook):
    switches(size={hook: [192, 64]})
    result, _ = job(host)
    assert image(result).size == (192, 64)


def test_a_hook_that_raises_is_swallowed(host, switches):
    switches(**{"raise": "process"})
    result, _ = job(host)
    assert len(result["images"]) == 1
    assert "a script that fails" in host.log()


def test_images_can_be_replaced_by_none(host, switches):
    switches(replace=True)
    result, events = job(host)
    assert result["images"] == []
    assert "postprocess" in [name for name, _ in events]


def test_what_the_pipeline_refuses_ends_with_200_and_no_image(host):
    host.run("""
        from modules import shared
        def check_inputs(*args, **kwargs):
            raise ValueError("refused by the pipeline")
        shared.sd_model.check_inputs = check_inputs
    """)
    result, events = job(host)
    host.run("from modules import shared; del shared.sd_model.check_inputs")
    assert result["images"] == []
    assert "postprocess" not in [name for name, _ in events]
    assert "on_after_process" in [name for name, _ in events]
    assert "refused by the pipeline" in host.log()


@pytest.mark.parametrize(("raised", "code"), [("fastapi.HTTPException(422, detail='not so')", 422), ("ValueError('not so')", 500)])
def test_raising_from_process_images_inner_reaches_whoever_asked(host, raised, code):
    host.run(f"""
        import fastapi
        from modules import processing, shared
        sd3probe.kept = processing.process_images_inner
        def refuse(p):
            sd3probe.note("refuse", api=shared.state.api)
            raise {raised}
        processing.process_images_inner = refuse
    """)
    start = host.count()
    answer = host.client.post("/sdapi/v1/txt2img", json={"prompt": "a cat", "width": 64, "height": 64, "steps": 1})
    host.run("from modules import processing; processing.process_images_inner = sd3probe.kept")
    assert answer.status_code == code
    assert "not so" in answer.text
    assert dict(host.events(start))["refuse"]["api"] is True
    assert len(host.txt2img()["images"]) == 1  # the lock is free again


def test_parameters_that_a_hook_adds_are_in_the_image_and_in_the_answer(host):
    result, _ = job(host)
    assert result["info"]["extra_generation_params"]["Probe"] == "seen"
    assert "Probe: seen" in image(result).info["parameters"]


def test_the_same_seed_gives_the_same_image(host):
    assert host.txt2img()["images"] == host.txt2img()["images"]


def test_img2img_keeps_the_pipeline_before_it(host):
    picture = host.txt2img()["images"][0]
    body = {"prompt": "a cat", "init_images": [picture], "width": 128, "height": 128, "steps": 4, "denoising_strength": 0.5}
    assert len(host.post("/sdapi/v1/img2img", body)["images"]) == 1
    assert host.run("from modules import processing_diffusers as p; result = p.orig_pipeline is not None")
    assert len(host.txt2img()["images"]) == 1


def image(result):
    return Image.open(io.BytesIO(base64.b64decode(result["images"][0])))
