"""Where the memory went: runs with their phases and peaks, hooks on a real pipeline, what is learned from a run, and its picture."""

from __future__ import annotations

import gc
import json
import threading
import time
import weakref
from dataclasses import replace
from types import SimpleNamespace

import numpy
import pytest
import torch

from sd3deploy import tiny_sd3
from sd3deploy.device import Device, detect_device
from sd3deploy.encoders.choices import find
from sd3deploy.memory.correction import LEAST, RANGE, Corrections, measured_factors
from sd3deploy.memory.estimate import PHASES, Estimate, Setup, estimate
from sd3deploy.memory.monitor import Monitor, Reading, Run, reader
from sd3deploy.memory.phases import watched
from sd3deploy.memory.sizes import MODELS
from tests.waiting import until

MIB = 2**20


class Script:
    """A reader that tells what the test says is there now, however often the thread looks too."""

    def __init__(self, **now):
        self.now = Reading(**now)

    def says(self, **now):
        self.now = Reading(**now)

    def __call__(self):
        return self.now


def threads():
    return [thread for thread in threading.enumerate() if thread.name == "sd3-memory"]


@pytest.fixture(autouse=True)
def _no_thread_is_left():
    yield
    assert until(lambda: not threads())


# Runs


def test_phases_and_their_peaks():
    script = Script(allocated=10, reserved=12, used=15, ram=79)
    monitor = Monitor(script)
    with monitor.run("job", "a cat") as run:
        monitor.mark("encode")
        script.says(allocated=50, reserved=60, used=70, ram=80)
        monitor.mark("denoise", 1)
        script.says(allocated=70, reserved=72, used=73, ram=81)
        monitor.mark("denoise", 2)
        script.says(allocated=30, reserved=72, used=74, ram=82)
        monitor.mark("decode")
        script.says(allocated=90, reserved=99, used=100, ram=83)
    assert run.phases == ["prepare", "encode", "denoise", "decode"]
    assert run.peaks() == {
        "prepare": {"allocated": 10, "reserved": 12, "used": 15, "ram": 79},
        "encode": {"allocated": 50, "reserved": 60, "used": 70, "ram": 80},
        "denoise": {"allocated": 70, "reserved": 72, "used": 74, "ram": 82},
        "decode": {"allocated": 90, "reserved": 99, "used": 100, "ram": 83},
    }
    assert run.level() == Reading(allocated=10, reserved=12, used=15, ram=79)
    assert [(phase, step) for _, phase, step in run.marks] == [("prepare", 0), ("encode", 0), ("denoise", 1), ("denoise", 2), ("decode", 0)]
    assert run.outcome == "done"
    assert monitor.last is run


def test_a_peak_that_only_a_counter_saw_between_two_readings():
    script = Script(allocated=10, allocated_peak=500, ram=10, ram_peak=600)  # of what was before
    monitor = Monitor(script)
    with monitor.run("job") as run:
        monitor.mark("denoise", 1)
        script.says(allocated=20, allocated_peak=700, ram=10, ram_peak=600)
        monitor.mark("denoise", 2)
        script.says(allocated=20, allocated_peak=20, ram=10, ram_peak=600)  # the host has reset it
        monitor.mark("decode")
        script.says(allocated=20, allocated_peak=20, ram=10, ram_peak=800)
    peaks = run.peaks()
    assert [peaks[phase]["allocated"] for phase in run.phases] == [10, 700, 20]
    assert [peaks[phase]["ram"] for phase in run.phases] == [10, 10, 800]


def test_a_mark_that_says_nothing_new_is_none():
    script = Script()
    monitor = Monitor(script)
    monitor.mark("denoise", 1)  # nothing runs
    with monitor.run("job") as run:
        monitor.mark("prepare")
        monitor.mark("denoise", 1)
        monitor.mark("denoise", 1)
    monitor.mark("decode")
    assert [(phase, step) for _, phase, step in run.marks] == [("prepare", 0), ("denoise", 1)]
    assert run.phases == ["prepare", "denoise"]


def test_a_load_begins_with_loading():
    monitor = Monitor(Script(ram=7))
    with monitor.run("load", "sd3-medium") as run:
        pass
    assert run.phases == ["load"]
    assert run.peaks()["load"]["ram"] == 7


