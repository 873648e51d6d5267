"""Folders and repositories: the names and the order of transformers and diffusers, in every spelling; what is missing is named."""

from __future__ import annotations

import json
import os
import shutil

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from sd3deploy.encoders import folder, source, weights
from sd3deploy.errors import EncoderError
from tests import gguf_files, t5


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    place = tmp_path_factory.mktemp("model")
    t5.make(place)
    return place


@pytest.fixture(scope="module")
def state(model):
    return load_file(model / "t5.safetensors")


@pytest.fixture
def empty(model, tmp_path):
    """A folder with a configuration alone."""
    place = tmp_path / "encoder"
    place.mkdir()
    shutil.copy(model / "text_encoder_3" / "config.json", place)
    return place


def opened(place):
    return weights.open_weights(source.find("Local file", source.Facts(""), str(place)))


def refusal(place):
    with pytest.raises(EncoderError) as caught:
        opened(place)
    assert caught.value.remedy
    return caught.value


def one(state, place, name, value=None):
    """A file with all; value: of every number in it, to tell files apart."""
    found = {key: tensor if value is None else torch.full_like(tensor, value) for key, tensor in state.items()}
    torch.save(found, place / name) if name.endswith(".bin") else save_file(found, place / name)


def shards(state, place, names, index, value=None):
    parts: list[dict[str, torch.Tensor]] = [{} for _ in names]
    for number, (key, tensor) in enumerate(state.items()):
        parts[number % len(names)][key] = tensor
    for name, part in zip(names, parts, strict=True):
        one(part, place, name, value)
    if index:
        places = {key: name for name, part in zip(names, parts, strict=True) for key in part}
        (place / index).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))


def names_of(found):
    return sorted(file.name for file in found.files)


SETS = {
    "one": ("model.safetensors", None),
    "shards": ("model-00001-of-00002.safetensors model-00002-of-00002.safetensors", "model.safetensors.index.json"),
    "bin": ("pytorch_model.bin", None),
    "bin shards": ("pytorch_model-00001-of-00002.bin pytorch_model-00002-of-00002.bin", "pytorch_model.bin.index.json"),
    "fp16": ("model.fp16.safetensors", None),
    "fp16 shards": ("model.fp16-00001-of-00002.safetensors model.fp16-00002-of-00002.safetensors", "model.safetensors.index.fp16.json"),
    "fp16 shards of diffusers": (
        "model.fp16-00001-of-00002.safetensors model.fp16-00002-of-00002.safetensors",
        "model.fp16.safetensors.index.json",
    ),
    "fp16 shards of AuraFlow": (
        "model-00001-of-00002.fp16.safetensors model-00002-of-00002.fp16.safetensors",
        "model.safetensors.index.fp16.json",
    ),
    "fp16 bin": ("pytorch_model.fp16.bin", None),
    "fp16 bin shards": ("pytorch_model.fp16-00001-of-00002.bin pytorch_model.fp16-00002-of-00002.bin", "pytorch_model.bin.index.fp16.json"),
    "another variant": ("model.mine.safetensors", None),
}


def put(state, place, kind, value=None):
    names, index = SETS[kind]
    shards(state, place, names.split(), index, value)
    return sorted(names.split())


@pytest.mark.parametrize("kind", SETS)
def test_each_spelling(state, empty, kind):
    names = put(state, empty, kind)
    found = opened(empty)
    assert names_of(found) == names
    assert found.config["d_model"] == 128
    assert all(torch.equal(weights.numbers(weight), state[name]) for name, weight in found.tensors.items())


@pytest.mark.parametrize("kind", [kind for kind, (_, index) in SETS.items() if index])
def test_shards_without_their_index(state, empty, kind):
    names = put(state, empty, kind)
    (empty / SETS[kind][1]).unlink()
    assert names_of(opened(empty)) == names
    (empty / names[0]).unlink()
    error = refusal(empty)
    assert (error.id, error.values["number"], error.values["total"], error.values["file"]) == ("source.shard-missing", 1, 2, names[0])


