"""Jobs on one server: each has a state of its own, also inside of another one; and what one press of Generate is, whatever is in it."""

from __future__ import annotations

import base64
import io
import shutil

import pytest
from PIL import Image

from demo import server
from tests.contract.conftest import AUTH, PROBE, ProbedHost, start

MIXED = [[128, 128], [192, 128], [128, 192], [160, 160]]
SMALL = {"prompt": "a cat", "width": 128, "height": 128, "steps": 2, "seed": 1, "sampler_name": "Default"}
DETAILED = {"detailer_enabled": True, "detailer_resolution": 256, "detailer_steps": 4, "detailer_strength": 0.5}


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    folder = tmp_path_factory.mktemp("jobs")
    data = server.data_folder(folder / "data", return_grid=False)
    shutil.copytree(PROBE, data / "extensions" / "sd3-probe", ignore=shutil.ignore_patterns("__pycache__"))
    started = start(folder, "data", auth=AUTH)
    yield ProbedHost(started.data, started.url, started.process, started.auth)
    started.stop()


@pytest.fixture
def told(news):
    """What was said since the start of the test, but for small pictures: `told()` gives [(id, severity, remedy)]."""
    return lambda: [(event["id"], event["severity"], event["remedy"]) for event in news() if event["id"] != "size.small"]


@pytest.fixture
def little(host):
    """Next to no memory, as far as the extension can tell."""
    host.run("from sd3deploy.memory import capacity; sd3probe.ram = capacity._ram; capacity._ram = lambda: (64 * 10**9, 10**6)")
    yield
    host.run("from sd3deploy.memory import capacity; capacity._ram = sd3probe.ram")


@pytest.fixture
def mode(host):
    """Set the mode of the memory check for one test."""
    yield lambda name: host.set(sd3_memory=name)
    host.set(sd3_memory="warn")
    host.run("from sd3probe import limit; limit.watching().forecast._held.clear()")


@pytest.fixture
def detailing(host):
    host.run("""
        from sd3probe import jobs
        sd3probe.detailing = jobs.detailing()
        sd3probe.detailing.__enter__()
    """)
    yield
    host.run("sd3probe.detailing.__exit__(None, None, None)")


def call(host, name, *values, **words):
    """What a function of probe/sd3probe/jobs.py gives."""
    return host.run(f"from sd3probe import jobs; result = jobs.{name}(*{values!r}, **{words!r})")


def picture(answer):
    assert answer.status_code == 200, answer.text[:500]
    (image,) = answer.json()["images"]
    return Image.open(io.BytesIO(base64.b64decode(image))).tobytes()


def opened(host):
    return host.run("from sd3deploy.webui.jobs import state; result = len(state._states())")


# Jobs inside of jobs


@pytest.mark.usefixtures("detailing")
@pytest.mark.parametrize(("outer", "inner"), [(512, 1024), (1024, 512)])
def test_a_detailer_does_not_teach_with_the_size_of_the_picture_around_it(host, outer, inner):
    """Both take what is estimated for their own size. With that of the other one the factors would be 3.0 and 0.5."""
    start = host.count()
    words = {"width": outer, "height": outer, "steps": 1} | DETAILED | {"detailer_resolution": inner, "detailer_steps": 2}
    assert call(host, "factors", **words) == {"decode": 1.0}
    assert [facts["size"] for name, facts in host.events(start) if name == "decoded"] == [[outer, outer], [inner, inner]]


@pytest.mark.usefixtures("detailing")
def test_a_detailer_is_watched_as_a_job_of_its_own_size(host):
    assert call(host, "generate", **SMALL | DETAILED)[0] == 1
    titles = [run["title"] for run in host.get("/sdapi/v1/sd3/memory")["runs"][-2:]]
    assert [title.rpartition(" ")[2] for title in titles] == ["128×128", "256×256"]


