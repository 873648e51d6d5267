"""Every form is read as its writer's formula has it, and by the quantizer like by the loader."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from bitsandbytes import functional
from safetensors.torch import load_file

from sd3deploy import messages
from sd3deploy.device import Device
from sd3deploy.encoders import choices, load, quantize, source
from sd3deploy.encoders.assemble import assemble
from sd3deploy.encoders.forms import FORMS
from sd3deploy.encoders.outlook import look
from sd3deploy.encoders.recipe import Recipe
from sd3deploy.encoders.weights import mapped, numbers, open_weights
from sd3deploy.errors import EncoderError
from tests import forms, t5

CPU = Device("cpu", "cpu", "CPU")


@pytest.fixture(scope="module")
def state(tmp_path_factory):
    folder = tmp_path_factory.mktemp("t5")
    t5.make(folder)
    return load_file(folder / "t5.safetensors")


def opened(file):
    return open_weights(source.find("Local file", source.Facts("x"), str(file)))


def made(weights, choice="bf16", compute="float32"):
    return quantize.quantize(weights, Recipe(choices.find(choice), compute, "absmax"), CPU)


def bits(tensor):
    return tensor.contiguous().reshape(-1).view(torch.uint8)


@pytest.mark.parametrize("case", forms.CASES, ids=lambda case: case.name)
def test_numbers(state, tmp_path, monkeypatch, case):
    tensors, metadata, expected = forms.written(case, state)
    weights = opened(forms.save(tmp_path / "t5.safetensors", tensors, metadata))
    monkeypatch.setattr(quantize, "_PIECE", 1500)  # bytes: many pieces for each tensor, and a last one that is smaller
    encoded = made(weights).tensors
    assert weights.tensors.keys() == expected.keys() == encoded.keys()
    for name, wanted in expected.items():
        found = numbers(weights.tensors[name]).float().numpy()
        scale = np.abs(wanted).max()
        assert np.abs(found - wanted).max() <= case.close * scale, name
        assert np.array_equal(encoded[name].numpy(), found), name
        original = state[name].float().numpy()
        assert np.linalg.norm(found - original) <= case.error * np.linalg.norm(original) * (1 + 1e-6), name
    assert {name: tensor.float().shape for name, tensor in mapped(weights).items()} == {n: torch.Size(e.shape) for n, e in expected.items()}
    assert weights.exact == (case.name in ("f32", "f16", "bf16"))


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.title)
def test_a_form_tells_of_itself(form):
    assert form.title
    assert form.example
    assert isinstance(form.read, bool)


TAKEN = [
    ("bnb nf4", "nf4", "bfloat16"),
    ("bnb fp4", "fp4", "bfloat16"),
    ("bnb nf4 in bf16", "nf4", "bfloat16"),
    ("bnb int8", "int8", "bfloat16"),
    ("bnb int8 without an order", "int8", "bfloat16"),
    ("bnb nf4", "nf4", "float32"),
]


def linear(key):
    return "DenseReluDense" in key or ("SelfAttention." in key and "relative" not in key)


@pytest.mark.parametrize(("name", "choice", "compute"), TAKEN)
def test_the_same_form_is_taken_as_it_is(state, tmp_path, monkeypatch, name, choice, compute):
    """Byte for byte, whatever the pieces; and what was quantized from the source is what is quantized again from the file."""
    case = next(case for case in forms.CASES if case.name == name)
    tensors, _, _ = forms.written(case, state)
    file = forms.save(tmp_path / "t5.safetensors", tensors)
    monkeypatch.setattr(quantize, "_PIECE", 1500)
    encoded = made(opened(file), choice, compute).tensors
    wanted = {key for key in tensors if linear(key) and not (choice == "int8" and ".wo." in key)}
    for key in wanted:
        found = bits(encoded[key]).numpy().tobytes()
        if "quant_state" in key and compute == "float32":  # a word that says nothing about the numbers
            before, after = json.loads(tensors[key].data), json.loads(found)
            assert (before.pop("dtype"), after.pop("dtype")) == ("bfloat16", "float32")
            assert before == after
        else:
            assert found == tensors[key].data, key
    plain = forms.save(tmp_path / "plain.safetensors", {key: forms.raw(one.bfloat16()) for key, one in state.items()})
    again = made(opened(plain), choice, compute).tensors
    assert {key: (one.dtype, one.shape) for key, one in encoded.items() if "quant_state" not in key} == {
        key: (one.dtype, one.shape) for key, one in again.items() if "quant_state" not in key
    }
    if case.name == "bnb nf4":
        for key in wanted - {key for key in wanted if "quant_state" in key}:
            assert torch.equal(bits(again[key]), bits(encoded[key])), key


@pytest.mark.parametrize(
    ("name", "choice", "told"),
    [
        ("f16", "fp4", ""),
        ("bnb nf4", "nf4", ""),
        ("bnb nf4", "fp4", "bitsandbytes NF4"),
        ("bnb nf4 not nested", "nf4", "bitsandbytes NF4, other blocks"),
        ("scale_weight [N]", "fp4", "FP8, a scale per row"),
    ],
)
def test_what_was_quantized_before_and_is_quantized_again_is_told(state, tmp_path, name, choice, told):
    case = next(case for case in forms.CASES if case.name == name)
    tensors, metadata, _ = forms.written(case, state)
    file = forms.save(tmp_path / "t5.safetensors", tensors, metadata)
    found = source.find("Local file", source.Facts("x"), str(file))
    assert load.read(choices.find(choice), found, CPU).quantized_before == told


def mixed(state, tmp_path, wo):
    """NF4 whose `wo` is in another form."""
    nf4, other = (forms.written(next(case for case in forms.CASES if case.name == name), state)[0] for name in ("bnb nf4", wo))
    tensors = {key: one for key, one in nf4.items() if ".wo." not in key} | {key: one for key, one in other.items() if ".wo." in key}
    return source.find("Local file", source.Facts("x"), str(forms.save(tmp_path / "t5.safetensors", tensors)))


@pytest.mark.parametrize(("wo", "told"), [("weight_scale", "FP8, a scale per row"), ("f16", "")])
def test_layers_that_are_quantized_again_are_told_where_most_are_taken_as_they_are(state, tmp_path, wo, told):
    found = mixed(state, tmp_path, wo)
    assert load.read(choices.find("nf4"), found, CPU).quantized_before == told
    cost = look(found, source.Facts("x"), choices.find("nf4"), CPU, None, ask=False).cost
    assert ("has been quantized before" in cost) == bool(told)
    assert told in cost


@pytest.mark.parametrize("name", ["bnb nf4 not nested", "bnb fp4 in blocks of 256", "bnb fp4"])
def test_another_form_of_bitsandbytes_is_quantized_anew(state, tmp_path, name):
    case = next(case for case in forms.CASES if case.name == name)
    tensors, _, expected = forms.written(case, state)
    encoded = made(opened(forms.save(tmp_path / "t5.safetensors", tensors)), "nf4").tensors
    wide = {key: forms.raw(torch.from_numpy(one)) for key, one in expected.items()}
    wanted = made(opened(forms.save(tmp_path / "wide.safetensors", wide)), "nf4").tensors
    for key, one in wanted.items():
        assert torch.equal(bits(encoded[key]), bits(one)), key


def test_a_table_of_its_own_is_no_reason_to_take_the_codes(state, tmp_path):
    case = next(case for case in forms.CASES if case.name == "bnb nf4")
    tensors, _, _ = forms.written(case, state)
    for key, one in list(tensors.items()):
        if key.endswith(".quant_map") and "nested" not in key:
            values = np.frombuffer(one.data, np.float32) * np.float32(0.5)
            tensors[key] = forms.raw(values)
    encoded = made(opened(forms.save(tmp_path / "t5.safetensors", tensors)), "nf4").tensors
    key = "encoder.block.1.layer.0.SelfAttention.q.weight.quant_map"
    assert torch.equal(encoded[key], functional.get_4bit_type("nf4", device="cpu"))
    found = source.find("Local file", source.Facts("x"), str(tmp_path / "t5.safetensors"))
    assert load.read(choices.find("nf4"), found, CPU).quantized_before == "bitsandbytes NF4"


def test_a_scale_that_is_no_number_is_found_where_codes_are_taken(state, tmp_path):
    case = next(case for case in forms.CASES if case.name == "bnb nf4")
    tensors, _, _ = forms.written(case, state)
    key = "encoder.block.1.layer.0.SelfAttention.q.weight.nested_absmax"
    tensors[key] = forms.raw(np.full(tensors[key].shape, np.nan, np.float32))
    with pytest.raises(EncoderError, match="no numbers"):
        made(opened(forms.save(tmp_path / "t5.safetensors", tensors)), "nf4")


def test_what_config_json_says_of_the_file_is_not_said_of_the_encoder(state, tmp_path):
    import transformers

    case = next(case for case in forms.CASES if case.name == "bnb nf4")
    folder = tmp_path / "text_encoder_3"
    folder.mkdir()
    forms.save(folder / "model.safetensors", forms.written(case, state)[0])
    config = transformers.T5Config(
        vocab_size=512, d_model=128, d_kv=32, d_ff=256, num_layers=3, num_heads=4, feed_forward_proj="gated-gelu"
    ).to_dict()
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    (folder / "config.json").write_text(json.dumps(config))
    weights = open_weights(source.find("Model", source.Facts(str(tmp_path))))
    assert "quantization_config" not in weights.config
    assert "quantization_config" not in made(weights, "fp8").config
    assert weights.form == "bitsandbytes NF4"


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_a_folder_that_transformers_has_saved(tmp_path, kind):
    """Some layers stay as they are there: `wo` in float32."""
    import transformers

    t5.make(tmp_path)
    values = {"load_in_8bit": True} if kind == "int8" else {"load_in_4bit": True, "bnb_4bit_quant_type": kind}
    config = transformers.BitsAndBytesConfig(**values)
    quantized = transformers.T5EncoderModel.from_pretrained(
        tmp_path / "text_encoder_3", dtype=torch.float16, device_map={"": "cpu"}, quantization_config=config
    )
    quantized.save_pretrained(tmp_path / "saved" / "text_encoder_3")
    weights = open_weights(source.find("Model", source.Facts(str(tmp_path / "saved"))))
    encoded = made(weights).tensors
    for name, module in quantized.named_modules():
        if name.endswith(".wo"):
            assert weights.tensors[f"{name}.weight"].layout.name == "FP32"
        elif isinstance(module, torch.nn.Linear) and kind == "nf4":
            wanted = module.weight.quant_state
            wanted.dtype = torch.float32
            assert torch.equal(encoded[f"{name}.weight"], functional.dequantize_4bit(module.weight.data, wanted))
        elif isinstance(module, torch.nn.Linear):
            scales = module.weight.SCB if module.weight.SCB is not None else module.state.SCB
            assert torch.equal(encoded[f"{name}.weight"], functional.int8_vectorwise_dequant(module.weight.data, scales))
    taken = quantize.quantize(weights, Recipe(choices.find(kind), "bfloat16", stock=True), CPU)
    with torch.no_grad():
        expected = quantized(t5.tokens())[0]
        assert t5.cosine(assemble(taken)(t5.tokens())[0], expected) > 0.9995  # the layers are the same, the type is another


Q = "encoder.block.1.layer.0.SelfAttention.q"


def refused(state, tmp_path, write, **values):
    tensors, metadata, _ = forms.written(forms.Case("x", write, 0, **values), state)
    with pytest.raises(EncoderError) as caught:
        opened(forms.save(tmp_path / "t5.safetensors", tensors, metadata))
    assert caught.value.remedy
    with messages.speaking("zh"):
        assert messages.text(caught.value.id, **caught.value.values) != caught.value.message
    return caught.value


def parts(**found):
    return lambda path, weight: ({name.replace("__", "."): one for name, one in found.items()}, weight)


U8 = forms.raw(torch.zeros(128, 64, dtype=torch.uint8))
ONE = forms.raw(torch.ones(1))
FP8 = forms.raw(torch.zeros(128, 128, dtype=torch.float8_e4m3fn))


@pytest.mark.parametrize(
    ("write", "says"),
    [
        (parts(weight_packed=U8, weight_scale=ONE, weight_shape=ONE), "compressed-tensors"),
        (parts(weight___data=U8, weight___scale=ONE), "optimum-quanto"),
        (parts(_weight_qdata=U8, _weight_scale=ONE), "torchao"),
        (parts(W_q=U8, meta=ONE), "HQQ"),
        (parts(weight=forms.Raw("U32", (128, 16), bytes(8192)), scales=ONE, biases=ONE), "MLX"),
        (parts(qweight=forms.raw(torch.zeros(16, 128, dtype=torch.int32)), qzeros=ONE, scales=ONE), "GPTQ"),
        (parts(weight=U8, weight_scale=ONE, weight_scale_2=ONE), "ModelOpt"),
        (parts(weight=FP8, weight_scale_inv=ONE), "weight_scale_inv"),
        (parts(weight=U8, scale=ONE, zero_point=ONE), "SDNQ"),
        *((parts(weight=U8, comfy_quant=forms.words({"format": one})), one) for one in ("hybrid_mxfp8", "convrot_w4a4", "asym_w4a8_int8")),
        (parts(weight=U8, comfy_quant=forms.words({"format": "int3_secret"})), "int3_secret"),
        (parts(weight=FP8, comfy_quant=forms.words({"format": "float8_e4m3fn", "twist": 3})), "twist"),
        (parts(weight=FP8, comfy_quant=forms.words({"format": None})), "“None”"),
        (parts(weight=FP8, weight_scale=ONE, comfy_quant=forms.words({"format": "float8_e4m3fn", "orig_shape": [127, 128]})), "orig_shape"),
        (parts(weight=FP8, comfy_quant=forms.words([1])), "no JSON object"),
        (parts(weight=FP8, comfy_quant=forms.Raw("U8", (4,), b"\xff{}}")), "can not be read"),
        (parts(weight=FP8, comfy_quant=forms.Raw("U8", (60000,), b"[" * 60000)), "can not be read"),
        (parts(weight=FP8, comfy_quant=forms.Raw("U8", (70000,), b" " * 70000)), "comfy_quant"),
        (parts(weight=FP8, comfy_quant=forms.words({"format": "float8_e4m3fn", "params": {"format": "mxfp8"}})), "contradict"),
        (forms.comfy("int8_tensorwise", "[N]", more={"convrot": True}, **forms.INT8), "convrot_groupsize is 256 for rows of 128"),
        (forms.comfy("float8_e4m3fn", "[N]", more={"convrot": True}), "convrot is True"),
        (forms.comfy("float8_e4m3fn_rowwise", "[]"), "there is a scale"),
        (forms.comfy("int8_blockwise", "[N/b,K/b]", more={"group_size": 32}, **forms.INT8), "group_size is 32"),
        (forms.eight("[N]", "weight_scale", **forms.INT8), "type I8"),
        (parts(weight=forms.raw(torch.zeros(128, 128, dtype=torch.int8)), SCB=forms.raw(torch.zeros(128)),
               weight_format=forms.raw(torch.tensor(2, dtype=torch.uint8))), "old version of bitsandbytes"),
    ],
)  # fmt: skip
def test_what_is_known_and_not_read(state, tmp_path, write, says):
    assert says in refused(state, tmp_path, write).message


def test_a_header_that_says_less_than_the_marker(state, tmp_path):
    """Editors leave out what they do not know, such as the rotation: the marker counts."""
    case = next(case for case in forms.CASES if case.name == "comfy int8 rotated by 64")
    tensors, _, expected = forms.written(case, state)
    paths = [name.removesuffix(".weight") for name in expected if linear(name)]
    weights = opened(forms.save(tmp_path / "t5.safetensors", tensors, forms.in_header({"format": "int8_tensorwise"})(paths)))
    assert np.allclose(numbers(weights.tensors[f"{Q}.weight"]).numpy(), expected[f"{Q}.weight"], atol=1e-6)


def test_a_header_that_contradicts_a_marker(state, tmp_path):
    write = forms.comfy("int8_tensorwise", "[N]", **forms.INT8)
    assert "contradicts" in refused(state, tmp_path, write, header=forms.in_header({"format": "int8_blockwise"})).message


@pytest.mark.parametrize("text", ["{", "[]", '{"layers": 3}', '{"format_version": "7", "layers": {}}', "[" * 50000])
def test_a_header_that_can_not_be_read(state, tmp_path, text):
    error = refused(state, tmp_path, forms.plain(torch.float16), header=lambda paths: {"_quantization_metadata": text})
    assert error.id == "form.declared-unreadable"


def test_sixteen_bit_with_a_scale_that_means_something(state, tmp_path):
    tensors, _, _ = forms.written(forms.Case("x", forms.only(".o", forms.wide_with_scale(0.5), forms.eight("[]")), 0), state)
    weights = opened(forms.save(tmp_path / "t5.safetensors", tensors))
    for read in (made, mapped):
        with pytest.raises(EncoderError, match=r"0\.5 instead of 1"):
            read(weights)


def test_fp8_without_a_scale_beside_fp8_with_scales(state, tmp_path):
    assert refused(state, tmp_path, forms.eight("[]"), rest=torch.float8_e4m3fn).id == "form.scale-missing"


def test_a_file_that_says_it_is_scaled_and_has_no_scales(state, tmp_path):
    assert refused(state, tmp_path, forms.plain(torch.float8_e4m3fn), more=forms.MARK).id == "form.scale-missing"


@pytest.mark.parametrize("method", ["compressed-tensors", "quanto", "torchao", "hqq", "gptq", "modelopt", "fp8", "sdnq", "quark"])
def test_a_folder_that_says_how_it_was_quantized(state, tmp_path, method):
    from sd3deploy.encoders.files import LocalFile
    from sd3deploy.encoders.forms import Layer, recognise
    from sd3deploy.encoders.stored import Stored

    file = LocalFile(tmp_path / "x.safetensors")
    layer = Layer(Q, {"weight": Stored(file, f"{Q}.weight", 0, 16384, "I8", (128, 128))}, None, {"quant_method": method})
    with pytest.raises(EncoderError) as caught:
        recognise(layer)
    assert (caught.value.id == "form.unknown") == (method == "quark")
    assert method != "quark" or "quark" in caught.value.message
    wide = Layer(Q, {"weight": Stored(file, f"{Q}.weight", 0, 32768, "F16", (128, 128))}, None, {"quant_method": method})
    assert recognise(wide).layout.name == "FP16"  # some layers of such folders are left alone
