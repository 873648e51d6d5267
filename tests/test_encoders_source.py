from __future__ import annotations

import os

import pytest
import torch
import transformers
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from sd3deploy.encoders import source, weights
from sd3deploy.errors import EncoderError, SettingError
from tests import t5

SHARED = ("org/t5-xxl", {"subfolder": "encoder"})


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    t5.make(folder)
    return folder


def facts(model, shared=None, offline=False):
    return source.Facts(str(model), shared, ("/cache", "/other"), offline)


def test_automatic_prefers_what_is_on_this_disk(model):
    assert source.find("Automatic", facts(model, SHARED)).place == str(model)


def test_automatic_falls_back_to_the_shared_repository(tmp_path):
    found = source.find("Automatic", facts(tmp_path, SHARED, offline=True))
    assert (found.place, found.arguments["subfolder"], found.arguments["local_files_only"]) == ("org/t5-xxl", "encoder", True)


def test_automatic_reads_a_repository_as_the_host_would():
    assert source.find("Automatic", facts("org/sd3", SHARED)).place == "org/t5-xxl"
    assert source.find("Automatic", facts("org/sd3")).arguments["subfolder"] == "text_encoder_3"


def test_a_repository_that_is_cached_is_read_from_its_cache(tmp_path):
    snapshot = tmp_path / "models--org--sd3" / "snapshots" / "abc"
    (snapshot / "text_encoder_3").mkdir(parents=True)
    (snapshot / "text_encoder_3" / "config.json").write_text("{}")
    (tmp_path / "models--org--sd3" / "refs").mkdir()
    (tmp_path / "models--org--sd3" / "refs" / "main").write_text("abc")
    found = source.find("Automatic", source.Facts("org/sd3", SHARED, ("/cache", str(tmp_path))))
    assert (found.place, found.arguments["cache_dir"]) == ("org/sd3", str(tmp_path))


def test_a_model_without_t5_says_so(tmp_path):
    with pytest.raises(EncoderError, match="has no T5 in it") as caught:
        source.find("Model", facts(tmp_path, SHARED))
    assert "None (CLIP only)" in caught.value.remedy


def test_the_shared_repository_may_be_off(model):
    with pytest.raises(EncoderError, match="switched off"):
        source.find("Shared repository", facts(model))


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("", "no file is named"),
        (None, "no file is named"),
        ("t5.ckpt", "is not there"),
        ("/nowhere/t5.safetensors", "is not there"),
    ],
)
def test_a_file_that_can_not_be(model, name, sentence):
    with pytest.raises(EncoderError, match=sentence):
        source.find("Local file", facts(model), name)


def test_a_file_cut_short(model, tmp_path):
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes((model / "t5.safetensors").read_bytes()[:1000])
    with pytest.raises(EncoderError, match="not a readable file of weights"):
        source.find("Local file", facts(model), str(cut))


def test_a_file_without_t5(tmp_path):
    save_file({"weight": torch.zeros(2)}, tmp_path / "vae.safetensors")
    with pytest.raises(EncoderError, match="no T5 text encoder"):
        source.find("Local file", facts("x"), str(tmp_path / "vae.safetensors"))


def test_the_shapes_give_the_configuration(model):
    found = weights.open_weights(source.find("Local file", facts(model), str(model / "t5.safetensors")))
    config, state = transformers.T5Config(**found.config), weights.mapped(found)
    assert (config.d_model, config.d_kv, config.d_ff, config.num_layers, config.num_heads) == (128, 32, 256, 3, 4)
    assert config.is_gated_act
    assert config.dense_act_fn == "gelu_new"
    assert len(state) == len(load_file(model / "t5.safetensors"))


def test_t5_inside_a_whole_model_file(model, tmp_path):
    tensors = load_file(model / "t5.safetensors")
    whole = {f"text_encoders.t5xxl.transformer.{name}": tensor for name, tensor in tensors.items()}
    save_file({**whole, "model.diffusion_model.x": torch.zeros(1)}, tmp_path / "sd3_incl_t5.safetensors", t5.MARKED)
    found = source.find("Automatic", facts(tmp_path / "sd3_incl_t5.safetensors", SHARED))
    opened = weights.open_weights(found)
    state = weights.mapped(opened)
    assert opened.config["num_layers"] == 3
    assert torch.equal(state["shared.weight"], tensors["shared.weight"])


