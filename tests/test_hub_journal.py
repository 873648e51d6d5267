"""What was quantized before an interruption is not fetched again, and becomes the entry of the cache."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from sd3deploy import units
from sd3deploy.device import Device
from sd3deploy.encoders import choices, load, outlook, source, stopping
from sd3deploy.encoders.cache import Cache
from sd3deploy.encoders.cache import cache as caching
from sd3deploy.encoders.cache.entry import MODEL
from sd3deploy.encoders.cache.journal import HEADER, JOURNAL, Journal
from sd3deploy.encoders.cache.writing import SPARE
from sd3deploy.encoders.hub import stream
from sd3deploy.encoders.hub.pages import PAGE
from sd3deploy.encoders.quantize import quantize
from sd3deploy.encoders.recipe import Recipe
from sd3deploy.encoders.stored import Weight
from sd3deploy.encoders.weights import open_weights
from sd3deploy.file_lock import try_lock
from tests import t5
from tests.hub_server import with_a_model

ROOT = Path(__file__).parent.parent
CPU = Device("cpu", "cpu", "CPU")
FILE = "org/t5:encoders/t5.safetensors"
SOURCE = {"place": "0", "content": "0"}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    t5.make(folder)
    return folder


@pytest.fixture
def hub(model, monkeypatch):
    monkeypatch.setattr(stream, "BLOCK", 1 << 16)
    monkeypatch.setattr(stream, "AHEAD", 2)
    with with_a_model(model, monkeypatch) as server:
        yield server


def journals(cache):
    return sorted(folder for folder in cache.folder.iterdir() if folder.name.startswith(JOURNAL))


def read(cache, choice="fp8", part=2.0, device=CPU, file=FILE, seen=lambda part: None):
    """Load it, and cancel when `part` of it was read. Returns the encoder's output, None when it was cancelled. seen: called with what was
    read, 0 to 1.
    """
    found = source.find("Repository", source.Facts(""), repository=file)
    at = [0.0]

    def progress(done, total):
        at[0] = done / total
        seen(at[0])

    try:
        made = load.read(choices.find(choice), found, device, cache=cache, progress=progress, cancelled=lambda: at[0] >= part)
    except stopping.Stopped:
        return None
    if (thread := load.writing()) is not None:
        thread.join()
    with torch.no_grad():
        return made.place()(t5.tokens())[0]


def quantize_size(choice):
    """Bytes of the small T5 in that form, about: those of its weights, which are in float32."""
    weights = open_weights(source.find("Repository", source.Facts(""), repository=FILE))
    return min(weights.size, choices.find(choice).bytes)


def expected(model, choice="fp8"):
    found = source.find("Local file", source.Facts(""), str(model / "t5.safetensors"))
    with torch.no_grad():
        return load.load(choices.find(choice), found, CPU)(t5.tokens())[0]


@pytest.mark.parametrize("choice", ["fp8", "nf4", "q5", "int8"])
def test_what_was_finished_is_not_fetched_again(hub, model, tmp_path, choice):
    cache = Cache(tmp_path / "cache")
    assert read(cache, choice, 0.7) is None
    assert len(journals(cache)) == 1
    assert cache.entries() == []
    first, hub.served = hub.served, 0
    assert torch.equal(read(cache, choice), expected(model, choice))
    size = (model / "t5.safetensors").stat().st_size
    assert hub.served < 0.6 * size
    assert first + hub.served < 1.4 * size  # what was read ahead, and of the tensor that was not finished
    assert journals(cache) == []
    (entry,) = cache.entries()
    assert cache.verify() == [(entry, True)]
    hub.served = 0
    assert torch.equal(read(cache, choice), expected(model, choice))  # from the cache now
    assert hub.served < 0.1 * size


def test_the_entry_is_a_file_as_any_other(hub, model, tmp_path):
    cache = Cache(tmp_path / "cache")
    read(cache)
    (entry,) = cache.entries()
    assert sorted(file.name for file in entry.folder.iterdir()) == ["config.json", "manifest.json", MODEL]
    weights = open_weights(source.find("Local file", source.Facts(""), str(model / "t5.safetensors")))
    encoded = quantize(weights, Recipe(choices.find("fp8"), CPU.compute_dtype), CPU)
    with safe_open(entry.folder / MODEL, "pt") as file:
        assert set(file.keys()) == set(encoded.tensors)
        for name, tensor in encoded.tensors.items():
            assert torch.equal(file.get_tensor(name).view(torch.uint8), tensor.view(torch.uint8)), name
    assert (entry.folder / MODEL).stat().st_size <= encoded.size + HEADER + 8


def test_little_more_is_written_than_the_result(hub, tmp_path, monkeypatch):
    written = [0]
    whole = Journal._write

    def count(self, offset, contents):
        written[0] += sum(len(content) for content in contents)
        whole(self, offset, contents)

    monkeypatch.setattr(Journal, "_write", count)
    cache = Cache(tmp_path / "cache")
    assert read(cache, part=0.5) is None
    read(cache)
    (entry,) = cache.entries()
    assert written[0] == (entry.folder / MODEL).stat().st_size  # each byte of it once


def test_another_source_begins_anew(hub, model, tmp_path):
    cache = Cache(tmp_path / "cache")
    assert read(cache, part=0.7) is None
    (before,) = journals(cache)
    content = bytearray(hub.repositories["org/t5"]["encoders/t5.safetensors"])
    content[-1] ^= 1
    hub.repositories["org/t5"]["encoders/t5.safetensors"] = bytes(content)
    hub.served = 0
    assert read(cache) is not None
    assert hub.served > 0.9 * len(content)
    assert not before.exists()


def test_another_recipe_begins_anew(hub, model, tmp_path):
    cache = Cache(tmp_path / "cache")
    assert read(cache, part=0.7) is None
    before = journals(cache)
    assert torch.equal(read(cache, "nf4"), expected(model, "nf4"))
    assert journals(cache) == before  # which is promised to whoever cancels


def test_each_choice_goes_on_where_it_was(hub, model, tmp_path):
    cache = Cache(tmp_path / "cache")
    for choice in ("q8", "q4"):
        assert read(cache, choice, 0.7) is None
    for choice in ("q8", "q4"):
        hub.served = 0
        assert torch.equal(read(cache, choice), expected(model, choice))
        assert hub.served < 0.6 * len(hub.repositories["org/t5"]["encoders/t5.safetensors"])
    assert journals(cache) == []
    assert sorted(entry.choice for entry in cache.entries()) == ["q4", "q8"]


def test_what_is_left_of_a_file_that_has_changed_goes_whatever_is_chosen(hub, tmp_path):
    cache = Cache(tmp_path / "cache")
    assert read(cache, "q8", 0.7) is None
    (before,) = journals(cache)
    content = hub.repositories["org/t5"]["encoders/t5.safetensors"]
    hub.repositories["org/t5"]["encoders/t5.safetensors"] = content[:-1] + bytes([content[-1] ^ 1])
    assert read(cache, "q4", 0.7) is None
    assert before not in journals(cache)
    assert len(journals(cache)) == 1


def test_files_of_one_name_in_two_repositories_are_two_sources(hub, tmp_path):
    content = hub.repositories["org/t5"]["encoders/t5.safetensors"]
    hub.repositories["org/other"] = {"encoders/t5.safetensors": content[:-1] + bytes([content[-1] ^ 1])}
    other = FILE.replace("org/t5", "org/other")
    cache = Cache(tmp_path / "cache")
    assert read(cache, "q8", 0.7) is None
    assert read(cache, "q8", 0.7, file=other) is None
    assert len(journals(cache)) == 2
    read(cache, "q8")
    read(cache, "q8", file=other)
    assert len(cache.entries()) == 2


def test_what_was_left_longest_ago_makes_room_as_entries_do(hub, tmp_path):
    cache = Cache(tmp_path / "cache")
    for age, choice in enumerate(("q8", "q6", "q5")):
        before = set(journals(cache)) if age else set()
        assert read(cache, choice, 0.7) is None
        (new,) = set(journals(cache)) - before
        os.utime(new / "finished.jsonl", (0, 1000 + age))
    oldest = min(journals(cache), key=lambda folder: (folder / "finished.jsonl").stat().st_mtime)
    sizes = [sum(file.stat().st_size for file in folder.iterdir()) for folder in journals(cache)]
    size = quantize_size("q4")
    read(Cache(cache.folder, sum(sizes) + size - 1), "q4", 0.7)  # for a part of it, as much room as for all of it
    assert oldest not in journals(cache)
    assert len(journals(cache)) == 3


def test_it_goes_on_where_the_disk_has_room_for_the_rest_alone(hub, tmp_path, monkeypatch):
    cache = Cache(tmp_path / "cache")
    assert read(cache, "q8", 0.7) is None
    usage = shutil.disk_usage(tmp_path)
    rest = quantize_size("q8") // 2  # of which 0.7 are there
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage._replace(free=SPARE + rest))
    hub.served = 0
    assert read(cache, "q8") is not None
    assert hub.served < 0.6 * len(hub.repositories["org/t5"]["encoders/t5.safetensors"])


@contextlib.contextmanager
def held(cache):
    """The lock of the folder, as a process has it that writes. What is given lets go of it."""
    descriptors = [os.open(cache.folder / ".sd3-lock", os.O_RDWR | os.O_CREAT)]
    assert try_lock(descriptors[0])
    try:
        yield lambda: os.close(descriptors.pop()) if descriptors else None
    finally:
        while descriptors:
            os.close(descriptors.pop())


def test_an_encoder_that_is_ready_while_another_process_writes_is_kept_after_it(hub, model, tmp_path, monkeypatch):
    cache, whole = Cache(tmp_path / "cache"), caching.try_lock

    def once(descriptor):
        if not (mine := whole(descriptor)):
            free[0]()
        return mine

    monkeypatch.setattr(caching, "try_lock", once)
    with contextlib.ExitStack() as stack:
        free = []
        read(cache, "q8", seen=lambda part: part > 0.9 and not free and free.append(stack.enter_context(held(cache))))
    assert len(cache.entries()) == 1
    assert journals(cache) == []


def test_an_encoder_that_another_process_lets_nobody_keep_is_told_and_not_fetched_again(hub, model, tmp_path, monkeypatch):
    told = []
    cache = Cache(tmp_path / "cache", told=lambda id, values: told.append(id))
    with contextlib.ExitStack() as stack, monkeypatch.context() as patch:
        patch.setattr(caching, "_WRITING", 0.1)
        free = []
        read(cache, "q8", seen=lambda part: part > 0.9 and not free and free.append(stack.enter_context(held(cache))))
    assert told == ["cache.waited"]
    assert len(journals(cache)) == 1
    hub.served = 0
    assert torch.equal(read(cache, "q8"), expected(model, "q8"))
    assert hub.served < 0.1 * len(hub.repositories["org/t5"]["encoders/t5.safetensors"])
    assert len(cache.entries()) == 1


def test_clear_removes_it(hub, tmp_path):
    cache = Cache(tmp_path / "cache")
    assert read(cache, part=0.7) is None
    assert cache.clear() > 0
    assert journals(cache) == []


def test_a_journal_that_is_in_use_is_left_alone(hub, tmp_path):
    cache = Cache(tmp_path / "cache")
    weights = open_weights(source.find("Repository", source.Facts(""), repository=FILE))
    recipe = Recipe(choices.find("fp8"))
    mine = cache.journal(weights, recipe, weights.fingerprint())
    assert mine is not None
    assert cache.journal(weights, recipe, weights.fingerprint()) is None
    told = []
    Cache(cache.folder, told=lambda id, values: told.append((id, values["folder"]))).clear()
    assert told == [("cache.in-use", mine.folder)]
    assert journals(cache) == [mine.folder]
    mine.discard()
    assert journals(cache) == []


@pytest.mark.parametrize("harm", ["list", "name", "swapped", "shape", "type", "data", "short", "torn", "none", "words"])
def test_a_damaged_journal_costs_time_alone(hub, model, tmp_path, harm):
    told = []
    cache = Cache(tmp_path / "cache", told=lambda id, values: told.append((id, values)))
    assert read(cache, part=0.7) is None
    (folder,) = journals(cache)
    listed, data = folder / "finished.jsonl", folder / MODEL
    if harm == "list":
        listed.write_bytes(listed.read_bytes().replace(b'"crc32": ', b'"crc32": 1'))
    elif harm in ("name", "shape", "type"):
        words = {"name": (b'layer_norm.weight": {', b'layer_nor9.weight": {'), "shape": (b"[128]", b"[2,64]"), "type": (b'"F32"', b'"I32"')}
        assert words[harm][0] in listed.read_bytes()
        listed.write_bytes(listed.read_bytes().replace(*words[harm], 1))
    elif harm == "swapped":
        one, other = b"block.0.layer.1.DenseReluDense.wi_0", b"block.0.layer.1.DenseReluDense.wi_1"
        assert one in listed.read_bytes()
        listed.write_bytes(listed.read_bytes().replace(one, b"@@").replace(other, one).replace(b"@@", other))
    elif harm == "data":
        content = bytearray(data.read_bytes())
        content[8 + HEADER + 100] ^= 1
        data.write_bytes(content)
    elif harm == "short":
        data.write_bytes(data.read_bytes()[:-50_000])
    elif harm == "torn":
        listed.write_bytes(listed.read_bytes()[:-10])
    elif harm == "none":
        listed.unlink()
    else:
        listed.write_bytes(b"[1]\n{}\n\xff\n")
    assert torch.equal(read(cache), expected(model))
    assert told == []
    (entry,) = cache.entries()
    assert cache.verify() == [(entry, True)]
    assert journals(cache) == []


class Processes:
    """Those of tests/hub_process.py."""

    def __init__(self, folder):
        environ = {**os.environ, "HF_HOME": str(folder), "HF_HUB_OFFLINE": "0", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "tests.hub_process"]
        self.first = subprocess.Popen(command, cwd=ROOT, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def start(self, hub, cache, result, *stop):
        return self._ask(endpoint=hub.endpoint, cache=str(cache.folder), result=str(result), stop=stop)

    def wait(self, process):
        return self._ask(wait=process)

    def _ask(self, **values):
        self.first.stdin.write(json.dumps(values) + "\n")
        self.first.stdin.flush()
        return json.loads(self.first.stdout.readline())


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    found = Processes(tmp_path_factory.mktemp("home"))
    yield found
    found.first.communicate()


@dataclass
class Right:
    """Of the local file: where its weights lie, the tensors for the cache, and the encoder's output."""

    weights: Mapping[str, Weight]
    tensors: Mapping[str, torch.Tensor]
    output: torch.Tensor


