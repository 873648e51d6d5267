"""The whole way from a setting to a picture, on a real SD3 pipeline; the host is a small object that keeps its contract."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from contextlib import contextmanager

import pytest
import torch

from sd3deploy import deps, tiny_sd3
from sd3deploy.deployment import Deployment, Wanted
from sd3deploy.device import look
from sd3deploy.encoders import choices, measure, source
from sd3deploy.errors import EncoderError, SettingError
from sd3deploy.events import Events


class Host:
    """What the core asks of a webui, with everything real but the webui."""

    def __init__(self, folder):
        self.folder = folder
        self.options = {"sd3_text_encoder": "Host default", "sd3_weights": "Automatic", "sd3_weights_file": ""}
        self.pipe = None
        self.lock = threading.Lock()
        self.jobs = []
        self.swaps = 0
        self.refuses = None

    def option(self, key):
        return self.options[key]

    def pipeline(self):
        return self.pipe

    def model_name(self):
        return "tiny"

    def facts(self):
        return source.Facts(str(self.folder), offline=True)

    def device(self):
        return look("cpu", "cpu")

    def sdnq_config(self):
        from sdnq import SDNQConfig

        return SDNQConfig(weights_dtype="uint4")

    def default_encoder(self):
        import transformers

        return transformers.T5EncoderModel.from_pretrained(self.folder, subfolder="text_encoder_3", dtype=torch.float32)

    def swapped(self, pipeline):
        assert pipeline is self.pipe
        self.swaps += 1
        if self.refuses and measure.measure(pipeline.text_encoder_3).linear4bit:
            raise self.refuses

    def free(self):
        gc.collect()

    def queue(self):
        return self.lock

    def queue_is_busy(self):
        return self.lock.locked()

    @contextmanager
    def job(self, title, steps, about):
        done = []
        yield lambda: done.append(title)
        self.jobs.append((title, len(done), steps))

    def install_options(self):
        return deps.Options()


@pytest.fixture(scope="module")
def folder():
    return tiny_sd3.ensure()


@pytest.fixture
def host(folder):
    return Host(folder)


@pytest.fixture
def loaded(host):
    import diffusers

    host.pipe = diffusers.StableDiffusion3Pipeline.from_pretrained(host.folder, torch_dtype=torch.float32)
    host.pipe.set_progress_bar_config(disable=True)
    return host


@pytest.fixture
def deployment(host):
    return Deployment(host, Events())


def choose(deployment, name):
    deployment.host.options["sd3_text_encoder"] = name
    deployment.change()


def picture(host):
    return host.pipe("a cat", width=64, height=64, num_inference_steps=1, output_type="np").images[0]


@pytest.mark.parametrize("choice", choices.CHOICES, ids=lambda choice: choice.id)
def test_every_choice_ends_in_a_picture_and_in_the_status(loaded, deployment, choice):
    choose(deployment, choice.name)
    status = deployment.status()
    assert status["encoder"] == status["wanted"] == choice.name
    assert status["last_error"] is None
    assert status["busy"] is None
    assert (loaded.pipe.text_encoder_3 is None) == (choice is choices.NONE)
    assert picture(loaded).shape == (64, 64, 3)


def test_four_bit_is_told_with_its_sizes(loaded, deployment):
    choose(deployment, "T5 FP4")
    status = deployment.status()
    t5 = loaded.pipe.text_encoder_3
    assert status["linear4bit"] == sum(type(module).__name__ == "Linear4bit" for module in t5.modules()) > 0
    assert status["wo_quantized"]
    assert status["t5_bytes"] < 0.5 * status["t5_bytes_16bit"]
    told = deployment.events.since(0)[-1]
    assert (told.severity, told.id) == ("success", "encoder.ready-smaller")


def test_the_old_encoder_is_really_gone(loaded, deployment):
    def resident():
        gc.collect()
        return sum(measure.measure(module).bytes for module in gc.get_objects() if type(module).__name__ == "T5EncoderModel")

    elsewhere = resident() - measure.measure(loaded.pipe.text_encoder_3).bytes
    for name in ("T5 FP4", "T5 NF4", "T5 INT8", "None (CLIP only)", "T5 FP4", "Host default"):
        old = weakref.ref(loaded.pipe.text_encoder_3) if loaded.pipe.text_encoder_3 is not None else lambda: None
        choose(deployment, name)
        gc.collect()
        assert old() is None, f"{name} left the encoder before it alive"
        expected = measure.measure(loaded.pipe.text_encoder_3).bytes if loaded.pipe.text_encoder_3 is not None else 0
        assert resident() - elsewhere == expected


def test_the_same_choice_twice_does_nothing(loaded, deployment):
    choose(deployment, "T5 FP4")
    first = loaded.pipe.text_encoder_3
    choose(deployment, "T5 FP4")
    assert loaded.pipe.text_encoder_3 is first
    assert loaded.swaps == 1
    assert loaded.jobs == [("Load TE", 2, 2)]


def test_another_source_of_the_same_choice_is_another_encoder(loaded, deployment, tmp_path):
    choose(deployment, "T5 BF16")
    first = loaded.pipe.text_encoder_3
    loaded.options["sd3_weights"] = "Model"
    deployment.change()
    assert loaded.pipe.text_encoder_3 is not first


def test_a_failed_swap_leaves_the_old_one_usable(loaded, deployment):
    choose(deployment, "T5 NF4")
    before, encoder = picture(loaded), loaded.pipe.text_encoder_3
    loaded.options |= {"sd3_weights": "Local file", "sd3_weights_file": "/nowhere/t5.safetensors"}
    with pytest.raises(EncoderError, match="is not there"):
        choose(deployment, "T5 FP4")
    assert loaded.pipe.text_encoder_3 is encoder
    assert picture(loaded).shape == before.shape
    status = deployment.status()
    assert status["encoder"] == "T5 NF4"
    assert "is not there" in status["last_error"]["message"]
    loaded.options |= {"sd3_weights": "Automatic"}
    choose(deployment, "T5 FP4")
    assert deployment.status()["last_error"] is None


def test_damaged_weights_leave_the_old_one_usable(loaded, deployment, tmp_path):
    import shutil

    broken = tmp_path / "model"
    shutil.copytree(loaded.folder, broken)
    weights = next((broken / "text_encoder_3").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1000])
    encoder = loaded.pipe.text_encoder_3
    loaded.folder = broken
    with pytest.raises(EncoderError):
        choose(deployment, "T5 FP4")
    assert loaded.pipe.text_encoder_3 is encoder
    assert picture(loaded).shape == (64, 64, 3)


REFUSALS = [
    (RuntimeError("no such device"), RuntimeError, "no such device"),
    (torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."), EncoderError, "not enough memory to load T5 FP4"),
]


@pytest.mark.parametrize(("refuses", "expected", "words"), REFUSALS)
def test_an_encoder_that_the_host_can_not_take_is_taken_back(loaded, deployment, refuses, expected, words):
    encoder = loaded.pipe.text_encoder_3
    loaded.refuses = refuses
    with pytest.raises(expected, match=words):
        choose(deployment, "T5 FP4")
    assert loaded.pipe.text_encoder_3 is encoder
    assert deployment.status()["encoder"] == "Host default"


def test_without_a_model_the_choice_waits_for_one(host, deployment):
    choose(deployment, "T5 FP4")
    assert deployment.events.since(0)[-1].id == "encoder.later"
    ours, encoder = deployment.encoder_for_load()
    assert ours
    assert measure.measure(encoder).linear4bit > 0


def test_host_default_is_left_to_the_host(host, deployment):
    assert deployment.encoder_for_load() == (False, None)


def test_a_failure_at_load_leaves_clip_and_says_so(host, deployment, tmp_path):
    host.options["sd3_text_encoder"] = "T5 FP4"
    host.folder = tmp_path
    assert deployment.encoder_for_load() == (True, None)
    assert [event.id for event in deployment.events.since(0)][-2:] == ["source.model-has-none", "encoder.without-t5"]


def test_a_failure_is_not_repeated_with_every_job_but_tried_again_on_the_next_change_or_load(loaded, deployment):
    loaded.options |= {"sd3_text_encoder": "T5 FP4", "sd3_weights": "Local file", "sd3_weights_file": "/nowhere/t5.safetensors"}

    def failures():
        return sum(event.id == "source.file-missing" for event in deployment.events.since(0))

    deployment.reconcile()
    deployment.reconcile()
    assert failures() == 1
    assert deployment.encoder_for_load() == (True, None)
    deployment.reconcile()
    assert failures() == 2
    with pytest.raises(EncoderError):
        deployment.change()
    loaded.options["sd3_weights"] = "Automatic"
    assert deployment.reconcile() == Wanted(choices.find("fp4"))


@pytest.mark.parametrize("value", ["nowhere", 5, None])
def test_a_source_that_means_nothing_is_said_once_and_automatic_is_used(loaded, deployment, value):
    loaded.options |= {"sd3_text_encoder": "T5 BF16", "sd3_weights": value}
    assert deployment.reconcile() == deployment.reconcile() == Wanted(choices.find("bf16"))
    assert sum(event.id == "setting.weights-unknown" for event in deployment.events.since(0)) == 1


def test_a_change_waits_for_the_running_job(loaded, deployment):
    with loaded.lock:
        loaded.options["sd3_text_encoder"] = "T5 FP4"
        thread = threading.Thread(target=deployment.change)
        thread.start()
        deadline = time.monotonic() + 30
        while not deployment.events.since(0) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert deployment.events.since(0)[-1].id == "encoder.waiting"
        assert deployment.status()["encoder"] == "Host default"
    thread.join(60)
    assert deployment.status()["encoder"] == "T5 FP4"


def test_a_change_waits_for_a_model_that_is_being_loaded(loaded, deployment):
    pipeline, loaded.pipe = loaded.pipe, None
    loaded.options["sd3_text_encoder"] = "T5 FP4"
    with deployment.busy:  # as the hook around the host's loader holds it
        thread = threading.Thread(target=deployment.change)
        thread.start()
        time.sleep(0.2)
        loaded.pipe = pipeline
    thread.join(60)
    assert deployment.status()["encoder"] == "T5 FP4"


def test_a_model_that_is_not_sd3_is_left_alone(host, deployment):
    class StableDiffusionXLPipeline:
        text_encoder_2 = object()

    host.pipe = StableDiffusionXLPipeline()
    before = vars(host.pipe).copy()
    choose(deployment, "T5 FP4")
    assert vars(host.pipe) == before
    assert deployment.status()["encoder"] is None


def test_a_job_can_ask_for_another_encoder(loaded, deployment):
    choose(deployment, "T5 FP4")
    assert deployment.reconcile("T5 NF4") == Wanted(choices.find("nf4"))
    assert deployment.reconcile() == Wanted(choices.find("fp4"))


@pytest.mark.parametrize("value", ["T5 FP5", 17, None, [], {}, float("nan")])
def test_a_stored_value_that_means_nothing_is_said_once_and_answered_with_the_default(loaded, deployment, value):
    loaded.options["sd3_text_encoder"] = value
    with pytest.raises(SettingError):
        deployment.change()
    assert deployment.reconcile() == deployment.reconcile() == Wanted(choices.HOST_DEFAULT)
    warnings = [event for event in deployment.events.since(0) if event.severity == "warning"]
    assert len(warnings) == 1
    assert deployment.status()["wanted"] == "Host default"


def test_a_missing_tokenizer_is_read_from_the_model(loaded, deployment):
    choose(deployment, "None (CLIP only)")
    loaded.pipe.tokenizer_3 = None
    choose(deployment, "T5 FP4")
    assert loaded.pipe.tokenizer_3 is not None
    assert picture(loaded).shape == (64, 64, 3)


def test_the_output_is_that_of_the_encoder(loaded, deployment):
    """Not only does a picture come out: the prompt embeddings are close to those of the full encoder."""
    with torch.no_grad():
        full = loaded.pipe._get_t5_prompt_embeds("a cat", device="cpu")
        choose(deployment, "T5 BF16")
        ours = loaded.pipe._get_t5_prompt_embeds("a cat", device="cpu")
    assert torch.nn.functional.cosine_similarity(full.flatten(), ours.float().flatten(), dim=0) > 0.999