@pytest.mark.parametrize("kind", [kind for kind, (_, index) in SETS.items() if index])
def test_a_missing_shard_is_named_with_its_number(state, empty, kind):
    names = put(state, empty, kind)
    (empty / names[1]).unlink()
    error = refusal(empty)
    assert (error.id, error.values["number"], error.values["total"], error.values["file"]) == ("source.shard-missing", 2, 2, names[1])


ORDER = ["one", "shards", "bin", "bin shards", "fp16", "fp16 shards", "another variant"]


@pytest.mark.parametrize("first", range(len(ORDER) - 1))
def test_the_order_is_that_of_transformers(state, empty, first):
    """All sets that come later are there too, with other numbers in them."""
    for kind in ORDER[first + 1 :]:
        put(state, empty, kind, 7.0)
    names = put(state, empty, ORDER[first])
    assert names_of(opened(empty)) == names
    if first < 4:  # the variants are never taken by transformers unless they are asked for
        theirs = transformers.T5EncoderModel.from_pretrained(empty)
        assert torch.equal(theirs.shared.weight, state["shared.weight"])


def test_a_variant_that_is_asked_for(state, empty):
    put(state, empty, "one", 7.0)
    put(state, empty, "fp16")
    assert [file.name for file in folder.find(str(empty), {"variant": "fp16"}).files] == ["model.fp16.safetensors"]


def test_the_models_own_folder_with_a_variant_alone(model, state, tmp_path):
    place = tmp_path / "sd3" / "text_encoder_3"
    place.mkdir(parents=True)
    shutil.copy(model / "text_encoder_3" / "config.json", place)
    put(state, place, "fp16 shards")
    found = weights.open_weights(source.find("Model", source.Facts(str(tmp_path / "sd3"))))
    assert len(names_of(found)) == 2
    assert opened(tmp_path / "sd3").tensors.keys() == found.tensors.keys()  # a model's folder means its T5


def test_a_file_of_any_other_name_alone(state, empty):
    save_file(state, empty / "bnb_llm_int8_model.safetensors")
    assert names_of(opened(empty)) == ["bnb_llm_int8_model.safetensors"]


@pytest.mark.parametrize("suffix", [".sft", ".pt", ".gguf", ".weights"])
def test_a_suffix_means_nothing(model, state, tmp_path, suffix):
    file = tmp_path / f"t5{suffix}"
    shutil.copy(model / "t5.safetensors", file)
    assert opened(file).tensors.keys() == state.keys()


def test_a_folder_with_one_gguf_and_no_configuration(state, tmp_path):
    gguf_files.write(tmp_path / "t5-v1_1-xxl-encoder-Q8_0.gguf", state)
    assert opened(tmp_path).tensors.keys() == state.keys()


def test_flan_by_the_configuration_of_the_folder(state, empty):
    put(state, empty, "one")
    assert opened(empty).notes == ()
    said = json.loads((empty / "config.json").read_text())
    (empty / "config.json").write_text(json.dumps(said | {"_name_or_path": "google/flan-t5-xxl"}))
    assert opened(empty).notes == ("identity.note.flan",)


def test_several_files_that_are_no_set(state, empty):
    for name in ("a.safetensors", "b.safetensors"):
        save_file(state, empty / name)
    error = refusal(empty)
    assert (error.id, error.values["names"]) == ("source.folder-several", "a.safetensors, b.safetensors")


def test_an_empty_folder(empty):
    assert refusal(empty).id == "source.folder-empty"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"\xff",
        b"[" * 100_000,
        b"{}",
        b'{"weight_map": {}}',
        b'{"weight_map": []}',
        b'{"weight_map": {"a": 1}}',
        b'{"weight_map": {"a": "../model.safetensors"}}',
        b'{"weight_map": {"a": "/etc/passwd"}}',
        b'{"weight_map": {"a": ".."}}',
        b'{"weight_map": {"a": "C:\\\\x"}}',
        json.dumps({"weight_map": {str(number): f"{number}.safetensors" for number in range(2000)}}).encode(),
    ],
)
def test_an_index_that_is_none(empty, content):
    (empty / "model.safetensors.index.json").write_bytes(content)
    assert refusal(empty).id == "source.json-damaged"


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b'{"d_model": "many"}', b"[" * 100_000, b'{"feed_forward_proj": 5}'])
def test_a_configuration_that_is_none(state, empty, content):
    put(state, empty, "one")
    (empty / "config.json").write_bytes(content)
    assert refusal(empty).id == "source.json-damaged"


