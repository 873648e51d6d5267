"""The whole way of a user on one server, from a host without bitsandbytes to the pictures. The tests run in this order."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from PIL import Image

from demo import server
from tests.contract.conftest import AUTH, PROBE, ProbedHost, encoded, start
from tests.waiting import until

KEYS = {"model", "encoder", "wanted", "linear4bit", "t5_bytes", "busy", "progress", "last_error", "packages", "pid"}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The host with the extension and the probe, and a way to start it again on the same data and environment."""
    folder = tmp_path_factory.mktemp("flow")
    data = server.data_folder(folder / "data", diffusers_offload_mode="none", sd3_auto_install="maybe", sd3_weights=5)
    shutil.copytree(PROBE, data / "extensions" / "sd3-probe", ignore=shutil.ignore_patterns("__pycache__"))
    started = start(folder, "data", auth=AUTH)
    return {"host": ProbedHost(started.data, started.url, started.process, started.auth), "python": folder / "venv-data"}


@pytest.fixture(scope="module")
def host(site):
    yield site["host"]
    site["host"].stop()


@pytest.fixture(scope="module")
def pid(host):
    return host.get("/sdapi/v1/sd3/status")["pid"]


def status(host):
    return host.get("/sdapi/v1/sd3/status")


def written(host, **options):
    """Wait until these settings are in the host's file: it writes on a thread of its own, and who ends it meanwhile leaves an empty one."""

    def stored():
        try:
            return options.items() <= json.loads((host.data / "config.json").read_text("utf-8")).items()
        except ValueError:
            return False

    assert until(stored), f"{options} were not written"


def happened(host, since=0):
    """The ids of all events after that number but those of the cache, which is written whenever it is."""
    ids = [event["id"] for event in host.get("/sdapi/v1/sd3/events", params={"since": since})["events"]]
    return [id for id in ids if not id.startswith("cache.")]


def picture(host, **values):
    result = host.txt2img(**values)
    assert len(result["images"]) == 1, result
    image = Image.open(io.BytesIO(base64.b64decode(result["images"][0])))
    image.load()
    return image, result["info"]["infotexts"][0]


def test_it_starts_without_bitsandbytes_and_touches_nothing(host, pid):
    now = status(host)
    assert now.keys() >= KEYS
    assert now["model"] == server.MODEL
    assert (now["encoder"], now["wanted"], now["linear4bit"], now["last_error"]) == ("Host default", "Host default", 0, None)
    assert now["packages"]["bitsandbytes"] is None
    assert host.run("import diffusers.utils.import_utils as u; result = u._bitsandbytes_available") is False


def test_stored_values_that_mean_nothing_are_answered_with_a_sentence_and_the_default(host):
    told = host.get("/sdapi/v1/sd3/events", params={"since": 0})["events"]
    assert [event["id"] for event in told] == ["setting.weights-unknown", "setting.wrong-type"]
    assert {event["severity"] for event in told} == {"warning"}
    stored = host.run("from modules import shared; result = [shared.opts.sd3_auto_install, shared.opts.sd3_weights]")
    assert stored == [True, "Automatic"]


def test_the_panel_is_in_all_three_tabs(host):
    host.login()
    ids = {part["props"].get("elem_id") for part in host.get("/config")["components"]}
    assert {f"script_{tab}_sd3_deploy_encoder" for tab in ("txt2img", "img2img", "control")} <= ids
    assert "setting_sd3_text_encoder" in ids


def test_the_page_gets_our_script_and_style(host):
    host.login()
    page = host.client.get("/").text
    for name in ("javascript/sd3_deploy.js", "style.css"):
        address = re.search(rf"file=[^\"]*sd-extension-sd3/{re.escape(name)}[^\"]*", page)
        assert host.client.get(f"/{address[0]}").status_code == 200


def test_nothing_is_installed_where_the_user_said_so(host):
    host.set(sd3_auto_install=False)
    assert host.set(sd3_text_encoder="T5 FP4") == {"sd3_text_encoder": False}
    now = status(host)
    assert (now["encoder"], now["wanted"], now["packages"]["bitsandbytes"]) == ("Host default", "Host default", None)
    assert now["last_error"]["id"] == "deps.not_allowed"
    picture(host)
    host.set(sd3_auto_install=True)


