"""Our own format in 4, 5, 6 and 8 bit, bit for bit against NumPy written from its formula, and the layers that compute with it."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from sd3deploy.device import Device
from sd3deploy.encoders import choices, source
from sd3deploy.encoders import t5 as modules
from sd3deploy.encoders.assemble import assemble
from sd3deploy.encoders.finite import NotFinite
from sd3deploy.encoders.grouped import _CUTS, WIDTHS, Grouped, grouped, rotate
from sd3deploy.encoders.load import load
from sd3deploy.encoders.quantize import quantize
from sd3deploy.encoders.recipe import Recipe
from sd3deploy.encoders.storage import STORAGES
from sd3deploy.encoders.weights import open_weights
from tests import t5

KINDS = list(WIDTHS)
CPU = Device("cpu", "cpu", "CPU")
F = numpy.float32


@pytest.fixture(autouse=True)
def _as_the_host_calls_it():
    with torch.no_grad():
        yield


def normal(*shape, seed=0):
    """Numbers of float16 below 1, which any order of additions rotates exactly."""
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 0.02).half()


def hadamard():
    """The sign of row i and column j is that of (−1)^(bits that both have)."""
    return numpy.array([[(-1) ** (i & j).bit_count() for j in range(32)] for i in range(32)], F)


def turned(weights, columns):
    padded = numpy.zeros((len(weights), columns), F)
    padded[:, : weights.shape[1]] = weights
    return (padded.reshape(-1, 32) @ hadamard()).reshape(len(weights), columns)


def cuts(bits):
    """Of the clippings: start, scale, and what a look-up takes for the error of each cell."""
    top, errors, found = 2**bits - 1, [], []
    places = numpy.arange(256)[:, None] + (numpy.arange(16) + 0.5) / 16 - 0.5
    for low, high in _CUTS:
        start, end = low * 255 / top, 255 * (1 - high / top)
        scale = (end - start) / top
        codes = ((places - start) / scale).round().clip(0, top)
        errors.append(((codes * scale + start - places) ** 2).mean(1))
        found.append((start, scale))
    return found, (numpy.array(errors) / numpy.max(errors) * 1023).round().astype(int)


def fitted(x, bits):
    """Scale and middle of one group."""
    top, n, tiny = 2**bits - 1, len(x), F(2.0**-126)
    low, high = x.min(), x.max()
    if bits == 8:
        return (high - low) / F(top), low / F(2) + high / F(2)
    width = max((high - low) / F(255), max(-low, high) * F(2.0**-20), tiny)
    cells = ((x - (low - width / F(2))) * (F(1) / width)).astype(int)
    known, errors = cuts(bits)
    sums = [errors[number][cells].sum() // 4 for number in range(len(known))]  # the two lowest bits hold the number
    start, scale = known[sums.index(min(sums))]
    codes = ((cells - start) / scale).round().clip(0, top).astype(int)
    square = n * (codes * codes).sum() - codes.sum() ** 2
    slope = F(n * (codes * cells).sum() - codes.sum() * cells.sum()) / F(max(square, 1))
    middle = (F(cells.sum()) - slope * F(codes.sum())) / F(n) + slope * F(top / 2)
    return slope * width, low + middle * width


def expected(weights, kind):
    """The bytes, one row after the other, one code after the other."""
    bits, group = WIDTHS[kind]
    top, tiny, rows = 2**bits - 1, F(2.0**-126), []
    columns = -(-weights.shape[1] // group) * group
    for row in turned(weights.float().numpy(), columns):
        groups = row.reshape(-1, group)
        scales, middles = (numpy.array(part, F) for part in zip(*(fitted(x, bits) for x in groups), strict=True))
        of_scales, of_middles = max(scales.max() / F(255), tiny), max(abs(middles).max() / F(127), tiny)
        scale = numpy.maximum((scales / of_scales).round().clip(0, 255), scales * F(top) >= of_scales).astype("uint8")
        middle = (middles / of_middles).round().astype("int8")
        wide = scale.astype(F) * of_scales
        least = middle.astype(F) * of_middles - wide * F(top / 2)
        start, inverse = least - wide / F(2), F(1) / numpy.maximum(wide, tiny)
        codes = ((groups - start[:, None]) * inverse[:, None]).clip(0, top).astype(int).reshape(-1)
        data = [*numpy.array([of_scales, of_middles], F).tobytes(), *scale.tobytes(), *middle.tobytes()]
        for shift, width in [(0, 8)] if bits == 8 else [(0, 4), (4, bits - 4)] if bits > 4 else [(0, 4)]:
            size = columns * width // 8
            plane = [0] * size
            for column, code in enumerate(codes):
                plane[column % size] |= (code >> shift) % 2**width << column // size * width
            data += plane
        rows.append(data)
    return torch.tensor(rows, dtype=torch.uint8)


def decoded(packed, kind, columns):
    """The rotated weights, from the bytes alone."""
    bits, group = WIDTHS[kind]
    columns = -(-columns // group) * group
    rows = []
    for data in packed.numpy():
        of_scales, of_middles = data[:8].view(F)
        groups = columns // group
        scale = data[8 : 8 + groups].astype(F) * of_scales
        least = data[8 + groups : 8 + 2 * groups].view("int8").astype(F) * of_middles - scale * F((2**bits - 1) / 2)
        codes, at = numpy.zeros(columns, int), 8 + 2 * groups
        for shift, width in [(0, 8)] if bits == 8 else [(0, 4), (4, bits - 4)] if bits > 4 else [(0, 4)]:
            size = columns * width // 8
            for column in range(columns):
                codes[column] += (int(data[at + column % size]) >> column // size * width) % 2**width << shift
            at += size
        assert at == len(data)
        rows.append(codes.astype(F) * scale.repeat(group) + least.repeat(group))
    return torch.from_numpy(numpy.array(rows, F))


def edges(columns):
    """Name → rows: each of numbers that are rotated exactly."""
    rows = {name: normal(3, columns).float() for name in ("zero", "constant", "huge", "tiny", "subnormal", "mixed")}
    rows["zero"][1] = 0
    rows["constant"][1] = 0.25
    rows["huge"] = (rows["huge"] * 512).round() / 512
    rows["huge"][1, columns // 2] = 1000
    rows["tiny"] *= 2.0**-100
    rows["subnormal"][1] = torch.arange(columns) % 7 * 2.0**-149
    rows["mixed"][0, : columns // 2] = 0
    return rows


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=25)
@given(st.integers(1, 4), st.integers(1, 300), st.integers(0, 2**30))
def test_bit_for_bit_the_formula(kind, rows, columns, seed):
    weights, form = normal(rows, columns, seed=seed), grouped(kind)
    packed = form.pack(weights)
    assert packed.shape == (rows, form.width(columns))
    assert torch.equal(packed, expected(weights, kind))
    wide = form.unpack(packed, columns, torch.float32)
    assert torch.equal(wide, decoded(packed, kind, columns))
    for dtype in (torch.bfloat16, torch.float16):
        assert torch.equal(form.unpack(packed, columns, dtype), wide.to(dtype))  # rounded once


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", edges(64))
@pytest.mark.parametrize("columns", [64, 100])
def test_rows_that_are_out_of_the_ordinary(kind, name, columns):
    weights, form = edges(columns)[name], grouped(kind)
    packed = form.pack(weights)
    assert torch.equal(packed, expected(weights, kind))
    found = rotate(form.unpack(packed, columns, torch.float32), form.padded(columns))[:, :columns]
    assert torch.isfinite(found).all()
    largest = weights.abs().amax(1, keepdim=True)
    assert ((found - weights).abs() <= {4: 0.6, 5: 0.3, 6: 0.15, 8: 0.04}[form.bits] * largest + 2.0**-120).all()
    if name == "zero":
        assert not found[1].any()


# What six alternations of rounding and least squares from six clippings reach with rotated weights.
ERRORS = {"q4": 0.0706, "q5": 0.0348, "q6": 0.0177, "q8": 0.0055}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("outliers", [False, True])
def test_the_error_of_the_weights(kind, outliers):
    weights, form = normal(64, 4096).float(), grouped(kind)
    weights[:, ::256] *= 4 if outliers else 1
    found = rotate(form.unpack(form.pack(weights), 4096, torch.float32), 4096)
    assert (found - weights).norm() / weights.norm() <= ERRORS[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_threads_and_types_of_the_source_change_nothing(kind, monkeypatch):
    weights, form = normal(96, 256), grouped(kind)
    packed = form.pack(weights)
    assert torch.equal(form.pack(weights.float()), packed)
    with torch.inference_mode():
        assert torch.equal(form.pack(weights), packed)
    with ThreadPoolExecutor(4) as pool:
        assert torch.equal(torch.cat(list(pool.map(form.pack, weights.split(8)))), packed)
    wide = form.unpack(packed, 256, torch.float32)
    for name in ("_PACKED", "_UNPACKED"):
        monkeypatch.setattr(f"sd3deploy.encoders.grouped.{name}", 1000)
    assert torch.equal(form.pack(weights), packed)
    assert torch.equal(form.unpack(packed, 256, torch.float32), wide)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_no_number_is_refused(kind, value):
    weights = normal(4, 100)
    weights[3, 99] = value
    with pytest.raises(NotFinite):
        grouped(kind).pack(weights)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("columns", [64, 100])
@pytest.mark.parametrize("rows", [1, 48])
def test_factors_give_the_product_with_the_weights(kind, columns, rows):
    form = grouped(kind)
    packed = form.pack(normal(rows, columns))
    before, x = packed.clone(), torch.randn(2, 5, columns, generator=torch.Generator().manual_seed(1))
    weights = rotate(form.unpack(packed, columns, torch.float32), form.padded(columns))[:, :columns]
    for dtype, error in ((torch.float32, 1e-5), (torch.bfloat16, 0.01), (torch.float16, 0.002)):
        wanted = x.to(dtype).float() @ weights.T
        found = form.inputs(x.to(dtype)).float() @ form.factors(packed, columns, dtype).float().T
        assert (found - wanted).norm() / wanted.norm() < error
    assert torch.equal(packed, before)


def linear(kind, rows=48, columns=100):
    layer = modules.grouped_linear()(columns, rows, kind)
    weights = normal(rows, columns).float()
    layer.weight.copy_(grouped(kind).pack(weights))
    return layer, weights


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("strict", [False, True])
def test_what_looks_on_without_numbers_leaves_nothing_of_it_behind(kind, strict):
    layer, _ = linear(kind, rows=32, columns=64)
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        exported = torch.export.export(layer, (x,), strict=strict).module()
        found = layer(x)
        assert type(found) is torch.Tensor
        assert torch.equal(exported(x), found)
        assert torch.equal(torch.compile(layer, backend="eager")(x), found)
        assert torch.equal(layer(x), found)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_layer_computes_in_the_type_of_its_input_twice_the_same(kind, dtype):
    layer, weights = linear(kind)
    x = torch.randn(2, 7, 100, generator=torch.Generator().manual_seed(1))
    out = layer(x.to(dtype))
    assert (out.dtype, out.shape) == (dtype, (2, 7, 48))
    assert torch.equal(layer(x.to(dtype)), out)
    assert (out.float() - x @ weights.T).norm() / (x @ weights.T).norm() < ERRORS[kind] * 1.2 + (dtype is not torch.float32) * 0.01


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("dtype", "auto"), [(torch.bfloat16, torch.float16), (torch.float16, torch.bfloat16), (torch.float32, torch.bfloat16)]
)
def test_a_layer_under_autocast_of_another_type(kind, dtype, auto):
    weight, x = torch.randn(40, 96) / 10, torch.randn(3, 96).to(dtype)
    layer = modules.grouped_linear()(96, 40, kind)
    layer.weight.data.copy_(grouped(kind).pack(weight))
    with torch.no_grad():
        alone = layer(x).float()
        with torch.autocast("cpu", auto):
            found = layer(x).float()
    torch.testing.assert_close(found, alone, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("kind", KINDS)
def test_what_torch_takes_by_default_changes_nothing(kind):
    rows = torch.randn(8, 128)
    expected = grouped(kind).pack(rows)
    fresh = Grouped(*WIDTHS[kind])
    torch.set_default_dtype(torch.bfloat16)
    try:
        found = fresh.pack(rows)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(found, expected)
    assert torch.equal(fresh.pack(rows), expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [1.9e38, 3.3e38])
def test_weights_that_leave_float32_together_are_refused(kind, value):
    rows = torch.randn(4, 128)
    rows[1, 5] = value
    with pytest.raises(NotFinite):
        grouped(kind).pack(rows)


def test_what_another_layout_has_made_is_not_taken_for_this(monkeypatch):
    before = Recipe(choices.find("q5")).settings()
    monkeypatch.setitem(WIDTHS, "q5", (5, 64))
    other = Recipe(choices.find("q5")).settings()
    monkeypatch.undo()
    monkeypatch.setattr("sd3deploy.encoders.recipe.LAYOUT", 2)
    assert len({str(one) for one in (before, other, Recipe(choices.find("q5")).settings())}) == 3


def test_tensors_of_another_shape_are_refused():
    layer = modules.grouped_linear()(64, 8, "q4")
    with pytest.raises(ValueError, match="stored as"):
        STORAGES["q4"].put(layer, {"weight": grouped("q5").pack(torch.randn(8, 64))})


def test_no_cast_changes_what_is_stored():
    layer, _ = linear("q5")
    before = layer.weight.clone()
    for cast in (lambda: layer.to(torch.float16), layer.half, layer.bfloat16, layer.double, lambda: layer.to("cpu", torch.float32)):
        cast()
        assert torch.equal(layer.weight, before)


def test_to_meta_and_back():
    """As the tensors of another machine would be moved: the device changes, types and shapes do not."""
    layer, _ = linear("q6")
    state, x = {name: tensor.clone() for name, tensor in layer.state_dict().items()}, torch.ones(1, 100)
    out = layer(x)
    layer.to("meta")
    assert (layer.weight.device.type, layer.weight.dtype) == ("meta", torch.uint8)
    assert layer(torch.ones(1, 100, device="meta", dtype=torch.float16)).shape == out.shape
    layer.to_empty(device="cpu")
    layer.load_state_dict(state)
    assert torch.equal(layer(x), out)


# A whole encoder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    return folder, t5.make(folder)


def read(kind, folder, device=CPU):
    return load(choices.find(kind), source.find("Model", source.Facts(str(folder))), device)


@pytest.mark.parametrize("kind", KINDS)
def test_state_dict_and_file_round_trip(model, kind, tmp_path):
    folder, _ = model
    encoder = read(kind, folder)
    save_file({name: tensor for name, tensor in encoder.state_dict().items() if "embed_tokens" not in name}, tmp_path / "t5.safetensors")
    encoded = quantize(open_weights(source.find("Model", source.Facts(str(folder)))), Recipe(choices.find(kind)), CPU)
    other = assemble(encoded)
    for parameter in other.parameters():
        parameter.data = torch.zeros_like(parameter)
    missing, more = other.load_state_dict(load_file(tmp_path / "t5.safetensors"), strict=False)
    assert not more
    assert set(missing) <= {"encoder.embed_tokens.weight"}
    assert torch.equal(other(t5.tokens())[0], encoder(t5.tokens())[0])
    assert encoder.dtype is torch.bfloat16  # what a pipeline turns prompt embeds into


@pytest.mark.parametrize("kind", KINDS)
def test_accelerates_offload_and_back(model, kind):
    import accelerate

    folder, _ = model
    encoder = read(kind, folder)
    out, bytes_of = encoder(t5.tokens())[0], [parameter.clone() for parameter in encoder.parameters()]
    accelerate.cpu_offload(encoder, "cpu", offload_buffers=True)  # layer by layer, as the mode “sequential”
    assert {parameter.device.type for parameter in encoder.parameters()} == {"meta"}
    for _ in range(2):
        assert torch.equal(encoder(t5.tokens())[0], out)
    accelerate.hooks.remove_hook_from_module(encoder, recurse=True)
    assert all(map(torch.equal, encoder.parameters(), bytes_of))
    accelerate.dispatch_model(encoder, {"": "cpu"}, force_hooks=True)  # what balanced offload does
    assert torch.equal(encoder(t5.tokens())[0], out)
    accelerate.hooks.remove_hook_from_module(encoder, recurse=True)
    assert torch.equal(copy.deepcopy(encoder)(t5.tokens())[0], out)


def test_a_cast_of_the_whole_encoder(model):
    folder, full = model
    encoder = read("q8", folder).to(torch.float32)
    assert t5.cosine(encoder(t5.tokens())[0], full(t5.tokens())[0]) > 0.9998
