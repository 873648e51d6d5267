"""The whole way from a setting to a picture, on a real SD3 pipeline; the host is a small object that keeps its contract."""

from __future__ import annotations

import dataclasses
import gc
import os
import shutil
import threading
import weakref
from contextlib import contextmanager

import pytest
import torch

from sd3deploy import deps, tiny_sd3, units
from sd3deploy.deployment import Deployment, Wanted, changing
from sd3deploy.deps import stopping
from sd3deploy.device import detect_device
from sd3deploy.encoders import choices, handover, load, measure, source
from sd3deploy.encoders.cache import Cache
from sd3deploy.encoders.quantize import Stopped
from sd3deploy.encoders.weights import open_weights
from sd3deploy.errors import EncoderError, SettingError
from sd3deploy.events import Events
from sd3deploy.memory import capacity
from sd3deploy.webui.page.panel import state_line
from tests import gguf_files
from tests.waiting import until

PLENTY = capacity.Capacity("cpu", ram_total=2**40, ram_usable=2**40)
TIGHT = capacity.Capacity("cpu", ram_total=2**40, ram_usable=1)


class Job:
    """What the webui shows of a load. press: called with each report, as if somebody pressed something at that moment."""

    def __init__(self, press):
        self.reports, self.press, self.stop = [], press, False

    def report(self, done, total):
        self.reports.append((done, total))
        self.press(self)

    def stopped(self):
        return self.stop


class Host:
    """What the core asks of a webui, with everything real but the webui."""

    def __init__(self, folder):
        self.folder = folder
        self.options = {"sd3_text_encoder": "Host default", "sd3_weights": "Automatic", "sd3_weights_file": ""}
        self.options |= {"sd3_weights_repository": "", "sd3_weights_keep": False}
        self.pipe = None
        self.lock = threading.Lock()
        self.jobs = []
        self.swaps = 0
        self.refuses = None
        self.kept = None
        self.memory = PLENTY
        self.press = lambda job: None

    def option(self, key):
        return self.options[key]

    def pipeline(self):
        return self.pipe

    def model_name(self):
        return "tiny"

    def facts(self):
        return source.Facts(str(self.folder), offline=True)

    def device(self):
        return detect_device("cpu", "cpu")

    def cache(self):
        return self.kept

    def capacity(self):
        return self.memory

    def default_encoder(self):
        import transformers

        return transformers.T5EncoderModel.from_pretrained(self.folder, subfolder="text_encoder_3", dtype=torch.float32)

    def require_swap(self):
        pass

    def swapped(self, pipeline):
        assert pipeline is self.pipe
        self.swaps += 1
        if self.refuses and measure.measure(pipeline.text_encoder_3).linear4bit:
            raise self.refuses

    def free(self):
        gc.collect()

    def queue(self):
        return self.lock

    @contextmanager
    def job(self, title, about):
        self.jobs.append((title, about, job := Job(self.press)))
        yield job

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
    assert [(title, about) for title, about, _ in loaded.jobs] == [("Load TE", "T5 FP4")]


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


def test_a_failure_of_a_source_is_over_when_the_source_is_set_back(loaded, deployment):
    choose(deployment, "T5 NF4")
    loaded.options |= {"sd3_weights": "Local file", "sd3_weights_file": "/nowhere/t5.safetensors"}
    with pytest.raises(EncoderError, match="is not there"):
        deployment.change()
    with pytest.raises(EncoderError, match="is not there"):
        deployment.change()
    assert "is not there" in deployment.status()["last_error"]["message"]
    loaded.options |= {"sd3_weights": "Automatic", "sd3_weights_file": ""}
    deployment.change()  # it is there: nothing is loaded, and nothing told
    assert deployment.status()["last_error"] is None


@pytest.fixture
def fails(monkeypatch):
    """No encoder can be made as long as it is held: `with fails() as tried: …`, which counts."""

    @contextmanager
    def failing():
        tried = []

        def refuse(*_):
            tried.append(True)
            raise EncoderError("source.file-missing", file="/nowhere")

        with monkeypatch.context() as patch:
            patch.setattr(source, "find", refuse)
            yield tried

    return failing


def test_a_failure_is_over_with_the_next_picture_that_has_what_it_asks_for(loaded, deployment, fails):
    deployment.reconcile()
    loaded.options["sd3_text_encoder"] = "T5 FP4"
    with fails(), pytest.raises(EncoderError):
        deployment.change(undo=lambda stood: loaded.options.update(sd3_text_encoder="Host default"))
    assert "is not there" in deployment.status()["last_error"]["message"]
    deployment.reconcile()
    assert deployment.status()["last_error"] is None


def test_what_has_failed_for_a_page_is_not_what_its_next_picture_is_made_with(loaded, deployment, fails):
    assert (deployment.status()["next"], deployment.status()["failed"]) == ("Host default", [])
    with fails():
        deployment.reconcile("T5 FP4")
    status = deployment.status()
    assert (status["encoder"], status["next"], status["failed"]) == ("Host default", "Host default", ["T5 FP4"])
    assert "is not there" in status["last_error"]["message"]
    deployment.reconcile("T5 FP4")  # the next picture, with nothing changed
    assert deployment.status()["encoder"] == "Host default"
    deployment.reconcile()
    status = deployment.status()
    assert (status["failed"], status["last_error"]) == ([], None)
    deployment.reconcile("T5 FP4")  # asked for again it is tried again
    assert deployment.status()["encoder"] == "T5 FP4"


def test_pages_that_take_turns_do_not_try_what_has_failed_for_the_settings_each_time(loaded, deployment, fails):
    choose(deployment, "T5 NF4")
    loaded.options["sd3_text_encoder"] = "T5 FP4"
    with fails() as tried:
        deployment.reconcile()
    for _ in range(2):
        deployment.reconcile("T5 NF4")  # a page with an encoder of its own, which is there
        status = deployment.status()
        assert (status["encoder"], status["failed"], status["last_error"] is None) == ("T5 NF4", ["T5 FP4"], False)
        deployment.reconcile()
    assert len(tried) == 1
    choose(deployment, "T5 FP4")  # asked for anew
    assert (deployment.status()["encoder"], deployment.status()["failed"]) == ("T5 FP4", [])


def test_two_that_fail_by_turns_are_tried_once_each(loaded, deployment, monkeypatch):
    deployment.reconcile()
    loaded.options["sd3_text_encoder"] = "T5 FP4"
    tried = []

    def refuse(wanted, *_):
        tried.append(wanted.choice.name)
        raise EncoderError("source.file-missing", file="/nowhere")

    monkeypatch.setattr(deployment._making, "make", refuse)
    for _ in range(3):
        deployment.reconcile()
        deployment.reconcile("T5 Q4")
    assert tried == ["T5 FP4", "T5 Q4"]
    assert deployment.status()["failed"] == ["T5 FP4", "T5 Q4"]
    assert deployment.status()["next"] == "Host default"


