"""One tensor of a file is lost, renamed, of another shape or of another type: it is refused, or nothing changes. Never other numbers.

Every case of tests/forms.py is damaged, so a new form is damaged without another line here.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from sd3deploy.encoders import header
from sd3deploy.errors import EncoderError
from tests import forms, t5
from tests.forms import Raw
from tests.test_forms import made, opened

LAYERS = ("encoder.block.1.layer.0.SelfAttention.q", "encoder.block.2.layer.1.DenseReluDense.wo")  # a square one, and one that is not
NAMES = (
    "weight", "weightx", "bias", "comfy_quant", "scale", "scales", "scale_weight", "weight_scale", "weight_scale_2", "weight_scale_inv",
    "input_scale", "scale_input", "output_scale", "pre_quant_scale", "scaled_fp8", "logit_scale", "SCB", "weight_format", "qweight",
    "scaled_zeros", "qzeros", "biases", "weight.absmax", "weight.quant_map", "weight.nested_absmax", "weight.nested_quant_map",
    "weight.quant_state.bitsandbytes__nf4", "weight.quant_state.bitsandbytes__fp4", "W_q", "weight._data", "weight_packed",
)  # fmt: skip


@pytest.fixture(scope="module")
def state(tmp_path_factory):
    folder = tmp_path_factory.mktemp("t5")
    t5.make(folder)
    return load_file(folder / "t5.safetensors")


def shapes(shape):
    """Others with as many numbers."""
    count = math.prod(shape)
    pairs = [(side, count // side) for side in range(1, count + 1) if count % side == 0]
    found = {(count,), *pairs, *((*pair, 1) for pair in pairs), shape[::-1], *([()] if count == 1 else [])}
    return sorted(found - {shape}, key=lambda one: (len(one), one))


def types(one):
    """Others whose numbers have as many bits, then those of which each takes another number of bytes."""
    bits = header._BITS[one.dtype]
    for dtype, other in header._BITS.items():
        if dtype != one.dtype and other == bits:
            yield replace(one, dtype=dtype)
        elif other >= 8 and one.shape and other != bits and one.shape[-1] * bits % other == 0:
            yield replace(one, dtype=dtype, shape=(*one.shape[:-1], one.shape[-1] * bits // other))


def damages(case, tensors):
    """What is done → the tensors afterwards."""
    own = [key for key in tensors if key.removeprefix(case.prefix).startswith(tuple(f"{layer}." for layer in LAYERS))]
    assert len(own) >= len(LAYERS)
    for key in own:
        path = next(case.prefix + layer for layer in LAYERS if key.startswith(f"{case.prefix}{layer}."))
        rest = {name: one for name, one in tensors.items() if name != key}
        yield f"{key} is lost", rest
        for name in NAMES:
            if f"{path}.{name}" not in tensors:
                yield f"{key} → {name}", {**rest, f"{path}.{name}": tensors[key]}
        for shape in shapes(tensors[key].shape):
            yield f"{key} {shape}", {**rest, key: replace(tensors[key], shape=shape)}
        for one in types(tensors[key]):
            yield f"{key} {one.dtype} {one.shape}", {**rest, key: one}


@pytest.mark.parametrize("case", forms.CASES, ids=lambda case: case.name)
def test_no_damage_goes_unseen(state, tmp_path, case):
    tensors, metadata, _ = forms.written(case, state)
    file = forms.save(tmp_path / "t5.safetensors", tensors, metadata)
    choices = {"bnb nf4": ("bf16", "nf4"), "bnb fp4": ("bf16", "fp4"), "bnb int8": ("bf16", "int8")}.get(case.name, ("bf16",))
    expected = {choice: made(opened(file), choice).tensors for choice in choices}
    seen, unchanged, wrong = 0, [], []
    for what, damaged in damages(case, tensors):
        forms.save(file, damaged, metadata)
        for choice, found in outcomes(file, choices):
            if isinstance(found, EncoderError):
                assert found.remedy, what
                seen += 1
            else:
                (unchanged if same(found, expected[choice]) else wrong).append(what)
    assert wrong == []
    assert seen > 100
    assert len(unchanged) < seen


def outcomes(file, choices):
    """Choice → the tensors, or the refusal; one refusal for all of them where the file can not be opened."""
    try:
        weights = opened(file)
    except EncoderError as error:
        yield choices[0], error
        return
    for choice in choices:
        try:
            yield choice, made(weights, choice).tensors
        except EncoderError as error:
            yield choice, error


def same(found, expected):
    if found.keys() != expected.keys() or any(one.shape != expected[name].shape for name, one in found.items()):
        return False
    return all(torch.equal(one.reshape(-1).view(torch.uint8), expected[name].reshape(-1).view(torch.uint8)) for name, one in found.items())


def test_the_test_sees_what_it_is_to_see(state, tmp_path):
    """A file that lies about itself in every block alike can not be told from an honest one: the numbers differ, and that is noticed."""
    case = next(case for case in forms.CASES if case.name == "f16")
    tensors, _, _ = forms.written(case, state)
    expected = made(opened(forms.save(tmp_path / "t5.safetensors", tensors))).tensors
    lies = {name: Raw("BF16", one.shape, one.data) if "SelfAttention.q" in name else one for name, one in tensors.items()}
    assert not same(made(opened(forms.save(tmp_path / "t5.safetensors", lies))).tensors, expected)