def test_a_run_inside_of_a_run_is_a_phase_of_it():
    script = Script(ram=1)
    monitor = Monitor(script)
    with monitor.run("job", "outer") as outer:
        with monitor.run("load", "inner") as inner:
            script.says(ram=9)
            assert len(threads()) == 1
        assert inner is outer
        monitor.mark("denoise", 1)
        with monitor.run("job"):
            pass
        assert monitor.running is outer
    assert outer.phases == ["prepare", "load", "denoise"]
    assert outer.peaks()["load"]["ram"] == 9
    assert list(monitor.runs) == [outer]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_passes_through(error):
    monitor = Monitor(Script())
    with pytest.raises(error, match="as it was"), monitor.run("job"):
        raise error("as it was")
    assert monitor.running is None
    assert monitor.last.outcome == error.__name__


def test_an_error_of_a_run_inside_is_that_of_the_whole_unless_it_is_caught():
    monitor = Monitor(Script())
    with monitor.run("job"), pytest.raises(ValueError, match="inner"), monitor.run("load"):
        raise ValueError("inner")
    assert monitor.last.outcome == "done"
    with pytest.raises(ValueError, match="inner"), monitor.run("job"), monitor.run("load"):
        raise ValueError("inner")
    assert monitor.last.outcome == "ValueError"


def test_an_outcome_that_was_given_stays():
    monitor = Monitor(Script())
    with monitor.run("job") as run:
        run.outcome = "no picture"

    def fails():
        with monitor.run("job") as failed:
            failed.outcome = "out of memory"
            raise ValueError("x")

    with pytest.raises(ValueError, match="x"):
        fails()
    assert [one.outcome for one in monitor.runs] == ["no picture", "out of memory"]
    assert run.number == 1


def test_twenty_are_kept():
    monitor = Monitor(Script())
    assert monitor.last is None
    for n in range(25):
        with monitor.run("job", str(n)):
            assert len(monitor.runs) == min(n, 20)  # one that runs is not among them
    assert [run.number for run in monitor.runs] == list(range(6, 26))
    assert monitor.last.title == "24"


def test_a_reader_that_raises_ends_nothing():
    asked = []

    def broken():
        asked.append(1)
        raise RuntimeError("the driver is gone")

    monitor = Monitor(broken)
    with monitor.run("job") as run:
        monitor.mark("denoise", 1)
        assert until(lambda: len(asked) >= 4)  # two of them by the thread
    assert (run.outcome, run.readings, run.peaks()) == ("done", [], {})
    assert run.level() == Reading()
    assert run.report()["seconds"] == 0


def test_a_reader_that_raises_once_is_asked_again():
    answers = iter([Reading(ram=1), None, Reading(ram=3), Reading(ram=4)])

    def now_and_then():
        if (answer := next(answers)) is None:
            raise RuntimeError("busy")
        return answer

    monitor = Monitor(now_and_then)
    with monitor.run("job") as run:
        monitor.mark("denoise", 1)
        monitor.mark("denoise", 2)
    assert [reading.ram for reading in run.readings[:2]] == [1, 3]


def test_without_a_reader_there_are_marks_alone():
    monitor = Monitor()
    with monitor.run("job") as run:
        monitor.mark("denoise", 1)
    assert (run.times, len(run.marks)) == ([], 2)


def test_a_thread_reads_while_something_runs_and_only_then(monkeypatch):
    """Ten times a second: so long it lets the event wait."""
    waits = []

    class Event(threading.Event):
        def wait(self, timeout=None):
            waits.append(timeout)
            return super().wait(timeout)

    monkeypatch.setattr(threading, "Event", Event)
    monitor = Monitor(Script(ram=1))
    assert threads() == []
    with monitor.run("job") as run:
        (thread,) = threads()
        assert thread.daemon
        assert until(lambda: len(run.readings) >= 4)
    assert run.times == sorted(run.times)
    assert {one for one in waits if one is not None} == {1 / 10}
    assert until(lambda: not thread.is_alive())