def test_the_message_of_a_change_that_failed_stays_though_the_next_picture_is_as_before(loaded, deployment, fails):
    """It comes with the very next picture of a queue, and nobody would have read it."""
    deployment.reconcile()
    loaded.options["sd3_text_encoder"] = "T5 FP4"
    with fails(), pytest.raises(EncoderError):
        deployment.change(undo=lambda stood: loaded.options.update(sd3_text_encoder="Host default"))
    told = deployment.status()["last_error"]
    deployment.reconcile()
    assert (told is None, deployment.status()["last_error"], deployment.events.over) == (False, None, [])
    choose(deployment, "T5 Q4")
    assert len(deployment.events.over) == 1


def test_another_page_and_a_second_try_end_no_failure_of_the_settings(loaded, deployment, fails):
    deployment.reconcile()
    loaded.options["sd3_text_encoder"] = "T5 FP4"
    with fails():
        deployment.reconcile()
    deployment.reconcile("None (CLIP only)", page="another")
    with deployment.instead("T5 Q4") as there:
        assert there
    status = deployment.status()
    assert (status["failed"], status["last_error"] is None, deployment.events.over) == (["T5 FP4"], False, [])
    deployment.reconcile()  # the picture of a page that has chosen nothing is none of the other page
    assert (deployment.status()["encoder"], deployment.status()["failed"]) == ("Host default", ["T5 FP4"])


def test_pictures_of_another_page_end_no_failure_of_a_page_and_its_own_do(loaded, deployment, fails):
    with fails() as tried:
        for _ in range(3):
            deployment.reconcile("T5 Q4", page="one")
            deployment.reconcile(page="another")
    assert (len(tried), deployment.status()["failed"], deployment.events.over) == (1, ["T5 Q4"], [])
    assert deployment.status()["last_error"] is None  # of the server, whose pages are many
    deployment.reconcile(page="one")  # as in the settings
    assert (deployment.status()["failed"], len(deployment.events.over)) == ([], 1)


def test_a_model_that_comes_during_a_second_try_keeps_what_it_came_with(loaded, deployment, fails):
    loaded.options["sd3_text_encoder"] = "T5 FP4"
    with fails():
        deployment.reconcile()
    with deployment.instead("None (CLIP only)") as there:
        assert there
        with deployment.busy:
            deployment.encoder_for_load()
            deployment.reconcile()
        assert deployment.status()["encoder"] == "T5 FP4"
    status = deployment.status()
    assert (status["encoder"], status["failed"], status["last_error"]) == ("T5 FP4", [], None)
    assert deployment.reconcile() == Wanted(choices.find("fp4"))


def test_a_model_that_came_without_its_encoder_is_said_to_have_none(loaded, deployment, fails):
    loaded.options["sd3_text_encoder"] = "T5 FP4"
    with fails():
        assert deployment.encoder_for_load() == (True, None)
    loaded.pipe.text_encoder_3 = None
    count = deployment.events.count
    for _ in range(2):
        assert deployment.reconcile() == Wanted(choices.NONE)
    status = deployment.status()
    assert (status["encoder"], status["next"], status["failed"]) == ("None (CLIP only)", "None (CLIP only)", ["T5 FP4"])
    assert deployment.events.count == count
    assert deployment.reconcile("T5 Q4") == Wanted(choices.find("q4"))
    assert deployment.reconcile() == Wanted(choices.find("q4"))  # nothing else has stood


def test_what_fails_while_something_else_is_put_right_is_told(loaded, deployment, fails, monkeypatch):
    loaded.options["sd3_text_encoder"] = "T5 Q4"
    with fails():
        deployment.encoder_for_load()
    monkeypatch.setattr(changing.tokenizer, "usable", lambda *_: False)
    monkeypatch.setattr(changing.tokenizer, "find", lambda *_: (_ for _ in ()).throw(EncoderError("encoder.no-tokenizer")))
    encoder = deployment.encoder_for_load()[1]
    loaded.pipe.text_encoder_3 = encoder
    deployment.reconcile()
    assert deployment.status()["last_error"]["id"] == "encoder.no-tokenizer"


def test_the_load_of_a_model_that_has_failed_is_over_with_the_next_one(loaded, deployment):
    told = deployment.events.add("error", "rule.folder-incomplete", "It can not be loaded.", "", about="model")
    deployment.reconcile()  # with the model before
    assert (deployment.status()["last_error"], deployment.events.over) == (None, [])
    assert deployment.encoder_for_load() == (False, None)
    assert deployment.events.over == [told.seq]


@pytest.mark.parametrize("other", ["T5 NF4", None])
def test_what_the_settings_ask_for_in_vain_is_named_as_long_as_they_do(loaded, deployment, other):
    """The source of weights is not put back: pictures go on with what was there."""
    choose(deployment, "T5 NF4")
    loaded.options |= {"sd3_weights": "Local file", "sd3_weights_file": "/nowhere/t5.safetensors"}
    with pytest.raises(EncoderError, match="is not there"):
        deployment.change()
    for own in ("None (CLIP only)", other):
        deployment.reconcile(own)  # another page succeeds
        assert deployment.status()["left"] is True
    line = state_line(deployment.status())
    assert "which were not read" in line or "is not there" in line
    loaded.options |= {"sd3_weights": "Automatic", "sd3_weights_file": ""}
    assert deployment.status()["left"] is False


def test_the_next_picture_is_made_with_what_the_settings_ask_for_unless_that_has_failed(loaded, deployment, fails):
    choose(deployment, "T5 NF4")
    loaded.options["sd3_text_encoder"] = "T5 FP4"
    assert deployment.status()["next"] == "T5 FP4"
    with fails():
        deployment.reconcile()
    assert (deployment.status()["next"], deployment.status()["failed"]) == ("T5 NF4", ["T5 FP4"])


def test_a_failed_swap_leaves_none_where_there_was_none(loaded, deployment):
    choose(deployment, "None (CLIP only)")
    loaded.options |= {"sd3_weights": "Local file", "sd3_weights_file": "/nowhere/t5.safetensors"}
    with pytest.raises(EncoderError, match="is not there"):
        choose(deployment, "T5 FP4")
    assert loaded.pipe.text_encoder_3 is None
    assert deployment.status()["encoder"] == "None (CLIP only)"


def test_an_installation_that_is_cancelled_is_told_in_its_own_words(loaded, deployment, monkeypatch):
    def cancelled(*_):
        raise stopping.Stopped()

    monkeypatch.setattr(deps, "lack", lambda *_: deps.Lack(("bitsandbytes",)))
    monkeypatch.setattr(deps, "ensure", cancelled)
    with pytest.raises(stopping.Stopped) as caught:
        choose(deployment, "T5 FP4")
    assert deployment.events.since(0)[-1].message == str(caught.value)


def test_damaged_weights_leave_the_old_one_usable(loaded, deployment, tmp_path):
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
        assert until(lambda: deployment.events.since(0))
        assert deployment.events.since(0)[-1].id == "encoder.waiting"
        assert deployment.status()["encoder"] == "Host default"
    thread.join()
    assert deployment.status()["encoder"] == "T5 FP4"


class Asked:
    """A lock that tells when somebody wants it."""

    def __init__(self, lock):
        self.lock, self.asked = lock, threading.Event()

    def acquire(self, *words, **named):
        self.asked.set()
        return self.lock.acquire(*words, **named)

    def release(self):
        self.lock.release()

    def __enter__(self):
        return self.acquire()

    def __exit__(self, *_):
        self.release()


