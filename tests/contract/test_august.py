"""What an extension meets in SD.Next of 2026-08 and did not before (demo/host/modules/like.py), on the stand-in, and on a real one of
2026-07 that is changed while it loads. All other tests of this folder run there with SDNEXT_LIKE=2026-08.
"""

from __future__ import annotations

import base64
import io
import shutil

import numpy
import pytest
from PIL import Image

from demo import server
from tests.contract.conftest import AUTH, PROBE, ProbedHost, start
from tests.waiting import until


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    folder = tmp_path_factory.mktemp("august")
    data = server.data_folder(folder / "data", diffusers_offload_mode="none")
    shutil.copytree(PROBE, data / "extensions" / "sd3-probe", ignore=shutil.ignore_patterns("__pycache__"))
    started = start(folder, "data", like="2026-08", auth=AUTH)
    yield ProbedHost(started.data, started.url, started.process, started.auth)
    started.stop()


@pytest.fixture
def offloaded(host):
    """`offloaded()` names the parts of the loaded pipeline that balanced offload has hooked. The mode is none again afterwards."""
    code = """
        from modules import modeldata
        parts = modeldata.model_data.sd_model.components
        result = sorted(name for name, part in parts.items() if hasattr(getattr(part, "_hf_hook", None), "execution_device"))
    """
    yield lambda: host.run(code)
    host.set(diffusers_offload_mode="none", sd3_text_encoder="Host default")


def picture(host, **values):
    image = host.txt2img(**values)["images"][0]
    return numpy.asarray(Image.open(io.BytesIO(base64.b64decode(image))).convert("RGB")).astype(int)


def encoder(host):
    return host.get("/sdapi/v1/sd3/status")["encoder"]


def complaints(host):
    """What the extension has said of a host that it does not expect."""
    return [event for event in host.get("/sdapi/v1/sd3/events")["events"] if event["id"].startswith("host.")]


def test_all_of_it_is_at_home(host):
    assert complaints(host) == []
    assert encoder(host) == "Host default"
    assert host.get("/sdapi/v1/options-info")["options"]["sd3_text_encoder"]["section_id"] == "sd3_deploy"


@pytest.mark.real
def test_every_change_was_made_in_the_real_one(host):
    edits = host.run("import sys; result = sys.modules['sd3_contract_august'].edits")
    assert all(edits.values()), edits


def test_sdnq_is_a_package_alone(host):
    assert host.run("""
        import importlib
        try:
            importlib.import_module("modules.sdnq")
            result = "there"
        except ModuleNotFoundError as error:
            result = [error.name, type(importlib.import_module("sdnq").SDNQConfig).__name__]
    """) == ["modules.sdnq", "type"]


def test_an_encoder_of_the_hosts_own_sdnq_gives_way_to_ours_and_comes_back(host):
    host.set(sdnq_quantize_weights=["TE"], sdnq_quantize_weights_mode="int8")
    try:
        host.post("/sdapi/v1/reload-checkpoint?force=true")
        method = """
            from modules import modeldata
            config = getattr(modeldata.model_data.sd_model.text_encoder_3, "quantization_config", None)
            result = str(getattr(config, "quant_method", None))
        """
        assert "sdnq" in host.run(method).lower()
        first = picture(host)
        assert host.set(sd3_text_encoder="T5 FP4") == {"sd3_text_encoder": True}
        assert encoder(host) == "T5 FP4"
        assert picture(host).shape == first.shape
        assert host.set(sd3_text_encoder="Host default") == {"sd3_text_encoder": True}
        assert "sdnq" in host.run(method).lower()
        assert numpy.array_equal(picture(host), first)
    finally:
        host.set(sdnq_quantize_weights=[], sd3_text_encoder="Host default")
        host.post("/sdapi/v1/reload-checkpoint?force=true")


@pytest.mark.parametrize("name", ["Host default", "T5 FP4", "T5 Q8", "None (CLIP only)"])
def test_an_offload_mode_takes_effect_at_once_with_every_encoder(host, offloaded, name):
    host.set(sd3_text_encoder=name)
    first = picture(host)
    assert offloaded() == []
    assert host.set(diffusers_offload_mode="balanced") == {"diffusers_offload_mode": True}
    assert set(offloaded()) >= {"text_encoder", "transformer", "vae"}
    assert ("text_encoder_3" in offloaded()) == (name != "None (CLIP only)")
    assert numpy.abs(picture(host) - first).max() <= 1
    assert encoder(host) == name
    host.set(diffusers_offload_min_gpu_memory=0.1)
    assert set(offloaded()) >= {"text_encoder", "transformer", "vae"}
    host.set(diffusers_offload_mode="none")
    assert offloaded() == []
    assert numpy.abs(picture(host) - first).max() <= 1


