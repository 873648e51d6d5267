"""One job: the order of hooks, what they may change, and how failures end."""

import base64
import io

import httpx
import pytest
from PIL import Image

PIXELS = "Resize Nearest"  # an upscaler of the host that enlarges pictures instead of latents
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


def test_only_the_first_hook_can_tell_a_request_from_the_page(host):
    host.run("""
        from modules import scripts_manager, shared
        probe = next(script for script in scripts_manager.scripts_txt2img.alwayson_scripts if script.title() == "SD3 probe")
        sd3probe.kept = probe
        probe.before_process = lambda p, *args: sd3probe.note("first", job=shared.state.job)
        probe.process_images = lambda p, *args: sd3probe.note("last", job=shared.state.job)
    """)
    _, events = job(host)
    host.run("del sd3probe.kept.before_process, sd3probe.kept.process_images")
    assert dict(events)["first"]["job"].startswith("API")
    assert not dict(events)["last"]["job"].startswith("API")


def test_the_pipeline_is_called_through_a_module_attribute(host):
    host.run("""
        from modules import processing_diffusers
        sd3probe.kept = processing_diffusers.process_diffusers
        def watched(p):
            sd3probe.note("process_diffusers", size=[p.width, p.height])
            return sd3probe.kept(p)
        processing_diffusers.process_diffusers = watched
    """)
    _, events = job(host)
    host.run("from modules import processing_diffusers; processing_diffusers.process_diffusers = sd3probe.kept")
    names = [name for name, _ in events]
    assert names.index("process_images") < names.index("process_diffusers") < names.index("postprocess_batch")


def test_init_is_called_right_after_process_and_may_raise(host):
    assert host.run("""
        from modules import processing, shared
        p = processing.StableDiffusionProcessingTxt2Img(sd_model=shared.sd_model, prompt="a cat", steps=1, width=64, height=64)
        def refuse(*args, **kwargs):
            raise RuntimeError("not this one")
        p.init = refuse
        try:
            processing.process_images(p)
        except RuntimeError as error:
            result = str(error)
    """) == "not this one"
    assert len(host.txt2img()["images"]) == 1


def test_what_a_hook_writes_under_the_images_is_kept_and_an_empty_result_is_one(host):
    assert host.run("""
        from modules import processing, shared
        p = processing.StableDiffusionProcessingTxt2Img(sd_model=shared.sd_model, prompt="a cat", steps=1, width=64, height=64)
        processed = processing.Processed(p, [], infotexts=[], comments="why")
        result = [processed.images, processed.comments]
    """) == [[], "why"]


@pytest.mark.parametrize(("values", "size"), [
    ({}, (96, 64)), ({"resize_mode": 1, "width": 64, "height": 128}, (64, 128)), ({"width": 128, "height": 128}, (96, 64)),
])  # fmt: skip
def test_img2img_is_as_large_as_its_picture_unless_that_is_resized(host, values, size):
    body = {"prompt": "a cat", "init_images": [png(Image.new("RGB", (96, 64), "teal"))], "steps": 4, "denoising_strength": 0.5}
    assert image(host.post("/sdapi/v1/img2img", body | values)).size == size


@pytest.mark.parametrize(("values", "size"), [
    ({"hr_scale": 2}, (256, 128)), ({"hr_resize_x": 192}, (192, 96)), ({"hr_resize_y": 96}, (192, 96)),
    ({"hr_resize_x": 192, "hr_resize_y": 16}, (192, 96)), ({"hr_resize_x": 16, "hr_resize_y": 16}, (128, 64)),
    ({"hr_resize_mode": 0, "hr_scale": 2}, (128, 64)), ({"hr_scale": 1.55}, (192, 96)),
    ({"hr_upscaler": PIXELS, "hr_scale": 1.55}, (208, 112)),  # 198×99: the second pass rounds up, the first one down
    ({"hr_upscaler": PIXELS, "hr_resize_x": 192, "hr_resize_y": 16}, (192, 16)),
    ({"hr_upscaler": PIXELS, "hr_resize_x": 64, "hr_resize_y": 32}, (64, 32)),
])  # fmt: skip
def test_the_size_of_the_hires_pass(host, values, size):
    hires = {"enable_hr": True, "hr_force": True, "hr_upscaler": "Latent Nearest", "hr_denoising_strength": 0.5, "hr_resize_mode": 1}
    assert image(host.txt2img(width=128, height=64, **hires | values)).size == size


@pytest.mark.parametrize(("parser", "seen"), [("native", True), ("fixed", False)])
def test_a_long_prompt_is_read_in_pieces_or_cut(host, parser, seen):
    """Without T5. Only “fixed” hands the text to the pipeline, which cuts it."""
    host.run("""
        from modules import modeldata, sd_models
        model = modeldata.model_data.sd_model
        sd3probe.kept, model.text_encoder_3 = model.text_encoder_3, None
        sd_models.clear_caches(full=True)
    """)
    host.set(prompt_attention=parser)
    long = "cat holding a sign " * 40
    pictures = [image(host.txt2img(prompt=long + last)).tobytes() for last in ("hello", "world")]
    host.set(prompt_attention="native")
    host.run("""
        from modules import modeldata, sd_models
        modeldata.model_data.sd_model.text_encoder_3 = sd3probe.kept
        sd_models.clear_caches(full=True)
    """)
    assert (pictures[0] != pictures[1]) is seen


