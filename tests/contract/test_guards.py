"""The guards on one server, through its API: what is asked for, what is announced, and what comes out."""

from __future__ import annotations

import base64
import io
import json
import shutil

import pytest
from PIL import Image

from demo import server
from tests.contract.conftest import AUTH, PROBE, ProbedHost, start


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    folder = tmp_path_factory.mktemp("guards")
    data = server.data_folder(folder / "data", sd3_guard_size="maybe", sd3_guard_prompt=5)
    shutil.copytree(PROBE, data / "extensions" / "sd3-probe", ignore=shutil.ignore_patterns("__pycache__"))
    started = start(folder, "data", auth=AUTH)
    yield ProbedHost(started.data, started.url, started.process, started.auth)
    started.stop()


@pytest.fixture
def told(news):
    """What was said since the start of the test: `told()` gives [(id, severity, message)]."""
    return lambda: [(event["id"], event["severity"], event["message"]) for event in news()]


@pytest.fixture
def options(host):
    """Set options for one test: options(prompt_attention="fixed")."""
    changed = {}

    def change(**values):
        changed.update({key: option(host, key) for key in values if key not in changed})
        host.set(**values)

    yield change
    host.set(**changed)


def option(host, key):
    return host.run(f"from modules import shared; result = getattr(shared.opts, {key!r})")


def ask(host, path="txt2img", **values):
    """Status code, size of the picture, its SD3 metadata, and the text of an error."""
    body = {"prompt": "a cat", "width": 128, "height": 128, "steps": 2, "seed": 1, "sampler_name": "Default"} | values
    answer = host.client.post(f"/sdapi/v1/{path}", json=body)
    if answer.status_code != 200:
        return answer.status_code, None, {}, answer.text
    result = answer.json()
    extra = json.loads(result["info"])["extra_generation_params"]
    shown = {key: value for key, value in extra.items() if key.startswith("SD3 ")}
    (image,) = (Image.open(io.BytesIO(base64.b64decode(one))) for one in result["images"])
    for key, value in shown.items():
        assert f"{key}: {value}" in image.info["parameters"]
    return 200, image.size, shown, ""


def in_process(host, code):
    """Run code with `transformer` of the loaded model and diffusers' `processors`."""
    start = """
        from modules import modeldata
        from diffusers.models import attention_processor as processors
        transformer = modeldata.model_data.sd_model.transformer
    """
    import textwrap

    return host.run(textwrap.dedent(start) + textwrap.dedent(code))


def kinds(host):
    return in_process(host, "result = sorted({type(processor).__name__ for processor in transformer.attn_processors.values()})")


def test_modes_that_mean_nothing_are_answered_with_a_sentence_and_the_default(host):
    ids = [event["id"] for event in host.get("/sdapi/v1/sd3/events")["events"]]
    assert ids == ["setting.guard-unknown", "setting.guard-unknown"]
    assert host.set(sd3_guard_size="perhaps") == {"sd3_guard_size": False}
    stored = host.run("from modules import shared; result = [shared.opts.sd3_guard_size, shared.opts.sd3_guard_prompt]")
    assert stored == ["fix", "fix"]


# Sizes

SIZES = [
    ((1000, 1000), (1008, 1008)),
    ((250, 250), (256, 256)),
    ((3200, 256), (3072, 240)),
    ((64, 4096), (48, 3072)),
    (("1000", 1000), (1008, 1008)),
    ((1024, 64), (1024, 64)),
]


@pytest.mark.parametrize(("asked", "made"), SIZES)
def test_a_picture_of_the_announced_size(host, told, asked, made):
    code, size, shown, _ = ask(host, width=asked[0], height=asked[1])
    assert (code, size) == (200, made)
    if tuple(map(int, asked)) == made:
        assert shown == {}
        return
    assert shown == {"SD3 size": f"{asked[0]}x{asked[1]} → {made[0]}x{made[1]}"}
    assert f"{asked[0]}×{asked[1]}" in told()[0][2]
    assert f"{made[0]}×{made[1]}" in told()[0][2]
    assert told()[0][1] == "info"
    assert f"id={told()[0][0]}" in host.log()