def test_a_whole_model_file_without_t5_takes_the_shared_repository(tmp_path):
    save_file({"model.diffusion_model.x": torch.zeros(1)}, tmp_path / "sd3.safetensors")
    assert source.find("Automatic", facts(tmp_path / "sd3.safetensors", SHARED)).place == "org/t5-xxl"


def test_float8_files_are_widened_with_their_scale(model, tmp_path):
    tensors = load_file(model / "t5.safetensors")
    name = "encoder.block.0.layer.0.SelfAttention.q.weight"
    scale = (tensors[name].abs().max() / 448).clone()
    scaled = {name: (tensors[name] / scale).to(torch.float8_e4m3fn), name.replace("weight", "scale_weight"): scale}
    save_file({**tensors, **scaled, "scaled_fp8": torch.zeros(1)}, tmp_path / "t5xxl_fp8_scaled.safetensors", t5.MARKED)
    file = tmp_path / "t5xxl_fp8_scaled.safetensors"
    state = weights.mapped(weights.open_weights(source.find("Local file", facts(tmp_path), str(file))))
    assert state[name].dtype is torch.bfloat16
    assert torch.allclose(state[name].float(), tensors[name], rtol=0.1, atol=1e-4)


def test_kinds():
    assert source.kind_of(" model ") == "Model"
    assert source.kind_of("本地文件") == "Local file"
    assert [source.shown(kind) for kind in source.KINDS] == list(source.KINDS)
    with pytest.raises(SettingError, match="Shared repository"):
        source.kind_of(3)


# What people paste


@pytest.mark.parametrize("form", ["{}", " {} ", '"{}"', "'{}'", "“{}”", "„{}“", "file://{}", "File://localhost{}"])
def test_a_path_as_people_paste_it(tmp_path, form):
    t5.make(tmp_path / "a folder")
    file = tmp_path / "a folder" / "t5.safetensors"
    words = str(file).replace(" ", "%20") if "ile:" in form else str(file)
    assert source.find("Local file", source.Facts(""), form.format(words)).file == file


@pytest.mark.parametrize(
    ("words", "id"),
    [
        ("owner/name:t5.safetensors", "source.file-repository"),
        ("https://huggingface.co/owner/name", "source.file-repository"),
        ("owner/name", "source.file-missing"),
        ("t5.safetensors", "source.file-missing"),
        ("file://home/me/t5.safetensors", "source.file-address"),  # two slashes, where three are meant
        ("file://C:/t5.safetensors", "source.file-address"),
        ("file://[x", "source.file-address"),
        ("FILE://[::1", "source.file-address"),
        ("file://%", "source.file-address"),
        ("file://", "source.file-unset"),
        ("file:///nowhere/t5.safetensors", "source.file-missing"),
    ],
)
def test_what_is_no_file_is_told_apart(words, id):
    with pytest.raises(EncoderError) as caught:
        source.find("Local file", source.Facts(""), words)
    assert caught.value.id == id
    if words == "t5.safetensors":
        assert os.path.abspath(words) in str(caught.value)  # where it was looked for


def test_an_address_of_two_slashes_is_answered_with_the_one_of_three():
    with pytest.raises(EncoderError) as caught:
        source.find("Local file", source.Facts(""), "file://home/me/t5.safetensors")
    assert "file:///home/me/t5.safetensors" in caught.value.remedy


PARTS = ["file://", "file:///", "[", "]", "~", "%00", "%", "//", "..", "/", "\\", ":", "@", "https://", "o/n", "\0", "\ud800", "x" * 300]


@example(kind="Local file", words="file://[x")
@given(kind=st.sampled_from(source.KINDS), words=st.lists(st.sampled_from(PARTS) | st.text(max_size=3), max_size=6).map("".join))
def test_whatever_is_typed_as_a_source_is_one_or_is_refused_with_a_remedy(kind, words):
    remedy = "none is needed"
    try:
        source.find(kind, source.Facts(words, caches=("/nowhere",)), words, words)
    except EncoderError as error:
        remedy = error.remedy
    assert remedy


def test_what_nobody_has_foreseen_of_a_source_is_refused_with_a_remedy():
    with pytest.raises(EncoderError, match="name too long") as caught:
        source.find("Model", source.Facts("x" * 5000))
    assert caught.value.id == "source.unusable"
    assert caught.value.remedy


def test_a_folder_of_downloads_with_a_damaged_branch_does_not_have_it(tmp_path):
    folder = tmp_path / "models--org--sd3"
    (folder / "snapshots").mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_bytes(b"\xff\xfe")
    assert source.find("Model", source.Facts("org/sd3", caches=(str(tmp_path),))).place == "org/sd3"
