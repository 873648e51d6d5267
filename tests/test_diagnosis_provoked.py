"""Failures of the real libraries with a real, if tiny, model: each is provoked, recognized, and healed by what its remedy says."""

from __future__ import annotations

import os
import shutil

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0

from sd3deploy import tiny_sd3
from sd3deploy.diagnosis import matcher
from sd3deploy.guards import attention


def loaded(folder=None, **parts):
    pipeline = StableDiffusion3Pipeline.from_pretrained(
        folder or tiny_sd3.ensure(), torch_dtype=torch.float32, local_files_only=True, **parts
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def pipeline():
    return loaded()


def draw(pipeline, **values):
    return pipeline("a cat", **{"width": 128, "height": 128, "num_inference_steps": 1, "output_type": "np"} | values).images


def cause(work):
    """The cause that is recognized in what goes wrong."""
    with pytest.raises(Exception) as caught:  # noqa: PT011  any error: which one is the question
        work()
    found = matcher.diagnose(caught.value)
    assert found, caught.value
    assert found[0].remedy
    return found[0].cause


@pytest.mark.parametrize("processor", [AttnProcessor, AttnProcessor2_0])
@pytest.mark.parametrize("values", [{}, {"guidance_scale": 1.0}, {"num_images_per_prompt": 2}, {"width": 256, "num_images_per_prompt": 2}])
def test_a_processor_that_was_made_for_a_unet(pipeline, processor, values):
    pipeline.transformer.set_attn_processor(processor())
    assert cause(lambda: draw(pipeline, **values)) == "attention-processor"
    attention.restore(pipeline, tuple(one.path for one in attention.find_misfits(pipeline)))
    assert draw(pipeline, **values).shape[0] == values.get("num_images_per_prompt", 1)


@pytest.mark.parametrize(("values", "wanted"), [({"width": 1000 + 4}, "size-not-multiple"), ({"height": 3088}, "size-too-large")])
def test_sizes_that_the_model_can_not_draw(pipeline, values, wanted):
    assert cause(lambda: draw(pipeline, **values)) == wanted


def test_weights_that_are_cut_off(tmp_path):
    folder = shutil.copytree(tiny_sd3.ensure(), tmp_path / "model")
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    size = weights.stat().st_size
    os.truncate(weights, size // 2)
    with pytest.raises(Exception) as caught:  # noqa: PT011
        loaded(folder)
    (found,) = matcher.diagnose(caught.value)
    assert found.cause in ("disk-full", "network")
    shutil.copy(tiny_sd3.ensure() / "transformer" / weights.name, weights)
    assert draw(loaded(folder)).shape


@pytest.mark.parametrize("part", ["text_encoder", "text_encoder_3"])
def test_a_folder_without_a_text_encoder(tmp_path, part):
    folder = shutil.copytree(tiny_sd3.ensure(), tmp_path / "model")
    shutil.rmtree(folder / part)
    assert cause(lambda: loaded(folder)) == "missing-text-encoder"
    shutil.copytree(tiny_sd3.ensure() / part, folder / part)
    assert draw(loaded(folder)).shape


def test_types_that_do_not_go_together(pipeline):
    mixed = loaded(transformer=pipeline.transformer, vae=pipeline.vae)
    mixed.text_encoder = mixed.text_encoder.half()
    mixed.text_encoder_2 = mixed.text_encoder_2.half()
    mixed.text_encoder_3 = mixed.text_encoder_3.half()
    mixed.vae = loaded().vae.to(torch.bfloat16)
    with pytest.raises(RuntimeError) as caught:
        draw(mixed)
    assert matcher.diagnose(caught.value), caught.value


def test_a_quantized_encoder_that_is_cast(tmp_path):
    from transformers import BitsAndBytesConfig, T5EncoderModel

    encoder = T5EncoderModel.from_pretrained(
        tiny_sd3.ensure(), subfolder="text_encoder_3", quantization_config=BitsAndBytesConfig(load_in_4bit=True), torch_dtype=torch.float32
    )
    assert cause(lambda: encoder.to(torch.float16)) == "quantized-move"


@pytest.mark.parametrize("size", [1 << 50])
def test_more_memory_than_there_is(size):
    assert cause(lambda: torch.empty(size, dtype=torch.uint8)) == "out-of-memory"
    assert cause(lambda: bytes(size)) == "out-of-memory"


def test_a_disk_that_is_full():
    def write():
        with open("/dev/full", "wb", buffering=0) as file:
            file.write(b"x")

    assert cause(write) == "disk-full"
