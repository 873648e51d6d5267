"""Forms on any shapes: what fits is read as the formula has it, and what does not is refused. Looking at a layer raises nothing else."""

from __future__ import annotations

import json
import math
import tempfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sd3deploy.encoders import header
from sd3deploy.encoders.containers import open_content
from sd3deploy.encoders.files import LocalFile
from sd3deploy.encoders.forms import FORMS, Layer, Mine, declared_of, recognise
from sd3deploy.encoders.forms.form import NotMine, Unusable
from sd3deploy.encoders.forms.rotation import rotates, unrotate
from sd3deploy.encoders.forms.scales import scales_of
from sd3deploy.encoders.stored import Stored, Weight
from sd3deploy.encoders.weights import bytes_of, numbers
from sd3deploy.errors import EncoderError
from tests import forms

FILE = LocalFile(Path("x.safetensors"))
PATH = "encoder.block.0.layer.0.SelfAttention.q"


def read(parts):
    """The numbers of a layer: whole, and in pieces of one step, from the last to the first."""
    with tempfile.TemporaryDirectory() as folder:
        content = open_content(LocalFile(forms.save(Path(folder) / "x.safetensors", parts)))
        mine = recognise(Layer(PATH, content.tensors, declared_of(content.tensors, None, bytes_of)))
        whole = numbers(Weight(mine.stored, mine.shape, mine.layout))
        decode, data, pieces = mine.layout.open(bytes_of), bytes_of(mine.stored), []
    rows, width = mine.shape[0], mine.stored.size / mine.shape[0]
    for first in reversed(range(0, rows, mine.layout.step)):
        count = min(mine.layout.step, rows - first)
        part = data[round(first * width) : round((first + count) * width)].clone()
        pieces.insert(0, decode(part, first, count).reshape(count, *mine.shape[1:]))
    assert torch.equal(torch.cat(pieces), whole)
    return whole.numpy()


def weight(height, width, seed):
    return np.random.default_rng(seed).normal(size=(height, width)).astype(np.float32)


SIDES = st.integers(1, 70)
SEEDS = st.integers(0, 9)


@settings(deadline=None, max_examples=60)
@given(SIDES, SIDES, st.sampled_from(("[]", "[1]", "[N]", "[N,1]")), st.sampled_from(("scale_weight", "weight_scale")), SEEDS)
def test_scales_of_rows_and_of_all(height, width, shape, name, seed):
    parts, expected = forms.eight(shape, name)(PATH, weight(height, width, seed))
    assert np.array_equal(read(parts), expected)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 70), st.sampled_from((16, 32, 64, 128)), st.booleans(), SEEDS)
def test_scales_of_groups_and_blocks(high, wide, height, side, square, seed):
    height = high * side if square else height
    parts, expected = forms.eight("[N/b,K/b]" if square else "[N,K/b,1]", side=side)(PATH, weight(height, wide * side, seed))
    assert np.array_equal(read(parts), expected)


@settings(deadline=None, max_examples=150)
@given(st.tuples(st.integers(0, 256), st.integers(0, 256)), st.lists(st.integers(0, 256), max_size=4))
def test_scales_that_divide_neither_way_are_none(shape, scale):
    found = scales_of(Stored(FILE, "s", 0, 0, "F32", tuple(scale)), shape)
    if found is not None:
        assert shape[0] % found.rows == shape[1] % found.columns == 0
        assert math.prod(scale) == shape[0] // found.rows * (shape[1] // found.columns)
        assert found.rows in (1, shape[0], found.columns)
        assert (len(scale) != 1) or found.columns == shape[1]


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from((64, 128, 256)), st.sampled_from(("nf4", "fp4")), st.booleans(), SEEDS)
def test_blocks_that_run_over_rows(height, width, block, kind, nested, seed):
    values = weight(height, width, seed)
    flat, expected = forms.bnb4(kind, nested, block=block)(PATH, values.reshape(1, -1))
    key = f"weight.quant_state.bitsandbytes__{kind}"
    found = read({**flat, key: forms.words({**json.loads(flat[key].data), "shape": [height, width]})})
    assert found.shape == (height, width)
    assert np.array_equal(found.reshape(1, -1), expected)


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 160), st.integers(1, 12), st.booleans(), SEEDS)
def test_tiles_that_are_not_full(height, groups, smooth, seed):
    parts, expected = forms.nvfp4(smooth)(PATH, weight(height, groups * 16, seed))
    assert np.array_equal(read(parts), expected)
    parts, expected = forms.mxfp8()(PATH, weight(height, groups * 32, seed))
    assert np.array_equal(read(parts), expected)


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 12), st.integers(1, 10), SEEDS)
def test_words_of_four_rows(fours, groups, seed):
    parts, expected = forms.nunchaku()(PATH, weight(4 * fours, 128 * groups, seed))
    assert np.array_equal(read(parts), expected)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 10), SEEDS)