@pytest.fixture(scope="module")
def right(model):
    weights = open_weights(source.find("Local file", source.Facts(""), str(model / "t5.safetensors")))
    return Right(weights.tensors, quantize(weights, Recipe(choices.find("fp8"), CPU.compute_dtype), CPU).tensors, expected(model))


def holds(cache, tensors, left=()):
    """Whether the cache has one entry, whole and with these tensors, and nothing else but its lock. left: other files of the entry."""
    (entry,) = cache.entries()
    assert cache.verify() == [(entry, True)]
    assert {file.name for file in entry.folder.iterdir()} == {"config.json", "manifest.json", MODEL, *left}
    assert sorted(file.name for file in cache.folder.iterdir()) == [".sd3-lock", entry.folder.name]
    with safe_open(entry.folder / MODEL, "pt") as file:
        found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert found.keys() == tensors.keys()
    return all(one.dtype == tensors[name].dtype and torch.equal(bits(one), bits(tensors[name])) for name, one in found.items())


def bits(tensor):
    return tensor.reshape(-1).view(torch.uint8)


def read_again(hub, weights):
    """Those weights of which any byte was asked for, but for the first page, which has the header."""
    spans = [span for _, path, span in hub.requests if path.startswith(f"/cdn/{hub.generation}/") and span]
    found = [[int(end) for end in span.removeprefix("bytes=").split("-")] for span in spans]
    places = {name: (weight.stored.offset, weight.stored.offset + weight.stored.size) for name, weight in weights.items()}
    return [name for name, (start, end) in places.items() if any(0 < first < end and start <= last for first, last in found)]


