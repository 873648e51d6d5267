"""The codes and scales of blocks in 4 bit against bitsandbytes' own."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from bitsandbytes import functional

from sd3deploy.encoders.finite import NotFinite
from sd3deploy.encoders.four_bit import _CHUNK, BLOCK, FACTORS, four_bit

KINDS = ("fp4", "nf4")
COUNT = 2 * _CHUNK + 5 * BLOCK  # more than is looked at at a time, twice: each chunk has weights of its own


def cases():
    """Name → weights: kinds of distributions that trained weights have, and edges."""
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(COUNT, generator=generator) * 0.02
    heavy = normal / torch.rand(COUNT, generator=generator).clamp(0.02)
    outliers = normal.clone()
    outliers[:: 251] *= 8
    edges = normal.clone()
    edges[: 3 * BLOCK] = 0
    edges[3 * BLOCK : 4 * BLOCK] *= 1e-20
    edges[4 * BLOCK] = -100
    edges[_CHUNK : _CHUNK + BLOCK] = 0
    edges[-BLOCK:] *= 1e-20
    return {"normal": normal, "heavy": heavy, "outliers": outliers, "uniform": normal.sign() * torch.rand(COUNT), "edges": edges}


def made(kind, weights, best):
    codes, scales = torch.full((len(weights) // 2,), 255, dtype=torch.uint8), torch.full((len(weights) // BLOCK,), -1.0)
    four_bit(kind).quantize(weights, codes, scales, best=best)
    return codes, scales


def wide(kind, codes, scales):
    """As bitsandbytes makes numbers of them again."""
    shape = torch.Size([len(codes) * 2])
    code = functional.get_4bit_type(kind, device="cpu")
    state = functional.QuantState(scales, shape, code, BLOCK, kind, torch.float32)
    return functional.dequantize_4bit(codes.unsqueeze(1), state).reshape(-1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", cases())
def test_with_its_own_scale_it_is_bitsandbytes_bit_for_bit(kind, dtype, name):
    weights = cases()[name].to(dtype)
    codes, scales = made(kind, weights, best=False)
    expected, state = functional.quantize_4bit(weights, quant_type=kind)
    assert torch.equal(codes, expected.reshape(-1))
    assert torch.equal(scales, state.absmax)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_on_the_bounds_between_two_codes(kind):
    """Where a lookup alone would be wrong: the bounds themselves and their neighbours in float32, with scales that are no powers of two."""
    code = functional.get_4bit_type(kind, device="cpu").sort().values
    bounds = (code[:-1] + code[1:]) / 2
    near = torch.cat([bounds, *(torch.nextafter(bounds, torch.tensor(side)) for side in (-9.0, 9.0)), code])
    blocks = torch.nn.functional.pad(near, (1, BLOCK - 1 - len(near)), value=1.0)
    weights = torch.cat([blocks * scale for scale in (1.0, 0.1, 0.7, 3e-5, 123.4)])
    codes, scales = made(kind, weights, best=False)
    expected, state = functional.quantize_4bit(weights, quant_type=kind)
    assert torch.equal(codes, expected.reshape(-1))
    assert torch.equal(scales, state.absmax)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", cases())
def test_the_best_scale_is_nearer_to_the_weights(kind, name):
    weights = cases()[name]
    errors = {best: (wide(kind, *made(kind, weights, best)) - weights).reshape(-1, BLOCK).square().sum(1) for best in (False, True)}
    assert errors[True].sum() < errors[False].sum() * 0.97
    worse = (errors[True] > errors[False] * 1.05).float().mean()  # the search is on integers of 8 bits, so now and then it errs
    assert worse < 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_the_best_scale_is_one_of_the_factors_and_its_codes_are_the_nearest(kind):
    weights = cases()["outliers"]
    codes, scales = made(kind, weights, best=True)
    factors = scales / weights.reshape(-1, BLOCK).abs().amax(1)
    assert all(torch.isclose(factors, torch.tensor(FACTORS)[:, None], rtol=1e-6).any(0))
    assert set((factors * 100).round().int().tolist()) == {round(factor * 100) for factor in FACTORS}
    code = functional.get_4bit_type(kind, device="cpu")
    scaled = (weights.reshape(-1, BLOCK) / scales[:, None]).clamp(-1, 1)[::17]
    least = (scaled[..., None] - code).abs().amin(-1)
    taken = wide(kind, codes, torch.ones_like(scales)).reshape(-1, BLOCK)[::17]
    assert torch.allclose((taken - scaled).abs(), least, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("best", [False, True])
def test_threads_do_not_disturb_each_other(kind, best):
    weights = list(cases().values()) * 2
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda one: made(kind, one, best), weights))
    for one, (codes, scales) in zip(weights, together, strict=True):
        expected = made(kind, one, best)
        assert torch.equal(codes, expected[0])
        assert torch.equal(scales, expected[1])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("best", [False, True])
def test_what_is_no_number_is_refused(value, best):
    weights = cases()["normal"]
    weights[COUNT // 2] = value
    with pytest.raises(NotFinite):
        made("fp4", weights, best)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", cases())
def test_what_runs_on_another_device_is_plain_torch_and_runs_here_too(kind, name):
    """The best scale, exact: never worse than the one that the CPU's tables find, the same codes wherever the scale is the same."""
    weights = cases()[name][: 3000 * BLOCK]
    codes, scales = four_bit(kind)._on_device(weights, True)
    expected, known = made(kind, weights, best=True)
    assert (codes.dtype, codes.shape, scales.shape) == (torch.uint8, expected.shape, known.shape)
    same = scales == known
    assert same.float().mean() > 0.85
    assert torch.equal(codes.reshape(-1, BLOCK // 2)[same], expected.reshape(-1, BLOCK // 2)[same])
    errors, others = ((wide(kind, *one) - weights).reshape(-1, BLOCK).square().sum(1) for one in ((codes, scales), (expected, known)))
    assert (errors <= others * 1.0001 + 1e-12).all()
    own, state = functional.quantize_4bit(weights, quant_type=kind)
    codes, scales = four_bit(kind)._on_device(weights, False)
    assert torch.equal(codes, own.reshape(-1))
    assert torch.equal(scales, state.absmax)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", cases())
def test_on_a_gpu(kind, name):
    """bitsandbytes' own kernel with its own scale; with the best one the codes are the CPU's wherever the scale is."""
    weights = cases()[name].half()
    codes, scales = made(kind, weights.cuda(), best=False)
    expected, state = functional.quantize_4bit(weights.cuda(), quant_type=kind)
    assert torch.equal(codes, expected.reshape(-1).cpu())
    assert torch.equal(scales, state.absmax.cpu())
    (codes, scales), (expected, known) = made(kind, weights.cuda(), best=True), made(kind, weights, best=True)
    same = scales == known
    assert same.float().mean() > 0.85  # the search of the CPU is on integers of 8 bits
    assert torch.equal(codes.reshape(-1, BLOCK // 2)[same], expected.reshape(-1, BLOCK // 2)[same])
    error, error_of_cpu = ((wide(kind, *one) - weights.float()).square().sum() for one in ((codes, scales), (expected, known)))
    assert error <= error_of_cpu