def test_of_several_changes_that_wait_only_the_last_is_loaded_and_told(loaded, deployment):
    threads = []
    with loaded.lock:
        for number, name in enumerate(("T5 FP4", "T5 FP8", "T5 NF4"), 1):
            loaded.options["sd3_text_encoder"] = name
            threads.append(threading.Thread(target=deployment.change))
            threads[-1].start()
            assert until(lambda: told(deployment, "info").count("encoder.waiting") == number)  # noqa: B023
    for thread in threads:
        thread.join()
    status = deployment.status()
    assert status["encoder"] == status["wanted"] == "T5 NF4"
    assert [about for _, about, _ in loaded.jobs] == ["T5 NF4"]
    assert [event.message[:6] for event in deployment.events.since(0) if event.severity == "success"] == ["T5 NF4"]


def test_a_picture_that_waits_for_a_model_takes_what_is_wanted_when_it_is_there(loaded, deployment):
    model = Loading(deployment)
    loaded.options["sd3_text_encoder"] = "T5 FP4"
    job, results = begin(deployment.reconcile)
    assert until(lambda: "encoder.waiting-model" in told(deployment, "info"))
    loaded.options["sd3_text_encoder"] = "T5 FP8"
    model.finish()
    join(job)
    assert results == [Wanted(choices.find("fp8"))]
    assert loaded.swaps == 1


def test_a_changed_source_is_cancelled_before_its_load_begins(loaded, deployment):
    choose(deployment, "T5 FP4")
    loaded.options["sd3_weights"] = "Model"
    thread = deployment.later(lambda choice: None).ask()
    assert deployment.loading
    assert deployment.cancel()
    join(thread)
    assert deployment.placed(loaded.pipe).weights == "Automatic"
    last = deployment.events.since(0)[-1]
    assert (last.id, last.message[:66]) == ("encoder.cancelled", "Loading T5 FP4 was cancelled. T5 FP4 is still in use. The new sour")
    assert not deployment.loading
    assert deployment.reconcile() == Wanted(choices.find("fp4"))
    assert len(loaded.jobs) == 1


def settle(deployment, name, **source):
    """As the settings do it: what is refused or cancelled is put back, but for the source."""
    deployment.host.options |= {"sd3_text_encoder": name, **source}
    deployment.change(undo=lambda stood: deployment.host.options.update(sd3_text_encoder=stood.choice.name))


def test_a_picture_that_has_waited_for_a_change_that_is_cancelled_is_made_with_what_was_there(loaded, deployment):
    settle(deployment, "T5 FP4")
    pictures = []

    def make():
        with loaded.lock:
            return deployment.reconcile()

    def press(job):
        loaded.press = job.press = lambda job: None  # once
        pictures.append(begin(make))
        deployment.cancel()

    loaded.press = press
    with pytest.raises(Stopped):
        settle(deployment, "T5 NF4")
    ((picture, results),) = pictures
    join(picture)
    assert results == [Wanted(choices.find("fp4"))]
    assert [about for _, about, _ in loaded.jobs] == ["T5 FP4", "T5 NF4"]


@pytest.mark.parametrize("source", [{"sd3_weights": "Model"}, {"sd3_weights": "Local file", "sd3_weights_file": "/nowhere/t5.gguf"}])
def test_a_source_whose_change_came_to_nothing_stays_set_and_no_picture_reads_from_it(loaded, deployment, source):
    settle(deployment, "T5 FP4")
    loaded.press = lambda job: deployment.cancel()
    with pytest.raises(EncoderError):
        settle(deployment, "T5 NF4", **source)
    loaded.press = lambda job: None
    assert "T5 FP4 is still in use. The new source of weights stays in the settings" in deployment.events.since(0)[-1].message
    count = len(loaded.jobs)
    assert deployment.reconcile() == Wanted(choices.find("fp4"))
    assert len(loaded.jobs) == count
    assert deployment.reconcile("none") == Wanted(choices.NONE)
    assert deployment.reconcile() == Wanted(choices.find("fp4"))  # from where it was read before
    loaded.options["sd3_weights"] = "Model"
    choose(deployment, "T5 NF4")
    assert deployment.placed(loaded.pipe) == Wanted(choices.find("nf4"), "Model")
    assert deployment.encoder_for_load()[0]


def test_a_source_and_an_encoder_that_are_applied_at_once_are_one_change(loaded, deployment):
    settle(deployment, "T5 FP4")
    said, later = [], deployment.later(lambda choice: None)

    def press(job):
        loaded.press = job.press = lambda job: None  # once
        join(thread)  # it does not wait for the change that brings the same
        said.append(deployment.status()["busy"])

    loaded.press = press
    loaded.options["sd3_weights"] = "Model"
    thread = later.ask()
    assert deployment.status()["busy"] == "Loading T5 FP4…"  # not that it comes with the next picture
    settle(deployment, "T5 NF4")
    assert said == ["Loading T5 NF4…"]
    assert told(deployment, "info").count("encoder.loading") == 2
    assert "encoder.waiting" not in told(deployment, "info")
    assert deployment.placed(loaded.pipe) == Wanted(choices.find("nf4"), "Model")


def test_a_change_during_another_one_is_said_to_come_next_while_the_first_is_shown(loaded, deployment):
    said, changes = [], []

    def press(job):
        loaded.press = job.press = lambda job: None  # once
        loaded.options["sd3_text_encoder"] = "T5 FP8"
        changes.append(begin(deployment.change))
        assert until(lambda: "encoder.waiting-change" in told(deployment, "info"))
        said.append(deployment.status()["busy"])

    loaded.press = press
    choose(deployment, "T5 NF4")
    join(changes[0][0])
    assert said == ["Loading T5 NF4…"]
    assert deployment.status()["encoder"] == "T5 FP8"


def test_a_changed_source_that_is_not_allowed_is_not_loaded_by_the_next_picture_either(loaded, deployment):
    choose(deployment, "T5 FP4")
    loaded.options["sd3_weights"] = "Model"

    def allow(choice):
        raise EncoderError("memory.encoder", name=choice.name, verdict="", remedy="")

    join(deployment.later(allow).ask())
    assert told(deployment, "error") == ["memory.encoder"]
    assert deployment.reconcile() == deployment.reconcile() == Wanted(choices.find("fp4"))
    join(deployment.later(lambda choice: None).ask())
    assert deployment.placed(loaded.pipe).weights == "Model"


@pytest.mark.parametrize("name", ["T5 FP4", "T5 Q4", "T5 BF16", "Host default"])
def test_an_encoder_that_is_changed_in_inference_mode_is_like_any_other(loaded, deployment, name):
    choose(deployment, "T5 FP8")
    with torch.inference_mode():
        deployment.reconcile(name)
        assert deployment.placed(loaded.pipe).choice.name == name
        assert not [tensor for tensor in loaded.pipe.text_encoder_3.parameters() if tensor.is_inference()]
        assert picture(loaded).shape == (64, 64, 3)
    assert picture(loaded).shape == (64, 64, 3)
    assert told(deployment, "error") == []


