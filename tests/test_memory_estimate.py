"""What must hold of every estimate, whatever the constants are calibrated to."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sd3deploy.encoders.choices import CHOICES, HOST_DEFAULT, NONE, find
from sd3deploy.memory import estimate as module
from sd3deploy.memory.estimate import OFFLOADS, PHASES, Setup, balanced_defaults, constants, estimate
from sd3deploy.memory.sizes import MODELS, PARTS, Part, Weights, tiled
from sd3deploy.memory.t5_shape import DTYPES, T5_XXL, T5Shape

GIB = 2**30
MEDIUM = MODELS["sd3-medium"]

shapes = st.builds(
    T5Shape,
    vocab_size=st.integers(1, 40_000),
    d_model=st.integers(1, 5_000),
    d_kv=st.integers(1, 128),
    d_ff=st.integers(1, 12_000),
    num_layers=st.integers(1, 30),
    num_heads=st.integers(1, 64),
    gated=st.booleans(),
)
sizes = st.builds(Part, numbers=st.integers(0, 10**10), fixed=st.integers(0, 10**6))
unknown = st.builds(
    Weights,
    name=st.just("any"),
    parts=st.fixed_dictionaries(dict.fromkeys(PARTS, sizes)),
    t5=shapes,
    width=st.integers(64, 4096),
    dual=st.booleans(),
    channels=st.integers(8, 512),
    tile=st.sampled_from([256, 512, 1024]),
)
setups = st.builds(
    Setup,
    weights=st.sampled_from(list(MODELS.values())) | unknown,
    encoder=st.sampled_from(CHOICES),
    kind=st.sampled_from(["cpu", "cuda", "xpu"]),
    dtype=st.sampled_from(list(DTYPES)),
    compute=st.sampled_from(["bfloat16", "float16"]),
    width=st.integers(1, 6144),
    height=st.integers(1, 6144),
    batch=st.integers(1, 16),
    guided=st.booleans(),
    offload=st.sampled_from(OFFLOADS),
    tiling=st.booleans(),
    wide_vae=st.booleans(),
    watermark=st.integers(0, 80 * GIB),
    never=st.lists(st.sampled_from(PARTS), unique=True).map(tuple),
    ceiling=st.integers(0, 80 * GIB),
    factors=st.dictionaries(st.sampled_from(PHASES), st.floats(0.5, 3)),
)


def grown(more, less):
    """No phase of `more` needs less than that of `less`, of neither memory."""
    for phase in PHASES:
        assert more.phases[phase].gpu >= less.phases[phase].gpu, phase
        assert more.phases[phase].ram >= less.phases[phase].ram, phase
    assert more.gpu >= less.gpu
    assert more.ram >= less.ram


@given(setups, st.integers(0, 3000), st.integers(0, 3000))
def test_more_pixels_never_take_less(setup, wider, higher):
    grown(estimate(replace(setup, width=setup.width + wider, height=setup.height + higher)), estimate(setup))


@given(setups, st.integers(1, 16))
def test_a_larger_batch_never_takes_less(setup, more):
    grown(estimate(replace(setup, batch=setup.batch + more)), estimate(setup))


@given(setups, st.integers(0, 12), st.integers(0, 30_000))
def test_a_larger_encoder_never_takes_less(setup, layers, pieces):
    shape = replace(setup.weights.t5, num_layers=setup.weights.t5.num_layers + layers, vocab_size=setup.weights.t5.vocab_size + pieces)
    larger = estimate(replace(setup, weights=replace(setup.weights, t5=shape)))
    assert larger.parts["text_encoder_3"] >= estimate(setup).parts["text_encoder_3"]
    grown(larger, estimate(setup))


@given(setups, st.sampled_from(PARTS), st.integers(0, 20 * GIB), st.integers(0, 20 * GIB))
def test_a_larger_part_never_takes_less(setup, part, size, more):
    def with_part(size):
        return estimate(replace(setup, weights=replace(setup.weights, measured={part: size})))

    assert with_part(size).parts[part] == size
    grown(with_part(size + more), with_part(size))


@given(setups)
def test_the_parts_add_up(setup):
    found = estimate(setup)
    assert tuple(found.parts) == PARTS
    assert found.total == sum(found.parts.values())
    assert tuple(found.phases) == PHASES
    assert (found.gpu, found.ram) == (max(need.gpu for need in found.phases.values()), max(need.ram for need in found.phases.values()))
    for need in found.phases.values():
        assert 0 <= need.activation <= max(need.gpu, need.ram)


@given(setups)
def test_what_is_resident_is_somewhere(setup):
    """While a picture is made each part is on the device or in RAM; none is forgotten."""
    found = estimate(setup)
    for phase in PHASES[1:]:
        need = found.phases[phase]
        assert need.gpu + need.ram - need.activation >= found.total


@given(setups)
def test_a_cpu_needs_no_gpu(setup):
    found = estimate(replace(setup, kind="cpu"))
    assert found.gpu == 0
    for need in found.phases.values():
        assert need.ram == found.total + need.activation


@given(setups)
def test_a_stronger_offload_never_takes_more_of_the_device(setup):
    setup = replace(setup, kind="cuda")
    needs = {mode: estimate(replace(setup, offload=mode)).phases for mode in OFFLOADS}
    for phase in PHASES[1:]:
        gpu = {mode: needs[mode][phase].gpu for mode in OFFLOADS}
        assert gpu["model"] <= gpu["none"]
        assert gpu["balanced"] <= gpu["none"]
        assert gpu["sequential"] <= gpu["none"]
        assert gpu["group"] == gpu["sequential"]
        if "bitsandbytes" not in setup.encoder.groups:  # such a T5 stays on the device as a whole, while another part has its turn too
            assert gpu["sequential"] <= gpu["model"]
    assert all(needs[mode]["load"].gpu <= needs["none"]["load"].gpu for mode in OFFLOADS)


@pytest.mark.parametrize("choice", CHOICES, ids=lambda choice: choice.id)
def test_a_model_without_t5_has_nothing_to_load_or_to_encode_with_it(choice):
    found = estimate(Setup(replace(MEDIUM, t5=None), choice, offload="none"))
    assert [found.phases[name].activation for name in ("load", "encode")] == [0, 0]


@given(setups)
def test_balanced_offload_that_keeps_nothing_back_is_model_offload(setup):
    setup = replace(setup, watermark=0, never=(), ceiling=0)
    assert estimate(replace(setup, offload="balanced")).phases == estimate(replace(setup, offload="model")).phases


def test_what_balanced_offload_leaves_on_the_device():
    setup = Setup(MEDIUM, find("fp8"), offload="balanced")
    plain = estimate(setup).phases["denoise"].gpu
    vae = estimate(setup).parts["vae"]
    assert estimate(replace(setup, never=("vae",))).phases["denoise"].gpu == plain + vae
    assert estimate(replace(setup, never=("transformer",))).phases["denoise"].gpu == plain  # it is there already
    assert estimate(replace(setup, watermark=GIB)).phases["denoise"].gpu == plain + GIB
    everything = estimate(replace(setup, offload="none")).phases["denoise"]
    assert estimate(replace(setup, watermark=10**12)).phases["denoise"].gpu == everything.gpu
    streamed = estimate(replace(setup, ceiling=GIB)).phases["denoise"]
    assert streamed.gpu == GIB + streamed.activation
    # The host moves all text encoders at once.
    assert estimate(replace(setup, ceiling=GIB)).phases["encode"] == estimate(setup).phases["encode"]


def test_in_sequential_mode_the_device_holds_a_tenth_of_a_part_and_no_more_than_the_largest_layer_that_is_known():
    huge = replace(MEDIUM, parts=MEDIUM.parts | {"transformer": Part(10**11)})
    for weights, leaf in ((MEDIUM, MEDIUM.parts["transformer"].numbers // 10), (huge, 384 * 384 * 1536)):  # the positions of SD3.5 medium
        need = estimate(Setup(weights, find("fp8"), offload="sequential")).phases["denoise"]
        assert need.gpu - need.activation == pytest.approx(2 * leaf, abs=1)


def test_a_t5_by_bitsandbytes_stays_on_the_device_in_sequential_mode():
    small, wide = (estimate(Setup(MEDIUM, find(name), offload="sequential")) for name in ("nf4", "q4"))
    assert small.phases["denoise"].gpu - wide.phases["denoise"].gpu == small.parts["text_encoder_3"]
    assert small.phases["denoise"].ram == small.total - small.parts["text_encoder_3"]
    assert wide.phases["denoise"].ram == wide.total  # what comes to the device is a copy
    # All of it is there when the prompt is encoded; what comes and goes is a layer of the other encoders.
    need = small.phases["encode"]
    assert need.gpu - need.activation - small.parts["text_encoder_3"] < small.parts["text_encoder_2"]


def test_layers_of_bitsandbytes_are_loaded_to_the_device():
    for mode in OFFLOADS[1:]:
        assert estimate(Setup(MEDIUM, find("nf4"), offload=mode)).phases["load"].gpu == find("nf4").bytes
        assert estimate(Setup(MEDIUM, find("fp8"), offload=mode)).phases["load"].gpu == 0


@pytest.mark.parametrize("choice", [choice for choice in CHOICES if choice.quantized], ids=lambda choice: choice.id)
def test_quantizing_takes_the_memory_of_the_result_and_little_more(choice):
    found = estimate(Setup(MEDIUM, choice))
    assert found.total < found.phases["load"].ram < found.total + 600e6


@given(setups, st.sampled_from(PHASES), st.floats(0.5, 3))
def test_factors_scale_the_activations_and_nothing_else(setup, phase, factor):
    plain, scaled = estimate(replace(setup, factors={})), estimate(replace(setup, factors={phase: factor}))
    assert scaled.parts == plain.parts
    for name in PHASES:
        before, after = plain.phases[name], scaled.phases[name]
        if name != phase:
            assert after == before
            continue
        assert after.activation == pytest.approx(before.activation * factor, abs=2)
        more = after.activation - before.activation
        gpu, ram = after.gpu - before.gpu, after.ram - before.ram
        assert (gpu, ram) == ((0, more) if setup.kind == "cpu" or name == "load" else (more, 0))


@given(setups)
def test_guidance_doubles_what_denoising_takes(setup):
    setup = replace(setup, factors={})
    once, twice = (estimate(replace(setup, guided=guided)).phases for guided in (False, True))
    assert twice["denoise"].activation == pytest.approx(2 * once["denoise"].activation, abs=2)
    for phase in ("load", "encode", "decode"):
        assert once[phase] == twice[phase]


@given(setups, st.integers(1536, 6144), st.integers(1536, 6144))
def test_smaller_tiles_take_less_where_the_picture_is_large(setup, width, height):
    setup = replace(setup, weights=replace(setup.weights, tile=1024), kind="cuda", width=width, height=height)
    whole, tiles = (estimate(replace(setup, tiling=tiling)).phases["decode"] for tiling in (False, True))
    small = estimate(replace(setup, tiling=True, weights=tiled(setup.weights, 512))).phases["decode"]
    assert small.activation < tiles.activation
    if setup.weights.channels >= 128:  # where the channels are few, putting the tiles together takes more than they save
        assert tiles.activation < whole.activation


def test_above_the_tile_a_pixel_takes_no_more_of_the_vae_but_the_tiles_that_wait_for_it():
    """Three rows of tiles of three numbers a pixel, and the picture in the VAE's type and in float32."""
    setup = replace(Setup(MEDIUM, NONE), tiling=True, factors={})
    small, large = (estimate(replace(setup, width=edge, height=edge)).phases["decode"].activation for edge in (2048, 4096))
    assert large - small == pytest.approx((4096**2 - 2048**2) * (9 * 2 + 3 * (2 + 4)), rel=1e-6)