def test_choosing_fp4_in_the_settings_needs_no_restart(host, pid):
    host.login()
    assert "sd3_text_encoder" in host.apply(sd3_text_encoder="T5 FP4")
    now = status(host)
    assert (now["encoder"], now["wanted"], now["pid"], now["busy"]) == ("T5 FP4", "T5 FP4", pid, None)
    assert now["packages"]["bitsandbytes"] is not None
    kinds = host.run(
        """
        from modules import modeldata
        parts = modeldata.model_data.sd_model.text_encoder_3.named_modules()
        result = [[name.rsplit(".", 1)[-1], type(part).__name__] for name, part in parts if "Linear" in type(part).__name__]
        """
    )
    assert {name for name, _ in kinds} == {"q", "k", "v", "o", "wi_0", "wi_1", "wo"}
    assert {kind for _, kind in kinds} == {"Linear4bit"}
    assert now["linear4bit"] == len(kinds)


def test_a_picture_says_which_t5_made_it(host, pid):
    image, info = picture(host)
    assert image.size == (128, 128)
    assert "T5: T5 FP4" in info
    assert "T5: T5 FP4" in image.info["parameters"]
    assert status(host)["pid"] == pid


def test_the_events_tell_what_happened(host):
    assert happened(host)[-4:] == ["packages.installing", "packages.installed", "encoder.loading", "encoder.ready-smaller"]
    assert "id=encoder.ready-smaller" in host.log()


OTHERS = ["None (CLIP only)", "T5 Q4", "T5 Q5", "T5 Q6", "T5 Q8", "T5 BF16", "T5 INT8", "T5 FP8", "Host default", "T5 NF4"]


@pytest.mark.parametrize("name", OTHERS)
def test_every_other_choice_through_the_api(host, pid, name):
    assert host.set(sd3_text_encoder=name) == {"sd3_text_encoder": True}
    now = status(host)
    assert (now["encoder"], now["last_error"], now["pid"]) == (name, None, pid)
    _, info = picture(host)
    assert (f"T5: {name}" in info) == (name != "Host default")


def test_no_prompt_is_reused_from_another_encoder(host):
    pictures = []
    for name in ("T5 BF16", "None (CLIP only)", "T5 BF16"):
        host.set(sd3_text_encoder=name)
        pictures.append(picture(host, prompt="the same words", override_settings={"prompt_attention": "fixed"})[0].tobytes())
    assert pictures[0] == pictures[2]
    assert pictures[0] != pictures[1]


def stored(host, folder=None):
    """The kinds of encoders that are kept, when none is being written any more."""
    host.run("from sd3deploy.encoders import load; t = load.writing(); t and t.join()")
    folder = folder or host.data / "models" / "SD3 Deploy"
    return {path.name.rpartition("-")[0].removeprefix("t5-") for path in folder.glob("t5-*")}


def last(host, severity):
    told = [event for event in host.get("/sdapi/v1/sd3/events", params={"since": 0})["events"] if event["severity"] == severity]
    return told[-1]


def test_quantized_encoders_are_kept_among_the_models_and_come_from_there_the_next_time(host):
    assert stored(host) == {"q4", "q5", "q6", "q8", "fp4", "nf4", "int8", "fp8"}  # all that were chosen so far, and can be
    for name in ("T5 FP4", "T5 NF4"):
        host.set(sd3_text_encoder=name)
        assert "Loaded from the cache in" in last(host, "success")["message"]
        picture(host)


def test_another_folder_deletes_nothing_and_where_none_is_wanted_nothing_is_written(host, tmp_path):
    before = sorted((host.data / "models" / "SD3 Deploy").rglob("*"))
    host.set(sd3_cache_folder=str(tmp_path / "there"))
    host.set(sd3_text_encoder="T5 FP4")
    assert "Loaded in " in last(host, "success")["message"]
    assert stored(host, tmp_path / "there") == {"fp4"}
    assert str(tmp_path / "there") in last(host, "info")["message"]
    host.set(sd3_cache=False)
    host.set(sd3_text_encoder="T5 NF4")
    assert stored(host, tmp_path / "there") == {"fp4"}
    assert sorted((host.data / "models" / "SD3 Deploy").rglob("*")) == before
    host.set(sd3_cache=True, sd3_cache_folder="")


def test_a_folder_that_can_not_be_written_is_told_and_everything_works(host, tmp_path):
    (tmp_path / "file").touch()
    host.set(sd3_cache_folder=str(tmp_path / "file" / "folder"))
    host.set(sd3_text_encoder="T5 FP4")
    assert stored(host, tmp_path) == set()
    told = last(host, "warning")
    assert (told["id"], "sd3_cache_folder" in told["remedy"]) == ("cache.unwritable", True)
    assert "T5: T5 FP4" in picture(host)[1]
    host.set(sd3_cache_folder="", sd3_text_encoder="T5 NF4")
    assert status(host)["last_error"] is None


