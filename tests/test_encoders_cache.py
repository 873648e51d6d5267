"""What is stored is what is found, bit for bit, or nothing is: with real weights, real libraries, and processes that are killed."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from sd3deploy import messages
from sd3deploy.device import Device
from sd3deploy.encoders import choices, source
from sd3deploy.encoders.assemble import assemble
from sd3deploy.encoders.cache import Cache, CacheError, Entry, export, folder_for, limit_for, writing
from sd3deploy.encoders.cache import manifest as manifests
from sd3deploy.encoders.cache.entry import name_for
from sd3deploy.encoders.cache.manifest import Manifest, stamp
from sd3deploy.encoders.cache.tensors import map_tensors, write_tensors
from sd3deploy.encoders.encoded import Encoded
from sd3deploy.encoders.files import samples_of
from sd3deploy.encoders.quantize import quantize
from sd3deploy.encoders.recipe import Recipe
from sd3deploy.encoders.t5 import t5_encoder_class
from sd3deploy.encoders.weights import open_weights
from tests import t5
from tests.waiting import until

ROOT = Path(__file__).parent.parent
CPU = Device("cpu", "cpu", "CPU")
QUANTIZED = [choice for choice in choices.CHOICES if choice.quantized]
FP4, NF4 = Recipe(choices.find("fp4")), Recipe(choices.find("nf4"))
MODEL, CONFIG, MANIFEST = "model.safetensors", "config.json", "manifest.json"
posix = pytest.mark.skipif(sys.platform == "win32", reason="rights, limits and signals of POSIX")
every = pytest.mark.parametrize("choice", QUANTIZED, ids=lambda choice: choice.id)


@pytest.fixture(autouse=True)
def _as_the_host_calls_it():
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    t5.make(folder)
    return folder


@pytest.fixture
def weights(model, tmp_path):
    """Of files of this test's own, which it may change."""
    return opened(shutil.copytree(model, tmp_path / "source"))


@pytest.fixture(scope="module")
def made(model):
    """Recipe → encoder; each is made once."""
    known = {}

    def make(recipe):
        if recipe not in known:
            known[recipe] = quantize(opened(model), recipe, CPU)
        return known[recipe]

    return make


@pytest.fixture
def told():
    return []


@pytest.fixture
def cache(tmp_path, told):
    return Cache(tmp_path / "models" / "SD3 Deploy", told=lambda id, values: told.append((id, values)))


def opened(folder):
    return open_weights(source.find("Model", source.Facts(str(folder))))


def same(one: Encoded | None, other: Encoded) -> bool:
    """Bit for bit."""
    if one is None or one.recipe != other.recipe or one.config != json.loads(json.dumps(other.config)):
        return False
    names = sorted(one.tensors)
    return names == sorted(other.tensors) and all(alike(one.tensors[name], other.tensors[name]) for name in names)


def alike(one, other):
    bits = [tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (one, other)]
    return one.dtype is other.dtype and one.shape == other.shape and torch.equal(*bits)


def left(folder):
    """What is in the cache's folder but for its lock."""
    return sorted(path.name for path in folder.iterdir() if path.name != ".sd3-lock") if folder.exists() else []


# What comes back


@every
def test_what_is_found_is_what_was_stored(cache, weights, made, choice, told):
    recipe = Recipe(choice)
    encoded = made(recipe)
    assert cache.find(weights, recipe) is None
    entry = cache.store(weights, recipe, encoded)
    found = cache.find(weights, recipe)
    assert same(found, encoded)
    assert torch.equal(assemble(found)(t5.tokens())[0], assemble(encoded)(t5.tokens())[0])
    assert same(cache.find(weights, recipe), made(recipe))  # computing has changed nothing, neither here nor there
    assert left(cache.folder) == [entry.folder.name]
    assert sorted(os.listdir(entry.folder)) == [CONFIG, MANIFEST, MODEL]
    assert told == []


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells what is mapped")
def test_it_is_mapped_and_not_read(cache, weights, made):
    entry = cache.store(weights, NF4, made(NF4))
    found = cache.find(weights, NF4)
    lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if str(entry.folder / MODEL) in line]
    spans = [[int(end, 16) for end in line[0].split("-")] for line in lines]
    assert all(any(first <= tensor.data_ptr() < last for first, last in spans) for tensor in found.tensors.values())


def read_ahead(file):
    found = map_tensors(file)
    for thread in threading.enumerate():
        if thread.name == "sd3-read-ahead":
            thread.join()
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="others bring it into memory, but not into that of the process")
def test_it_is_read_ahead(tmp_path):
    file, size = tmp_path / "own.safetensors", 300 * 2**20
    write_tensors(file, {"weight": torch.zeros(size, dtype=torch.uint8)})
    before = psutil.Process().memory_info().rss
    tensor = read_ahead(file)["weight"]
    assert psutil.Process().memory_info().rss - before > 0.9 * size  # though nobody has looked at it
    assert tensor.untyped_storage().nbytes() == size  # not that of the file: by storages others tell tensors apart


