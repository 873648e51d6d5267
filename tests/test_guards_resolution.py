from __future__ import annotations

import math
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sd3deploy.guards.job import MODELS, Hires, Job, Model
from sd3deploy.guards.resolution import check, resolve

MEDIUM, MEDIUM35 = MODELS["sd3-medium"], MODELS["sd3.5-medium"]


@pytest.mark.parametrize(
    ("asked", "made", "status", "reason"),
    [
        ((1024, 1024), (1024, 1024), "ok", ""),
        ((1000, 1000), (1008, 1008), "snapped", "size.not-multiple"),  # the host makes it 992
        ((1015, 1017), (1008, 1024), "snapped", "size.not-multiple"),
        ((250, 250), (256, 256), "snapped", "size.not-multiple"),
        ((3200, 256), (3072, 240), "snapped", "size.too-large"),
        ((64, 4096), (48, 3072), "snapped", "size.too-large"),
        ((10**9, 10**9), (3072, 3072), "snapped", "size.too-large"),
        ((10**9, 1024), (0, 0), "impossible", "size.too-thin"),
        ((1920, 1088), (1920, 1088), "advice", "size.far"),
        ((512, 512), (512, 512), "advice", "size.small"),
        ((3, 3), (16, 16), "snapped", "size.not-multiple"),
        (("1000", 1000.4), (1008, 1008), "snapped", "size.not-multiple"),
        ((0, 1024), (0, 0), "impossible", "size.no-number"),
        ((None, 1024), (0, 0), "impossible", "size.no-number"),
        ((1024, -1), (0, 0), "impossible", "size.no-number"),
        ((float("nan"), 1024), (0, 0), "impossible", "size.no-number"),
        ((float("inf"), 1024), (0, 0), "impossible", "size.no-number"),
        (("abc", 1024), (0, 0), "impossible", "size.no-number"),
        ((True, 1024), (0, 0), "impossible", "size.no-number"),
        (([1024], {}), (0, 0), "impossible", "size.no-number"),
        ((10**400, 1024), (0, 0), "impossible", "size.no-number"),
    ],
)
def test_what_becomes_of_a_size(asked, made, status, reason):
    found = resolve(*asked, MEDIUM)
    assert (found.width, found.height, found.status, found.reason) == (*made, status, reason)


def test_the_edge_is_that_of_the_model():
    assert (MEDIUM.limit, MEDIUM35.limit, MODELS["sd3.5-large"].limit) == (3072, 6144, 3072)
    assert resolve(4096, 1024, MEDIUM35).status == "advice"
    assert resolve(8192, 1024, MEDIUM35).width == 6144


def test_a_pass_is_a_multiple_of_the_size():
    assert resolve(1008, 1008, MEDIUM, 1.5).width == 1520  # 1512, halves up
    assert resolve(1024, 1024, MEDIUM, 4).reason == "size.too-large"


def test_a_missing_side_is_the_hosts_default():
    assert resolve(None, 0, MEDIUM, default=(1024, 768)).width == 1024
    assert resolve(None, 0, MEDIUM, default=(1024, 768)).height == 768


sizes = st.one_of(st.integers(1, 10**6), st.floats(0.5, 1e6, allow_nan=False))
models = st.builds(Model, name=st.just("any"), patch_size=st.sampled_from([1, 2, 4]), vae_scale=st.sampled_from([4, 8, 16]),
                   pos_embed_max_size=st.integers(8, 400), sample_size=st.sampled_from([32, 64, 128]))  # fmt: skip


@given(sizes, sizes, models)
def test_the_result_is_on_the_grid_inside_the_limits_of_the_same_shape_and_final(width, height, model):
    found = resolve(width, height, model)
    if found.status == "impossible":
        assert max(width, height) / min(width, height) > model.limit / model.grid
        return
    for side in (found.width, found.height):
        assert side % model.grid == 0
        assert model.grid <= side <= model.limit
    scale = min(1, model.limit / max(width, height))
    assert abs(found.width - width * scale) <= model.grid
    assert abs(found.height - height * scale) <= model.grid
    again = resolve(found.width, found.height, model)
    assert again.status in ("ok", "advice")
    assert (again.width, again.height) == (found.width, found.height)


anything = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20), st.lists(st.integers(), max_size=2),
                     st.binary(max_size=4), st.complex_numbers(max_magnitude=10))  # fmt: skip


@given(anything, anything)
def test_anything_gets_an_answer_in_words(width, height):
    job = Job(MEDIUM, width, height, hires=Hires(1.5))
    for found in check(job):
        assert found.message
        assert found.remedy or found.id == "size.default"