def finished(cache):
    """The weights in the list of the journal."""
    (folder,) = journals(cache)
    lines = (folder / "finished.jsonl").read_bytes().split(b"\n")[1:-1]
    return [json.loads(line.partition(b" ")[2])["weight"] for line in lines]


WEIGHTS = 30
# Place, number, when: a function that is called the n-th time, or a request for bytes that comes.
READING = [
    ("request", 5, "before"),
    ("request", 15, "before"),
    ("request", 30, "before"),
    ("Journal._add", 1, "after"),
    ("Journal._write", 8, "after"),  # and the line is missing
    ("Journal._add", 12, "after"),
    ("Journal._add", WEIGHTS, "after"),
]
WRITING = [
    ("Journal.finish", 1, "before"),
    ("Journal._write", WEIGHTS + 2, "before"),  # the header, after the small tensors
    ("Journal._hash", 1, "before"),
    ("writing._write", 1, "before"),  # the configuration
    ("writing._write", 2, "before"),  # the manifest
    ("os.rename", 1, "before"),
    ("os.rename", 1, "after"),
]
forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows has no fork")


@forks
@pytest.mark.xdist_group("journal")
@pytest.mark.parametrize("moment", READING + WRITING, ids=lambda moment: " ".join(map(str, moment)))
def test_killed_at_any_moment_it_goes_on(hub, tmp_path, processes, right, moment):
    """As a server that is restarted: nothing ends in order. What was finished before is not fetched again."""
    cache, (place, number, when) = Cache(tmp_path / "cache"), moment
    assert len(right.weights) == WEIGHTS
    if place == "request":
        requests, ids = itertools.count(1), queue.SimpleQueue()
        hub.change = lambda _: os.kill(ids.get(), signal.SIGKILL) if next(requests) == number else None
        process = processes.start(hub, cache, tmp_path / "result")
        ids.put(process)
    else:
        process = processes.start(hub, cache, tmp_path / "result", place, number, when, signal.SIGKILL)
    assert processes.wait(process) == -signal.SIGKILL
    hub.change = lambda _: None
    done = finished(cache) if moment in READING else list(right.weights)
    done = {name: right.weights[name] for name in done}
    hub.generation += 1  # what the dead one has asked for is not served any more
    hub.served = 0
    assert torch.equal(read(cache), right.output)
    assert holds(cache, right.tensors, left=("finished.jsonl", "lock") if moment == WRITING[-1] else ())
    assert read_again(hub, done) == []
    left = len(hub.repositories["org/t5"]["encoders/t5.safetensors"]) - sum(weight.stored.size for weight in done.values())
    assert hub.served <= left + 3 * PAGE  # the first one; and of the answers to the dead one some parts are on their way