def test_without_a_configuration_the_shapes_give_it(model, tmp_path):
    shutil.copy(model / "t5.safetensors", tmp_path / "model.safetensors")
    assert opened(tmp_path).config["d_ff"] == 256


@pytest.mark.parametrize(
    ("file", "content"),
    [("config.json", {"quantization_config": {"quant_method": "odd"}}), ("quantization_config.json", {"quant_method": "odd"})],
)
def test_what_the_folder_says_about_quantization_is_heard(state, empty, file, content):
    put(state, empty, "one")
    before = json.loads((empty / "config.json").read_text()) if file == "config.json" else {}
    (empty / file).write_text(json.dumps(before | content))
    assert refusal(empty).id == "source.quant-method"


# A repository in the cache of huggingface_hub, without a network


def cached(model, state, tmp_path, kind):
    snapshot = tmp_path / "models--org--t5" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    shutil.copy(model / "text_encoder_3" / "config.json", snapshot)
    (tmp_path / "models--org--t5" / "refs").mkdir()
    (tmp_path / "models--org--t5" / "refs" / "main").write_text("abc")
    return put(state, snapshot, kind) if kind else []


@pytest.mark.parametrize("kind", [kind for kind in SETS if kind != "another variant"])
def test_a_repository_offline(model, state, tmp_path, kind):
    names = cached(model, state, tmp_path, kind)
    found = folder.find("org/t5", {"cache_dir": str(tmp_path), "local_files_only": True})
    assert sorted(file.name for file in found.files) == names
    assert found.config is not None
    assert found.config["d_model"] == 128


def test_the_configuration_of_a_repository_says_how_it_was_quantized(model, state, tmp_path):
    cached(model, state, tmp_path, "one")
    file = tmp_path / "models--org--t5" / "snapshots" / "abc" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"quantization_config": {"quant_method": "sdnq"}}))
    found = folder.find("org/t5", {"cache_dir": str(tmp_path), "local_files_only": True})
    assert found.quantization == {"quant_method": "sdnq"}
    assert "quantization_config" not in (found.config or {})


def test_a_repository_without_weights_offline(model, state, tmp_path):
    cached(model, state, tmp_path, None)
    with pytest.raises(OSError, match="offline mode"):
        folder.find("org/t5", {"cache_dir": str(tmp_path), "local_files_only": True})


# Paths


@pytest.mark.skipif(os.name == "nt", reason="links need a right of their own there")
def test_a_loop_of_links(tmp_path):
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    assert refusal(tmp_path / "a").id == "source.file-link"
    assert refusal(tmp_path / "a" / "t5.safetensors").id == "source.file-missing"


@pytest.mark.skipif(os.name == "nt", reason="links need a right of their own there")
def test_a_loop_of_links_in_a_folder(empty):
    (empty / "model.safetensors").symlink_to(empty / "model.safetensors")
    assert refusal(empty).id == "source.file-damaged"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes with a name")
def test_a_pipe_is_not_waited_for(empty):
    os.mkfifo(empty / "model.safetensors")
    assert refusal(empty).id == "source.file-damaged"
    assert refusal(empty / "model.safetensors").id == "source.file-missing"


def test_a_name_in_chinese_with_spaces(model, state, tmp_path):
    place = tmp_path / "文本 编码器"
    place.mkdir()
    shutil.copy(model / "t5.safetensors", place / "T5 大 模型.safetensors")
    assert opened(f' "{place / "T5 大 模型.safetensors"}" ').tensors.keys() == state.keys()
    assert opened(place).tensors.keys() == state.keys()


@pytest.mark.parametrize("name", ["a\0b", "~nobody-here/t5", "x" * 5000])
def test_a_path_that_can_not_be(name):
    assert refusal(name).id == "source.file-missing"