@pytest.mark.parametrize("size", [(0, 0), (None, None), (0, 1024)])
def test_no_size_is_the_hosts_default(host, told, size):
    assert ask(host, width=size[0], height=size[1])[:3] == (200, (1024, 1024), {})


@pytest.mark.parametrize("size", [(-1, -1), (128, -1), (10**9, 1024), (10**400, 128)])
def test_what_can_not_be_mended_is_refused_with_a_remedy(host, told, size):
    code, _, _, text = ask(host, width=size[0], height=size[1])
    assert code == 422
    detail = json.loads(text)["detail"]
    assert "Nothing was generated" in detail
    assert "Give a multiple of 16" in detail or "Choose sides" in detail
    assert [severity for _, severity, _ in told()] == ["error"]
    assert host.get("/sdapi/v1/sd3/status")["last_error"] is None  # it was that job's error, and is over
    assert ask(host)[:2] == (200, (128, 128))


@pytest.mark.parametrize("size", ["abc", 1000.5])
def test_what_is_no_whole_number_is_refused_by_the_host_itself(host, size):
    code, _, _, text = ask(host, width=size)
    if code == 200 and not host.run("import pydantic; result = hasattr(pydantic, 'model_validator')"):
        pytest.skip("this SD.Next, before 2026-02, has pydantic 1, which cuts the fraction")
    assert code == 422
    assert "valid integer" in text


def test_whatever_another_script_puts_in_is_answered(host):
    """Only scripts can bring these: the request is checked by the host."""
    for value in ("float('nan')", "'abc'", "[]", "-5"):
        answers = host.run(f"""
            from modules import processing, shared, scripts_manager
            from modules.api import script
            p = processing.StableDiffusionProcessingTxt2Img(sd_model=shared.sd_model, prompt="a cat", steps=1, width=64, height=64)
            p.width = {value}
            p.scripts = scripts_manager.scripts_txt2img
            p.script_args = tuple(script.init_default_script_args(p.scripts))
            processed = processing.process_images(p)
            result = [len(processed.images), processed.comments]
        """)
        assert answers[0] == 0
        assert "not a size in pixels" in answers[1]


def test_modes(host, options):
    options(sd3_guard_size="block")
    code, _, _, text = ask(host, width=1000, height=1000)
    assert (code, "Set the size to 1008×1008" in text) == (422, True)
    options(sd3_guard_size="warn")
    assert ask(host, width=200, height=200)[:3] == (200, (192, 192), {})  # the host's own rounding
    assert ask(host, width=64, height=4096)[0] == 422  # it would fail without a word
    options(sd3_guard_size="off")
    assert ask(host, width=200, height=200)[:3] == (200, (192, 192), {})


def test_a_mode_for_one_job(host):
    assert ask(host, width=200, height=200, override_settings={"sd3_guard_size": "off"})[1] == (192, 192)
    assert ask(host, width=200, height=200)[1] == (208, 208)


def test_an_advice_is_told_once(host, told):
    for _ in range(3):
        ask(host, width=144, height=144)
    assert [id for id, _, _ in told()] == ["size.small"]


HIRES = {"enable_hr": True, "hr_force": True, "hr_resize_mode": 1, "hr_upscaler": "Latent Nearest", "hr_denoising_strength": 0.5}


@pytest.mark.parametrize(
    ("values", "made", "shown"),
    [
        ({"hr_scale": 1.6}, (208, 208), "200x200 → 208x208"),
        ({"hr_scale": 1.55}, (192, 192), None),  # 24 latents
        ({"hr_scale": 2}, (256, 256), None),
        ({"hr_resize_x": 200, "hr_resize_y": 0}, (208, 208), "200x200 → 208x208"),
        ({"width": 16, "height": 144, "hr_resize_x": 0, "hr_resize_y": 3600}, (336, 3024), "400x3600 → 336x3024"),
        ({"width": 144, "height": 112, "hr_scale": 1.5}, (208, 160), "216x168 → 208x160"),  # 224 would be 21 latents high
        ({"hr_upscaler": "Resize Nearest", "hr_scale": 1.55}, (192, 192), "198x198 → 192x192"),
        ({"height": 16, "hr_upscaler": "Resize Nearest", "hr_scale": 30}, (3072, 384), "3840x480 → 3072x384"),
    ],
)
def test_the_hires_pass(host, values, made, shown):
    code, size, said, _ = ask(host, **HIRES | values)
    assert (code, size) == (200, made)
    assert said == ({"SD3 hires size": shown} if shown else {})