def test_a_change_waits_for_a_model_that_is_being_loaded(loaded, deployment):
    pipeline, loaded.pipe = loaded.pipe, None
    loaded.options["sd3_text_encoder"] = "T5 FP4"
    with deployment.busy:  # as the hook around the host's loader holds it
        deployment.busy = lock = Asked(deployment.busy)
        thread = threading.Thread(target=deployment.change)
        thread.start()
        assert lock.asked.wait()
        loaded.pipe = pipeline
    thread.join()
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


@pytest.mark.parametrize(("value", "id"), [("T5 NF4 + INT8", "q5"), ("NF4-int8", "q5"), ("T5 UINT4 (SDNQ)", "q4"), ("uint4", "q4")])
def test_a_former_choice_is_answered_with_what_took_its_place_and_one_sentence(loaded, deployment, value, id):
    new = choices.find(id)
    loaded.options["sd3_text_encoder"] = value
    assert deployment.reconcile() == deployment.reconcile() == deployment.reconcile(value) == Wanted(new)
    assert deployment.status()["wanted"] == deployment.status()["encoder"] == new.name
    (told,) = [event for event in deployment.events.since(0) if event.id == "setting.encoder-gone"]
    assert (told.severity, told.remedy) == ("warning", "")
    assert told.message.endswith(f"{new.name} has taken its place.")
    with pytest.raises(SettingError, match=f"Choose {new.name}"):  # whoever sets it now is told
        deployment.change()


def test_a_missing_tokenizer_is_read_from_the_model(loaded, deployment):
    choose(deployment, "None (CLIP only)")
    loaded.pipe.tokenizer_3 = None
    choose(deployment, "T5 FP4")
    assert loaded.pipe.tokenizer_3 is not None
    assert picture(loaded).shape == (64, 64, 3)


@pytest.mark.parametrize("kind", ["Automatic", "Model", "Shared repository"])
def test_the_package_of_gguf_is_installed_for_a_folder_too(loaded, deployment, tmp_path, monkeypatch, kind):
    model = shutil.copytree(loaded.folder, tmp_path / "model", ignore=shutil.ignore_patterns("text_encoder_3"))
    state = loaded.pipe.text_encoder_3.state_dict()
    state.pop("encoder.embed_tokens.weight", None)
    (model / "text_encoder_3").mkdir()
    shutil.copy(loaded.folder / "text_encoder_3" / "config.json", model / "text_encoder_3")
    gguf_files.write(model / "text_encoder_3" / "t5.gguf", state, "Q8_0")
    shared = (str(model), {"subfolder": "text_encoder_3"}) if kind == "Shared repository" else None
    monkeypatch.setattr(loaded, "facts", lambda: source.Facts(str(model), shared, offline=True))
    installed = []
    monkeypatch.setattr(deps, "lack", lambda groups, _: deps.Lack(tuple(groups)))
    monkeypatch.setattr(deps, "ensure", lambda groups, options: installed.append(groups))
    loaded.options["sd3_weights"] = kind
    choose(deployment, "T5 Q8")
    assert ("gguf",) in installed


@pytest.fixture
def without(loaded, tmp_path, monkeypatch):
    """A model that came without T5 and its tokenizer, on a host that ships one."""
    model = shutil.copytree(loaded.folder, tmp_path / "model", ignore=shutil.ignore_patterns("text_encoder_3", "tokenizer_3"))
    monkeypatch.setattr(loaded, "facts", lambda: source.Facts(str(model), offline=True, tokenizer=str(loaded.folder)))
    loaded.pipe.text_encoder_3 = loaded.pipe.tokenizer_3 = None
    return loaded


def differ(pipe):
    """Whether two prompts are two for T5."""
    a, b = (pipe._get_t5_prompt_embeds(text, max_sequence_length=77, device="cpu") for text in ("a red cat", "the blue world"))
    return not torch.equal(a, b)


def test_prompts_count_with_a_folder_of_weights_that_has_no_tokenizer(without, deployment):
    without.options |= {"sd3_weights": "Local file", "sd3_weights_file": str(without.folder / "text_encoder_3")}
    choose(deployment, "T5 Q8")
    assert differ(without.pipe)


def test_prompts_count_after_a_tokenizer_without_words(loaded, deployment):
    import transformers

    loaded.pipe.tokenizer_3 = transformers.T5TokenizerFast()
    choose(deployment, "T5 Q8")
    assert differ(loaded.pipe)


def test_the_hosts_own_t5_gets_a_tokenizer_too(without, deployment):
    choose(deployment, "None (CLIP only)")
    choose(deployment, "Host default")
    assert without.pipe.text_encoder_3 is not None
    assert picture(without).shape == (64, 64, 3)


def test_no_t5_comes_where_nothing_has_its_tokenizer(without, deployment, monkeypatch, tmp_path):
    monkeypatch.setattr(without, "facts", lambda: source.Facts(str(tmp_path / "model"), offline=True))
    choose(deployment, "None (CLIP only)")
    with pytest.raises(EncoderError) as caught:
        choose(deployment, "Host default")
    assert caught.value.id == "encoder.no-tokenizer"
    assert picture(without).shape == (64, 64, 3)


def test_a_model_that_is_loaded_around_our_encoder_gets_a_tokenizer(without, deployment):
    without.options |= {"sd3_text_encoder": "T5 Q8", "sd3_weights": "Local file"}
    without.options["sd3_weights_file"] = str(without.folder / "text_encoder_3")
    with deployment.busy:
        ours, without.pipe.text_encoder_3 = deployment.encoder_for_load()
        assert deployment.reconcile().choice.name == "T5 Q8"
    assert ours
    assert differ(without.pipe)


def test_the_output_is_that_of_the_encoder(loaded, deployment):
    """Not only does a picture come out: the prompt embeddings are close to those of the full encoder."""
    with torch.no_grad():
        full = loaded.pipe._get_t5_prompt_embeds("a cat", device="cpu")
        choose(deployment, "T5 BF16")
        ours = loaded.pipe._get_t5_prompt_embeds("a cat", device="cpu")
    assert torch.nn.functional.cosine_similarity(full.flatten(), ours.float().flatten(), dim=0) > 0.999


# From disk, from the cache, and the way back


@pytest.fixture
def cached(loaded, tmp_path):
    """The host with a cache of encoders, and a model of its own whose weights a test may change."""
    shutil.copytree(loaded.folder, tmp_path / "model")
    loaded.folder = tmp_path / "model"
    loaded.kept = Cache(tmp_path / "kept")
    yield loaded
    stored()


def stored():
    """Wait for what is written in the background."""
    if thread := load.writing():
        thread.join()


def weights(folder):
    return next((folder / "text_encoder_3").glob("*.safetensors"))


def embeds(host):
    with torch.no_grad():
        return host.pipe._get_t5_prompt_embeds("a cat", device="cpu")


def told(deployment, severity):
    return [event.id for event in deployment.events.since(0) if event.severity == severity]


def test_there_and_back_again_reads_no_weights_a_second_time(cached, deployment, monkeypatch):
    outputs = {}
    for name in ("T5 FP4", "T5 NF4", "T5 FP8"):
        choose(deployment, name)
        assert "Loaded in " in deployment.events.since(0)[-1].message
        outputs[name] = embeds(cached)
        stored()
    assert told(deployment, "info").count("cache.written") == 3
    read = []
    real = load.quantize
    monkeypatch.setattr(load, "quantize", lambda *values: read.append(values) or real(*values))
    for name in ("T5 FP4", "T5 NF4", "T5 FP8", "T5 FP4"):
        choose(deployment, name)
        assert "Loaded from the cache in" in deployment.events.since(0)[-1].message
        assert torch.equal(embeds(cached), outputs[name])
    assert len(cached.kept.entries()) == 3
    assert read == []
    choose(deployment, "T5 BF16")  # is not kept
    assert len(read) == 1


