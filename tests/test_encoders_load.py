"""Each choice is loaded by the real libraries, and what comes out is compared with the full-precision encoder."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from sd3deploy.device import Device, detect_device
from sd3deploy.encoders import choices, source
from sd3deploy.encoders.cache import Cache
from sd3deploy.encoders.load import load, writing
from sd3deploy.encoders.measure import measure
from sd3deploy.encoders.t5 import t5_encoder_class
from sd3deploy.errors import EncoderError
from tests import t5

CPU = Device("cpu", "cpu", "CPU")
HALF = replace(CPU, bf16=False)  # a device such as Turing, on which float16 is the only 16-bit type
LOADABLE = [choice for choice in choices.CHOICES if choice.bytes]
# Floors of the cosine against float32, from runs with several seeds: every one is far above what a broken layer leaves (near 0).
FLOOR = {"q4": 0.97, "q5": 0.993, "q6": 0.998, "q8": 0.9995}
FLOOR |= {"fp4": 0.93, "nf4": 0.95, "fp8": 0.995, "int8": 0.999, "bf16": 0.9995}


@pytest.fixture(autouse=True)
def _as_the_host_calls_it():
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    return folder, t5.make(folder)


def read(choice_id, folder, device=CPU, file=False):
    kind = "Local file" if file else "Model"
    found = source.find(kind, source.Facts(str(folder)), str(folder / "t5.safetensors"))
    return load(choices.find(choice_id), found, device)


@pytest.mark.parametrize("device", [CPU, HALF], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("choice", LOADABLE, ids=lambda choice: choice.id)
def test_output_is_close_on_two_calls(model, choice, device):
    folder, full = model
    if choices.unsuitable(choice, device):
        with pytest.raises(EncoderError, match="Choose one of these instead"):
            read(choice.id, folder, device)
        return
    encoder = read(choice.id, folder, device)
    expected = full(t5.tokens())[0]
    for _ in range(2):  # on some processors bitsandbytes repacks the weights in the first call
        assert t5.cosine(encoder(t5.tokens())[0], expected) > FLOOR[choice.id]


@pytest.mark.parametrize("choice", LOADABLE, ids=lambda choice: choice.id)
def test_a_local_file_gives_the_same_encoder_as_the_folder(model, choice):
    folder, _ = model
    assert torch.equal(read(choice.id, folder)(t5.tokens())[0], read(choice.id, folder, file=True)(t5.tokens())[0])


@pytest.mark.parametrize("choice_id", ["fp4", "nf4"])
def test_four_bit_takes_every_linear_layer(model, choice_id):
    folder, _ = model
    measured = measure(read(choice_id, folder))
    assert measured.linear4bit == measured.linears == 3 * 7  # q k v o wi_0 wi_1 wo in each of three blocks
    assert measured.wo_quantized


def test_the_sizes_are_in_this_order(model):
    folder, full = model
    measured = {choice.id: measure(read(choice.id, folder)) for choice in LOADABLE}
    sizes = [measured[id].bytes for id in ("q4", "q5", "q6", "fp8", "int8", "bf16")]
    assert sizes == sorted(sizes)
    parameters = sum(parameter.numel() for parameter in full.parameters())
    assert {one.bytes_16bit for one in measured.values()} == {2 * parameters}
    assert measured["bf16"].bytes == 2 * parameters


@pytest.mark.parametrize("kept", [False, True], ids=["from its source", "from the cache"])
@pytest.mark.parametrize("choice", LOADABLE, ids=lambda choice: choice.id)
def test_an_encoder_that_is_made_in_inference_mode_is_like_any_other_in_every_mode(model, tmp_path, choice, kept):
    folder, full = model
    place, cache = source.find("Model", source.Facts(str(folder))), Cache(tmp_path) if kept else None
    if kept:
        load(choice, place, CPU, cache)
        if thread := writing():
            thread.join()
    with torch.inference_mode():
        encoder = load(choice, place, CPU, cache)
    assert not [name for name, tensor in (*encoder.named_parameters(), *encoder.named_buffers()) if tensor.is_inference()]
    expected = full(t5.tokens())[0]
    for mode in (torch.no_grad, torch.inference_mode, torch.no_grad):
        with mode():
            assert t5.cosine(encoder(t5.tokens())[0], expected) > FLOOR[choice.id]
            encoder.to("cpu")


def test_nothing_overflows_in_float16(tmp_path):
    full = t5.make(tmp_path, wide=True)
    expected = full(t5.tokens())[0]
    largest = 0.0

    def watch(_module, _inputs, output):
        nonlocal largest
        largest = max(largest, output.abs().max().item())

    full.encoder.block[0].layer[1].DenseReluDense.wo.register_forward_hook(watch)
    full(t5.tokens())
    assert largest > torch.finfo(torch.float16).max  # or this test would show nothing
    for choice in LOADABLE:
        if choices.unsuitable(choice, HALF):
            continue
        output = read(choice.id, tmp_path, HALF)(t5.tokens())[0]
        assert torch.isfinite(output).all(), choice.name
        assert t5.cosine(output, expected) > 0.9, choice.name


@pytest.mark.parametrize("choice", LOADABLE, ids=lambda choice: choice.id)
def test_moves_and_copies_keep_the_output(model, choice):
    folder, _ = model
    encoder = read(choice.id, folder)
    twin = copy.deepcopy(encoder)  # before the first call, see the repacking above
    before, size = encoder(t5.tokens())[0], measure(twin).bytes
    assert torch.equal(twin.to("cpu")(t5.tokens())[0], before)
    assert measure(twin).bytes <= size * 1.1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("choice", LOADABLE, ids=lambda choice: choice.id)
def test_on_a_gpu_it_is_close_there_and_back_again(model, choice):
    folder, full = model
    device = detect_device("cuda", "cuda")
    if choices.unsuitable(choice, device):
        pytest.skip(choices.unsuitable(choice, device))
    encoder = read(choice.id, folder, device).to("cuda")
    expected, tokens = full(t5.tokens())[0], t5.tokens().to("cuda")
    first = encoder(tokens)[0]
    assert t5.cosine(first.cpu(), expected) > FLOOR[choice.id]
    encoder.to("cpu")  # as the host's offload modes move it between two prompts
    encoder.to("cuda")
    assert torch.equal(encoder(tokens)[0], first)


def test_fp8_does_not_let_a_cast_undo_the_storage(model):
    folder, _ = model
    encoder = read("fp8", folder)
    size = measure(encoder).bytes
    encoder.to(torch.bfloat16)
    assert measure(encoder).bytes == size


@pytest.mark.parametrize("choice_id", ["fp4", "nf4"])
def test_save_and_load_again(model, choice_id, tmp_path):
    folder, _ = model
    encoder = read(choice_id, folder)
    encoder.save_pretrained(tmp_path)
    again = t5_encoder_class().from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert measure(again).linear4bit == measure(again).linears
    assert torch.equal(again(t5.tokens())[0], encoder(t5.tokens())[0])


def test_it_keeps_the_name_that_the_host_lists(model):
    folder, _ = model
    assert type(read("fp4", folder)).__name__ == "T5EncoderModel"


def test_a_folder_without_weights_is_an_error_with_a_remedy(model, tmp_path):
    folder, _ = model
    (tmp_path / "text_encoder_3").mkdir()
    (tmp_path / "text_encoder_3" / "config.json").write_bytes((folder / "text_encoder_3" / "config.json").read_bytes())
    with pytest.raises(EncoderError, match="has no weights") as caught:
        read("bf16", tmp_path)
    assert "model.safetensors" in caught.value.remedy