def test_a_file_that_is_cut_off_meanwhile_ends_no_process(tmp_path, monkeypatch):
    file, size = tmp_path / "own.safetensors", 300 * 2**20
    write_tensors(file, {"weight": torch.zeros(size, dtype=torch.uint8)})
    from_file = torch.UntypedStorage.from_file

    def cut(*arguments):
        storage = from_file(*arguments)
        os.truncate(file, 2**20)
        return storage

    monkeypatch.setattr(torch.UntypedStorage, "from_file", cut)
    assert int(read_ahead(file)["weight"][0]) == 0


@pytest.mark.parametrize(
    ("choice", "stock"), [("fp4", False), ("nf4", False), ("int8", False), ("fp4", True), ("nf4", True), ("int8", True)]
)
def test_transformers_reads_the_folder(weights, made, tmp_path, choice, stock):
    recipe = Recipe(choices.find(choice), stock=stock)
    entry = export(tmp_path / "out", weights, made(recipe))
    own = transformers.T5EncoderModel if stock or choice == "int8" else t5_encoder_class()
    encoder = own.from_pretrained(entry.folder).eval()
    assert torch.equal(encoder(t5.tokens())[0], assemble(made(recipe))(t5.tokens())[0])


def test_the_manifest_says_what_it_was_made_of(cache, weights, made):
    entry = cache.store(weights, FP4, made(FP4))
    content = json.loads((entry.folder / MANIFEST).read_text(encoding="utf-8"))
    assert content["fingerprint"] == weights.fingerprint()
    assert content["settings"] == FP4.settings()
    assert content["sha256"] == hashlib.sha256((entry.folder / MODEL).read_bytes()).hexdigest()
    assert content["bytes"] == (entry.folder / MODEL).stat().st_size
    assert content["versions"]["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    assert str(weights.files[0].path.parent) not in json.dumps(content)  # whoever passes the folder on passes no path on


def test_a_file_is_as_safetensors_writes_it(tmp_path):
    numbers = torch.arange(24)
    kinds = (
        torch.float64,
        torch.float32,
        torch.bfloat16,
        torch.float16,
        torch.float8_e4m3fn,
        torch.int64,
        torch.int8,
        torch.uint8,
        torch.bool,
    )
    tensors = {f"{kind}.weight": numbers.reshape(4, 6).to(kind) for kind in kinds}
    tensors |= {
        "turned": numbers.reshape(4, 6).T,
        "one": torch.tensor(0.5),
        "none": torch.empty(0, 3),
        "ß “quoted”": torch.ones(3, dtype=torch.uint8),
    }
    told = []
    digest = write_tensors(tmp_path / "own.safetensors", tensors, lambda done, all: told.append((done, all)))
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    assert (told[0], told[-1]) == ((0, size), (size, size))
    assert digest == hashlib.sha256((tmp_path / "own.safetensors").read_bytes()).hexdigest()
    for found in (load_file(tmp_path / "own.safetensors"), map_tensors(tmp_path / "own.safetensors")):
        assert set(found) == set(tensors)
        assert all(alike(found[name], tensors[name]) for name in tensors)
        assert all(tensor.data_ptr() % tensor.element_size() == 0 for tensor in found.values())
    with safe_open(tmp_path / "own.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


# Stale


def _older(file):
    os.utime(file, ns=(0, file.stat().st_mtime_ns - 1))


def _longer(file):
    """By a space in the header, which its hash is of, too."""
    times = file.stat()
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    file.write_bytes((length + 8).to_bytes(8, "little") + content[8 : 8 + length] + b" " * 8 + content[8 + length :])
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


def _other_weights(file):
    """Name, size, time and header are as they were: archives with normalised times make such files."""
    times = file.stat()
    state = load_file(file)
    generator = torch.Generator().manual_seed(7)
    for tensor in state.values():
        tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.05)
    save_file(state, file, {"format": "pt"})
    assert file.stat().st_size == times.st_size
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


def _header(file):
    times = file.stat()
    content = file.read_bytes()
    assert b'"format":"pt"' in content
    file.write_bytes(content.replace(b'"format":"pt"', b'"format":"tp"', 1))
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.mark.parametrize("change", [_older, _longer, _header, _other_weights])
def test_another_source_is_another_encoder_and_takes_the_place_of_the_old_one(cache, weights, made, change, told):
    old = cache.store(weights, FP4, made(FP4))
    other = cache.store(weights, NF4, made(NF4))
    change(weights.files[0].path)
    now = opened(weights.files[0].path.parents[1])
    assert cache.find(now, FP4) is None
    assert old.folder.exists()  # until there is another
    new = cache.store(now, FP4, made(FP4))
    assert left(cache.folder) == sorted([new.folder.name, other.folder.name])
    assert same(cache.find(now, FP4), made(FP4))
    assert told == []


@pytest.mark.parametrize(
    "recipe",
    [replace(FP4, compute="float16"), replace(FP4, scale="absmax"), replace(FP4, stock=True), NF4],
    ids=["compute", "scale", "stock", "choice"],
)
def test_other_settings_are_another_encoder(cache, weights, made, recipe):
    cache.store(weights, FP4, made(FP4))
    assert cache.find(weights, recipe) is None


def test_another_library_or_format_is_another_encoder(cache, weights, made, monkeypatch):
    fp8 = Recipe(choices.find("fp8"))
    cache.store(weights, FP4, made(FP4))
    cache.store(weights, fp8, made(fp8))
    with monkeypatch.context() as patch:
        patch.setattr(manifests.installed, "version", lambda name: "0.99")
        assert cache.find(weights, FP4) is None
        assert cache.find(weights, fp8)  # which is none of bitsandbytes'
    monkeypatch.setattr(manifests, "FORMAT", 2)
    assert cache.find(weights, fp8) is None


def test_two_sources_do_not_push_each_other_out(cache, weights, made, model, tmp_path):
    other = opened(shutil.copytree(model, tmp_path / "other"))
    for file in (one.path for one in other.files):
        _older(file)
    for one in (weights, other):
        cache.store(one, FP4, made(FP4))
    assert same(cache.find(weights, FP4), made(FP4))
    assert same(cache.find(other, FP4), made(FP4))


def test_files_that_are_alike_but_for_their_weights_are_two_encoders(cache, weights, made, model, tmp_path):
    other = opened(shutil.copytree(model, tmp_path / "other"))
    _other_weights(other.files[0].path)
    shutil.copystat(weights.files[0].path, other.files[0].path)
    one, two = (found.fingerprint()[0] for found in (weights, other))
    assert {key for key in one if one[key] != two[key]} == {"samples"}
    cache.store(weights, FP4, made(FP4))
    assert cache.find(other, FP4) is None
    changed = quantize(other, FP4, CPU)
    cache.store(other, FP4, changed)
    assert same(cache.find(weights, FP4), made(FP4))
    assert same(cache.find(other, FP4), changed)
    assert not same(cache.find(other, FP4), made(FP4))


@pytest.mark.parametrize("size", [1, 4096, 64 * 4096, 64 * 4096 + 1, 3_000_000])
def test_samples_reach_from_the_first_byte_to_the_last(tmp_path, size):
    file = tmp_path / "some"
    content = bytearray(random.Random(size).randbytes(size))
    file.write_bytes(content)
    before = samples_of(file)
    assert samples_of(file) == before
    for place in {0, size - 1, size // 2 if size <= 64 * 4096 else size - 4096}:
        content[place] ^= 1
        file.write_bytes(content)
        assert samples_of(file) != before, place
        content[place] ^= 1
    stretch = 2 * size // 64 + 4096  # in each so long there is a sample
    for start in range(0, size, stretch):
        changed = content[:start] + bytes(byte ^ 1 for byte in content[start : start + stretch]) + content[start + stretch :]
        file.write_bytes(changed)
        assert samples_of(file) != before, start


def test_an_entry_of_before_there_were_samples_is_missed_and_makes_room_for_the_next(cache, weights, made, told):
    """It is taken for nothing else, blamed for nothing, and gone as soon as the same encoder is kept anew; or with the limit."""
    old = [{key: value for key, value in one.items() if key != "samples"} for one in weights.fingerprint()]
    wanted = manifests.key(old, FP4)
    cache.folder.mkdir(parents=True)
    before = writing.write(cache.folder / name_for("fp4", wanted), weights, made(FP4), old, lambda done, total: None)
    assert cache.find(weights, FP4) is None
    assert cache.verify() == [(before, True)]  # whole, though nobody asks for it any more
    after = cache.store(weights, FP4, made(FP4))
    assert left(cache.folder) == [after.folder.name]
    assert told == []


def test_an_old_entry_whose_source_is_gone_goes_with_the_limit(cache, weights, made, model, tmp_path):
    old = [{key: value for key, value in one.items() if key != "samples"} for one in weights.fingerprint()]
    cache.folder.mkdir(parents=True)
    before = writing.write(cache.folder / name_for("fp4", manifests.key(old, FP4)), weights, made(FP4), old, lambda done, total: None)
    other = opened(shutil.copytree(model, tmp_path / "other"))
    small = replace(cache, limit=before.bytes + 1)
    after = small.store(other, FP4, made(FP4))
    assert left(cache.folder) == [after.folder.name]


def test_a_source_that_changes_while_it_is_read_is_not_stored(cache, weights, made):
    before = weights.fingerprint()
    _older(weights.files[0].path)
    assert cache.store(weights, FP4, made(FP4), before) is None
    assert left(cache.folder) == []


def test_a_source_that_is_gone(cache, weights, made):
    cache.store(weights, FP4, made(FP4))
    shutil.rmtree(weights.files[0].path.parent)
    assert cache.find(weights, FP4) is None
    assert cache.store(weights, FP4, made(FP4)) is None


# Damaged


def _flip(file, place=-1):
    """One bit, and the time put back."""
    times = file.stat()
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


def _cut(file):
    os.truncate(file, file.stat().st_size // 2)


def _empty(file):
    os.truncate(file, 0)


def _list(file):
    file.write_text("[]")


def _other_seal(file):
    """Altered by somebody who left the seal as it was."""
    content = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(content | {"sha256": "0" * 64}), encoding="utf-8")


def _renamed(file):
    """As after a change of the name: the manifest of another encoder."""
    found = Manifest.parse(file.read_bytes())
    file.write_bytes(replace(found, key="0" * 64).dump())


DAMAGES = [
    (MODEL, _flip),
    (MODEL, lambda file: _flip(file, 20)),
    (MODEL, _cut),
    (MODEL, _empty),
    (MODEL, Path.unlink),
    (CONFIG, _flip),
    (CONFIG, Path.unlink),
    (MANIFEST, _cut),
    (MANIFEST, _empty),
    (MANIFEST, _list),
    (MANIFEST, lambda file: _flip(file, 50)),
    (MANIFEST, _other_seal),
    (MANIFEST, _renamed),
    (MANIFEST, Path.unlink),
]


@pytest.mark.parametrize(("name", "damage"), DAMAGES, ids=[f"{number}-{name}" for number, (name, _) in enumerate(DAMAGES)])
def test_what_is_damaged_is_removed_told_and_made_anew(cache, weights, made, told, name, damage):
    entry = cache.store(weights, NF4, made(NF4))
    damage(entry.folder / name)
    assert cache.entry(weights, NF4) is None
    assert cache.find(weights, NF4) is None
    assert told == [("cache.damaged", {"name": "T5 NF4", "file": name, "folder": entry.folder})]
    assert messages.text(*told[0][:1], **told[0][1])
    assert left(cache.folder) == []
    assert cache.store(weights, NF4, made(NF4)) == entry
    assert same(cache.find(weights, NF4), made(NF4))
    assert len(told) == 1


@pytest.mark.parametrize(("name", "damage"), DAMAGES[::3], ids=[f"{number}-{name}" for number, (name, _) in enumerate(DAMAGES[::3])])
def test_what_is_damaged_is_replaced_when_it_is_stored(cache, weights, made, name, damage):
    entry = cache.store(weights, NF4, made(NF4))
    damage(entry.folder / name)
    assert cache.store(weights, NF4, made(NF4)) == entry
    assert same(cache.find(weights, NF4), made(NF4))


def test_what_is_there_is_not_written_again(cache, weights, made):
    entry = cache.store(weights, NF4, made(NF4))
    before = stamp(entry.folder / MODEL)
    assert cache.store(weights, NF4, made(NF4)) == entry
    assert stamp(entry.folder / MODEL) == before


def test_a_copy_is_read_whole_once(cache, weights, made, tmp_path, told):
    cache.store(weights, NF4, made(NF4))
    copy = Cache(tmp_path / "copy", told=cache.told)
    shutil.copytree(cache.folder, copy.folder)  # with the times, as a backup
    (entry,) = copy.entries()
    assert not entry.stamped
    assert same(copy.find(weights, NF4), made(NF4))
    assert entry.stamped
    text = entry.text
    assert same(copy.find(weights, NF4), made(NF4))
    assert entry.text == text
    assert told == []


def test_a_header_that_can_not_be_read(cache, weights, made, told):
    entry = cache.store(weights, NF4, made(NF4))
    _flip(entry.folder / MODEL, 8)
    (entry.folder / MANIFEST).write_bytes(replace(entry.manifest, stamp=stamp(entry.folder / MODEL)).dump())  # as if nobody had written
    assert cache.find(weights, NF4) is None
    assert told == [("cache.damaged", {"name": "T5 NF4", "file": MODEL, "folder": entry.folder})]
    assert left(cache.folder) == []


def test_a_disk_that_forgets_is_found_by_verify(cache, weights, made, told):
    entry, good = cache.store(weights, NF4, made(NF4)), cache.store(weights, FP4, made(FP4))
    _flip(entry.folder / MODEL)
    (entry.folder / MANIFEST).write_bytes(replace(entry.manifest, stamp=stamp(entry.folder / MODEL)).dump())  # as if nobody had written
    assert cache.entry(weights, NF4) == entry
    seen = []
    total = cache.bytes
    assert dict(cache.verify(lambda *at: seen.append(at))) == {entry: False, good: True}
    assert seen[-1][0] > 0.9 * total
    assert seen[-1][1] == total
    assert [id for id, _ in told] == ["cache.damaged"]
    assert left(cache.folder) == [good.folder.name]
    assert cache.verify() == [(good, True)]


# One writer


HOLD = """
import os, sys
from sd3deploy.file_lock import try_lock
descriptor = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
print(try_lock(descriptor), flush=True)
sys.stdin.read()
"""


@contextmanager
def somebody_writes(cache):
    cache.folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-c", HOLD, str(cache.folder / ".sd3-lock")]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "True\n"
    try:
        yield
    finally:
        process.kill()
        process.communicate()


def test_one_process_writes_and_the_others_wait_for_it_but_not_for_ever(cache, weights, made, told, monkeypatch):
    monkeypatch.setattr("sd3deploy.encoders.cache.cache._WRITING", 0.2)
    stored = cache.store(weights, FP4, made(FP4))
    unfinished = cache.folder / ".sd3-part-of-the-other"
    with somebody_writes(cache):
        unfinished.mkdir()
        with pytest.raises(CacheError) as caught:
            cache.store(weights, NF4, made(NF4))
        assert caught.value.id == "cache.waited"
        assert same(cache.find(weights, FP4), made(FP4))  # to read needs no lock
        _cut(stored.folder / MODEL)
        assert cache.find(weights, FP4) is None
        assert stored.folder.exists()
        with pytest.raises(CacheError) as caught:
            cache.clear()
        assert caught.value.id == "cache.busy"
        assert told == []
        assert unfinished.exists()
    assert cache.store(weights, NF4, made(NF4))
    assert not unfinished.exists()


def test_threads_that_store_at_once(cache, weights, made):
    recipes = [Recipe(choice) for choice in QUANTIZED]
    made_by_now = {recipe: made(recipe) for recipe in recipes}
    start, done = threading.Barrier(len(recipes)), {}

    def work(recipe):
        start.wait()
        done[recipe] = cache.store(weights, recipe, made_by_now[recipe])

    threads = [threading.Thread(target=work, args=(recipe,)) for recipe in recipes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(done.values())
    assert all(same(cache.find(weights, recipe), made(recipe)) for recipe in recipes)
    assert len(left(cache.folder)) == len(recipes)


# Small files beside the encoders

ADD = """
import sys
from pathlib import Path
from sd3deploy.encoders.cache import Cache
print("ready", flush=True)
sys.stdin.readline()
for _ in range(40):
    Cache(Path(sys.argv[1])).change_beside("count", lambda data: b"%d" % (int(data or 0) + 1) + b" " * 5000)
"""


def test_what_several_processes_change_at_once_is_all_there_and_never_half(cache):
    command = [sys.executable, "-c", ADD, str(cache.folder)]
    processes = [subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    seen = []
    while any(process.poll() is None for process in processes):
        with contextlib.suppress(OSError):  # not there yet; on Windows, at the moment of the change
            seen.append((cache.folder / "count").read_bytes())
    for process in processes:
        process.communicate()
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert all(data.endswith(b" " * 5000) for data in seen)
    assert int((cache.folder / "count").read_bytes()) == 120
    assert sorted(os.listdir(cache.folder)) == [".sd3-lock", "count"]


def test_while_another_writes_a_small_file_waits_and_stays_as_it_is_when_that_takes_too_long(cache, monkeypatch):
    cache.change_beside("count", lambda data: b"1")
    monkeypatch.setattr("sd3deploy.encoders.cache.cache._WRITING", 0.2)
    with cache._lock() as mine:
        assert mine
        with pytest.raises(CacheError) as caught:
            cache.change_beside("count", lambda data: b"2")
    assert caught.value.id == "cache.busy"
    assert (cache.folder / "count").read_bytes() == b"1"


def test_what_fails_on_the_way_leaves_a_small_file_as_it_was(cache, monkeypatch):
    cache.change_beside("count", lambda data: b"1")

    def replace(scratch, file):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(CacheError, match="No space") as caught:
        cache.change_beside("count", lambda data: b"2")
    assert caught.value.id == "cache.unwritable"
    assert sorted(os.listdir(cache.folder)) == [".sd3-lock", "count"]


# No room, no right


def test_a_disk_without_room(cache, weights, made):
    vast = Encoded(FP4, made(FP4).config, {"weight": torch.zeros(1).expand(10**13)})  # 40 TB, which no disk here has
    with pytest.raises(CacheError) as caught:
        replace(cache, limit=10**15).store(weights, FP4, vast)
    assert caught.value.id == "cache.no-room"
    assert str(cache.folder) in caught.value.message
    assert "40000.0 GB" in caught.value.message
    assert "sd3_cache_folder" in caught.value.remedy
    assert left(cache.folder) == []


@posix
def test_a_disk_that_fills_while_it_is_written(cache, weights, made):
    import resource

    kept = cache.store(weights, NF4, made(NF4))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, before[1]))  # a file ends there, with the system's own error
    try:
        with pytest.raises(CacheError) as caught:
            cache.store(weights, FP4, made(FP4))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.id == "cache.no-room"
    assert caught.value.__cause__.errno == errno.EFBIG
    assert left(cache.folder) == [kept.folder.name]
    assert same(cache.find(weights, NF4), made(NF4))


@contextmanager
def nobody():
    """As an account without rights, where the tests run as root."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@posix
def test_a_folder_that_is_only_read(weights, made, model, told):
    with tempfile.TemporaryDirectory() as place:  # pytest's own folders are closed to others
        os.chmod(place, 0o755)
        weights = opened(shutil.copytree(model, Path(place, "source")))
        for path in (Path(place, "source"), *Path(place, "source").rglob("*")):  # of the source samples are read
            os.chmod(path, 0o755)
        cache = Cache(Path(place, "cache"), told=lambda id, values: told.append(id))
        entry = cache.store(weights, NF4, made(NF4))
        os.utime(entry.folder / MODEL)  # so that it is hashed, and its stamp could be renewed
        os.chmod(entry.folder, 0o555)
        os.chmod(cache.folder, 0o555)
        os.chmod(cache.folder / ".sd3-lock", 0o444)
        with nobody():
            assert same(cache.find(weights, NF4), made(NF4))
            with pytest.raises(CacheError) as caught:
                cache.store(weights, FP4, made(FP4))
            assert caught.value.id == "cache.unwritable"
            with pytest.raises(CacheError) as caught:
                cache.clear()
            assert caught.value.id == "cache.unwritable"
            assert told == []
        os.chmod(entry.folder / MODEL, 0o644)
        _flip(entry.folder / MODEL)
        with nobody():
            assert cache.find(weights, NF4) is None
            assert told == ["cache.damaged"]
        os.chmod(entry.folder / MODEL, 0)
        with nobody():
            assert cache.find(weights, NF4) is None
            assert told == ["cache.damaged", "cache.unreadable"]
            assert [whole for _, whole in cache.verify()] == [False]
        assert (entry.folder / MODEL).exists()
        os.chmod(cache.folder, 0o755)
        os.chmod(entry.folder, 0o755)


def test_no_folder_can_be_made_there(weights, made, tmp_path, told):
    (tmp_path / "file").write_text("")
    cache = Cache(tmp_path / "file" / "cache", told=lambda id, values: told.append((id, values)))
    with pytest.raises(CacheError) as caught:
        cache.store(weights, FP4, made(FP4))
    assert caught.value.id == "cache.unwritable"
    cache.keep(weights, FP4, made(FP4))  # for a thread, which nobody catches an error from
    assert [id for id, _ in told] == ["cache.unwritable"]
    assert messages.text(told[0][0], **told[0][1]) == caught.value.message
    assert (cache.find(weights, FP4), cache.entries(), cache.clear(), cache.verify()) == (None, [], 0, [])


class Enough(Exception):
    """Of somebody who has seen enough."""


@pytest.mark.parametrize("at", [0, 0.5, 1])
def test_writing_that_is_ended(cache, weights, made, at):
    def progress(done, total):
        if done >= at * total:
            raise Enough

    with pytest.raises(Enough):
        cache.store(weights, FP4, made(FP4), progress=progress)
    assert left(cache.folder) == []


# Limit


def test_what_was_not_used_for_longest_makes_room(cache, weights, made):
    recipes = [Recipe(choices.find(id)) for id in ("fp4", "nf4", "q5", "fp8")]
    entries = {}
    for age, recipe in enumerate(recipes[:3]):
        entries[recipe] = cache.store(weights, recipe, made(recipe))
        os.utime(entries[recipe].folder / MANIFEST, (0, 1000 + age))
    cache.find(weights, recipes[0])
    assert [entry.choice for entry in cache.entries()] == ["fp4", "q5", "nf4"]
    limited = replace(cache, limit=cache.bytes + 1000)
    limited.store(weights, recipes[3], made(recipes[3]))
    assert [entry.choice for entry in cache.entries()] == ["fp8", "fp4"]
    assert cache.bytes <= limited.limit
    assert same(cache.find(weights, recipes[0]), made(recipes[0]))


def test_more_than_the_limit_is_not_stored(cache, weights, made):
    kept = cache.store(weights, NF4, made(NF4))
    with pytest.raises(CacheError) as caught:
        replace(cache, limit=made(FP4).size - 1).store(weights, FP4, made(FP4))
    assert caught.value.id == "cache.over-limit"
    assert "sd3_cache_limit" in caught.value.remedy
    assert left(cache.folder) == [kept.folder.name]


# What is not ours


def test_what_is_not_ours_is_never_touched(cache, weights, made, told):
    entry = cache.store(weights, FP4, made(FP4))
    foreign = {
        "notes.txt": "mine",
        "t5-fp4-0123456789ab/model.bin": "a model of mine, by chance with such a name",
        "t5-fp4/manifest.json": "{}",
        "t5-fp4-0123456789abc/manifest.json": "{}",
        "model/model.safetensors": "mine",
        ".sd3-part-file": "no folder",
    }
    for name, content in foreign.items():
        (cache.folder / name).parent.mkdir(exist_ok=True)
        (cache.folder / name).write_text(content)
    (cache.folder.parent / "elsewhere").mkdir()
    (cache.folder.parent / "elsewhere" / MANIFEST).write_text("{}")
    for name in ("t5-nf4-0123456789ab", ".sd3-part-link"):
        (cache.folder / name).symlink_to(cache.folder.parent / "elsewhere")
    (entry.folder / "notes.txt").write_text("mine too")
    assert cache.entries() == [entry]
    assert cache.verify() == [(entry, True)]
    size = cache.bytes
    assert cache.clear() == size
    assert all((cache.folder / name).read_text() == content for name, content in foreign.items())
    assert (cache.folder.parent / "elsewhere" / MANIFEST).read_text() == "{}"
    assert os.listdir(entry.folder) == ["notes.txt"]
    with pytest.raises(CacheError) as caught:
        cache.store(weights, FP4, made(FP4))
    assert caught.value.id == "cache.out-taken"
    assert cache.clear() == 0
    assert os.listdir(entry.folder) == ["notes.txt"]
    assert told == []


def test_only_a_new_or_empty_folder_is_written_to(weights, made, tmp_path):
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", tmp_path / "a" / "new" / "one"):
        assert export(folder, weights, made(FP4)).damage() is None
        assert sorted(os.listdir(folder)) == [CONFIG, MANIFEST, MODEL]
        assert len(os.listdir(folder.parent)) >= 1
        with pytest.raises(CacheError) as caught:
            export(folder, weights, made(FP4))
        assert caught.value.id == "cache.out-taken"
    assert os.listdir(tmp_path / "a" / "new") == ["one"]


@pytest.mark.parametrize(
    ("setting", "expected"),
    [("", "/models/SD3 Deploy"), ("  ", "/models/SD3 Deploy"), ("/disk/t5", "/disk/t5"), ('"/disk/t5" ', "/disk/t5"), ("t5", "/models/t5")],
)
def test_where_it_is(setting, expected):
    assert folder_for(Path("/models"), setting) == Path(expected)


@pytest.mark.parametrize(
    ("setting", "expected"),
    [(20, 20e9), (0.5, 5e8), (None, 20e9), ("many", 20e9), (True, 20e9), (0, 20e9), (-1, 20e9), (float("nan"), 20e9), (float("inf"), 20e9)],
)
def test_how_much_it_may_be(setting, expected):
    assert limit_for(setting) == expected


# Killed


NURSERY = """
import json, mmap, os, sys
from pathlib import Path
from sd3deploy.device import Device
from sd3deploy.encoders import choices, source
from sd3deploy.encoders.cache import Cache
from sd3deploy.encoders.quantize import quantize
from sd3deploy.encoders.recipe import Recipe
from sd3deploy.encoders.files import samples_of
from sd3deploy.encoders.weights import open_weights

folder, phase_file = Path(sys.argv[1]), sys.argv[2]
weights = open_weights(source.find("Model", source.Facts(str(folder / "source"))))
recipe, cpu, cache = Recipe(choices.find("nf4")), Device("cpu", "cpu", "CPU"), Cache(folder / "cache")
with open(phase_file, "r+b") as file:
    phase = mmap.mmap(file.fileno(), 1)

def work():
    while True:
        phase[0] = ord("q")
        encoded = quantize(weights, recipe, cpu)
        phase[0] = ord("w")
        cache.store(weights, recipe, encoded)
        phase[0] = ord("c")
        cache.clear()

def fall(begin, at):
    def progress(done, total):
        if done >= at * total:
            os.kill(os.getpid(), 9)

    phase[0] = ord(begin)
    encoded = quantize(weights, recipe, cpu, progress if begin == "q" else lambda done, total: None)
    phase[0] = ord("w")
    cache.store(weights, recipe, encoded, progress=progress)

quantize(weights, recipe, cpu)  # so that the children find everything imported
for line in sys.stdin:  # a child that is born with all libraries, as often as one is asked for
    child = os.fork()
    if not child:
        task, *words = line.split()
        work() if task == "work" else fall(task, float(words[0]))
        os._exit(1)
    print(child, flush=True)
    os.waitpid(child, 0)
    print("dead", flush=True)
"""


@posix
def test_killed_at_any_moment_it_is_right_the_next_time(weights, made, tmp_path, told):
    cache = Cache(tmp_path / "cache", told=lambda id, values: told.append((id, values)))
    phase = tmp_path / "phase"
    phase.write_bytes(b"-")
    command = [sys.executable, "-c", NURSERY, str(tmp_path), str(phase)]
    nursery = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    chance, phases = random.Random(7), []

    def child(task):
        nursery.stdin.write(f"{task}\n")
        nursery.stdin.flush()
        return int(nursery.stdout.readline())

    def dead():
        """Whether it left something. What is found is right or nothing, the next one stores, and nothing is left of the dead."""
        assert nursery.stdout.readline() == "dead\n"
        phases.append(phase.read_bytes())
        parts = [name for name in left(cache.folder) if name.startswith(".sd3-part-")]
        there = cache.find(weights, NF4)
        assert there is None or same(there, made(NF4))
        assert told == [] or phases[-1] == b"c"  # of one that was just being removed the rest is removed
        told.clear()
        entry = cache.store(weights, NF4, made(NF4))
        assert left(cache.folder) == [entry.folder.name]
        assert same(cache.find(weights, NF4), made(NF4))
        cache.clear()
        phase.write_bytes(b"-")
        return bool(parts)

    try:
        for at in (0, 0.5, 1):  # at the beginning, in the middle, at the end
            child(f"q {at}")
            assert not dead()  # quantizing leaves nothing
            child(f"w {at}")
            assert dead()
        for moment in range(8):
            process = child("work")
            for _ in range(chance.randrange(1, 3)):  # not always the first time
                begins(phase, b"qw"[moment % 2])
            time.sleep(chance.random() * 0.02)
            os.kill(process, signal.SIGKILL)  # at some moment, which need not be the same each time: what was met above for sure
            dead()
    finally:
        nursery.kill()
        nursery.communicate()
    assert {b"q", b"w"} <= set(phases)


def begins(phase, wanted):
    assert until(lambda: phase.read_bytes()[0] != wanted, every=0.0005)
    assert until(lambda: phase.read_bytes()[0] == wanted, every=0.0005)


def test_an_entry_that_is_gone_is_asked(tmp_path):
    entry = Entry(tmp_path / "t5-fp4-0123456789ab")
    assert (entry.manifest, entry.text, entry.bytes, entry.used, entry.stamped) == (None, None, 0, 0.0, False)
    entry.touch()
    entry.renew()
    assert entry.remove() == 0


# The folder of the settings


def test_a_folder_with_other_things_in_it_is_not_written_to(weights, made, tmp_path, told, monkeypatch):
    (tmp_path / "home" / "letters").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one.jpg").write_bytes(b"jpg")
    for place in (Path(tmp_path.anchor), tmp_path / "home", tmp_path / "photos", tmp_path / "photos" / ".." / "photos"):
        before = sorted(os.listdir(place))
        cache = Cache(place, told=lambda id, values: told.append(id))
        assert cache.find(weights, FP4) is None
        with pytest.raises(CacheError, match="holds other things") as caught:
            cache.store(weights, FP4, made(FP4))
        assert "SD3 Deploy" in caught.value.remedy
        cache.keep(weights, FP4, made(FP4))
        assert cache.clear() == 0
        assert sorted(os.listdir(place)) == before
    assert told == ["cache.not-ours"] * 4


def test_a_home_that_is_empty_is_still_a_home(weights, made, tmp_path, monkeypatch):
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    with pytest.raises(CacheError, match="holds other things"):
        Cache(tmp_path / "home").store(weights, FP4, made(FP4))
    assert os.listdir(tmp_path / "home") == []


def test_a_folder_that_was_ours_before_stays_so(weights, made, tmp_path):
    cache = Cache(tmp_path / "kept")
    cache.store(weights, FP4, made(FP4))
    (cache.folder / "notes.txt").write_text("mine")
    assert cache.store(weights, NF4, made(NF4))
    cache.clear()
    assert cache.store(weights, NF4, made(NF4))
    assert (cache.folder / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("setting", ["\0", "a\0b", "x" * 5000, "~nobody-of-that-name/x\0", "\ud800"])
def test_a_folder_that_can_not_be_costs_the_cache_and_not_the_encoder(weights, made, tmp_path, told, setting):
    cache = Cache(folder_for(tmp_path, setting), told=lambda id, values: told.append(id))
    assert cache.find(weights, FP4) is None
    assert cache.entry(weights, FP4) is None
    assert cache.entries() == []
    assert cache.clear() == 0
    cache.keep(weights, FP4, made(FP4))
    assert told == ["cache.unwritable"]


def test_the_home_of_nobody_is_a_name_like_others(tmp_path):
    assert folder_for(tmp_path, "~nobody-of-that-name/x") == tmp_path / "~nobody-of-that-name" / "x"