@given(setups)
def test_tiles_matter_to_decoding_alone(setup):
    one, other = (estimate(replace(setup, tiling=tiling)).phases for tiling in (False, True))
    assert [one[phase] for phase in PHASES[:3]] == [other[phase] for phase in PHASES[:3]]


def test_a_vae_in_float32_takes_twice_as_much():
    setup = Setup(MEDIUM, NONE)
    narrow, wide = (estimate(replace(setup, wide_vae=wide)).phases["decode"].activation for wide in (False, True))
    assert 1.9 < wide / narrow < 2.1


def test_without_t5_encoding_takes_its_clips_alone():
    found = estimate(Setup(MEDIUM, NONE, offload="model"))
    assert found.phases["encode"].gpu == found.parts["text_encoder"] + found.parts["text_encoder_2"]
    assert found.phases["load"].activation == 0


def test_a_second_attention_takes_more():
    with_it, without = MODELS["sd3.5-medium"], replace(MODELS["sd3.5-medium"], dual=False)
    needs = [estimate(Setup(weights)).phases["denoise"].activation for weights in (with_it, without)]
    assert needs[0] > needs[1]


def test_the_hosts_own_t5_is_as_wide_as_the_model():
    assert estimate(Setup(MEDIUM, HOST_DEFAULT, dtype="float32")).parts["text_encoder_3"] == 4 * T5_XXL.numbers
    assert estimate(Setup(MEDIUM, find("bf16"), dtype="float32")).parts["text_encoder_3"] == 2 * T5_XXL.numbers


