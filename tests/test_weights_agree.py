"""What belongs to a set of weights, beside the weights: the files, the headers and the configuration have to agree with each other."""

from __future__ import annotations

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file

from sd3deploy.device import Device
from sd3deploy.encoders import choices, load, quantize, source
from sd3deploy.encoders.cache import Cache
from sd3deploy.encoders.weights import open_weights
from sd3deploy.errors import EncoderError
from tests import forms, gguf_files, t5

CPU = Device("cpu", "cpu", "CPU")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    t5.make(folder)
    return folder


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


def found(place):
    return source.find("Local file", source.Facts(""), str(place))


def opened(place):
    return open_weights(found(place))


def refusal(place):
    with pytest.raises(EncoderError) as caught:
        opened(place)
    assert caught.value.remedy
    return caught.value


def say(place, **values):
    """Change the configuration of a folder."""
    file = place / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def plain(state, factor=1.0):
    return {name: forms.raw(tensor * factor) for name, tensor in state.items()}


# The configuration


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_layers", 1),
        ("num_layers", 2),
        ("num_layers", 4),
        ("num_layers", 0),
        ("num_layers", "3"),
        ("d_model", 64),
        ("d_ff", 128),
        ("d_kv", 16),
        ("num_heads", 8),
        ("vocab_size", 100),
        ("vocab_size", -1),
        ("relative_attention_num_buckets", 16),
    ],
)
def test_the_configuration_says_what_the_weights_say(state, empty, name, value):
    forms.save(empty / "model.safetensors", plain(state))
    opened(empty)
    say(empty, **{name: value})
    assert refusal(empty).id == ("source.json-damaged" if isinstance(value, str) else "identity.config")


def test_a_side_of_nothing_is_none(state, empty):
    forms.save(empty / "model.safetensors", plain(state) | {"shared.weight": forms.raw(torch.zeros(0, 128))})
    (empty / "config.json").unlink()
    assert refusal(empty).id in ("source.incomplete", "identity.config", "identity.small")


def test_a_configuration_that_is_a_pipe_is_not_waited_for(state, empty):
    forms.save(empty / "model.safetensors", plain(state))
    (empty / "config.json").unlink()
    os.mkfifo(empty / "config.json")
    assert refusal(empty).id == "source.json-damaged"


# What is kept in the cache


def read(place, cache):
    """Whether it came from the cache, and what is computed with it."""
    made = load.read(choices.find("int8"), found(place), CPU, cache=cache)
    if (thread := load.writing()) is not None:
        thread.join()
    with torch.no_grad():
        return made.cached, made.place()(t5.tokens())[0]


def test_scales_in_a_file_of_their_own_are_part_of_the_source(state, empty, tmp_path):
    case = next(case for case in forms.CASES if case.name == "scale_weight []")
    tensors, metadata, _ = forms.written(case, state)
    scales = {name: one for name, one in tensors.items() if name.endswith("scale_weight")}
    forms.save(empty / "model-00001-of-00002.safetensors", {name: one for name, one in tensors.items() if name not in scales}, metadata)
    second = empty / "model-00002-of-00002.safetensors"
    forms.save(second, scales)
    cache = Cache(tmp_path / "cache")
    first = read(empty, cache)
    assert read(empty, cache)[0]
    larger = {
        name: forms.raw(torch.frombuffer(bytearray(one.data), dtype=torch.float32).reshape(one.shape) * (3 if ".v." in name else 1))
        for name, one in scales.items()
    }
    forms.save(second, larger)
    again = read(empty, cache)
    assert not again[0]
    assert not torch.equal(again[1], first[1])


def test_what_the_configuration_computes_is_part_of_the_source(state, empty, tmp_path):
    forms.save(empty / "model.safetensors", plain(state))
    cache = Cache(tmp_path / "cache")
    read(empty, cache)
    assert read(empty, cache)[0]
    say(empty, layer_norm_epsilon=0.5)
    assert not read(empty, cache)[0]


# While it is read


@pytest.mark.parametrize("how", ["in place", "another"])
def test_a_file_that_changes_while_it_is_read(state, tmp_path, monkeypatch, how):
    monkeypatch.setattr(quantize, "_PIECE", 20_000)
    file = forms.save(tmp_path / "t5.safetensors", plain(state), t5.MARKED)
    other = forms.save(tmp_path / "other.safetensors", plain(state, 4.0), t5.MARKED).read_bytes()
    changed = []

    def progress(done, total):
        if not changed and done > total / 2:
            changed.append(done)
            if how == "in place":
                with open(file, "r+b") as opened:
                    opened.write(other)
            else:
                os.replace(tmp_path / "other.safetensors", file)

    with pytest.raises(EncoderError) as caught:
        load.read(choices.find("fp8"), found(file), CPU, progress=progress)
    assert changed
    assert caught.value.id == "source.changed"