def test_where_no_thread_can_be_started_the_marks_read(monkeypatch):
    def start(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    monitor = Monitor(Script(ram=5))
    with monitor.run("job") as run:
        monitor.mark("denoise", 1)
    assert (run.outcome, len(run.readings)) == ("done", 3)


def test_a_report_is_json(monkeypatch):
    monkeypatch.setattr(time, "time", lambda: 1764400000.25)
    script = Script(allocated=1, reserved=2, used=3, ram=4)
    monitor = Monitor(script)
    with monitor.run("job", "a “cat”") as run:
        run.facts |= {"expected": {"denoise": 7}, "verdict": "fits"}
        monitor.mark("denoise", 1)
    report = json.loads(json.dumps(run.report()))
    count = len(report["times"])
    assert count >= 3
    assert report["readings"] == {"allocated": [1] * count, "reserved": [2] * count, "used": [3] * count, "ram": [4] * count}
    assert [(mark["phase"], mark["step"]) for mark in report["marks"]] == [("prepare", 0), ("denoise", 1)]
    assert report["phases"] == run.peaks()
    assert (report["title"], report["kind"], report["outcome"], report["verdict"]) == ("a “cat”", "job", "done", "fits")
    assert report["started"] == 1764400000.25
    assert set(run.summary()) == set(report) - {"times", "readings", "marks"}


# Readers


def test_a_real_reader_sees_what_is_allocated():
    monitor = Monitor(reader(detect_device("cpu", "cpu")))
    with monitor.run("job") as run:
        block = numpy.ones(200 * MIB, numpy.uint8)
        monitor.mark("denoise", 1)
        del block
    peaks = run.peaks()
    assert 190 * MIB < peaks["prepare"]["ram"] - run.level().ram < 400 * MIB
    assert peaks["prepare"]["allocated"] == peaks["prepare"]["used"] == 0
    assert max(reading.ram for reading in run.readings) <= run.readings[-1].ram_peak + MIB


def cuda(started=True):
    stats = {"allocated_bytes": {"all": {"current": 5, "peak": 8}}, "reserved_bytes": {"all": {"current": 6, "peak": 9}}}
    functions = {
        "is_initialized": lambda: started,
        "memory_stats_as_nested_dict": lambda device: stats,
        "mem_get_info": lambda device: (10, 24),
    }
    return SimpleNamespace(cuda=SimpleNamespace(**functions))


XPU = {"allocated_bytes.all.current": 5, "reserved_bytes.all.current": 6, "allocated_bytes.all.peak": 8}
OTHERS = {
    "xpu": SimpleNamespace(xpu=SimpleNamespace(memory_stats=lambda device: XPU)),
    "xpu, nothing yet": SimpleNamespace(xpu=SimpleNamespace(memory_stats=lambda device: {})),
    "mps": SimpleNamespace(mps=SimpleNamespace(driver_allocated_memory=lambda: 6, current_allocated_memory=lambda: 5)),
}


@pytest.mark.parametrize(
    ("device", "library", "expected"),
    [
        ("cuda:0", cuda(), (5, 6, 14, 8)),
        ("cuda:0", cuda(started=False), (0, 0, 0, 0)),
        ("xpu:0", OTHERS["xpu"], (5, 6, 6, 8)),
        ("xpu:0", OTHERS["xpu, nothing yet"], (0, 0, 0, 0)),
        ("mps", OTHERS["mps"], (5, 6, 6, 0)),
        ("privateuseone:0", SimpleNamespace(), (0, 0, 0, 0)),
    ],
)
def test_what_each_stack_is_asked(device, library, expected):
    found = reader(Device(device, "any", "a card"), library)()
    assert (found.allocated, found.reserved, found.used, found.allocated_peak) == expected
    assert found.ram > 10 * MIB
    assert found.ram_peak >= found.ram - MIB


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_real_gpu_with_a_peak_between_two_readings():
    torch.zeros(1, device="cuda")
    torch.cuda.empty_cache()
    monitor = Monitor(reader(detect_device("cuda", "cuda")))
    with monitor.run("job") as run:
        torch.cuda.reset_peak_memory_stats()
        monitor.mark("denoise", 1)
        block = torch.zeros(512 * MIB, dtype=torch.uint8, device="cuda")
        del block
        monitor.mark("decode")
    assert run.peaks()["denoise"]["allocated"] - run.level().allocated >= 512 * MIB


# The phases of a real pipeline


@pytest.fixture(scope="module")
def pipeline():
    from diffusers import StableDiffusion3Pipeline

    made = StableDiffusion3Pipeline.from_pretrained(tiny_sd3.ensure(), torch_dtype=torch.float32)
    made.set_progress_bar_config(disable=True)
    return made


def hooks(pipeline):
    """How many of ours there are: transformers puts its own on, with the first job."""
    modules = [module for part in pipeline.components.values() if isinstance(part, torch.nn.Module) for module in part.modules()]
    found = [hook for module in modules for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values())]
    return sum(getattr(hook, "__module__", "") == "sd3deploy.memory.phases" for hook in found)


def job(pipeline, steps=3, **more):
    return pipeline("a cat", width=64, height=64, num_inference_steps=steps, output_type="np", **more).images