def _changed_in_place(file, put_back):
    """As a program does it that writes into a file that is mapped, or a disk; with `put_back` the time of it is that of before."""
    times = file.stat()
    with open(file, "r+b") as content:
        content.seek(-64, os.SEEK_END)
        content.write(os.urandom(64))
    if put_back:
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.mark.parametrize("put_back", [False, pytest.param(True, marks=pytest.mark.skipif(os.name == "nt", reason="no time of change"))])
def test_a_file_of_the_cache_that_is_changed_while_it_is_in_use(cached, deployment, put_back):
    choose(deployment, "T5 FP8")
    stored()
    choose(deployment, "None (CLIP only)")
    choose(deployment, "T5 FP8")
    assert "Loaded from the cache in" in deployment.events.since(0)[-1].message
    assert deployment.status()["encoder_warning"] is None
    before = embeds(cached)
    entry = cached.kept.entries()[0]
    _changed_in_place(entry.folder / "model.safetensors", put_back)
    for _ in range(2):
        found = deployment.status()["encoder_warning"]
        assert found["id"] == "encoder.changed-on-disk"
        assert str(entry.folder) in found["message"]
        assert "T5 FP8" in found["message"]
        assert found["remedy"]
    assert told(deployment, "warning").count("encoder.changed-on-disk") == 1
    choose(deployment, "None (CLIP only)")
    assert deployment.status()["encoder_warning"] is None
    choose(deployment, "T5 FP8")
    assert told(deployment, "warning").count("cache.damaged") == 1
    assert deployment.status()["encoder_warning"] is None
    assert torch.equal(embeds(cached), before)


def test_a_file_of_the_model_that_is_changed_while_it_is_in_use(cached, deployment):
    from safetensors.torch import load_file, save_file

    file = weights(cached.folder)
    save_file({name: tensor.bfloat16() for name, tensor in load_file(file).items()}, file, {"format": "pt"})
    choose(deployment, "T5 BF16")
    assert deployment.status()["encoder_warning"] is None
    _changed_in_place(file, False)
    assert str(file) in deployment.status()["encoder_warning"]["message"]


def test_a_file_that_is_removed_or_replaced_is_as_it_was_for_whoever_has_mapped_it(cached, deployment):
    choose(deployment, "T5 FP8")
    stored()
    choose(deployment, "None (CLIP only)")
    choose(deployment, "T5 FP8")
    before = embeds(cached)
    file = cached.kept.entries()[0].folder / "model.safetensors"
    (file.parent / "other").write_bytes(os.urandom(file.stat().st_size))
    os.replace(file.parent / "other", file)
    assert deployment.status()["encoder_warning"] is None
    file.unlink()
    assert deployment.status()["encoder_warning"] is None
    assert torch.equal(embeds(cached), before)


def test_an_encoder_that_was_copied_out_of_its_file_does_not_mind(cached, deployment):
    choose(deployment, "T5 FP8")
    stored()
    choose(deployment, "None (CLIP only)")
    choose(deployment, "T5 FP8")
    encoder = cached.pipe.text_encoder_3
    for module in encoder.modules():
        for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if tensor is not None:
                setattr(module, name, type(tensor)(tensor.clone(), requires_grad=False) if name in module._parameters else tensor.clone())
    _changed_in_place(cached.kept.entries()[0].folder / "model.safetensors", False)
    assert deployment.status()["encoder_warning"] is None


def test_another_file_is_never_answered_from_the_cache(cached, deployment):
    choose(deployment, "T5 FP4")
    stored()
    choose(deployment, "None (CLIP only)")
    file = weights(cached.folder)
    os.utime(file, ns=(0, file.stat().st_mtime_ns + 1))
    choose(deployment, "T5 FP4")
    assert "Loaded in " in deployment.events.since(0)[-1].message


def test_the_old_encoder_makes_pictures_while_the_next_one_is_read(cached, deployment):
    choose(deployment, "T5 FP4")
    old = cached.pipe.text_encoder_3
    seen = []
    cached.press = lambda job: seen.append((cached.pipe.text_encoder_3 is old, picture(cached).shape)) if not seen else None
    choose(deployment, "T5 NF4")
    assert seen == [(True, (64, 64, 3))]
    assert cached.pipe.text_encoder_3 is not old


def test_how_far_it_is_can_be_asked_at_any_time(cached, deployment):
    asked = []
    cached.press = lambda job: asked.append((deployment.status()["progress"], deployment.loading))
    choose(deployment, "T5 FP4")
    reports = cached.jobs[-1][2].reports
    total = open_weights(source.find("Automatic", cached.facts())).size
    assert reports == sorted(reports)
    assert len(reports) > 10
    assert reports[-1] == (total, total)
    assert [(found["done"], found["total"]) for found, _ in asked] == reports
    assert asked[-1] == ({"done": total, "total": total, "fraction": 1.0, "text": f"{units.size(total)} of {units.size(total)}"}, True)
    assert (deployment.status()["progress"], deployment.loading) == (None, False)


@pytest.mark.parametrize("way", ["cancel", "the host's own Stop"])
@pytest.mark.parametrize("name", ["T5 NF4", "T5 FP8"])
def test_a_load_that_is_cancelled_leaves_everything_as_it_was(cached, deployment, name, way):
    choose(deployment, "T5 FP4")
    stored()
    old, before = cached.pipe.text_encoder_3, embeds(cached)

    def press(job):
        if way == "cancel":
            assert deployment.cancel()
        else:
            job.stop = True

    cached.press = press
    with pytest.raises(Stopped):
        choose(deployment, name)
    assert len(cached.jobs[-1][2].reports) < 10  # in the middle
    assert cached.pipe.text_encoder_3 is old
    assert torch.equal(embeds(cached), before)
    last = deployment.events.since(0)[-1]
    assert (last.severity, last.id) == ("info", "encoder.cancelled")
    assert last.message == f"Loading {name} was cancelled. T5 FP4 is still in use."
    status = deployment.status()
    assert (status["encoder"], status["busy"], status["progress"], status["last_error"]) == ("T5 FP4", None, None, None)
    assert not deployment.cancel()  # nothing is under way
    assert len(cached.kept.entries()) == 1
    cached.press = lambda job: None
    choose(deployment, name)
    assert deployment.status()["encoder"] == name


def test_a_change_that_waits_for_the_running_job_can_be_cancelled(loaded, deployment):
    with loaded.lock:
        loaded.options["sd3_text_encoder"] = "T5 FP4"
        failed = []

        def change():
            try:
                deployment.change()
            except Stopped as error:
                failed.append(error.id)

        thread = threading.Thread(target=change)
        thread.start()
        assert until(lambda: "as soon as the running job is done" in (deployment.status()["busy"] or ""))
        assert deployment.cancel()
        thread.join()
        assert failed == ["encoder.cancelled"]
    assert deployment.status()["busy"] is None