def ids(**job):
    return [found.id for found in check(Job(MEDIUM, **job))]


def test_the_hires_pass_is_that_of_the_size_as_it_will_be():
    found = check(Job(MEDIUM, 1000, 1000, hires=Hires(1.5)))
    assert [one.id for one in found] == ["size.not-multiple", "size.hires"]
    assert "1512×1512" in found[1].message
    assert found[1].change == {"hires_width": 1520, "hires_height": 1520}


@pytest.mark.parametrize(
    ("hires", "size"),
    [(Hires(2), (2048, 1024)), (Hires(2, 1500, 0), (1500, 750)), (Hires(2, 0, 600), (1200, 600)), (Hires(2, 640, 480), (640, 480))],
)
def test_the_hires_pass_is_counted_as_the_host_does(hires, size):
    assert hires.size(1024, 512) == size


@given(st.integers(1, 64), st.integers(1, 64), st.floats(0.1, 40), st.integers(0, 4000), st.integers(0, 4000), st.booleans())
def test_the_hires_pass_can_be_made_whatever_was_asked(wide, high, scale, x, y, latent):
    first = resolve(wide * 16, high * 16, MEDIUM)
    job = Job(MEDIUM, first.width, first.height, hires=Hires(scale, x, y, latent))
    for found in check(job):
        if found.change:
            mended = Hires(scale, found.change["hires_width"], found.change["hires_height"], latent)
            assert resolve(*mended.size(first.width, first.height), MEDIUM).status in ("ok", "advice")
            assert mended.size(first.width, first.height) == (mended.width, mended.height)


def test_latents_keep_the_shape_of_the_first_pass():
    assert Hires(1.5, latent=True).size(144, 112) == (216, 168)
    assert Hires(1, 400, 16, latent=True).size(128, 64) == (400, 200)
    assert Hires(0.5, latent=True).size(128, 64) == (128, 64)  # the host enlarges, or leaves them
    (found,) = [one for one in check(Job(MEDIUM, 144, 112, hires=Hires(1.5, latent=True))) if one.id == "size.hires"]
    assert found.change == {"hires_width": 208, "hires_height": 160}


def test_a_hires_pass_of_nothing_is_refused():
    assert ids(width=1024, height=1024, hires=Hires(0.0001)) == ["size.hires-impossible"]


def test_only_what_would_fail_is_an_error():
    severities = {found.id: found.severity for size in (1000, 4096, 512) for found in check(Job(MEDIUM, size, size))}
    assert severities == {"size.not-multiple": "warning", "size.too-large": "error", "size.far": "advice", "size.small": "advice"}


def test_the_real_pipeline_makes_whatever_comes_out():
    """On 200 sizes, asked at random. The edge of the model is at 256 px instead of 3072, so that they take seconds."""
    from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline

    from sd3deploy import tiny_sd3
    from sd3deploy.guards.job import describe_model

    transformer = SD3Transformer2DModel(**tiny_sd3.TRANSFORMER | {"pos_embed_max_size": 16, "sample_size": 16, "num_layers": 1}).eval()
    pipeline = StableDiffusion3Pipeline.from_pretrained(tiny_sd3.ensure(), transformer=transformer, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    prompt, _, pooled, _ = pipeline.encode_prompt("a cat", None, None)
    model = describe_model(pipeline, "tiny")
    assert (model.limit, model.grid, model.trained) == (256, 16, 128)
    chance = random.Random(3)
    made = 0
    while made < 200:
        asked = [math.exp(chance.uniform(0, 9)) for _ in range(2)]
        found = resolve(*asked, model)
        if found.status == "impossible":
            continue
        images = pipeline(prompt_embeds=prompt, pooled_prompt_embeds=pooled, guidance_scale=1, num_inference_steps=1, output_type="np",
                          width=found.width, height=found.height).images  # fmt: skip
        assert images.shape[1:3] == (found.height, found.width)
        made += 1


@pytest.mark.parametrize("size", [(3072, 16), (16, 3072), (3088, 16)])
def test_the_edge_is_where_the_pipeline_says(size):
    from diffusers import StableDiffusion3Pipeline

    from sd3deploy import tiny_sd3

    pipeline = StableDiffusion3Pipeline.from_pretrained(tiny_sd3.ensure(), torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)

    def run():
        return pipeline("a cat", width=size[0], height=size[1], num_inference_steps=1, guidance_scale=1, output_type="latent").images

    if max(size) <= MEDIUM.limit:
        assert run().shape[-2:] == (size[1] // 8, size[0] // 8)
    else:
        with pytest.raises(ValueError, match="cannot be greater than `pos_embed_max_size`: 192"):
            run()