class Heard:
    """What `watched` tells. Of errors their words alone: a reference would keep them."""

    def __init__(self):
        self.marks, self.failures = [], []

    def mark(self, phase, step):
        self.marks.append((phase, step))

    def failed(self, error, phase):
        self.failures.append((repr(error), phase))


def test_phases_come_in_order_and_steps_are_counted(pipeline):
    heard = Heard()
    with watched(pipeline, heard.mark, heard.failed):
        pictures = job(pipeline, guidance_scale=5)
    assert pictures.shape == (1, 64, 64, 3)
    assert [mark for mark in heard.marks if mark[0] != "encode"] == [("denoise", 1), ("denoise", 2), ("denoise", 3), ("decode", 0)]
    assert heard.marks[0] == ("encode", 0)
    assert heard.marks.index(("denoise", 1)) == heard.marks.count(("encode", 0))  # nothing is encoded later on
    assert heard.failures == []


def test_each_picture_of_a_job_counts_its_own_steps(pipeline):
    heard = Heard()
    with watched(pipeline, heard.mark, heard.failed):
        job(pipeline, steps=2)
        job(pipeline, steps=1)
    assert [mark for mark in heard.marks if mark[0] == "denoise"] == [("denoise", 1), ("denoise", 2), ("denoise", 1)]


def test_no_hook_is_left_and_the_picture_is_the_same(pipeline):
    before, heard = hooks(pipeline), Heard()
    plain = job(pipeline, generator=torch.Generator().manual_seed(1))
    with watched(pipeline, heard.mark, heard.failed):
        assert hooks(pipeline) > before
        seen = job(pipeline, generator=torch.Generator().manual_seed(1))
    assert hooks(pipeline) == before
    assert numpy.array_equal(plain, seen)


def test_a_pipeline_with_parts_missing(pipeline):
    less = SimpleNamespace(text_encoder=None, transformer=pipeline.transformer, vae=SimpleNamespace())
    heard = Heard()
    with watched(less, heard.mark, heard.failed):
        pass
    assert heard.marks == []


class Boom(RuntimeError):
    pass


BREAKS = [("text_encoder", "encode"), ("text_encoder_3", "encode"), ("transformer", "denoise"), ("decoder", "decode")]


@pytest.mark.parametrize(("name", "phase"), BREAKS)
def test_an_error_is_handed_over_with_its_phase_and_goes_on_unchanged(pipeline, monkeypatch, name, phase):
    module = pipeline.vae.decoder if name == "decoder" else getattr(pipeline, name)
    made = []

    def broken(*arguments, **more):
        error = Boom(f"in {name}")
        made.append(weakref.ref(error))
        raise error

    monkeypatch.setattr(module, "forward", broken)
    before, heard, monitor = hooks(pipeline), Heard(), Monitor(Script())
    with pytest.raises(Boom) as caught, monitor.run("job"), watched(pipeline, heard.mark, heard.failed):
        job(pipeline)
    assert caught.value is made[0]()
    assert caught.value.__cause__ is caught.value.__context__ is None
    del caught
    assert heard.failures == [(f"Boom('in {name}')", phase)]
    assert heard.marks[-1][0] == phase
    assert hooks(pipeline) == before
    assert len(made) == 1
    gc.collect()
    assert made[0]() is None  # nor the tensors in its frames


def test_an_error_that_is_being_handled_by_somebody_else_is_none_of_ours(pipeline):
    heard = Heard()
    try:
        raise Boom("before")
    except Boom:
        with watched(pipeline, heard.mark, heard.failed):
            job(pipeline, steps=1)
    assert heard.failures == []


def test_under_the_hooks_of_model_offload(pipeline, monkeypatch):
    """accelerate replaces the modules' forward, as the host's modes do."""
    from accelerate import cpu_offload_with_hook
    from accelerate.hooks import remove_hook_from_module

    heard, before = Heard(), hooks(pipeline)
    parts, last = [pipeline.text_encoder, pipeline.text_encoder_2, pipeline.text_encoder_3, pipeline.transformer], None
    for part in parts:
        _, last = cpu_offload_with_hook(part, "cpu", prev_module_hook=last)
    try:
        with watched(pipeline, heard.mark, heard.failed):
            job(pipeline, steps=2)
        assert [mark for mark in heard.marks if mark[0] != "encode"] == [("denoise", 1), ("denoise", 2), ("decode", 0)]

        def full(*arguments, **more):
            raise Boom("on its way to the device")

        monkeypatch.setattr(pipeline.transformer._hf_hook, "pre_forward", full)
        with pytest.raises(Boom), watched(pipeline, heard.mark, heard.failed):
            job(pipeline, steps=2)
    finally:
        for part in parts:
            remove_hook_from_module(part)
    assert heard.failures == [("Boom('on its way to the device')", "denoise")]
    assert hooks(pipeline) == before