@pytest.mark.usefixtures("detailing")
@pytest.mark.parametrize("phase", ["prepare", "denoise", "decode"])
def test_a_detailer_that_runs_out_of_memory_leaves_a_request_its_picture(host, told, phase):
    plain = picture(host.client.post("/sdapi/v1/txt2img", json=SMALL))
    host.run(f"from sd3probe import limit; limit.put({phase!r}, 0, 1, after=1)")
    try:
        answer = host.client.post("/sdapi/v1/txt2img", json=SMALL | DETAILED)
    finally:
        host.run("from sd3probe import limit; limit.lift()")
    assert picture(answer) == plain
    assert [event[:2] for event in told()] == [("memory.exhausted", "error")]
    assert picture(host.client.post("/sdapi/v1/txt2img", json=SMALL | DETAILED)) != plain
    assert opened(host) == 0


@pytest.mark.usefixtures("detailing")
def test_the_page_says_below_the_picture_what_has_become_of_its_detailer(host):
    host.run("from sd3probe import limit; limit.put('denoise', 0, 1, after=1)")
    try:
        made, comments = call(host, "generate", **SMALL | DETAILED)
    finally:
        host.run("from sd3probe import limit; limit.lift()")
    assert made == 1
    assert comments.count("The memory did not suffice") == 1


@pytest.mark.usefixtures("detailing")
def test_a_detailer_that_is_refused_leaves_a_request_its_picture(host, told):
    """Something puts a part of another kind of model into this one, between the picture and its detailer."""
    plain = picture(host.client.post("/sdapi/v1/txt2img", json=SMALL))
    host.run("""
        from diffusers.models import attention_processor as processors
        from modules import modeldata, scripts_manager
        scripts = scripts_manager.scripts_txt2img.alwayson_scripts
        sd3probe.script = next(script for script in scripts if script.title() == "SD3 probe")
        sd3probe.set_processor = lambda kind: modeldata.model_data.sd_model.transformer.set_attn_processor(getattr(processors, kind)())
        sd3probe.script.postprocess_batch = lambda *values, **words: sd3probe.set_processor("AttnProcessor2_0")
    """)
    host.set(sd3_guard_attention="block")
    try:
        answer = host.client.post("/sdapi/v1/txt2img", json=SMALL | DETAILED)
        refused = host.client.post("/sdapi/v1/txt2img", json=SMALL)
    finally:
        host.set(sd3_guard_attention="fix")
        host.run("del sd3probe.script.postprocess_batch; sd3probe.set_processor('JointAttnProcessor2_0')")
    assert picture(answer) == plain
    assert refused.status_code == 422
    assert [event[:2] for event in told()] == [("attention.other", "error")] * 2
    assert opened(host) == 0


def test_a_request_without_any_picture_still_says_why(host):
    host.run("from sd3probe import limit; limit.put('denoise')")
    try:
        assert host.client.post("/sdapi/v1/txt2img", json=SMALL).status_code == 507
    finally:
        host.run("from sd3probe import limit; limit.lift()")
    assert opened(host) == 0


def test_a_copy_of_a_job_has_nothing_of_it_and_the_outer_one_is_there_again_afterwards(host):
    """As scripts do it: a copy is made within a hook of the job, and handed to process_images. One that fails changes nothing."""
    assert host.run("""
        import copy
        from modules import processing, scripts_manager
        from sd3deploy.webui.jobs import state
        from sd3probe import jobs
        probe = next(script for script in scripts_manager.scripts_txt2img.alwayson_scripts if script.title() == "SD3 probe")
        seen = []
        def look(p):
            found = state.state_of(p)
            said = " ".join(found.messages)
            seen.append([found.p is p, list(found.requested), found.nested, "1000×1000" in said, "200×200" in said])
        def process_images(p, *args):
            look(p)
            if not state.state_of(p).nested:
                for width, fails in ((200, False), (96, True)):
                    inner = copy.copy(p)
                    inner.width = inner.height = width
                    inner.all_prompts = None
                    sd3probe.fails = fails
                    try:
                        processing.process_images(inner)
                    except ValueError:
                        pass
                look(p)
        probe.process_images = process_images
        kept = processing.StableDiffusionProcessingTxt2Img.init
        def init(self, *args, **words):
            kept(self, *args, **words)
            if sd3probe.fails and state.state_of(self).nested:
                raise ValueError("a job that fails")
        sd3probe.fails = False
        processing.StableDiffusionProcessingTxt2Img.init = init
        try:
            p = jobs.job(width=1000, height=1000, steps=1)
            processed = processing.process_images(p)
        finally:
            processing.StableDiffusionProcessingTxt2Img.init = kept
            del probe.process_images
        extra = processed.extra_generation_params["SD3 size"]
        result = [seen, len(processed.images), extra, sum(name.startswith("sd3_") for name in vars(p)), len(state._states())]
    """) == [[
        [True, [1000, 1000], False, True, False], [True, [200, 200], True, False, True], [True, [1000, 1000], False, True, True],
    ], 1, "1000x1000 → 1008x1008", 0, 0]  # fmt: skip


