"""Folders that SDNQ has quantized: the numbers are those of its own library, piece by piece."""

from __future__ import annotations

import inspect
import sys

import pytest
import torch
import transformers
from sdnq import common, loader, quantizer

from sd3deploy.device import Device
from sd3deploy.encoders import choices, quantize, source, weights
from sd3deploy.encoders.recipe import Recipe
from sd3deploy.errors import EncoderError
from tests import t5

WAYS = {
    "uint4": {"weights_dtype": "uint4"},
    "uint4-svd-r32": {"weights_dtype": "uint4", "use_svd": True, "svd_rank": 32},
    "uint4 rotated": {"weights_dtype": "uint4", "use_hadamard": True, "hadamard_group_size": 64},
    "int8": {"weights_dtype": "int8"},
    "int8 for its own multiply": {"weights_dtype": "int8", "use_quantized_matmul": True, "group_size": -1},
    "int5 in groups": {"weights_dtype": "int5", "group_size": 32},
    "float8": {"weights_dtype": "float8_e4m3fn"},
    "one scale": {"weights_dtype": "uint8", "group_size": -2},  # for the whole tensor since 0.2.8, for a row before
    "mixed": {"weights_dtype": "uint4", "modules_dtype_dict": {"int8": ["encoder.block.1.layer.0.SelfAttention.q"]}},
}
if "scale_dtype" in inspect.signature(quantizer.SDNQConfig.__init__).parameters:  # 0.2.8
    WAYS["scales of 8 bit"] = {"weights_dtype": "uint4", "scale_dtype": "float8_e4m3fn", "zero_point_dtype": "uint8"}
    WAYS["codebook"] = {"weights_dtype": "uint4", "use_codebook": True}
    WAYS["codebook of codes"] = {"weights_dtype": "uint4", "use_codebook": True, "scale_dtype": "uint8"}


def made(folder, **config):
    """A folder as the library writes it, and the weights as it computes with them."""
    t5.make(folder)
    encoder = transformers.T5EncoderModel.from_pretrained(folder / "text_encoder_3", dtype=torch.bfloat16)
    encoder = quantizer.sdnq_post_load_quant(encoder, torch_dtype=torch.bfloat16, **config)
    loader.save_sdnq_model(encoder, str(folder / "quantized"))
    found = {}
    for name, module in encoder.named_modules():
        if hasattr(module, "sdnq_dequantizer"):
            parts = {part: getattr(module, part, None) for part in common.sdnq_keys if part != "weight"}
            wide = (torch.float32, torch.float16, torch.bfloat16)
            parts = {part: one.float() if one.dtype in wide else one for part, one in parts.items() if one is not None}
            own = module.sdnq_dequantizer
            found[f"{name}.weight"] = own(
                module.weight, **parts, skip_quantized_matmul=own.use_quantized_matmul, skip_compile=True, dtype=torch.float32
            )
        elif getattr(module, "weight", None) is not None:
            found[f"{name}.weight"] = module.weight.float()
    return folder / "quantized", found


def opened(place):
    return weights.open_weights(source.find("Local file", source.Facts(""), str(place)))


@pytest.mark.parametrize("way", WAYS)
def test_the_numbers_are_those_of_the_library(tmp_path, way):
    place, wanted = made(tmp_path, **WAYS[way])
    found = opened(place)
    quantized = [name for name, weight in found.tensors.items() if weight.layout.name.startswith("SDNQ")]
    assert len(quantized) > 10
    assert not found.exact
    for name, weight in found.tensors.items():
        assert torch.equal(weights.numbers(weight).float(), wanted[name].detach()), name


def test_it_is_the_encoder_that_was_quantized(tmp_path):
    place, _ = made(tmp_path, weights_dtype="int8")
    full = opened(tmp_path / "text_encoder_3")
    for name, weight in opened(place).tensors.items():
        numbers, before = weights.numbers(weight).float(), weights.numbers(full.tensors[name]).float()
        assert numbers.shape == before.shape
        assert float((numbers - before).norm() / before.norm()) < 0.02, name


def test_it_is_quantized_again_in_pieces(tmp_path, monkeypatch):
    place, wanted = made(tmp_path, **WAYS["uint4-svd-r32"])
    monkeypatch.setattr(quantize, "_PIECE", 3000)
    encoded = quantize.quantize(opened(place), Recipe(choices.find("bf16"), "float32"), Device("cpu", "cpu", "CPU"))
    assert all(torch.equal(tensor, wanted[name].detach()) for name, tensor in encoded.tensors.items())


def test_a_configuration_that_does_not_fit(tmp_path):
    place, _ = made(tmp_path, weights_dtype="uint4", group_size=64)
    for file in (place / "config.json", place / "quantization_config.json"):
        if file.exists():
            file.write_text(file.read_text().replace('"group_size": 64', '"group_size": 32'))
    with pytest.raises(EncoderError, match="does not read") as caught:
        opened(place)
    assert caught.value.remedy


def test_the_package_is_missing(tmp_path, monkeypatch):
    place, _ = made(tmp_path, weights_dtype="uint4")
    for name in [name for name in sys.modules if name.partition(".")[0] == "sdnq"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(EncoderError, match="is missing"):
        opened(place)