@pytest.mark.parametrize(
    ("key", "value"), [("sd3_cache", "maybe"), ("sd3_cache_folder", 5), ("sd3_cache_limit", "much"), ("sd3_cache_limit", 0)]
)
def test_a_setting_of_the_cache_that_means_nothing_is_refused(host, key, value):
    before = host.run(f"from modules import shared; result = shared.opts.{key}")
    assert host.set(**{key: value}) == {key: False}
    assert host.run(f"from modules import shared; result = shared.opts.{key}") == before
    assert last(host, "warning")["remedy"]


@pytest.mark.parametrize("parser", ["native", "fixed"])
def test_a_prompt_is_encoded_anew_for_another_encoder_and_for_nothing_else(host, other_vae, parser):
    words = {"prompt": f"words for {parser}", "override_settings": {"prompt_attention": parser}}
    vae = "from modules import modeldata; result = id(modeldata.model_data.sd_model.vae)"
    # SD.Next before 2026-07 keeps nothing of prompts that it leaves to the pipeline
    keeps = parser != "fixed" or host.run("from modules import sd_hijack_te; result = hasattr(sd_hijack_te, 'prompt_cache')")
    with encoded(host) as counts:
        for name in ("T5 BF16", "T5 FP8"):
            host.set(sd3_text_encoder=name)
            counts()
            first = picture(host, **words)[0].tobytes()
            assert counts() > 0
            assert picture(host, **words)[0].tobytes() == first
            assert (counts() == 0) == keeps
            before = host.run(vae)
            host.set(sd_vae=other_vae if name == "T5 BF16" else "Automatic")
            assert host.run(vae) != before
            picture(host, **words)
            assert (counts() == 0) == keeps, name


def test_another_offload_mode_costs_no_encoded_prompts(host):
    switch = "from sd3deploy.webui.host import offload; from modules import modeldata as m; offload.switch(m.model_data.sd_model, {mode!r})"
    with encoded(host) as counts:
        picture(host, prompt="words for a mode")
        counts()
        host.run(switch.format(mode="balanced"))
        picture(host, prompt="words for a mode")
        assert counts() == 0
        host.run(switch.format(mode="none"))


@pytest.mark.parametrize("name", ["T5 Q4", "T5 Q5", "T5 Q6", "T5 Q8", "T5 BF16", "T5 FP4"])
def test_an_encoder_that_comes_in_any_offload_mode_makes_the_same_picture(host, name):
    """Without an accelerator the other modes, sequential and group, have nothing to offload from."""
    switch = "from sd3deploy.webui.host import offload; from modules import modeldata as m; offload.switch(m.model_data.sd_model, {mode!r})"
    made = set()
    for mode in ("balanced", "model", "none"):
        host.set(sd3_text_encoder="None (CLIP only)")
        host.run(switch.format(mode=mode))
        host.set(sd3_text_encoder=name)
        with encoded(host) as counts:
            made.add(picture(host, prompt="words for every mode")[0].tobytes())
            assert counts() > 0
    assert len(made) == 1


def test_the_same_choice_twice_changes_nothing(host):
    host.set(sd3_text_encoder="T5 NF4")
    before = host.run("from modules import modeldata; result = id(modeldata.model_data.sd_model.text_encoder_3)")
    assert host.set(sd3_text_encoder="T5 NF4") == {"sd3_text_encoder": False}
    assert host.run("from modules import modeldata; result = id(modeldata.model_data.sd_model.text_encoder_3)") == before


def test_override_settings_hold_for_one_job(host):
    assert "T5: T5 INT8" in picture(host, override_settings={"sd3_text_encoder": "T5 INT8"})[1]
    assert "T5: T5 NF4" in picture(host)[1]


def test_an_option_axis_writes_the_stored_value_and_it_is_followed(host):
    host.run("from modules import shared; shared.opts.data['sd3_text_encoder'] = 'T5 FP4'")
    assert "T5: T5 FP4" in picture(host)[1]
    host.run("from modules import shared; shared.opts.data['sd3_text_encoder'] = 'T5 NF4'")
    assert "T5: T5 NF4" in picture(host)[1]