def test_a_setting_that_was_changed_for_a_job_is_as_before_after_its_end(host):
    """Hosts before 2026-05 have no place in the job for the prompt parser. Also where the job fails, and inside of another one."""
    assert host.run("""
        from modules import processing, shared
        from sd3deploy.webui.jobs import facts, state
        from sd3probe import jobs
        before = shared.opts.prompt_attention
        seen = []
        def change(p, value):
            facts.apply(jobs.Bare(p), None, {"prompt_attention": value}, state.state_of(p).undo)
            seen.append(shared.opts.prompt_attention)
        outer, inner = jobs.job(), jobs.job()
        try:
            with state.opened(outer):
                change(outer, "fixed")
                with state.opened(inner):
                    change(inner, "compel")
                seen.append(shared.opts.prompt_attention)
                raise ValueError
        except ValueError:
            seen.append(shared.opts.prompt_attention == before)
        result = seen
    """) == ["fixed", "compel", "fixed", True]


# What one press is


@pytest.mark.usefixtures("little")
@pytest.mark.parametrize(("flow", "values"), [("folder", [MIXED]), ("count", [4]), ("video", [4, [128, 128]])])
def test_four_pictures_that_do_not_fit(host, told, mode, flow, values):
    """In mode warn they are made. In mode ask one press holds all of them back and the next one makes all of them; then it asks anew."""
    assert call(host, flow, *values) == 4
    assert {event[:2] for event in told()} == {("memory.verdict.no", "warning")}
    mode("ask")
    assert [call(host, flow, *values) for _ in range(3)] == [0, 4, 0]
    mode("block")
    assert [call(host, flow, *values) for _ in range(2)] == [0, 0]


@pytest.mark.usefixtures("little")
def test_several_inputs_in_control_are_one_press(host, mode):
    mode("off")
    made = call(host, "images", MIXED)
    assert made > 0
    mode("warn")
    assert call(host, "images", MIXED) == made
    mode("ask")
    assert [call(host, "images", MIXED) for _ in range(3)] == [0, made, 0]


@pytest.mark.usefixtures("little")
def test_what_is_held_back_says_so_once_for_each_kind_of_picture(host, told, mode):
    mode("ask")
    assert call(host, "video", 4, [128, 128]) == 0
    ((id, severity, remedy),) = told()
    assert (id, severity) == ("memory.verdict.no", "error")
    assert "Press Generate again within 30 seconds" in remedy


@pytest.mark.usefixtures("little")
def test_batch_size_and_batch_count_are_one_press(host, mode):
    mode("ask")
    assert [call(host, "generate", batch_size=2, n_iter=2)[0] for _ in range(2)] == [0, 4]