def test_a_load_within_the_load_of_a_model_that_is_cancelled_leaves_clip(cached, deployment):
    cached.options["sd3_text_encoder"] = "T5 FP4"
    cached.press = lambda job: deployment.cancel()
    assert deployment.encoder_for_load() == (True, None)
    assert [event.id for event in deployment.events.since(0)][-2:] == ["encoder.cancelled", "encoder.without-t5"]
    cached.press = lambda job: None
    deployment.reconcile()  # with every picture: whoever has cancelled it is not asked again
    assert deployment.status()["encoder"] == "Host default"
    deployment.change()
    assert deployment.status()["encoder"] == "T5 FP4"


def test_a_picture_whose_encoder_is_cancelled_hears_of_it_and_the_next_one_tries_again(cached, deployment):
    cached.options["sd3_text_encoder"] = "T5 FP4"
    cached.press = lambda job: deployment.cancel()
    heard = []
    assert deployment.reconcile(stopped=lambda: heard.append(True)) == Wanted(choices.HOST_DEFAULT)
    assert heard == [True]
    cached.press = lambda job: None
    assert deployment.reconcile() == Wanted(choices.find("fp4"))


def test_without_a_cache_nothing_is_written(cached, deployment, tmp_path):
    cached.kept = None
    before = sorted(tmp_path.rglob("*"))
    for name in ("T5 FP4", "T5 NF4", "T5 FP4"):
        choose(deployment, name)
    stored()
    assert sorted(tmp_path.rglob("*")) == before


def test_a_cache_that_can_not_be_written_is_complained_about_once_and_everything_works(cached, deployment, tmp_path):
    (tmp_path / "file").touch()
    cached.kept = Cache(tmp_path / "file" / "folder")
    for name in ("T5 FP4", "T5 NF4", "T5 FP4"):
        choose(deployment, name)
        stored()
        assert picture(cached).shape == (64, 64, 3)
    warnings = [event for event in deployment.events.since(0) if event.severity == "warning"]
    assert [event.id for event in warnings] == ["cache.unwritable"]
    assert str(tmp_path / "file" / "folder") in warnings[0].message
    assert "sd3_cache_folder" in warnings[0].remedy
    assert deployment.status()["last_error"] is None


def test_a_damaged_entry_is_told_and_made_anew(cached, deployment):
    choose(deployment, "T5 FP4")
    stored()
    before = embeds(cached)
    choose(deployment, "None (CLIP only)")
    file = cached.kept.entries()[0].folder / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-100] ^= 1
    file.write_bytes(content)
    choose(deployment, "T5 FP4")
    stored()
    assert told(deployment, "warning") == ["cache.damaged"]
    assert torch.equal(embeds(cached), before)
    assert [one.damage(hashed=True) for one in cached.kept.entries()] == [None]


# Memory that does not hold two


def test_where_memory_holds_only_one_the_old_one_goes_first(cached, deployment):
    choose(deployment, "T5 FP8")
    old, seen = weakref.ref(cached.pipe.text_encoder_3), []
    cached.memory = TIGHT
    cached.press = lambda job: seen.append((cached.pipe.text_encoder_3, old(), deployment.status()["encoder"]))
    choose(deployment, "T5 FP4")
    assert seen[0] == (None, None, "None (CLIP only)")
    assert deployment.status()["encoder"] == "T5 FP4"
    assert picture(cached).shape == (64, 64, 3)


def test_what_comes_from_the_cache_takes_no_memory_that_would_have_to_be_freed(cached, deployment):
    choose(deployment, "T5 FP4")
    stored()
    choose(deployment, "T5 NF4")
    old, seen = cached.pipe.text_encoder_3, []
    cached.memory = TIGHT
    cached.press = lambda job: seen.append(cached.pipe.text_encoder_3 is old)
    choose(deployment, "T5 FP4")
    assert set(seen) == {True}


@pytest.mark.parametrize("kept", [True, False], ids=["from the cache", "from its source"])
def test_an_encoder_that_had_to_go_comes_back_when_nothing_comes_of_the_next(cached, deployment, kept):
    cached.kept = cached.kept if kept else None
    choose(deployment, "T5 FP8")
    stored()
    before = embeds(cached)
    cached.memory = TIGHT
    cached.press = lambda job: deployment.cancel()
    with pytest.raises(Stopped):
        choose(deployment, "T5 FP4")
    assert deployment.status()["encoder"] == "T5 FP8"
    assert torch.equal(embeds(cached), before)
    assert told(deployment, "warning") == told(deployment, "error") == []


def test_when_not_even_the_old_one_can_be_loaded_again_clip_remains_and_it_is_said(cached, deployment):
    cached.kept = None
    choose(deployment, "T5 FP8")
    cached.memory = TIGHT

    def press(job):
        weights(cached.folder).unlink()
        raise MemoryError

    cached.press = press
    with pytest.raises(EncoderError, match="not enough memory"):
        choose(deployment, "T5 FP4")
    assert told(deployment, "warning") == ["encoder.gone"]
    assert deployment.status()["encoder"] == "None (CLIP only)"
    assert picture(cached).shape == (64, 64, 3)
    cached.options["sd3_text_encoder"] = "T5 FP8"  # as the host puts it back
    deployment.reconcile()
    count = len(deployment.events.since(0))
    deployment.reconcile()
    assert len(deployment.events.since(0)) == count  # tried once more, and not again with every picture


def test_what_the_settings_want_is_there_again_with_the_next_picture_when_a_second_try_and_the_way_back_failed(cached, deployment):
    """As where memory runs out: what does not fit then does so soon after."""
    cached.kept = None
    choose(deployment, "T5 FP8")
    cached.memory = TIGHT

    def press(job):
        raise MemoryError

    cached.press = press
    with deployment.instead("T5 FP4") as there:
        assert not there
        assert deployment.status()["encoder"] == "None (CLIP only)"
    assert deployment.status()["encoder"] == "None (CLIP only)"
    cached.press = lambda job: None
    assert deployment.reconcile() == Wanted(choices.find("fp8"))


def test_another_encoder_for_a_while_is_there_and_then_the_one_of_the_job_again(loaded, deployment):
    loaded.options["sd3_text_encoder"] = "T5 FP8"
    deployment.reconcile("T5 NF4")  # as a job may ask for
    with deployment.instead("T5 FP4") as there:
        assert there
        assert deployment.status()["encoder"] == "T5 FP4"
    assert deployment.status()["encoder"] == "T5 NF4"
    loaded.refuses = RuntimeError("no such device")
    with deployment.instead("T5 FP4") as there:
        assert not there
    assert deployment.status()["encoder"] == "T5 NF4"


@pytest.fixture
def on_device(monkeypatch):
    """As if encoders lay on a device of their own; where none is, all that is missing are the bytes."""
    monkeypatch.setattr(handover, "_on_cpu", lambda module: False)
    return capacity.Capacity("cuda", total=2**30, usable=1, ram_total=2**40, ram_usable=2**40)