def test_what_is_rotated_is_turned_back(height, pieces, power, seed):
    size = 2**power
    values = weight(height, pieces * size, seed)
    assert rotates(size, pieces * size)
    assert np.allclose(unrotate(torch.from_numpy(forms.rotate(values, size)), size).numpy(), values, atol=1e-5)


def test_sizes_that_rotate_nothing():
    assert not any(rotates(size, 192) for size in (0, 1, -4, 3, 128, True, 64.0, "64", None, 2**70))
    assert rotates(64, 192)


PARTS = st.sampled_from(
    (
        *("weight", "scale_weight", "weight_scale", "weight_scale_2", "pre_quant_scale", "SCB", "weight_format", "comfy_quant", "qweight"),
        *("scales", "scaled_zeros", "W_q", "input_scale", "weight.absmax", "weight.quant_map", "weight.nested_absmax"),
        *("weight.nested_quant_map", "weight.quant_state.bitsandbytes__nf4"),
    )
)
SIDE = st.sampled_from((0, 1, 2, 3, 4, 8, 16, 32, 64, 128, 256))
ODD = (0, 1, 64, 256, -1, 2**70, 0.5, float("nan"), "nf4", "x", [8, 8], [0, -1], {})
VALUES = st.one_of(st.none(), st.booleans(), st.sampled_from(ODD))
KEYS = st.sampled_from(
    (
        *("format", "group_size", "convrot", "convrot_groupsize", "?"),
        *("quant_type", "blocksize", "dtype", "shape", "nested_blocksize", "nested_offset"),
    )
)
FORMATS = st.sampled_from(("float8_e4m3fn", "float8_e4m3fn_rowwise", "int8_tensorwise", "int8_blockwise", "nvfp4", "mxfp8", "?"))


@st.composite
def layers(draw):
    parts = {}
    for part in draw(st.lists(PARTS, min_size=1, max_size=6, unique=True)):
        dtype, shape = draw(st.sampled_from(sorted(header._BITS))), tuple(draw(st.lists(SIDE, max_size=3)))
        parts[part] = Stored(FILE, part, 0, math.prod(shape) * header._BITS[dtype] // 8, dtype, shape)
    said = draw(st.dictionaries(KEYS, VALUES, max_size=6))
    if draw(st.booleans()):
        said["format"] = draw(FORMATS)
    marker = draw(st.sampled_from((None, "comfy_quant", "weight.quant_state.bitsandbytes__nf4", "weight_format")))
    declared = None if marker is None else {marker: draw(st.integers(0, 255)) if marker == "weight_format" else said}
    return Layer(PATH, parts, declared, {"quant_method": draw(st.sampled_from(("bitsandbytes", "?", "fp8")))})


@settings(deadline=None, max_examples=400)
@given(layers())
def test_looking_raises_nothing(layer):
    for form in FORMS:
        assert isinstance(form.look(layer), (Mine, NotMine, Unusable))
    with suppress(EncoderError):
        mine = recognise(layer)
        assert mine.used <= layer.parts.keys()
        assert mine.layout.step > 0
        assert mine.layout.name
