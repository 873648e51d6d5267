"""What people take for a text encoder, or get in place of one: each is told as what it is."""

from __future__ import annotations

import sqlite3

import pytest

from sd3deploy.encoders import source, weights
from sd3deploy.errors import EncoderError

FILES = {
    "empty.safetensors": (b"", "foreign.empty"),
    "pointer.safetensors": (b"version https://git-lfs.github.com/spec/v1\noid sha256:6e48\nsize 9787841024\n", "foreign.pointer"),
    "page.safetensors": (b"<!DOCTYPE html>\n<html>", "foreign.page"),
    "small page.gguf": (b"\n <html lang='en'>", "foreign.page"),
    "openvino_model.xml": (b'<?xml version="1.0"?>\n<net name="T5">', "foreign.openvino"),
    "openvino_model.bin": (bytes(64), "foreign.openvino"),
    "tf_model.h5": (b"\x89HDF\r\n\x1a\n" + bytes(64), "foreign.tensorflow"),
    "flax_model.msgpack": (b"\x81\xa6shared" + bytes(64), "foreign.flax"),
    "model.onnx": (b"\x08\x08\x12\x07pytorch" + bytes(64), "foreign.onnx"),
    "model.onnx_data": (bytes(64), "foreign.onnx"),
    "t5.mlmodel": (bytes(64), "foreign.coreml"),
    "t5.unknown": (b"something else" * 9, "source.file-damaged"),
}


def refusal(place):
    with pytest.raises(EncoderError) as caught:
        weights.open_weights(source.find("Local file", source.Facts(""), str(place)))
    assert caught.value.remedy
    return caught.value


@pytest.mark.parametrize("name", FILES)
def test_a_file(tmp_path, name):
    content, id = FILES[name]
    (tmp_path / name).write_bytes(content)
    error = refusal(tmp_path / name)
    assert error.id == id
    assert name in error.message


def test_a_database_of_draw_things(tmp_path):
    with sqlite3.connect(tmp_path / "t5_xxl_encoder_q6p.ckpt") as made:
        made.execute("create table tensors (name text)")
    made.close()
    assert refusal(tmp_path / "t5_xxl_encoder_q6p.ckpt").id == "foreign.draw-things"


@pytest.mark.parametrize(
    ("names", "id"),
    [
        (["model.onnx", "model.onnx_data"], "foreign.onnx"),
        (["openvino_model.xml", "openvino_model.bin"], "foreign.openvino"),
        (["flax_model.msgpack"], "foreign.flax"),
        (["tf_model.h5"], "foreign.tensorflow"),
        (["T5.mlpackage"], "foreign.coreml"),
    ],
)
def test_a_folder(tmp_path, names, id):
    (tmp_path / "config.json").write_text("{}")
    for name in names:
        (tmp_path / name).write_bytes(bytes(9))
    assert refusal(tmp_path).id == id


@pytest.mark.parametrize("name", ["t5.mlpackage", "t5.mlmodelc"])
def test_a_folder_that_is_one_model(tmp_path, name):
    (tmp_path / name / "Data").mkdir(parents=True)
    assert refusal(tmp_path / name).id == "foreign.coreml"


def test_what_another_runtime_keeps_beside_the_weights_does_not_matter(tmp_path):
    from tests import t5

    t5.make(tmp_path)
    for name in ("flax_model.msgpack", "model.onnx", "tf_model.h5"):
        (tmp_path / "text_encoder_3" / name).write_bytes(bytes(9))
    found = weights.open_weights(source.find("Local file", source.Facts(""), str(tmp_path / "text_encoder_3")))
    assert [file.name for file in found.files] == ["model.safetensors"]