def test_the_panel_choice_holds_for_its_job(host):
    assert "T5: T5 FP4" in picture(host, alwayson_scripts={"SD3 Deploy": {"args": ["T5 FP4"]}})[1]
    assert "T5: T5 NF4" in picture(host)[1]


def gone(host):
    """What was told about former text encoders: (message, remedy)."""
    events = host.get("/sdapi/v1/sd3/events", params={"since": 0})["events"]
    return [(event["message"], event["remedy"]) for event in events if event["id"] == "setting.encoder-gone"]


def test_a_job_with_a_former_text_encoder_gets_what_took_its_place_and_one_sentence_says_so(host):
    assert "T5: T5 Q4" in picture(host, override_settings={"sd3_text_encoder": "T5 UINT4 (SDNQ)"})[1]
    assert "T5: T5 Q4" in picture(host, alwayson_scripts={"SD3 Deploy": {"args": ["T5 UINT4 (SDNQ)"]}})[1]
    assert gone(host) == [("'T5 UINT4 (SDNQ)' is no longer a text encoder choice: T5 Q4 has taken its place.", "")]
    assert "T5: T5 NF4" in picture(host)[1]


def test_a_former_text_encoder_that_is_stored_becomes_what_took_its_place(host):
    told = gone(host)
    stored = host.run("""
        import gc
        from modules import shared
        from sd3deploy.deployment import Deployment
        from sd3deploy.webui.page.settings import mend
        shared.opts.data["sd3_text_encoder"] = "T5 NF4 + INT8"
        mend(next(one for one in gc.get_objects() if type(one) is Deployment))
        result = shared.opts.data["sd3_text_encoder"]
        shared.opts.data["sd3_text_encoder"] = "T5 NF4"
    """)
    assert stored == "T5 Q5"
    assert gone(host) == [*told, ("'T5 NF4 + INT8' is no longer a text encoder choice: T5 Q5 has taken its place.", "")]


@pytest.mark.parametrize(
    ("said", "taken"), [("T5 UINT4 (SDNQ)", "T5 Q4"), ("T5 NF4 + INT8", "T5 Q5"), ("T5 FP4", "T5 FP4"), ("T5 FP5", None)]
)
def test_the_text_of_a_picture_with_a_former_text_encoder_brings_back_what_took_its_place(host, said, taken):
    code = "from sd3deploy.webui.jobs.override import pasted; result = dict(pasted(list('eabcp')))['e']({'T5': %r})"
    assert (host.run(code % said) or {}).get("value") == taken


def test_a_former_text_encoder_that_is_set_is_refused_with_what_took_its_place(host):
    assert host.set(sd3_text_encoder="T5 NF4 + INT8") == {"sd3_text_encoder": False}
    now = status(host)
    assert (now["encoder"], now["wanted"]) == ("T5 NF4", "T5 NF4")
    assert "T5 Q5" in now["last_error"]["remedy"]


@pytest.mark.parametrize("value", ["T5 FP5", 17, None, ["T5 FP4"], ""])
def test_a_value_that_means_nothing_is_refused_with_a_remedy(host, value):
    assert host.set(sd3_text_encoder=value) == {"sd3_text_encoder": False}
    now = status(host)
    assert (now["encoder"], now["wanted"]) == ("T5 NF4", "T5 NF4")
    assert "Settings → SD3 Deploy" in now["last_error"]["remedy"]
    picture(host)


def test_a_failed_swap_leaves_the_old_encoder_at_work(host):
    host.set(sd3_weights="Local file", sd3_weights_file="/nowhere/t5.safetensors")
    assert host.set(sd3_text_encoder="T5 FP4") == {"sd3_text_encoder": False}
    assert "is not there" in status(host)["last_error"]["message"]
    assert "T5: T5 NF4" in picture(host)[1]
    host.set(sd3_weights="Automatic", sd3_weights_file="")
    assert host.set(sd3_text_encoder="T5 FP4") == {"sd3_text_encoder": True}
    assert status(host)["last_error"] is None


def test_a_change_while_a_picture_is_made_waits_and_both_succeed(host):
    with ThreadPoolExecutor() as pool:
        job = pool.submit(picture, host, steps=30, width=512, height=512)

        def begun():
            now = host.get("/sdapi/v1/progress")["state"]
            return now["job"] and now["sampling_step"] >= 2  # the steps of a job that is over are still shown

        assert until(lambda: job.done() or begun())
        assert host.set(sd3_text_encoder="T5 NF4") == {"sd3_text_encoder": True}
        assert "T5: T5 FP4" in job.result()[1]
    assert status(host)["encoder"] == "T5 NF4"