def test_samplers_are_made_by_name_and_none_of_those_without_sigmas_fits(host):
    assert host.run("""
        from modules import modeldata, sd_samplers
        model = modeldata.model_data.sd_model
        make = lambda name: sd_samplers.find_sampler_config(name).constructor(model).sampler
        result = [type(make("Euler FlowMatch")).__name__, make("DDIM"), sd_samplers.find_sampler_config("nobody")]
    """) == ["FlowMatchEulerDiscreteScheduler", None, None]


def test_networks_and_weights_are_taken_out_of_a_prompt(host):
    assert host.run("""
        from modules import extra_networks, prompt_parser
        result = [extra_networks.parse_prompt("a cat <lora:x:1>")[0].strip(),
                  [words.strip() for words, weight in prompt_parser.parse_prompt_attention("a (big:1.3) cat")]]
    """) == ["a cat", ["a", "big", "cat"]]


def test_attention_processors_are_set_at_load_and_when_the_setting_changes(host):
    host.run("""
        from modules import attention
        sd3probe.kept = attention.set_diffusers_attention
        def watched(pipe, *args, **kwargs):
            sd3probe.note("set_diffusers_attention", kind=type(pipe).__name__)
            return sd3probe.kept(pipe, *args, **kwargs)
        attention.set_diffusers_attention = watched
    """)
    start = host.count()
    host.txt2img()
    host.set(cross_attention_optimization="Batch matrix-matrix")
    host.txt2img()
    host.set(cross_attention_optimization="Scaled-Dot-Product")
    host.txt2img()
    host.post("/sdapi/v1/unload-checkpoint", {})
    host.txt2img()
    kinds = host.run("""
        from modules import attention, modeldata
        attention.set_diffusers_attention = sd3probe.kept
        transformer = modeldata.model_data.sd_model.transformer
        result = sorted({type(processor).__name__ for processor in transformer.attn_processors.values()})
    """)
    calls = [facts["kind"] for name, facts in host.events(start) if name == "set_diffusers_attention"]
    assert len(calls) >= 3
    assert set(calls) == {"StableDiffusion3Pipeline"}
    assert kinds == ["JointAttnProcessor2_0"]  # SD.Next since 2025-09 sets none of its own on a transformer


def test_a_press_of_generate_has_a_task_for_all_of_its_jobs_and_a_request_has_none(host):
    """A folder of two files in img2img, a picture in txt2img, two frames of a video in Control, and a request."""
    host.run("""
        from modules import processing, progress
        sd3probe.kept = processing.process_images_inner
        def watched(p):
            sd3probe.note("task", id=progress.current_task)
            return sd3probe.kept(p)
        processing.process_images_inner = watched
    """)
    start = host.count()
    try:
        host.run("from sd3probe import jobs; jobs.folder([[128, 128], [64, 64]]); jobs.generate(); jobs.video(2, [64, 64])")
        host.txt2img()
    finally:
        host.run("from modules import processing; processing.process_images_inner = sd3probe.kept")
    first, second, third, fourth, fifth, sixth = [facts["id"] for name, facts in host.events(start) if name == "task"]
    assert first == second != third != fourth == fifth
    assert all(task.startswith("task(") for task in (first, third, fifth))
    assert sixth is None


def test_two_jobs_of_one_class_are_equal_and_none_can_be_a_key(host):
    assert host.run("""
        from sd3probe import jobs
        try:
            hash(jobs.job())
        except TypeError:
            result = jobs.job(width=64) == jobs.job(width=128)
    """) is True


def test_a_detailer_is_a_job_inside_of_the_job_a_copy_in_another_class(host):
    host.run("""
        from modules import processing
        sd3probe.kept = processing.process_images_inner
        sd3probe.running = []
        def watched(p):
            sd3probe.running.append(p)
            same = [one is p for one in sd3probe.running]
            scripts = isinstance(p.scripts, scripts_manager.ScriptRunner)
            sd3probe.note("job", depth=len(same), same=same.count(True), kind=type(p).__name__, size=[p.width, p.height], scripts=scripts)
            try:
                return sd3probe.kept(p)
            finally:
                sd3probe.running.pop()
        from modules import scripts_manager
        processing.process_images_inner = watched
    """)
    start = host.count()
    try:
        host.run("""
            from sd3probe import jobs
            with jobs.detailing():
                result = jobs.generate(detailer_enabled=True, detailer_resolution=256, detailer_steps=4, detailer_strength=0.5)
        """)
    finally:
        host.run("from modules import processing; processing.process_images_inner = sd3probe.kept")
    outer, inner = [facts for name, facts in host.events(start) if name == "job"]
    assert (outer["depth"], outer["kind"], outer["size"], outer["scripts"]) == (1, "StableDiffusionProcessingTxt2Img", [128, 128], True)
    assert (inner["depth"], inner["kind"], inner["size"], inner["scripts"]) == (2, "StableDiffusionProcessingImg2Img", [256, 256], False)
    assert inner["same"] == 1  # a copy


def png(picture):
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def image(result):
    return Image.open(io.BytesIO(base64.b64decode(result["images"][0])))