def test_a_monitor_and_the_phases_of_a_pipeline(pipeline):
    monitor = Monitor(reader(detect_device("cpu", "cpu")))
    with monitor.run("job") as run, watched(pipeline, monitor.mark, lambda error, phase: None):
        job(pipeline, steps=2)
    assert run.phases == ["prepare", "encode", "denoise", "decode"]
    assert [step for _, phase, step in run.marks if phase == "denoise"] == [1, 2]
    assert all(peak["ram"] > 0 for peak in run.peaks().values())


# What a run has shown


def made_up(found: Estimate, times: dict[str, float]) -> Run:
    """A run whose activations are so many times what was estimated before any correction."""
    run = Run(1, "job", "made up", 0.0)
    on_cpu = found.setup.kind == "cpu"
    level = found.total if on_cpu else 0
    run.times.append(0.0)
    run.readings.append(Reading(ram=level))
    for n, (phase, factor) in enumerate(times.items(), 1):
        need = found.phases[phase]
        plain = need.activation / found.setup.factors.get(phase, 1.0)
        run.marks.append((n - 0.5, phase, 0))
        run.times.append(float(n))
        peak = round(plain * factor)
        run.readings.append(Reading(ram=level + peak) if on_cpu else Reading(allocated=need.gpu - need.activation + peak))
    return run


TIMES = {"encode": 1.5, "denoise": 0.8, "decode": 2.0}


@pytest.mark.parametrize("offload", ["none", "model", "sequential"])
@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_a_run_shows_what_its_activations_were(kind, offload):
    found = estimate(Setup(MODELS["sd3-medium"], find("nf4"), kind=kind, offload=offload))
    assert all(found.phases[phase].activation > LEAST for phase in TIMES)  # or this would show nothing
    assert measured_factors(made_up(found, TIMES), found) == pytest.approx(TIMES, rel=1e-3)


def test_it_is_relative_to_the_estimate_before_it_was_corrected():
    found = estimate(Setup(MODELS["sd3-medium"], find("nf4"), factors={"denoise": 3.0}))
    assert measured_factors(made_up(found, TIMES), found) == pytest.approx(TIMES, rel=1e-3)


def test_one_run_does_not_talk_the_estimate_out_of_more_than_that():
    found = estimate(Setup(MODELS["sd3-medium"], find("nf4")))
    assert measured_factors(made_up(found, {"denoise": 100, "decode": 0.01}), found) == {"denoise": RANGE[1], "decode": RANGE[0]}


def test_what_a_run_can_not_tell_is_left_out():
    setup = Setup(MODELS["sd3-medium"], find("nf4"))
    found = estimate(setup)
    assert measured_factors(made_up(found, {"denoise": 1.2}), found) == pytest.approx({"denoise": 1.2}, rel=1e-3)
    assert measured_factors(made_up(found, {"load": 1.2}), found) == {}
    assert measured_factors(made_up(found, {"denoise": -1}), found) == {}  # less than the weights: they lay elsewhere
    assert measured_factors(Run(1, "job", "", 0.0), found) == {}
    small = estimate(replace(setup, width=64, height=64))
    assert small.phases["denoise"].activation < LEAST
    assert "denoise" not in measured_factors(made_up(small, TIMES), small)


def test_a_corrected_estimate_is_what_the_run_has_shown():
    setup = Setup(MODELS["sd3-medium"], find("nf4"))
    found = estimate(setup)
    run = made_up(found, TIMES)
    again = estimate(replace(setup, factors=measured_factors(run, found)))
    for phase in TIMES:
        assert again.phases[phase].gpu == pytest.approx(run.peaks()[phase]["allocated"], rel=1e-6)


@pytest.fixture
def stored(tmp_path):
    return Corrections(tmp_path / "data" / "memory.json")


def test_factors_are_kept_by_device(stored):
    assert stored.of("a card") == {}
    stored.learn("a card", {"denoise": 1.23456, "decode": 2.0})
    stored.learn("another", {"denoise": 0.9})
    stored.learn("a card", {"decode": 1.5})
    stored.learn("a card", {})
    again = Corrections(stored.path)
    assert again.of("a card") == {"denoise": 1.235, "decode": 1.5}
    assert again.of("another") == {"denoise": 0.9}
    assert again.of("a third") == {}
    assert [file.name for file in stored.path.parent.iterdir()] == ["memory.json"]