def test_a_model_that_is_loaded_again_gets_its_encoder_at_once(host, pid):
    host.post("/sdapi/v1/unload-checkpoint", {})
    assert status(host)["encoder"] is None
    assert host.set(sd3_text_encoder="T5 FP4") == {"sd3_text_encoder": True}
    seen = host.get("/sdapi/v1/sd3/events", params={"since": 0})["events"][-1]["seq"]
    assert happened(host)[-1] == "encoder.later"
    assert "T5: T5 FP4" in picture(host)[1]
    assert happened(host, seen) == ["encoder.loading", "encoder.ready-smaller"]  # once: at load, not full size first
    assert status(host)["pid"] == pid


def test_img2img_keeps_the_encoder_and_a_swap_after_it_leaves_none_behind(host):
    source = base64.b64encode(_png(picture(host)[0])).decode()
    body = {"prompt": "x", "init_images": [source], "width": 128, "height": 128, "steps": 4, "denoising_strength": 0.5}
    assert len(host.post("/sdapi/v1/img2img", body)["images"]) == 1
    host.set(sd3_text_encoder="T5 NF4")
    alive = host.run("import gc; gc.collect(); result = sum(type(o).__name__ == 'T5EncoderModel' for o in gc.get_objects())")
    assert alive == 1
    assert len(host.post("/sdapi/v1/img2img", body)["images"]) == 1


def test_packages_that_the_host_installs_by_itself_are_usable_at_the_next_quiet_moment(host):
    """Transformers 4 asks once, at its import, and nobody but the server's next start asks again."""
    before, after, imported, once = host.run(
        """
        import installer, sys, threading
        from transformers.utils import import_utils, is_num2words_available
        before = is_num2words_available()
        installer.pip("install --no-deps num2words==0.5.14", ignore=True)
        for thread in threading.enumerate():
            if thread.name == "sd3-newcomers":
                thread.join(60)
        once = hasattr(import_utils, "_num2words_available")
        result = [before, is_num2words_available(), "num2words" in sys.modules, once]
        """
    )
    assert (before, after) == (False, not once)
    assert not imported, "it is not ours to import"


def test_install_py_by_the_hosts_own_installer_finds_everything_there(host):
    errors = host.run(
        """
        import installer, time
        from modules import paths
        installer.run_extension_installer(f"{paths.extensions_dir}/sd-extension-sd3")
        result = [str(error) for error in installer.errors]
        """
    )
    assert not [error for error in errors if "sd3" in error]


def test_the_routes_ask_for_the_password(host):
    for path in ("/sdapi/v1/sd3/status", "/sdapi/v1/sd3/events"):
        assert httpx.get(host.url + path, trust_env=False).status_code == 401


def test_unloading_the_script_puts_every_function_back(host):
    ours = """
        import installer
        from modules import sd_models
        result = [hasattr(function, "__sd3deploy_original__") for function in (installer.pip, sd_models.load_diffuser)]
        """  # the two that the probe does not wrap too
    assert host.run(ours) == [True, True]
    host.run("from modules import script_callbacks; script_callbacks.script_unloaded_callback()")
    assert host.run(ours) == [False, False]


def test_the_choice_survives_a_restart_of_the_server(site):
    old = site["host"]
    old.set(sd3_text_encoder="T5 FP4")
    written(old, sd3_text_encoder="T5 FP4")
    old.stop()
    again = start_again(site)
    try:
        now = status(again)
        assert (now["encoder"], now["wanted"], now["last_error"]) == ("T5 FP4", "T5 FP4", None)
        assert "T5: T5 FP4" in picture(again)[1]
    finally:
        again.stop()


def test_removing_the_extension_leaves_a_host_that_works(site):
    extension = site["host"].data / "extensions" / "sd-extension-sd3"
    extension.unlink() if extension.is_symlink() else shutil.rmtree(extension)
    plain = start_again(site)
    try:
        image, info = picture(plain)
        assert image.size == (128, 128)
        assert "T5:" not in info
    finally:
        plain.stop()


def start_again(site):
    import os

    from demo.environment import python_of
    from tests.contract.conftest import REAL

    root = server.Path(os.environ["SDNEXT_ROOT"]) if REAL else server.STAND_IN
    return server.start(site["host"].data, root=root, python=python_of(site["python"]), auth=AUTH)


def _png(image):
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