def test_where_the_device_holds_only_one_the_old_one_waits_in_ram_and_is_usable_again_when_nothing_comes_of_the_next(
    cached, deployment, on_device, monkeypatch
):
    choose(deployment, "T5 FP8")
    old, before = cached.pipe.text_encoder_3, embeds(cached)
    moves = []
    monkeypatch.setattr(old, "to", lambda device: moves.append(str(device)))
    cached.memory, cached.refuses = on_device, torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
    with pytest.raises(EncoderError, match="not enough memory"):
        choose(deployment, "T5 FP4")
    assert moves == ["cpu", str(next(old.parameters()).device)]
    assert cached.pipe.text_encoder_3 is old
    assert torch.equal(embeds(cached), before)
    cached.refuses = None
    choose(deployment, "T5 FP4")
    assert deployment.status()["encoder"] == "T5 FP4"


def test_where_neither_the_device_nor_ram_holds_both_the_old_one_goes_before_the_next_is_placed(cached, deployment, on_device):
    choose(deployment, "T5 FP8")
    old, seen = weakref.ref(cached.pipe.text_encoder_3), []
    cached.memory = dataclasses.replace(on_device, ram_usable=0)  # not known
    swapped = cached.swapped
    cached.swapped = lambda pipeline: (swapped(pipeline), gc.collect(), seen.append((deployment.status()["encoder"], old())))
    choose(deployment, "T5 FP4")
    assert seen[-1] == ("T5 FP4", None)
    assert [encoder for encoder, _ in seen] == ["None (CLIP only)", "T5 FP4"]


# Every pipeline of the model


def another_task(host):
    import diffusers

    parts = {name: part for name, part in host.pipe.components.items() if name not in ("image_encoder", "feature_extractor")}
    return diffusers.StableDiffusion3Img2ImgPipeline(**parts)


@pytest.mark.parametrize("name", ["T5 FP4", "None (CLIP only)", "Host default"])
def test_a_pipeline_of_another_task_changes_too_and_a_job_of_it_gives_the_encoder_back(loaded, deployment, name):
    choose(deployment, "T5 NF4")
    base, loaded.pipe = loaded.pipe, another_task(loaded)  # as Control does for a job
    old = weakref.ref(base.text_encoder_3)
    deployment.reconcile(name)
    gc.collect()
    assert base.text_encoder_3 is loaded.pipe.text_encoder_3
    assert old() is None
    loaded.pipe = base
    assert deployment.placed(base).choice.name == name
    deployment.reconcile()
    assert deployment.placed(base).choice.name == "T5 NF4"
    assert told(deployment, "warning") == []


def test_what_fails_leaves_the_old_one_in_every_pipeline(loaded, deployment):
    choose(deployment, "T5 NF4")
    other, encoder = another_task(loaded), loaded.pipe.text_encoder_3
    loaded.refuses = RuntimeError("no such device")
    with pytest.raises(RuntimeError):
        choose(deployment, "T5 FP4")
    assert loaded.pipe.text_encoder_3 is other.text_encoder_3 is encoder


def test_where_memory_holds_only_one_it_leaves_every_pipeline_and_comes_back_to_every_one(cached, deployment):
    choose(deployment, "T5 FP8")
    other, seen = another_task(cached), []
    cached.memory = TIGHT
    cached.press = lambda job: (seen.append((cached.pipe.text_encoder_3, other.text_encoder_3)), deployment.cancel())
    with pytest.raises(Stopped):
        choose(deployment, "T5 FP4")
    assert seen[0] == (None, None)
    assert other.text_encoder_3 is cached.pipe.text_encoder_3 is not None
    assert (deployment.status()["encoder"], told(deployment, "warning")) == ("T5 FP8", [])


def test_who_still_holds_the_old_one_is_named_once(loaded, deployment):
    class Hoarder:
        def __init__(self, encoder):
            self.mine = encoder

    choose(deployment, "T5 NF4")
    first = Hoarder(loaded.pipe.text_encoder_3)
    choose(deployment, "T5 FP4")
    second = Hoarder(loaded.pipe.text_encoder_3)
    choose(deployment, "T5 NF4")
    warnings = [event for event in deployment.events.since(0) if event.severity == "warning"]
    assert [event.id for event in warnings] == ["encoder.kept-alive"]
    assert "T5 NF4" in warnings[0].message
    assert "Hoarder" in warnings[0].message
    assert first.mine is not second.mine


def test_an_encoder_that_the_host_has_compiled_is_still_ours(loaded, deployment):
    choose(deployment, "T5 FP4")
    before = deployment.status()
    loaded.pipe.text_encoder_3 = torch.compile(loaded.pipe.text_encoder_3, backend="eager")
    assert deployment.placed(loaded.pipe) == Wanted(choices.find("fp4"))
    assert deployment.reconcile() == Wanted(choices.find("fp4"))
    assert loaded.swaps == 1
    after = deployment.status()
    assert [after[key] for key in ("encoder", "linear4bit", "t5_bytes")] == [before[key] for key in ("encoder", "linear4bit", "t5_bytes")]
    old = weakref.ref(loaded.pipe.text_encoder_3._orig_mod)
    choose(deployment, "T5 NF4")
    gc.collect()
    assert old() is None
    assert picture(loaded).shape == (64, 64, 3)


# What comes after the change stands


def fail(*_, **__):
    raise AttributeError("module 'devices' has no attribute 'torch_gc'")


def failing_job(deployment, monkeypatch):
    @contextmanager
    def job(title, about):
        yield Job(lambda job: None)
        fail()

    monkeypatch.setattr(deployment.host, "job", job)


AFTERWARDS = {
    "the memory of the old one": lambda deployment, patch: patch.setattr(deployment.host, "free", fail),
    "the host's job": failing_job,
    "who holds the old one": lambda deployment, patch: patch.setattr("sd3deploy.encoders.swap.kept_by", fail),
    "what it takes": lambda deployment, patch: patch.setattr(deployment._placed, "tell_ready", fail),
    "the host's log": lambda deployment, patch: patch.setattr(deployment.events, "_listen", fail),
}


@pytest.mark.parametrize("what", AFTERWARDS)
@pytest.mark.parametrize("way", ["setting", "job", "load"])
def test_what_fails_after_the_change_is_told_and_the_change_stands(loaded, deployment, monkeypatch, what, way):
    held = [loaded.pipe.text_encoder_3]
    AFTERWARDS[what](deployment, monkeypatch)
    if way == "setting":
        choose(deployment, "T5 FP4")
    elif way == "job":
        assert deployment.reconcile("T5 FP4") == Wanted(choices.find("fp4"))
    else:
        loaded.options["sd3_text_encoder"] = "T5 FP4"
        ours, loaded.pipe.text_encoder_3 = deployment.encoder_for_load()
        assert ours
    assert deployment.placed(loaded.pipe) == Wanted(choices.find("fp4"))
    assert measure.measure(loaded.pipe.text_encoder_3).linear4bit > 0
    assert picture(loaded).shape == (64, 64, 3)
    assert deployment.status()["busy"] is None
    silent = what == "the host's log" or (way == "load" and what in ("the memory of the old one", "who holds the old one"))
    assert ("encoder.afterwards" in told(deployment, "warning")) != silent
    assert deployment.busy.acquire(0)
    deployment.busy.release()
    assert loaded.lock.acquire(blocking=False)
    assert held[0] is not loaded.pipe.text_encoder_3