def test_a_hires_pass_of_an_upscaler_alone_is_none_of_our_business(host):
    assert ask(host, **HIRES | {"hr_force": False, "hr_upscaler": "None", "hr_scale": 1.55})[2] == {}


def image(width, height):
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), "teal").save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


@pytest.mark.parametrize(
    ("picture", "values", "made", "shown"),
    [
        ((128, 128), {}, (128, 128), None),
        ((200, 200), {}, (208, 208), "200x200 → 208x208"),  # as large as the picture: it is not resized
        ((3200, 64), {}, (3072, 64), "3200x64 → 3072x64"),
        ((64, 64), {"resize_mode": 1, "width": 200, "height": 100}, (208, 96), "200x100 → 208x96"),
        ((200, 100), {"resize_mode": 1, "width": 0, "height": 0}, (208, 96), "200x100 → 208x96"),
    ],
)
def test_img2img(host, picture, values, made, shown):
    code, size, said, _ = ask(host, "img2img", init_images=[image(*picture)], denoising_strength=0.6, steps=4, **values)
    assert (code, size) == (200, made)
    assert said == ({"SD3 size": shown} if shown else {})


def test_a_grid_does_not_hand_the_metadata_of_one_cell_to_the_next(host):
    """As XYZ does it: copies of one object, which share the parameters."""
    assert host.run("""
        import copy
        from modules import processing, shared, scripts_manager
        from modules.api import script
        p = processing.StableDiffusionProcessingTxt2Img(sd_model=shared.sd_model, prompt="a cat", steps=1, do_not_save_samples=True)
        p.scripts = scripts_manager.scripts_txt2img
        p.script_args = tuple(script.init_default_script_args(p.scripts))
        result = []
        for width in (-1, 200, 128, 200):
            cell = copy.copy(p)
            cell.width = cell.height = width
            processed = processing.process_images(cell)
            result.append([len(processed.images), "SD3 size" in processed.extra_generation_params])
    """) == [[0, False], [1, True], [1, False], [1, True]]


def test_the_next_frame_of_a_job_says_the_same(host):
    assert host.run("""
        from modules import processing, shared, scripts_manager
        from modules.api import script
        p = processing.StableDiffusionProcessingTxt2Img(sd_model=shared.sd_model, prompt="a cat", steps=1, width=200, height=200,
                                                        do_not_save_samples=True)
        p.scripts = scripts_manager.scripts_txt2img
        p.script_args = tuple(script.init_default_script_args(p.scripts))
        result = [processing.process_images(p).extra_generation_params["SD3 size"] for _ in range(2)]
    """) == ["200x200 → 208x208"] * 2


# Samplers, steps, guidance


@pytest.mark.parametrize("name", ["DDIM", "Euler a", "DPM++ 2M"])
def test_a_sampler_that_the_host_can_not_use_with_sd3(host, told, name):
    code, _, shown, _ = ask(host, sampler_name=name)
    assert (code, shown) == (200, {"SD3 sampler": f"{name} → Default"})
    assert [(id, severity) for id, severity, _ in told()] == [("sampler.not-flow", "info")]


@pytest.mark.parametrize("name", ["Default", "Euler FlowMatch"])
def test_a_sampler_that_it_can_use(host, name):
    assert ask(host, sampler_name=name)[2] == {}


def test_the_host_agrees_about_every_sampler(host):
    """Each one is set by the host's own function: what it falls back from is what the guard names."""
    wrong = host.run("""
        from modules import modeldata, sd_samplers
        from sd3deploy.webui.jobs import facts as job
        model = modeldata.model_data.sd_model
        result, kept = [], model.scheduler
        for data in sd_samplers.all_samplers:
            if data.constructor is None or data.name in ("Euler", "Euler FlowMatch"):  # the default itself
                continue
            used = type(sd_samplers.create_sampler(data.name, model)) is not type(model.default_scheduler)
            if used != job._suits(data.name, model):
                result.append([data.name, used])
        model.scheduler = kept
    """)
    assert wrong == []