@forks
@pytest.mark.xdist_group("journal")
@pytest.mark.parametrize("order", [(0, 1), (1, 0), None], ids=["with the journal first", "without it first", "together"])
def test_two_processes_with_one_cache(hub, tmp_path, processes, right, order):
    cache, results = Cache(tmp_path / "cache"), [tmp_path / "0", tmp_path / "1"]
    both = []
    for result in results:  # each has looked for a journal, and not begun to read; the first one has it
        both.append(processes.start(hub, cache, result, "load.quantize", 1, "before", signal.SIGSTOP))
        assert processes.wait(both[-1]) is None
        assert len(journals(cache)) == 1
    for number in order or (0, 1):
        os.kill(both[number], signal.SIGCONT)
        if order:
            assert processes.wait(both[number]) == 0
            assert len(cache.entries()) == 1
    if not order:
        assert [processes.wait(one) for one in both] == [0, 0]
    assert all(torch.equal(torch.load(result), right.output) for result in results)
    assert holds(cache, right.tensors)


@settings(max_examples=20, suppress_health_check=list(HealthCheck))
@given(cut=st.integers(0, 10**6))
def test_cut_off_anywhere_it_is_read_right_or_not_at_all(tmp_path_factory, cut):
    """Of a list and a data file that end anywhere, what `take` gives has the bytes that were added."""
    folder = tmp_path_factory.mktemp("journal")
    key = "0" * 64
    added = {f"w{number}": {"codes": torch.randint(0, 255, (number * 1000 + 20_000,), dtype=torch.uint8), "scale": torch.rand(number + 1)}
             for number in (0, 1, 4)}  # fmt: skip
    added = {weight: {f"{weight}.{name}": tensor for name, tensor in tensors.items()} for weight, tensors in added.items()}
    journal = Journal.begin(folder, key, SOURCE)
    assert journal is not None
    for weight, tensors in added.items():
        journal.add(weight, tensors)
    journal.close()
    for name in ("finished.jsonl", MODEL):
        content = (journal.folder / name).read_bytes()
        (journal.folder / name).write_bytes(content[: max(0, len(content) - cut % (100_000 if name == MODEL else 900))])
    again = Journal.begin(folder, key, SOURCE)
    assert again is not None
    for weight, tensors in again.take().items():
        assert all(torch.equal(tensor, added[weight][name]) for name, tensor in tensors.items())
    for weight, tensors in added.items():
        again.add(weight, tensors)
    every = {name: tensor for tensors in added.values() for name, tensor in tensors.items()}
    if again.whole(every):
        again.finish(every)
        with safe_open(again.folder / MODEL, "pt") as file:
            assert {name: file.get_tensor(name).tolist() for name in file.keys()} == {name: one.tolist() for name, one in every.items()}  # noqa: SIM118
    assert json.loads(json.dumps(sorted(every)))
    again.discard()