def test_a_step_that_fails_while_the_old_one_makes_room_costs_nothing(cached, deployment, monkeypatch):
    choose(deployment, "T5 FP8")
    cached.memory = TIGHT
    monkeypatch.setattr(cached, "free", fail)
    choose(deployment, "T5 FP4")
    assert deployment.status()["encoder"] == "T5 FP4"
    cached.press = lambda job: deployment.cancel()
    with pytest.raises(Stopped):
        choose(deployment, "T5 NF4")
    assert deployment.status()["encoder"] == "T5 FP4"
    assert set(told(deployment, "warning")) == {"encoder.afterwards"}


# Who waits for whom


class Loading:
    """The host's own load of a model on a thread of its own, as at its start. pipeline: what it has loaded when it ends."""

    def __init__(self, deployment, work=lambda: None):
        self.deployment, self.work = deployment, work
        self.begun, self.end = threading.Event(), threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()
        assert self.begun.wait(60)

    def _run(self):
        with self.deployment.busy:
            self.begun.set()
            assert self.end.wait(60)
            self.work()

    def finish(self):
        self.end.set()
        self.thread.join(60)
        assert not self.thread.is_alive()


def begin(work):
    """The work on a thread of its own: (the thread, what it has returned or raised)."""
    results = []

    def run():
        try:
            results.append(work())
        except Exception as error:
            results.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, results


def join(thread):
    thread.join(60)
    assert not thread.is_alive()


def test_the_queue_is_free_while_a_change_waits_for_a_model(loaded, deployment):
    model = Loading(deployment)
    loaded.options["sd3_text_encoder"] = "T5 FP4"
    change, results = begin(deployment.change)
    assert until(lambda: "encoder.waiting-model" in told(deployment, "info"))
    for _ in range(3):  # a picture, a job of the API, a token counter
        with loaded.lock:
            assert picture(loaded).shape == (64, 64, 3)
            assert deployment.status()["busy"] == "T5 FP4 will be loaded as soon as the model is there that is being loaded."
    assert change.is_alive()
    model.finish()
    join(change)
    assert results == [None]
    assert deployment.status()["encoder"] == "T5 FP4"


def test_a_change_that_waits_for_a_model_is_ended_by_cancel(loaded, deployment):
    model = Loading(deployment)
    loaded.options["sd3_text_encoder"] = "T5 FP4"
    change, results = begin(deployment.change)
    assert until(lambda: "encoder.waiting-model" in told(deployment, "info"))
    assert deployment.cancel()
    join(change)  # while the load goes on
    assert model.thread.is_alive()
    assert [type(error) for error in results] == [Stopped]
    assert deployment.events.since(0)[-1].id == "encoder.cancelled"
    assert loaded.lock.acquire(blocking=False)
    model.finish()
    assert (deployment.status()["encoder"], deployment.loading) == ("Host default", False)


def test_a_picture_whose_encoder_is_there_does_not_wait_for_a_load(loaded, deployment):
    choose(deployment, "T5 FP4")
    model = Loading(deployment)
    with loaded.lock:
        job, results = begin(deployment.reconcile)
        join(job)
    assert results == [Wanted(choices.find("fp4"))]
    model.finish()


def test_a_picture_that_needs_another_encoder_waits_until_the_model_is_there(loaded, deployment):
    model = Loading(deployment, lambda: deployment.reconcile())
    loaded.options["sd3_text_encoder"] = "T5 FP4"
    job, results = begin(deployment.reconcile)
    assert until(lambda: "encoder.waiting-model" in told(deployment, "info"))
    model.finish()
    join(job)
    assert results == [Wanted(choices.find("fp4"))]
    assert loaded.swaps == 1  # by the load


@pytest.mark.parametrize("way", ["cancel", "the host's own Stop"])
def test_a_picture_that_waits_for_a_model_is_ended(loaded, deployment, way):
    model = Loading(deployment)
    loaded.options["sd3_text_encoder"] = "T5 FP4"
    heard = []
    job, results = begin(lambda: deployment.reconcile(stopped=lambda: heard.append(True)))
    until(lambda: loaded.jobs)
    if way == "cancel":
        assert deployment.cancel()
    else:
        loaded.jobs[-1][2].stop = True
    join(job)
    assert model.thread.is_alive()
    assert (results, heard) == ([Wanted(choices.HOST_DEFAULT)], [True])
    model.finish()
    assert deployment.reconcile() == Wanted(choices.find("fp4"))


def test_a_picture_without_a_model_does_not_wait_for_one(host, deployment):
    model = Loading(deployment)
    host.options["sd3_text_encoder"] = "T5 FP4"
    job, results = begin(deployment.reconcile)
    join(job)
    assert results == [None]
    model.finish()


def test_two_loads_at_once_end_with_one_encoder(loaded, deployment):
    loaded.options["sd3_text_encoder"] = "T5 FP4"
    loads = [Loading(deployment, lambda: deployment.reconcile()) for _ in range(2)]
    for one in loads:
        one.end.set()
    for one in loads:
        one.finish()
    assert deployment.status()["encoder"] == "T5 FP4"
    assert loaded.swaps == 1


def test_what_is_under_way_is_said_and_forgotten_in_any_order(cached, deployment):
    inside, end = threading.Event(), threading.Event()
    cached.press = lambda job: (inside.set(), end.wait(60))
    cached.options["sd3_text_encoder"] = "T5 FP4"
    with deployment.busy:
        model, _ = begin(deployment.encoder_for_load)
        assert inside.wait(60)
        change, results = begin(deployment.change)
        assert until(lambda: "encoder.waiting-model" in told(deployment, "info"))
        assert deployment.status()["busy"] == "Loading T5 FP4…"  # and not that of whoever waits for it
        end.set()
        join(model)  # the one that began first ends first
        assert "as soon as the model is there" in deployment.status()["busy"]
    join(change)
    assert results == [None]
    assert (deployment.status()["busy"], deployment.loading, deployment.status()["progress"]) == (None, False, None)


def test_what_the_hosts_own_loader_has_brought_is_left_when_it_was_cancelled_meanwhile(loaded, deployment, monkeypatch):
    choose(deployment, "T5 FP4")
    encoder, load_default = loaded.pipe.text_encoder_3, loaded.default_encoder
    monkeypatch.setattr(loaded, "default_encoder", lambda: (deployment.cancel(), load_default())[1])
    with pytest.raises(Stopped):
        choose(deployment, "Host default")
    assert loaded.pipe.text_encoder_3 is encoder


def test_of_several_that_are_under_way_the_progress_of_the_one_that_reads_is_shown():
    from sd3deploy.deployment.undertaking import Progress, Undertakings

    all_of_them = Undertakings(Events())
    assert all_of_them.progress is None
    with all_of_them.begin() as first, first.doing("encoder.loading", name="T5 FP8"):
        first.progress = Progress(1, 2)
        with all_of_them.begin() as second, second.doing("encoder.waiting", name="T5 FP8"):
            assert all_of_them.latest is second
            with second.doing("encoder.waiting", waits=True, name="T5 FP8"):
                assert all_of_them.latest is first
            assert all_of_them.progress == Progress(1, 2)
    assert all_of_them.progress is None