def test_constants_are_plausible_and_say_where_they_come_from():
    table = json.loads(Path(module.__file__).with_name("constants.json").read_text("utf-8"))
    assert {"cpu", "cuda"} <= set(table)
    for kind in table:
        found = constants(kind)
        assert min(found.image, found.text, found.dual, found.decode, found.encode) > 0
        assert found.source
    assert constants("cpu").context == 0 < constants("cuda").context < GIB
    assert constants("an accelerator of tomorrow") == constants("cuda")


def test_what_the_host_keeps_by_default():
    """By its modules/shared_defaults.py: up to 12 GB nothing stays, from 24 GB the small parts do."""
    assert balanced_defaults(8 * GIB) == {"watermark": 0, "ceiling": int(0.6 * 8 * GIB), "never": ()}
    assert balanced_defaults(12 * GIB)["watermark"] == 0 < balanced_defaults(13 * GIB)["watermark"]
    assert balanced_defaults(16 * GIB) == {"watermark": int(0.2 * 16 * GIB), "ceiling": int(0.6 * 16 * GIB), "never": ()}
    assert balanced_defaults(24 * GIB)["ceiling"] == int(0.8 * 24 * GIB)
    assert balanced_defaults(24 * GIB)["never"] == ("text_encoder", "text_encoder_2", "vae")
    odd = int(15.6 * GIB)  # as drivers tell it
    assert balanced_defaults(odd) == {"watermark": int(0.2 * odd), "ceiling": int(0.6 * odd), "never": ()}
