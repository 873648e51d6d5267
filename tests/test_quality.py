"""Quality on the user's own weights: block by block it is what whole encoders give, it goes on where it was stopped, and what is kept is
taken for the very weights alone.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch
import transformers

from sd3deploy import tiny_tokenizers
from sd3deploy.device import Device
from sd3deploy.encoders import load, source
from sd3deploy.encoders.cache import Cache, CacheError
from sd3deploy.encoders.cache.manifest import versions
from sd3deploy.encoders.choices import CHOICES, find
from sd3deploy.encoders.measure import measure as measured_bytes
from sd3deploy.encoders.need import shape
from sd3deploy.encoders.parts import parts
from sd3deploy.encoders.stopping import Stopped
from sd3deploy.encoders.weights import open_weights
from sd3deploy.errors import EncoderError, SettingError
from sd3deploy.memory.errors import Errors
from sd3deploy.quality import beside, prompts, running
from sd3deploy.quality.beside import Measured
from sd3deploy.quality.kept import Kept, errors_of
from tests import t5

CPU = Device("cpu", "cpu", "CPU")
OURS = [choice for choice in CHOICES if choice.bytes]
TEXTS = ["a photo of a cat", "", "the red sign that says hello " * 60, "42", "def f(x): return x"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "mine"
    t5.make(folder)
    tiny_tokenizers.t5(folder / "tokenizer_3")
    return folder


@pytest.fixture(scope="module")
def place(model):
    return source.find("Model", source.Facts(str(model)))


@pytest.fixture(scope="module")
def weights(place):
    return open_weights(place)


@pytest.fixture(scope="module")
def asked(model):
    return prompts.tokenized(TEXTS, prompts.tokenizer([model], t5.VOCABULARY))


def whole(encoder, prompt):
    with torch.inference_mode():
        return encoder(prompt.tensor("cpu"))[0].double()


# Beside each other


@pytest.mark.parametrize("compute", ["bfloat16", "float16"])
def test_it_is_what_whole_encoders_give_one_after_the_other(model, place, weights, asked, compute):
    on = replace(CPU, bf16=compute == "bfloat16")
    able = [choice for choice in OURS if on.bf16 or choice.id != "bf16"]
    found = beside.measure(weights, dict.fromkeys(able, asked), on)
    assert found.failed == {}
    exact = transformers.T5EncoderModel.from_pretrained(model / "text_encoder_3").eval()
    for choice in able:
        encoder = load.load(choice, place, on)
        assert list(found.measured[choice.id]) == [prompt.key for prompt in asked]
        for prompt in asked:
            ours, right, one = whole(encoder, prompt), whole(exact, prompt), found.measured[choice.id][prompt.key]
            assert one.error == pytest.approx(float((ours - right).norm() / right.norm()), rel=1e-6)
            assert one.cosine == pytest.approx(t5.cosine(ours, right), abs=1e-9)
            assert one.error > 0


def test_the_parts_are_all_of_it_and_no_more(weights):
    found = list(parts(weights))
    assert [part.config["num_layers"] for part in found] == [0, 1, 1, 1]
    stored = [weight.stored for part in found for weight in part.tensors.values()]
    assert set(stored) == {weight.stored for weight in weights.tensors.values()}
    assert len(stored) == len(weights.tensors) + 3 + 2  # the last norm is in each, the bias of block 0 in each block


@pytest.mark.parametrize("choice", OURS, ids=lambda choice: choice.id)
def test_the_bytes_are_those_of_the_encoder(place, choice):
    encoder = load.load(choice, place, CPU)
    assert shape(encoder).bytes(choice) == measured_bytes(encoder).bytes


def test_a_choice_that_fails_stops_no_other(monkeypatch, weights, asked):
    real = beside.assemble

    def assemble(encoded, device):
        if encoded.recipe.choice.id == "nf4":
            raise RuntimeError("no kernel\nfor this")
        encoder = real(encoded, device)
        if encoded.recipe.choice.id == "fp8" and encoder.config.num_layers:
            encoder.encoder.block[0].layer[1].DenseReluDense.wo.scale.fill_(torch.inf)
        return encoder

    monkeypatch.setattr(beside, "assemble", assemble)
    found = beside.measure(weights, dict.fromkeys([find("nf4"), find("fp8"), find("int8")], asked), CPU)
    assert found.failed == {"nf4": "RuntimeError: no kernel", "fp8": "its output holds no numbers (NaN or infinity)"}
    assert list(found.measured) == ["int8"]


# A few at a time, kept, and gone on with


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(running, "_ON_CPU", 2)


def stop_after(count):
    seen = []

    def progress(fraction, done, all, name):
        seen.append((fraction, done, all, name))

    return progress, (lambda: bool(seen) and seen[-1][1] >= count), seen


def test_what_was_measured_before_a_stop_is_not_measured_again(weights, asked, tmp_path, few):
    fingerprint, able = weights.fingerprint(), [find("nf4"), find("fp8")]
    kept = Kept(Cache(tmp_path / "kept"), fingerprint, CPU)
    progress, stopped, seen = stop_after(3)
    with pytest.raises(Stopped):
        running.run(weights, fingerprint, able, asked, kept, CPU, progress, stopped)
    assert [done for _, done, _, _ in seen] == sorted(done for _, done, _, _ in seen)
    before = Kept(Cache(tmp_path / "kept"), fingerprint, CPU)
    first = {choice: before.measured(choice) for choice in able}
    assert [len(measured) for measured in first.values()] == [3, 3]
    progress, _, seen = stop_after(99)
    again = Kept(Cache(tmp_path / "kept"), fingerprint, CPU)
    assert running.run(weights, fingerprint, [*able, find("int8")], asked[:4], again, CPU, progress) == {}
    assert {all for _, _, all, _ in seen} == {4}  # the new choice with all, the others with the one that is missing
    assert seen[-1][0] == 1.0
    for choice in able:
        assert {key: one for key, one in again.measured(choice).items() if key in first[choice]} == first[choice]  # the very times too
        assert len(again.measured(choice)) == 4
    assert len(again.measured(find("int8"))) == 4
    assert running.unmeasured([*able, find("int8")], asked[:4], again) == []


def test_weights_that_change_meanwhile_are_not_kept(weights, asked, tmp_path):
    kept = Kept(Cache(tmp_path / "kept"), weights.fingerprint(), CPU)
    with pytest.raises(EncoderError) as raised:
        running.run(weights, [{"another": 1}], [find("fp8")], asked[:1], kept, CPU)
    assert raised.value.id == "source.changed"
    assert kept.measured(find("fp8")) == {}


ONE = Measured(0.25, 0.5, 1.0)


def test_another_device_and_other_versions(weights, tmp_path, monkeypatch):
    cache, fingerprint = Cache(tmp_path / "kept"), weights.fingerprint()
    Kept(cache, fingerprint, CPU).add({"nf4": {"a": ONE}})
    other = replace(CPU, name="another")
    assert Kept(cache, fingerprint, other).measured(find("nf4")) == {}
    Kept(cache, fingerprint, other).add({"nf4": {"b": ONE}})
    assert Kept(cache, fingerprint, CPU).measured(find("nf4")) == {"a": ONE}
    assert Kept(cache, [{"other": 1}], CPU).measured(find("nf4")) == {}
    monkeypatch.setattr("sd3deploy.quality.kept.versions", lambda: {"torch": "0"})
    assert Kept(cache, fingerprint, CPU).measured(find("nf4")) == {}


def test_another_bitsandbytes_throws_away_nothing_that_is_made_without_it(weights, place, tmp_path, monkeypatch):
    cache, fingerprint, now = Cache(tmp_path / "kept"), weights.fingerprint(), versions()
    monkeypatch.setattr("sd3deploy.quality.kept.versions", lambda: {**now, "bitsandbytes": None})
    Kept(cache, fingerprint, CPU).add({"nf4": {"a": ONE}, "fp8": {"a": ONE}})
    monkeypatch.setattr("sd3deploy.quality.kept.versions", lambda: {**now, "bitsandbytes": "99"})
    newer = Kept(cache, fingerprint, CPU)
    assert (newer.measured(find("nf4")), newer.measured(find("fp8"))) == ({}, {"a": ONE})
    assert errors_of(cache, place) == Errors({"fp8": 0.25}, 1)
    newer.add({"nf4": {"b": ONE}})
    assert Kept(cache, fingerprint, CPU).measured(find("nf4")) == {"b": ONE}  # nothing of the former version
    monkeypatch.setattr("sd3deploy.quality.kept.versions", lambda: {**now, "torch": "99"})
    assert Kept(cache, fingerprint, CPU).measured(find("fp8")) == {}
    assert errors_of(cache, place) == Errors()


def test_what_two_measure_at_once_is_kept_of_both(weights, tmp_path):
    cache, fingerprint = Cache(tmp_path / "kept"), weights.fingerprint()
    one, two, elsewhere = (Kept(cache, fingerprint, device) for device in (CPU, CPU, replace(CPU, name="another")))
    one.add({"nf4": {"a": ONE}})
    elsewhere.add({"nf4": {"c": ONE}})
    two.add({"nf4": {"b": ONE}, "fp8": {"a": ONE}})
    assert two.measured(find("nf4")) == {"a": ONE, "b": ONE}
    both = Kept(cache, fingerprint, CPU)
    assert (both.measured(find("nf4")), both.measured(find("fp8"))) == ({"a": ONE, "b": ONE}, {"a": ONE})
    assert Kept(cache, fingerprint, replace(CPU, name="another")).measured(find("nf4")) == {"c": ONE}


def test_what_is_known_stays_known_when_another_version_writes_over_it_or_the_file_goes(weights, tmp_path, monkeypatch):
    cache, fingerprint, now = Cache(tmp_path / "kept"), weights.fingerprint(), versions()
    Kept(cache, fingerprint, CPU).add({"q8": {"a": ONE}})
    running = Kept(cache, fingerprint, CPU)
    with monkeypatch.context() as patched:
        patched.setattr("sd3deploy.quality.kept.versions", lambda: {**now, "torch": "99"})
        Kept(cache, fingerprint, CPU).add({"q8": {"c": ONE}})
    running.add({"q8": {"b": ONE}})
    assert running.measured(find("q8")) == {"a": ONE, "b": ONE}
    next(cache.folder.glob("quality-*.json")).unlink()
    running.add({"q6": {"b": ONE}})
    assert running.measured(find("q8")) == {"a": ONE, "b": ONE}


def test_the_folder_stays_one_of_kept_encoders(weights, place, tmp_path):
    cache = Cache(tmp_path / "kept")
    Kept(cache, weights.fingerprint(), CPU).add({"nf4": {"a": ONE}})
    encoder = load.load(find("fp8"), place, CPU, cache=cache)
    load.writing().join()
    assert encoder is not None
    assert [entry.choice for entry in cache.entries()] == ["fp8"]
    assert cache.clear() > 0
    assert Kept(cache, weights.fingerprint(), CPU).measured(find("nf4")) == {"a": ONE}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"format": 1, "versions": {}, "devices": {"x": {"nf4": {"a": [1.0, 1.0, 1.0]}}}}',
        '{"format": 2, "devices": {"x": {"nf4": {"versions": {}, "prompts": {"a": [1.0, NaN, 1.0]}, "failed": false}}}}',
        '{"format": 2, "devices": {"x": {"nf4": {"versions": {}, "prompts": [], "failed": false}}}}',
        '{"format": 2, "devices": {"x": {"nf4": []}}}',
        '{"format": 2, "devices": []}',
        '{"format": 2',
        "[" * 9999,
    ],
)
def test_a_file_that_is_damaged_is_none(weights, place, tmp_path, text):
    cache = Cache(tmp_path / "kept")
    Kept(cache, weights.fingerprint(), CPU).add({"nf4": {"a": ONE}})
    (file,) = cache.folder.glob("quality-*.json")
    file.write_text(text)
    assert Kept(cache, weights.fingerprint(), CPU).measured(find("nf4")) == {}
    assert errors_of(cache, place) == Errors()


def full(self, name, change):
    raise CacheError("cache.unwritable", folder=self.folder, detail="No space left on device")


def test_where_nothing_can_be_kept_is_seen_before_anything_is_measured(weights, asked, tmp_path, monkeypatch):
    (tmp_path / "one.jpg").write_bytes(b"jpg")
    monkeypatch.setattr(running, "measure", None)
    with pytest.raises(CacheError, match="holds other things"):
        running.run(weights, weights.fingerprint(), [find("q8")], asked, Kept(Cache(tmp_path), weights.fingerprint(), CPU), CPU)


def test_what_can_not_be_kept_any_longer_is_measured_all_the_same_and_kept_when_there_is_room(weights, asked, tmp_path, few, monkeypatch):
    cache, fingerprint, able = Cache(tmp_path / "kept"), weights.fingerprint(), [find("q8")]
    kept, real, seen = Kept(cache, fingerprint, CPU), Cache.change_beside, []

    def progress(fraction, done, all, name):
        seen.append(done)
        monkeypatch.setattr(Cache, "change_beside", full if 0 < done < 3 else real)  # the second of three groups

    assert running.run(weights, fingerprint, able, asked, kept, CPU, progress) == {}
    assert kept.lost is None
    assert len(Kept(cache, fingerprint, CPU).measured(able[0])) == len(asked)
    other = Kept(Cache(tmp_path / "other"), fingerprint, CPU)
    running.run(weights, fingerprint, able, asked, other, CPU, lambda *at: monkeypatch.setattr(Cache, "change_beside", full))
    assert "No space" in str(other.lost)
    assert len(other.measured(able[0])) == len(asked)


def test_a_stop_says_what_was_lost(weights, asked, tmp_path, few, monkeypatch):
    kept = Kept(Cache(tmp_path / "kept"), weights.fingerprint(), CPU)
    progress, stopped, _ = stop_after(2)

    def went_on(*at):
        progress(*at)
        monkeypatch.setattr(Cache, "change_beside", full)

    with pytest.raises(Stopped) as raised:
        running.run(weights, weights.fingerprint(), [find("q8")], asked, kept, CPU, went_on, stopped)
    assert raised.value.id == "quality.lost"


def test_no_word_of_a_prompt_is_kept(weights, asked, tmp_path):
    cache = Cache(tmp_path / "kept")
    kept = Kept(cache, weights.fingerprint(), CPU)
    running.run(weights, weights.fingerprint(), [find("fp8")], asked[:1], kept, CPU)
    (file,) = cache.folder.glob("quality-*.json")
    assert "photo" not in file.read_text()
    assert str(tmp_path) not in file.read_text()


# What the recommendation takes


def test_errors_of_the_very_weights(weights, place, tmp_path, monkeypatch):
    cache = Cache(tmp_path / "kept")
    assert errors_of(cache, place) == Errors()
    Kept(cache, weights.fingerprint(), CPU).add({"nf4": {"a": ONE, "b": Measured(0.75, 0.5, 1.0)}, "fp8": {"a": Measured(0.125, 1.0, 1.0)}})
    assert errors_of(cache, place) == Errors({"nf4": 0.25, "fp8": 0.125}, 1)  # of the prompt that both ran with
    other = tmp_path / "other"
    t5.make(other, wide=True)
    assert errors_of(cache, source.find("Model", source.Facts(str(other)))) == Errors()
    assert errors_of(cache, source.Source("gone", str(tmp_path / "gone"))) == Errors()
    monkeypatch.setattr("sd3deploy.quality.kept.versions", lambda: {"sd3deploy": "0"})
    assert errors_of(cache, place) == Errors()


PLAIN = [choice.id for choice in OURS if not choice.groups]


def with_prompts(keys):
    return {key: Measured(0.125 * number, 0.5, 1.0) for number, key in enumerate(keys, 1)}


def test_a_narrow_measurement_of_what_is_not_needed_narrows_nothing(weights, place, tmp_path):
    cache = Cache(tmp_path / "kept")
    kept = Kept(cache, weights.fingerprint(), CPU)
    others = {"nf4": with_prompts("abcd"), "fp4": with_prompts("a"), "int8": with_prompts("z")}
    kept.add({**dict.fromkeys(PLAIN, with_prompts("abc")), **others})
    (file,) = cache.folder.glob("quality-*.json")
    content = json.loads(file.read_text())
    (device,) = content["devices"].values()
    device["nf4-int8"] = {**device["nf4"], "prompts": {"z": [0.5, 0.5, 1.0]}}  # of an older version of this extension
    file.write_text(json.dumps(content))
    found = errors_of(cache, place)
    assert found == Errors(dict.fromkeys([*PLAIN, "nf4"], 0.25), 3)
    assert found.cover(OURS)
    assert [choice.id for choice in found.order(OURS)][-2:] == ["int8", "fp4"]  # by the table, behind what was measured
    kept.add({"q8": with_prompts("x")})
    assert errors_of(cache, place) == found


def test_a_choice_that_failed_is_the_last_and_stops_no_recommendation(weights, asked, place, tmp_path, monkeypatch):
    real = beside.assemble

    def assemble(encoded, device):
        if encoded.recipe.choice.id == "q8":
            raise RuntimeError("no kernel")
        return real(encoded, device)

    cache, fingerprint, able = Cache(tmp_path / "kept"), weights.fingerprint(), [find(id) for id in PLAIN]
    with monkeypatch.context() as patched:
        patched.setattr(beside, "assemble", assemble)
        failed = running.run(weights, fingerprint, able, asked[:2], Kept(cache, fingerprint, CPU), CPU)
    assert failed == {"q8": "RuntimeError: no kernel"}
    found = errors_of(cache, place)
    assert (found.failed, found.prompts, found.measured.keys()) == ({"q8"}, 2, {*PLAIN} - {"q8"})
    assert found.cover(OURS)
    assert found.order(OURS)[-1].id == "q8"
    assert not Errors({}, 0, frozenset(PLAIN)).cover(OURS)
    kept = Kept(cache, fingerprint, CPU)
    assert running.run(weights, fingerprint, able, asked[:2], kept, CPU) == {}  # it can run now
    found = errors_of(cache, place)
    assert (found.failed, found.measured.keys()) == (set(), {*PLAIN})
    kept.add({}, PLAIN)  # with other prompts, of which nothing is known then
    assert errors_of(cache, place) == found


def test_what_was_measured_takes_the_place_of_the_table_as_a_whole_or_not_at_all():
    table = Errors().order(CHOICES)
    assert [choice.error for choice in table] == sorted(choice.error for choice in CHOICES if choice.error is not None)
    upside_down = {choice.id: 1 - choice.error for choice in OURS}
    found = Errors(upside_down, 3)
    assert [choice.id for choice in found.order(CHOICES)] == sorted(upside_down, key=upside_down.get)
    some = Errors({"nf4": 0.001}, 3)
    assert some.order(CHOICES) == table
    assert some.order([find("nf4"), find("none")]) == [find("nf4")]
    assert "random weights" in some.sentence(CHOICES)
    assert "3 prompts" in found.sentence(CHOICES)


# Prompts


def test_the_prompts_that_come_with_it():
    texts = prompts.read()
    assert len(texts) == len(set(texts)) == 100
    assert "" in texts
    assert max(map(len, texts)) > 500
    for alphabet in ("аб", "中的一", "のしを", "한글의 는", "قطة", "ü", "🐙"):
        assert any(set(alphabet) - {" "} & set(text) for text in texts), alphabet


@pytest.mark.parametrize(
    ("data", "id"),
    [
        (b"", "quality.prompts-none"),
        (b"\n \n", "quality.prompts-none"),
        ("a cat".encode("utf-16"), "quality.prompts-unreadable"),
        pytest.param(b"a" * (2**20 + 1), "quality.prompts-large", id="a byte too many"),
        pytest.param("é".encode() * 2**20, "quality.prompts-large", id="cut in the middle of a letter"),
        (None, "quality.prompts-unreadable"),
    ],
)
def test_files_that_hold_no_prompts(tmp_path, data, id):
    file = tmp_path / "prompts.txt"
    if data is not None:
        file.write_bytes(data)
    with pytest.raises(SettingError) as raised:
        prompts.read(file)
    assert raised.value.id == id
    for place in (tmp_path, tmp_path / "\0"):
        with pytest.raises(SettingError):
            prompts.read(place)


def test_lines_are_prompts(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_bytes("\ufeffa cat\r\n\r\n# no comment\r\na cat\r\nline\u2028separator\r\n".encode())
    assert prompts.read(file) == ["a cat", "", "# no comment", "line\u2028separator"]


def test_tokens_as_the_pipeline_makes_them(model, asked):
    assert [len(prompt.ids) for prompt in asked] == [prompts.LENGTH] * 5
    assert (asked[1].tokens, asked[2].tokens) == (1, prompts.LENGTH)
    assert asked[0].ids[-1] == 0  # padded
    tokenizer = prompts.tokenizer([model], t5.VOCABULARY)
    assert len(prompts.tokenized(["中", "国"], tokenizer)) == 1  # both are what it does not know
    with pytest.raises(EncoderError, match="tokenizer"):
        prompts.tokenizer([model / "text_encoder_3"], t5.VOCABULARY)
    with pytest.raises(EncoderError, match="tokenizer"):
        prompts.tokenizer([model], 10)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("tokenizer.json", "{}"),
        ("tokenizer.json", "[]"),
        ("tokenizer.json", "null"),
        ("tokenizer.json", "{"),
        ("tokenizer.json", '{"model": {"type": "Nonsense"}, "added_tokens": []}'),
        ("tokenizer_config.json", "null"),
        ("tokenizer_config.json", "[]"),
        ("tokenizer_config.json", '{"tokenizer_class": 1}'),
    ],
)
def test_a_tokenizer_that_is_damaged_is_passed_over(model, tmp_path, name, text):
    shutil.copytree(model / "tokenizer_3", tmp_path / "tokenizer_3")
    (tmp_path / "tokenizer_3" / "spiece.model").unlink()
    (tmp_path / "tokenizer_3" / name).write_text(text)
    assert len(prompts.tokenized(TEXTS, prompts.tokenizer([tmp_path, model], t5.VOCABULARY))) == len(TEXTS)
    with pytest.raises(EncoderError) as raised:
        prompts.tokenizer([tmp_path], t5.VOCABULARY)
    assert raised.value.id == "quality.no-tokenizer"