def test_steps_and_guidance(host):
    assert ask(host, steps=0)[2] == {"SD3 steps": "0 → 28"}
    assert ask(host, cfg_scale=500)[2] == {"SD3 guidance": "500.0 → 7.0"}
    assert ask(host, cfg_scale=0)[2] == {}


# Prompts


@pytest.fixture
def without_t5(host):
    host.set(sd3_text_encoder="None (CLIP only)")
    yield
    host.set(sd3_text_encoder="Host default")


LONG = "cat holding a sign, " * 30


@pytest.mark.usefixtures("without_t5")
def test_without_t5_what_is_cut_is_shown(host, told, options):
    options(prompt_attention="fixed")
    ask(host, prompt=LONG + "the end")
    assert [(id, severity) for id, severity, _ in told()] == [("prompt.clip-cut", "warning")]
    assert "the end" in told()[0][2] or "…" in told()[0][2]
    options(prompt_attention="native")
    ask(host, prompt=LONG + "the end")
    assert told()[1][:2] == ("prompt.clip-pieces", "info")


def test_what_does_not_reach_the_encoders_is_not_counted(host, told):
    ask(host, prompt="a cat <lora:" + "very_long_name_" * 100 + ":1>", negative_prompt="(a dog:1.2)" * 10)
    assert [id for id, _, _ in told() if id.startswith("prompt.")] == []


def test_what_t5_does_not_read_is_shown(host, told):
    ask(host, negative_prompt=LONG * 4)
    assert [id for id, _, _ in told()] == ["prompt.t5-cut"]
    assert told()[0][2].startswith("The negative prompt has")


@pytest.mark.usefixtures("without_t5")
def test_xhinker_without_t5_is_switched_for_the_job(host, told, options):
    options(prompt_attention="xhinker")
    lines = host.log().count("Prompt parser encode")
    assert ask(host)[2] == {"SD3 prompt attention": "xhinker → native"}
    assert host.log().count("Prompt parser encode") == lines
    assert option(host, "prompt_attention") == "xhinker"
    host.set(sd3_guard_prompt="off")
    ask(host, prompt="a dog")
    host.set(sd3_guard_prompt="fix")
    assert host.log().count("Prompt parser encode") > lines  # the host's failure, without the guard


# Attention


def test_another_extension_sets_a_wrong_processor_between_load_and_generate(host, told):
    before = host.txt2img()["images"]
    in_process(host, "transformer.set_attn_processor(processors.AttnProcessor2_0())")
    assert host.txt2img()["images"] == before
    assert [id for id, _, _ in told() if id.startswith("attention")] == ["attention.other"]
    assert "AttnProcessor2_0" in told()[-1][2]
    assert kinds(host) == ["JointAttnProcessor2_0"]
    host.txt2img()
    assert len([id for id, _, _ in told() if id.startswith("attention")]) == 1


def test_even_in_the_last_hook_before_the_pipeline(host, told):
    before = host.txt2img()["images"]
    host.run("""
        from modules import modeldata, scripts_manager
        from diffusers.models import attention_processor as processors
        runner = scripts_manager.scripts_txt2img
        sd3probe.kept = next(script for script in runner.alwayson_scripts if script.title() == "SD3 probe")
        def process_images(p, *args):
            modeldata.model_data.sd_model.transformer.set_attn_processor(processors.AttnProcessor())
        sd3probe.kept.process_images = process_images
    """)
    after = host.txt2img()["images"]
    host.run("del sd3probe.kept.process_images")
    assert after == before
    assert [id for id, _, _ in told() if id.startswith("attention")] == ["attention.other"]


def test_without_the_guard_that_is_a_job_without_an_image_and_without_a_word(host, options):
    options(sd3_guard_attention="off")
    in_process(host, "transformer.set_attn_processor(processors.AttnProcessor2_0())")
    assert host.txt2img()["images"] == []
    assert "must match the size of tensor" in host.log()
    options(sd3_guard_attention="block")
    code, _, _, text = ask(host)
    assert code == 422
    assert "too many values to unpack" in text
    options(sd3_guard_attention="fix")
    assert ask(host)[0] == 200


