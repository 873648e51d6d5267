"""The estimate against what real pipelines take, loaded in a process of their own, with a picture made: part by part, and at the peak."""

from __future__ import annotations

import gc
import sys
from dataclasses import replace

import pytest
import torch
from diffusers import StableDiffusion3Pipeline

from bench import encoders, memory
from sd3deploy import tiny_sd3
from sd3deploy.device import detect_device
from sd3deploy.encoders import choices, source
from sd3deploy.encoders.load import load
from sd3deploy.memory.estimate import Setup, estimate
from sd3deploy.memory.phases import watched
from sd3deploy.memory.sizes import MODELS
from tests import test_memory_sizes as published

# Ten seconds each; `python3 dev.py bench memory` has all choices, larger models and larger pictures.
SCALES = {
    "small": replace(memory.SCALES["small"], t5_layers=8, px=448),
    "medium": replace(memory.SCALES["medium"], t5_layers=4, px=448),
}
CASES = [("small", "fp4"), ("small", "bf16"), ("small", "none"), ("medium", "fp4"), ("medium", "bf16")]
PERCENT = 15


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Name of a scale → a folder with such a model."""
    return {name: memory.make(tmp_path_factory.mktemp("model") / "sd3", scale) for name, scale in SCALES.items()}


@pytest.mark.xdist_group("memory-truth")  # the models are made once
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process's own memory from the files that it has mapped")
@pytest.mark.parametrize(("scale", "choice"), CASES)
def test_a_picture_on_the_cpu_takes_what_was_estimated(models, scale, choice):
    """Half of such a small process are its libraries: so each phase is held to it by what it takes beyond them, too."""
    found = memory.picture(models[scale], choice, SCALES[scale].px)
    assert found["parts"] == found["estimated_parts"]
    assert abs(memory.error(found)) < PERCENT, memory.compared(found)
    for phase in ("encode", "denoise", "decode"):
        taken = found["peaks"][phase] - found["level"]
        assert abs(found["estimated"][phase] / taken - 1) < PERCENT / 100, (phase, memory.compared(found))


# On a GPU, in full size

FREE = 24e9  # bytes on the GPU; a quarter more than the estimate, so that a run can prove it wrong


@pytest.fixture(scope="module")
def t5(tmp_path_factory):
    """T5-XXL with random weights, as the files that the loader reads: 9.5 GB."""
    if torch.cuda.mem_get_info()[0] < FREE:
        pytest.skip(f"{FREE / 1e9:.0f} GB have to be free on the GPU")
    folder = tmp_path_factory.mktemp("t5")
    encoders.make(folder, encoders.FULL)
    return folder


def filled(make, device):
    """A module in bfloat16 with random weights. It is built without memory: in float32 it would take twice as much on the way."""
    with torch.device("meta"):
        module = make()
    module = module.to(torch.bfloat16).to_empty(device=device)
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.is_floating_point():
            tensor.data.normal_(0, 0.02)
        else:
            tensor.data.copy_(torch.arange(tensor.numel()).view_as(tensor))  # CLIP's position ids
    return module.eval().requires_grad_(False)


def vae():
    """As published; the shift that the pipeline applies is no part of its shapes."""
    module = published._vae()
    module.register_to_config(scaling_factor=1.5305, shift_factor=0.0609)
    return module


def sd3_medium(encoder, device):
    """The pipeline of SD3 medium around an encoder, with the tokenizers of the tiny model."""
    parts = {
        "transformer": filled(lambda: published.SD3Transformer2DModel(**published.TRANSFORMERS["sd3-medium"]), device),
        "text_encoder": filled(lambda: published._clip(768, 12, 12), device),
        "text_encoder_2": filled(lambda: published._clip(1280, 32, 20), device),
        "text_encoder_3": encoder.to(device),
        "vae": filled(vae, device),
    }
    pipeline = StableDiffusion3Pipeline.from_pretrained(tiny_sd3.ensure(), torch_dtype=torch.bfloat16, **parts)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def peaks_on_gpu(pipeline, setup):
    """Phase → torch's highest allocation while a picture is made in two steps."""
    peaks, at = {}, "start"

    def mark(phase, _step):
        nonlocal at
        torch.cuda.synchronize()
        peaks[at] = max(peaks.get(at, 0), torch.cuda.max_memory_allocated())
        torch.cuda.reset_peak_memory_stats()
        at = phase

    with watched(pipeline, mark, lambda error, phase: None):
        size = {"width": setup.width, "height": setup.height}
        pipeline("a photo of a cat", num_inference_steps=2, guidance_scale=6.0, output_type="pt", **size)
        mark("end", 0)
    return peaks


@pytest.mark.gpu
@pytest.mark.xdist_group("memory-truth")  # one at a time on the GPU
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("choice_id", ["fp4", "bf16"])
def test_a_picture_on_a_gpu_takes_what_was_estimated(t5, choice_id):
    choice, device = choices.find(choice_id), detect_device("cuda", "cuda")
    setup = Setup(MODELS["sd3-medium"], choice, compute=device.compute_dtype, offload="none")
    told = estimate(setup)
    if choices.unsuitable(choice, device):
        pytest.skip(choices.unsuitable(choice, device))
    gc.collect()
    before = torch.cuda.memory_allocated()
    encoder = load(choice, source.find("Model", source.Facts(str(t5))), device)
    peaks = peaks_on_gpu(sd3_medium(encoder, "cuda"), setup)
    for phase in ("encode", "denoise", "decode"):
        assert abs(told.phases[phase].gpu / (peaks[phase] - before) - 1) < 0.1, (phase, peaks, told.phases)
