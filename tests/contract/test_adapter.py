"""Each thing that the adapter asks of the host, on the host: a version that lacks one is noticed here, by its name."""

import pytest

from demo.server import MODEL, ROOT
from tests.contract.conftest import REAL


@pytest.fixture(scope="module")
def adapter(host):
    """Run code with `sdnext`, the adapter, in the host's process."""

    def run(code):
        start = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from sd3deploy.webui.host.adapter import SdNext; sdnext = SdNext()\n"
        return host.run(start + code)

    return run


@pytest.mark.parametrize(
    ("key", "default"),
    [("sd3_text_encoder", "Host default"), ("sd3_weights", "Automatic"), ("sd3_weights_file", ""), ("sd3_weights_keep", False),
     ("sd3_weights_repository", "comfyanonymous/flux_text_encoders:t5xxl_fp16.safetensors"), ("sd3_auto_install", True),
     ("sd3_cache", True), ("sd3_cache_folder", ""), ("sd3_cache_limit", 20),
     ("sd3_guard_size", "fix"), ("sd3_guard_attention", "fix"), ("sd3_guard_sampling", "fix"), ("sd3_guard_prompt", "fix")],
)
def test_settings_have_their_defaults_before_they_are_registered(adapter, key, default):
    assert adapter(f"result = sdnext.option({key!r})") == default


def test_the_loaded_model(adapter):
    assert adapter("result = [type(sdnext.pipeline()).__name__, sdnext.model_name()]") == ["StableDiffusion3Pipeline", MODEL]


def test_where_its_weights_are(adapter):
    question = "f = sdnext.facts(); result = [f.model, f.shared, f.caches, f.offline, f.tokenizer]"
    model, shared, caches, offline, tokenizer = adapter(question)
    assert model.endswith("tiny-sd3")
    assert shared is None  # te_shared_te is off
    assert len(caches) >= 1
    assert offline is False
    assert bool(tokenizer) == REAL  # the stand-in ships no configurations of models


def test_the_shared_repository_when_its_setting_is_on(adapter, host):
    settings = host.run("from modules import shared; result = list(shared.opts.data_labels)")
    setting = next(name for name in ("te_shared_te", "te_shared_t5") if name in settings)  # the second until 2026-06
    host.set(**{setting: True})
    place, arguments = adapter("f = sdnext.facts(); result = [f.shared[0], sorted(f.shared[1])]")
    host.set(**{setting: False})
    assert "/" in place
    assert set(arguments) <= {"config", "subfolder", "variant"}


def test_the_device(adapter):
    assert adapter("d = sdnext.device(); result = [d.torch, d.backend, d.bf16]") == ["cpu", "cpu", True]


def test_a_job_shows_its_progress(adapter):
    code = """
from modules import shared
shared.state.api = True
with sdnext.job("Load TE", "T5 FP4") as job:
    job.report(2_400_000_000, 9_600_000_000)
    result = [shared.state.job, shared.state.sampling_step, shared.state.sampling_steps, shared.state.textinfo, shared.state.api]
    result.append(job.stopped())
    shared.state.interrupt()
    result.append(job.stopped())
result += [shared.state.job, shared.state.interrupted]
"""
    assert adapter(code) == ["Load TE", 25, 100, "T5 FP4: 2.4 GB / 9.6 GB", True, False, True, "", False]


def test_encoders_are_kept_in_the_hosts_folder_of_models_unless_the_user_wants_another_or_none(adapter, host, tmp_path):
    code = "c = sdnext.cache(); result = c and [str(c.folder), c.limit]"
    assert adapter(code) == [str(host.data / "models" / "SD3 Deploy"), 20_000_000_000]
    code = f"from modules import shared; shared.opts.data |= {{values!r}}\n{code}\nfor key in {{values!r}}: del shared.opts.data[key]"
    values = {"sd3_cache_folder": str(tmp_path), "sd3_cache_limit": 5}
    assert adapter(code.format(values=values)) == [str(tmp_path), 5_000_000_000]
    assert adapter(code.format(values={"sd3_cache": False})) is None


def test_how_much_memory_there_is(adapter):
    assert adapter("c = sdnext.capacity(); result = [c.kind, 0 < c.ram_usable <= c.ram_total]") == ["cpu", True]


def test_the_queue_is_one_lock(adapter):
    code = """
from modules import call_queue
with sdnext.queue():
    result = [call_queue.queue_lock.locked(), sdnext.queue().acquire(blocking=False)]
result.append(call_queue.queue_lock.locked())
"""
    assert adapter(code) == [True, False, False]


def test_how_it_wants_installs_done(adapter):
    code = "o = sdnext.install_options(); result = [o.uv, o.offline, o.refusal, (o.host_root / 'launch.py').exists()]"
    assert adapter(code) == [False, False, "", True]


def test_what_was_computed_with_the_old_encoder_is_forgotten(adapter, host):
    host.txt2img()
    code = """
from modules import prompt_parser_diffusers, sd_hijack_te
kept = sd_hijack_te.prompt_cache.cache if hasattr(sd_hijack_te, "prompt_cache") else {}  # since 2026-07
if hasattr(sd_hijack_te, "prompt_cache"):
    kept["words"] = "embeddings"
sdnext.swapped(sdnext.pipeline())
sdnext.free()
result = [len(prompt_parser_diffusers.cache), len(kept)]
"""
    assert adapter(code) == [0, 0]
    assert len(host.txt2img()["images"]) == 1


def test_without_offload_a_new_encoder_goes_to_the_device_even_where_the_pipeline_seems_to_be_there(adapter):
    code = """
import torch
from modules import devices
from sd3deploy.webui.host import offload
class Pipeline:
    device = torch.device("meta")  # of its first part
    has_accelerate = False
    def __init__(self):
        self.text_encoder_3 = torch.nn.Linear(2, 2)
    def to(self, device):
        pass
pipeline, device = Pipeline(), devices.device
devices.device = Pipeline.device
try:
    offload.apply(pipeline, "none")
finally:
    devices.device = device
result = str(pipeline.text_encoder_3.weight.device)
"""
    assert adapter(code) == "meta"


def test_a_refusal_out_of_a_callback_is_of_the_hosts_own_kind(adapter):
    """SD.Next before 2026-06 has none."""
    code = """
from modules import errors
from sd3deploy.errors import SettingError
from sd3deploy.webui.host.adapter import rejection
error = rejection(SettingError("setting.wrong-type", value=1))
result = [isinstance(error, getattr(errors, "ValidationError", Exception)), "Set it again" in str(error)]
"""
    assert adapter(code) == [True, True]