def test_who_cancels_is_told_what_is_kept(model, hub, tmp_path):
    found = source.find("Repository", source.Facts(""), repository=FILE)
    seen = []
    with pytest.raises(stopping.Stopped) as raised:
        load.read(
            choices.find("fp8"),
            found,
            CPU,
            cache=Cache(tmp_path),
            progress=lambda done, total: seen.append(done / total),
            cancelled=lambda: bool(seen) and seen[-1] > 0.5,
        )
    assert raised.value.id == "encoder.cancelled-kept"
    weights = open_weights(found)
    kept = weights.size_of(Cache(tmp_path).finished(weights, Recipe(choices.find("fp8"), CPU.compute_dtype)))
    words = f"{units.size(kept)} of {units.size(weights.size)} are"  # as the progress counts
    assert f"{words} finished and kept" in str(raised.value)
    assert 0 < kept <= 0.7 * weights.size
    offer = outlook.look(found, source.Facts(""), choices.find("fp8"), CPU, Cache(tmp_path), True)
    assert offer.fetched == weights.size - kept
    assert f"{words} kept from an earlier attempt" in offer.cost
    seen.clear()
    assert read(Cache(tmp_path), seen=seen.append) is not None
    assert (seen[0], seen[-1]) == (kept / weights.size, 1)