@pytest.mark.usefixtures("little")
def test_a_grid_is_one_press(host, mode):
    """Its cells are copies of one job, made within a hook of a script that is asked before or after this extension, and outside of any."""
    mode("ask")
    host.run("""
        import copy
        from modules import processing
        from sd3probe import jobs
        def grid():
            p, made = jobs.job(), 0
            for width in (128, 160, 192):
                cell = copy.copy(p)
                cell.xyz, cell.width = True, width
                made += len(processing.process_images(cell).images)
            return made
        sd3probe.grid = grid
    """)
    assert host.run("from sd3probe import jobs; result = [jobs.press(sd3probe.grid) for _ in range(3)]") == [0, 3, 0]


@pytest.mark.usefixtures("little")
def test_another_picture_than_the_one_that_was_held_back_is_asked_about_too(host, mode):
    mode("ask")
    assert call(host, "generate", width=128)[0] == 0
    assert call(host, "generate", width=192)[0] == 0
    assert call(host, "generate", width=192)[0] == 1


@pytest.mark.usefixtures("little")
def test_a_press_on_one_page_does_not_confirm_that_of_another(host, mode):
    mode("ask")
    code = """
        from modules import processing
        from sd3probe import jobs
        result = []
        for page in ("one", "other", "one", "other", "one"):
            p = jobs.job()
            p.per_script_args["SD3 Deploy"] = [*["As in Settings"] * 4, page]
            result.append(len(jobs.press(lambda: processing.process_images(p)).images))
    """
    assert host.run(code) == [0, 0, 1, 1, 0]


def test_every_page_that_is_opened_is_another_one(host):
    host.login()
    config = host.get("/config")
    ids = [one["id"] for one in config["components"] if (one["props"].get("elem_id") or "").endswith("page-id")]
    load = next(number for number, one in enumerate(config["dependencies"]) if one["outputs"] in [[id] for id in ids])
    ask = {"data": [], "fn_index": load, "session_hash": "page"}
    assert len({host.post("/run/predict", ask)["data"][0] for _ in range(3)}) == 3


@pytest.mark.usefixtures("little")
def test_a_second_press_that_comes_too_late_asks_anew(host, mode):
    mode("ask")
    assert call(host, "generate")[0] == 0
    host.run("from sd3probe import limit; limit.watching().forecast._held[''].ended -= 31")
    assert call(host, "generate")[0] == 0
    assert call(host, "generate")[0] == 1


def test_what_fits_is_made_in_the_same_press(host, mode):
    """Nothing but what does not fit waits, and the time for the second press counts from the end of the first one."""
    mode("ask")
    need = host.get("/sdapi/v1/sd3/memory", params={"width": 256, "height": 256})
    free = need["phases"]["decode"]["ram"] - need["total"] - 10**6
    host.run(f"from sd3deploy.memory import capacity; sd3probe.ram = capacity._ram; capacity._ram = lambda: (64 * 10**9, {free})")
    try:
        assert [call(host, "folder", [[128, 128], [256, 256], [128, 128]]) for _ in range(2)] == [2, 3]
    finally:
        host.run("from sd3deploy.memory import capacity; capacity._ram = sd3probe.ram")


@pytest.mark.usefixtures("little")
def test_a_request_is_no_press(host, told, mode):
    mode("ask")
    for _ in range(2):
        picture(host.client.post("/sdapi/v1/txt2img", json=SMALL))
    assert [event[:2] for event in told()] == [("memory.verdict.no", "warning")] * 2
    assert call(host, "generate")[0] == 0  # and it confirms none


@pytest.mark.usefixtures("little")
def test_the_panel_can_ask_for_one_job(host):
    code = """
        from modules import processing
        from sd3probe import jobs
        p = jobs.job()
        p.per_script_args["SD3 Deploy"] = ["As in Settings", "As in Settings", "ask"]
        result = len(jobs.press(lambda: processing.process_images(p)).images)
    """
    assert [host.run(code) for _ in range(2)] == [0, 1]


def test_the_check_knows_every_mode(host):
    for mode in ("off", "warn", "ask", "block"):
        assert host.client.get("/sdapi/v1/sd3/check", params={"vram_check": mode}).status_code == 200
    assert host.client.get("/sdapi/v1/sd3/check", params={"vram_check": "fix"}).status_code == 422