def test_forgetting(stored):
    stored.forget()  # nothing there yet
    stored.learn("a card", {"denoise": 1.5})
    stored.forget()
    assert stored.of("a card") == {}
    stored.learn("a card", {"denoise": 1.2})
    assert stored.of("a card") == {"denoise": 1.2}


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"null", b"\xff\xfe\x00", b'{"a card": 5}', b'{"a card": ["denoise"]}'])
def test_a_damaged_file_is_an_empty_one(stored, content):
    stored.path.parent.mkdir()
    stored.path.write_bytes(content)
    assert stored.of("a card") == {}
    stored.learn("a card", {"denoise": 1.5})
    assert stored.of("a card") == {"denoise": 1.5}


@pytest.mark.parametrize("factor", ["0", "-1", "NaN", "Infinity", "1e300", '"1.5"', "null", "[]"])
def test_a_factor_that_no_run_has_shown_is_none(stored, factor):
    """Whoever has edited the file: an estimate must not end in a division by zero."""
    stored.path.parent.mkdir()
    stored.path.write_text(f'{{"a card": {{"denoise": {factor}, "decode": 1.5}}}}')
    assert stored.of("a card") == {"decode": 1.5}


def test_the_least_and_the_most_that_a_run_can_show_come_back(stored):
    least, most = RANGE
    stored.learn("a card", {"denoise": least, "decode": most})
    assert stored.of("a card") == {"denoise": least, "decode": most}
    stored.learn("a card", {"denoise": least - 0.001, "decode": most + 0.001})
    assert stored.of("a card") == {}


def test_a_folder_that_can_not_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    stored = Corrections(tmp_path / "file" / "memory.json")
    stored.learn("a card", {"denoise": 1.5})
    assert stored.of("a card") == {}


def test_a_place_that_can_not_be_replaced_is_not_littered(tmp_path):
    (tmp_path / "memory.json").mkdir()
    stored = Corrections(tmp_path / "memory.json")
    stored.learn("a card", {"denoise": 1.5})
    assert stored.of("a card") == {}
    assert [file.name for file in tmp_path.iterdir()] == ["memory.json"]


def test_those_who_learn_at_once_lose_nothing(stored):
    writers = [threading.Thread(target=stored.learn, args=(f"card {n}", {"denoise": 1 + n / 100})) for n in range(20)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [stored.of(f"card {n}") for n in range(20)] == [{"denoise": pytest.approx(1 + n / 100)} for n in range(20)]


# The estimate beside it


def full_run(**more):
    run = Run(1, "job", "sd3-medium, T5 NF4", 0.0)
    for n, phase in enumerate(("encode", "denoise", "denoise", "decode")):
        run.marks.append((n + 0.0, phase, n if phase == "denoise" else 0))
        run.times.append(n + 0.5)
        run.readings.append(Reading(ram=(2 + n) * 10**9, **{name: size * (n + 1) for name, size in more.items()}))
    run.facts |= {"expected": dict.fromkeys(PHASES, 3 * 10**9), "on_device": bool(more), "weights": 5 * 10**8}
    return run


def test_on_a_processor_the_estimate_stands_beside_what_is_above_the_servers_own_ram():
    run = full_run()
    assert run.base == 2 * 10**9 - 5 * 10**8  # before the job, without the model that was loaded then
    measured = {phase: one["measured"] for phase, one in run.compared().items()}
    assert measured == {"encode": 5 * 10**8, "denoise": 25 * 10**8, "decode": 35 * 10**8}
    assert {one["expected"] for one in run.compared().values()} == {3 * 10**9}


def test_on_a_device_it_stands_beside_what_is_in_tensors():
    run = full_run(allocated=10**9, reserved=2 * 10**9, used=3 * 10**9)
    assert run.base == 0
    assert {phase: one["measured"] for phase, one in run.compared().items()} == {"encode": 10**9, "denoise": 3 * 10**9, "decode": 4 * 10**9}
    assert run.summary()["compared"] == run.compared()


def test_a_load_has_no_estimate_to_compare():
    run = Run(1, "load", "sd3-medium", 0.0, times=[0.0], readings=[Reading(ram=10**9)], marks=[(0.0, "load", 0)])
    assert (run.base, run.compared()) == (0, {})