def test_a_legitimate_processor_stays_and_does_its_work(host, told):
    """PAG's, set by another extension."""
    before = host.txt2img()["images"]
    in_process(host, "transformer.transformer_blocks[0].attn.set_processor(processors.PAGJointAttnProcessor2_0())")
    assert ask(host)[0] == 200
    assert host.txt2img()["images"] != before
    assert kinds(host) == ["JointAttnProcessor2_0", "PAGJointAttnProcessor2_0"]
    assert [id for id, _, _ in told() if id.startswith("attention")] == []
    in_process(host, "transformer.set_attn_processor(processors.JointAttnProcessor2_0())")


def test_processors_are_mended_as_soon_as_the_host_sets_them(host, told):
    in_process(host, """
        from modules import attention
        transformer.set_attn_processor(processors.AttnProcessor())
        attention.set_diffusers_attention(modeldata.model_data.sd_model, quiet=True)
    """)  # fmt: skip
    assert kinds(host) == ["JointAttnProcessor2_0"]
    assert [id for id, _, _ in told()] == ["attention.other"]


def test_a_model_that_is_none_of_stable_diffusion_3_passes_untouched(host, told):
    asked = {"width": 1000, "height": 1001, "steps": 0, "cfg_scale": 99, "sampler_name": "DDIM"}
    assert host.run(f"""
        from types import SimpleNamespace
        from modules import processing, shared
        from sd3deploy.events import Events
        from sd3deploy.webui.jobs.guarding import Guarding
        events = Events()
        guarding = Guarding(SimpleNamespace(pipeline=lambda: SimpleNamespace(unet="another model")), events)
        p = processing.StableDiffusionProcessingTxt2Img(sd_model=shared.sd_model, prompt="a cat", **{asked!r})
        guarding.note(p)
        guarding.guard(p)
        guarding.last_look()
        guarding.attention_set(guarding.host.pipeline())
        result = [{{name: getattr(p, name) for name in {asked!r}}}, p.extra_generation_params, len(events.since(0))]
    """) == [asked, {}, 0]


# Asking without generating


def test_check(host):
    answer = host.get("/sdapi/v1/sd3/check", params={"width": "1000", "height": "1000", "sampler": "DDIM", "prompt": "a cat"})
    assert (answer["width"], answer["height"], answer["sampler"], answer["code"]) == (1008, 1008, "Default", 1)
    assert [found["id"] for found in answer["findings"]] == ["size.not-multiple", "sampler.not-flow"]


@pytest.mark.parametrize(("words", "code"), [
    ({"width": "1024", "height": "1024"}, 0), ({}, 1), ({"width": "abc"}, 2), ({"width": "-1", "height": "1024"}, 2),
    ({"width": "3200", "height": "256", "model": "sd3.5-medium"}, 0), ({"width": "1024", "height": "1024", "hires": "9"}, 1),
    ({"width": "1024", "height": "1024", "encoder": "none", "prompt_attention": "xhinker"}, 1),
])  # fmt: skip
def test_check_takes_anything(host, words, code):
    assert host.get("/sdapi/v1/sd3/check", params=words)["code"] == code


def test_check_of_a_model_that_is_not_there(host):
    answer = host.client.get("/sdapi/v1/sd3/check", params={"model": "sdxl"})
    assert answer.status_code == 422
    assert "sd3-medium" in answer.json()["detail"]


def test_check_asks_for_the_password(host):
    import httpx

    assert httpx.get(f"{host.url}/sdapi/v1/sd3/check", trust_env=False).status_code == 401


def test_check_without_a_model(host):
    host.post("/sdapi/v1/unload-checkpoint", {})
    answer = host.client.get("/sdapi/v1/sd3/check", params={"width": "1000"})
    assert answer.status_code == 422
    assert "Load one" in answer.json()["detail"]
    assert host.get("/sdapi/v1/sd3/check", params={"width": "1000", "height": "1000", "model": "sd3-medium"})["code"] == 1
    assert ask(host, width=200, height=200)[1] == (208, 208)