# Two that contradict each other


def test_headers_of_two_shards_that_contradict_each_other(state, empty):
    case = next(case for case in forms.CASES if case.name == "comfy int8 rotated by 64")
    tensors, _, _ = forms.written(case, state)
    tensors = {name: one for name, one in tensors.items() if not name.endswith("comfy_quant")}
    layers = [name.removesuffix(".weight_scale") for name in tensors if name.endswith("weight_scale")]
    said = {"format": "int8_tensorwise"}, {"format": "int8_tensorwise", "convrot": True, "convrot_groupsize": 64}
    for number, (one, names) in enumerate(zip(said, (sorted(tensors)[::2], sorted(tensors)[1::2]), strict=True), 1):
        metadata = {"_quantization_metadata": json.dumps({"layers": dict.fromkeys(layers, one)})}
        forms.save(empty / f"model-0000{number}-of-00002.safetensors", {name: tensors[name] for name in names}, metadata)
    assert refusal(empty).id == "form.declared-unreadable"


def test_two_embeddings_that_differ(state, empty):
    copy = "encoder.embed_tokens.weight"
    forms.save(empty / "model.safetensors", plain(state) | {copy: forms.raw(state["shared.weight"])})
    opened(empty)
    altered = state["shared.weight"].clone()
    altered[-1] += 1
    for other in (altered, -2 * state["shared.weight"], state["shared.weight"].flip(0).half(), -state["shared.weight"].half()):
        forms.save(empty / "model.safetensors", plain(state) | {copy: forms.raw(other)})
        assert refusal(empty).id == "source.two-embeddings"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2])
def test_one_embedding_in_two_types(state, empty, dtype):
    copy = forms.raw(state["shared.weight"].to(dtype))
    forms.save(empty / "model.safetensors", plain(state) | {"encoder.embed_tokens.weight": copy})
    opened(empty)


def test_what_an_older_set_has_left_is_not_taken(state, empty):
    names = sorted(state)

    def shards(total, factor, but=()):
        for number in set(range(1, total + 1)) - set(but):
            part = {name: forms.raw(state[name] * factor) for name in names[number - 1 :: total]}
            forms.save(empty / f"model-{number:05d}-of-{total:05d}.safetensors", part)

    shards(3, 3.0, but=(2,))
    assert refusal(empty).id == "source.shard-missing"
    shards(2, 1.0)
    assert sorted(file.name for file in opened(empty).files) == [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]


@pytest.mark.parametrize("name", ["../model.safetensors", "x" * 300, "..", "a/b.safetensors", "a\nb"])
def test_an_index_leads_to_files_of_its_folder(state, empty, name):
    (empty / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"shared.weight": name}}))
    assert refusal(empty).id == "source.json-damaged"


def test_a_norm_that_is_quantized_in_gguf_is_refused(state, tmp_path):
    import gguf

    from sd3deploy.encoders import identity

    writer = gguf.GGUFWriter(tmp_path / "t5.gguf", "t5encoder")
    writer.add_string(identity.MARK, "true")
    for name, tensor in state.items():
        kind = gguf.GGMLQuantizationType.Q8_0 if tensor.shape[-1] % 32 == 0 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(gguf_files.llama(name), gguf.quants.quantize(tensor.float().numpy(), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert refusal(tmp_path / "t5.gguf").id.startswith(("form.", "source."))


# What would fill the memory


@pytest.mark.parametrize("kind", ["lists", "tensors", "words"])
def test_a_header_that_is_larger_than_any_is_not_parsed(tmp_path, kind):
    size = 40_000_000
    content = {
        "lists": '{"x":[' + "[]," * (size // 3) + "0]}",
        "tensors": "{" + ",".join(f'"{n}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}' for n in range(size // 60)) + "}",
        "words": '{"__metadata__":{"a":"' + "x" * size + '"}}',
    }[kind].encode()
    (tmp_path / "t5.safetensors").write_bytes(len(content).to_bytes(8, "little") + content)
    assert refusal(tmp_path / "t5.safetensors").id == "source.file-damaged"