def test_a_recommendation_that_changes_the_mode_waits_for_no_lock_of_its_own(host, offloaded):
    """The host's callback takes the queue, and `apply` has it: stored with the callback it would wait for ever."""
    for mode, hooked in (("balanced", True), ("none", False)):
        assert host.run(f"from sd3probe import limit; result = limit.watching().host.apply({{'offload': {mode!r}}})") is True
        assert bool(offloaded()) == hooked
        assert host.run("from modules import shared; result = shared.opts.diffusers_offload_mode") == mode
        assert picture(host).shape


GROUPS = """
    import torch
    from diffusers.hooks import group_offloading
    from modules import devices, modeldata, shared
    from sd3deploy.webui.host import offload

    pipeline, device, accelerator = modeldata.model_data.sd_model, devices.device, torch.accelerator.current_accelerator
    torch.accelerator.current_accelerator = lambda *args, **words: torch.device("cpu")  # diffusers does not ask whether there is one
    devices.device = torch.device("cpu", 0)  # one that is not “the CPU” to the extension

    def kinds():
        "By part: the sizes of its groups of layers, or None where it is not offloaded in groups."
        found = {}
        for name, part in pipeline.components.items():
            if isinstance(part, torch.nn.Module):
                hook = group_offloading._get_top_level_group_offload_hook(part)
                found[name] = None if hook is None else [hook.config.offload_type.value, hook.config.num_blocks_per_group]
        return found

    try:
        result = run()
    finally:
        devices.device, torch.accelerator.current_accelerator = device, accelerator
        offload.switch(pipeline, "none")
"""


def groups(host, code):
    return host.run("def run():\n" + "\n".join(f"    {line}" for line in code.strip().splitlines()) + "\n" + GROUPS.replace("\n    ", "\n"))


def test_group_offload_of_a_new_encoder_follows_the_settings_of_that_mode(host):
    code = """
offload.switch(pipeline, "group")
before = kinds()
shared.opts.data.update(group_offload_type="block_level", group_offload_blocks=2)
encoder = pipeline.text_encoder_3
import copy
offload._free_groups(pipeline)
offload.apply(pipeline, "group")
after = kinds()["text_encoder_3"]
offload._free_groups(pipeline)
shared.opts.data.update(diffusers_offload_never="T5EncoderModel", group_offload_type="leaf_level", group_offload_blocks=1)
offload.apply(pipeline, "group")
return [before["text_encoder_3"], before["transformer"], after, kinds()["text_encoder_3"]]
"""
    default = host.run("from modules import shared; result = shared.opts.diffusers_offload_never")
    try:
        assert groups(host, code) == [["leaf_level", 1], ["leaf_level", 1], ["block_level", 2], None]
    finally:
        host.run(f"from modules import shared; shared.opts.data['diffusers_offload_never'] = {default!r}")
    assert picture(host).shape


@pytest.mark.parametrize("mode", ["model", "balanced", "none"])
def test_group_offload_leaves_nothing_behind(host, mode):
    """With its hooks still on the layers diffusers refuses model offload, and the layers would go on moving in the others."""
    first = picture(host)
    code = f"""
offload.switch(pipeline, "group")
assert any(kinds().values())
offload.switch(pipeline, {mode!r})
return [name for name, kind in kinds().items() if kind]
"""
    assert groups(host, code) == []
    assert numpy.abs(picture(host) - first).max() <= 1


def test_the_page_and_its_files_are_served_by_the_new_server(host):
    assert host.run("from modules import shared; result = getattr(shared.demo, 'local_url', None)") is None  # gradio has launched nothing
    host.login()
    page = host.client.get("/").text
    for name in ("style.css", "javascript/sd3_deploy.js"):
        assert f"sd-extension-sd3/{name}" in page
    assert host.client.get("/sdapi/v1/sd3/status", auth=("probe", "wrong")).status_code == 401


def test_the_choice_survives_a_restart_of_the_new_server(host):
    assert host.apply(sd3_text_encoder="T5 FP4").startswith("1 Settings changed")
    starts = host.starts()
    host.post("/sdapi/v1/restart")
    assert until(lambda: host.starts() > starts), host.log()[-2000:]
    assert encoder(host) == "T5 FP4"
    assert picture(host).shape
    assert complaints(host) == []
