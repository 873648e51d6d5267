"""“too many values to unpack”, explained by running it.

SD3's transformer attends to picture and prompt in one go. Each of its blocks takes a pair from its attention processor:

    attn_output, context_attn_output = self.attn(hidden_states=…, encoder_hidden_states=…)

A processor that was made for a UNet returns one tensor, of shape (batch, image tokens, width). What Python then says depends on
the batch size alone, because the tensor is unpacked along its batch:

    1   not enough values to unpack (expected 2, got 1)          huggingface/diffusers#10066
    2   no error here: it is split in two, and the next addition does not fit:
        The size of tensor a (333) must match the size of tensor b (1024)         vladmandic/sdnext#3281
        333 = 77 tokens of CLIP + 256 of T5; 1024 tokens of a picture of 512×512
    4   too many values to unpack (expected 2)                   huggingface/diffusers#8539

None of this has to do with the size of the picture, as the folklore has it.
"""

from __future__ import annotations

import types

import numpy as np
import pytest
import torch
from diffusers import SD3ControlNetModel, SD3Transformer2DModel, StableDiffusion3PAGPipeline, StableDiffusion3Pipeline
from diffusers.models import attention_processor as processors

from sd3deploy import guards, tiny_sd3
from sd3deploy.guards import attention
from sd3deploy.guards.job import MODELS, Job

MESSAGES = {
    1: r"not enough values to unpack \(expected 2, got 1\)",
    2: r"The size of tensor a \(333\) must match the size of tensor b \(1024\) at non-singleton dimension 1",
    4: r"too many values to unpack \(expected 2",
}
MADE_FOR_A_UNET = [processors.AttnProcessor, processors.AttnProcessor2_0]


def load():
    found = StableDiffusion3Pipeline.from_pretrained(tiny_sd3.ensure(), torch_dtype=torch.float32)
    found.set_progress_bar_config(disable=True)
    return found


@pytest.fixture
def pipeline():
    return load()


def picture(pipeline, batch):
    """The pictures of one call. Guidance doubles the batch of the transformer; without it the batch is that of the pictures."""
    guidance, count = {1: (1.0, 1), 2: (5.0, 1), 4: (5.0, 2)}[batch]
    generator = [torch.Generator().manual_seed(number) for number in range(count)]
    result = pipeline("a cat holding a sign", num_inference_steps=2, guidance_scale=guidance, num_images_per_prompt=count,
                      height=512, width=512, generator=generator, output_type="np")  # fmt: skip
    return result.images


def guarded(pipeline, setting="", mode="fix"):
    """What the extension does before each image."""
    job = Job(MODELS["sd3-medium"], 512, 512, misfits=attention.find_misfits(pipeline), attention_setting=setting)
    outcome = guards.check(job, {"attention": mode}, ["attention"])
    outcome.raise_refused()
    attention.restore(pipeline, outcome.change.get("processors", ()))
    return outcome


# The error, and its end


@pytest.mark.parametrize("batch", [1, 2, 4])
@pytest.mark.parametrize("kind", MADE_FOR_A_UNET)
def test_without_the_guard_a_unets_processor_ends_in_the_known_error(pipeline, kind, batch):
    pipeline.transformer.set_attn_processor(kind())
    with pytest.raises((ValueError, RuntimeError), match=MESSAGES[batch]):
        picture(pipeline, batch)


@pytest.mark.parametrize("batch", [1, 2, 4])
@pytest.mark.parametrize("kind", MADE_FOR_A_UNET)
def test_with_the_guard_the_picture_is_that_of_an_untouched_pipeline_bit_for_bit(pipeline, kind, batch):
    untouched = picture(pipeline, batch)
    pipeline.transformer.set_attn_processor(kind())
    (found,) = guarded(pipeline).told
    assert found[0].id == "attention.other"
    assert kind.__name__ in found[0].message
    assert np.array_equal(picture(pipeline, batch), untouched)


def test_looking_draws_no_random_numbers(pipeline):
    attention._default.cache_clear()
    before = torch.get_rng_state()
    attention.find_misfits(pipeline)
    assert torch.equal(torch.get_rng_state(), before)


def test_it_is_said_once(pipeline):
    pipeline.transformer.set_attn_processor(processors.AttnProcessor())
    assert len(guarded(pipeline).told) == 1
    assert guarded(pipeline).told == []


def test_mode_block_refuses_and_touches_nothing(pipeline):
    pipeline.transformer.set_attn_processor(processors.AttnProcessor())
    with pytest.raises(guards.JobRefused, match="AttnProcessor"):
        guarded(pipeline, mode="block")
    assert type(pipeline.transformer.transformer_blocks[0].attn.processor) is processors.AttnProcessor


# Who did it


@pytest.mark.parametrize(
    ("kind", "setting", "id"),
    [
        (processors.AttnProcessor, "Batch matrix-matrix", "attention.setting"),
        (processors.XFormersAttnProcessor, "xFormers", "attention.setting"),
        (processors.XFormersAttnAddedKVProcessor, "xFormers", "attention.setting"),
        (processors.AttnProcessor, "Scaled-Dot-Product", "attention.other"),
        (processors.AttnProcessor2_0, "", "attention.other"),
    ],
)
def test_the_setting_is_named_when_it_is_the_one_that_sets_this_processor(pipeline, kind, setting, id):
    pipeline.transformer.set_attn_processor(kind())
    ((found, _),) = guarded(pipeline, setting).told
    assert found.id == id
    assert (f"“{setting}”" if id == "attention.setting" else "diffusers.models.attention_processor") in found.message


def test_the_hosts_dynamic_attention_is_known_by_its_name(pipeline):
    class DynamicAttnProcessorBMM(processors.AttnProcessor):
        pass

    pipeline.transformer.set_attn_processor(DynamicAttnProcessorBMM())
    ((found, _),) = guarded(pipeline, "Dynamic Attention BMM").told
    assert found.id == "attention.setting"


# What is kept: processors that bring the pair, whoever they are


class FromAnExtension:
    """Written anew, with the layers that SD3's attention has for the prompt."""

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None):
        if encoder_hidden_states is None:
            return attn.to_out[0](attn.to_v(attn.norm_q(hidden_states)))
        return attn.to_out[0](attn.to_q(hidden_states)), attn.to_add_out(attn.add_q_proj(encoder_hidden_states))


class Inherits(processors.JointAttnProcessor2_0):
    def __call__(self, *args, **kwargs):
        return super().__call__(*args, **kwargs)


class Holds:
    def __init__(self):
        self.inner = processors.JointAttnProcessor2_0()

    def __call__(self, *args, **kwargs):
        return self.inner(*args, **kwargs)


def _projected(attn, context):
    return attn.add_q_proj(context)


class Helps:
    def __call__(self, attn, hidden_states, encoder_hidden_states=None):
        return attn.to_q(hidden_states), _projected(attn, encoder_hidden_states)


def closure():
    """As a tool does that counts calls: a function around the method of another one."""
    original = processors.JointAttnProcessor2_0.__call__
    processor = processors.JointAttnProcessor2_0()

    def counted(*args, **kwargs):
        return original(processor, *args, **kwargs)

    return counted


KEPT = [
    processors.JointAttnProcessor2_0,
    processors.PAGJointAttnProcessor2_0,
    processors.PAGCFGJointAttnProcessor2_0,
    processors.FusedJointAttnProcessor2_0,
    processors.XFormersJointAttnProcessor,
    lambda: processors.SD3IPAdapterJointAttnProcessor2_0(hidden_size=64, ip_hidden_states_dim=32, head_dim=32, timesteps_emb_dim=32),
    FromAnExtension,
    Inherits,
    Holds,
    Helps,
    closure,
]
REPLACED = [
    processors.AttnProcessor,
    processors.AttnProcessor2_0,
    processors.AttnAddedKVProcessor2_0,
    processors.XFormersAttnProcessor,
    lambda: processors.SlicedAttnProcessor(2),
    lambda: processors.IPAdapterAttnProcessor2_0(64, 128),
    lambda: processors.CustomDiffusionAttnProcessor(hidden_size=64, cross_attention_dim=64),
]
SHAPES = {
    "sd3 medium": {},
    "sd3.5 large": {"qk_norm": "rms_norm"},
    "sd3.5 medium": {"qk_norm": "rms_norm", "dual_attention_layers": (0,)},
}


@pytest.fixture(params=SHAPES)
def model(request):
    return types.SimpleNamespace(transformer=SD3Transformer2DModel(**tiny_sd3.TRANSFORMER | SHAPES[request.param]).eval())


@pytest.mark.parametrize("make", KEPT)
def test_a_processor_that_brings_the_pair_is_kept(model, make):
    for _, layer in attention.layers(model):
        layer.set_processor(make())
    assert attention.find_misfits(model) == ()


@pytest.mark.parametrize("make", REPLACED)
def test_every_other_one_is_found_in_every_joint_layer(model, make):
    for _, layer in attention.layers(model):
        layer.set_processor(make())
    joint = [path for path, layer in attention.layers(model) if layer.added_kv_proj_dim is not None]
    assert len(joint) == 2
    found = [misfit.path for misfit in attention.find_misfits(model)]
    assert [path for path in found if not path.endswith("attn2")] == joint
    attention.restore(model, tuple(found))
    assert attention.find_misfits(model) == ()


def run(transformer):
    generator = torch.Generator().manual_seed(1)
    latents, prompt, pooled = (torch.randn(*shape, generator=generator) for shape in ((2, 16, 8, 8), (2, 5, 128), (2, 96)))
    with torch.no_grad():
        return transformer(latents, prompt, pooled, torch.tensor([500.0, 500.0]), return_dict=False)[0]


@pytest.mark.parametrize("make", MADE_FOR_A_UNET)
def test_every_model_of_the_family_gives_what_it_gave(model, make):
    before = run(model.transformer)
    model.transformer.set_attn_processor(make())
    attention.restore(model, tuple(misfit.path for misfit in attention.find_misfits(model)))
    assert torch.equal(run(model.transformer), before)


def test_on_the_picture_alone_a_processor_without_normalization_is_wrong_without_an_error():
    model = types.SimpleNamespace(transformer=SD3Transformer2DModel(**tiny_sd3.TRANSFORMER | SHAPES["sd3.5 medium"]).eval())
    before = run(model.transformer)
    layer = model.transformer.transformer_blocks[0].attn2
    layer.set_processor(processors.AttnProcessor())
    assert not torch.allclose(run(model.transformer), before, atol=1e-3)
    assert [misfit.path for misfit in attention.find_misfits(model)] == ["transformer.transformer_blocks.0.attn2"]
    layer.set_processor(processors.AttnProcessor2_0())  # it normalizes: nothing is wrong with it here
    assert torch.equal(run(model.transformer), before)
    assert attention.find_misfits(model) == ()


def test_a_processor_whose_code_can_not_be_read_is_left_alone(model):
    for _, layer in attention.layers(model):
        layer.set_processor(print)
    assert attention.find_misfits(model) == ()


def test_pag_keeps_its_own_and_gives_the_same_picture():
    components = {name: part for name, part in load().components.items() if name not in ("image_encoder", "feature_extractor")}
    pipeline = StableDiffusion3PAGPipeline(**components, pag_applied_layers=["0"])
    pipeline.set_progress_bar_config(disable=True)

    def call():
        arguments = {"num_inference_steps": 2, "height": 128, "width": 128, "pag_scale": 3.0, "output_type": "np"}
        return pipeline("a cat", generator=torch.Generator().manual_seed(1), **arguments).images

    alone = call()
    seen = []
    original = pipeline.transformer.forward

    def forward(*args, **kwargs):  # PAG sets its processors while the pipeline runs
        seen.append((type(pipeline.transformer.transformer_blocks[0].attn.processor).__name__, attention.find_misfits(pipeline)))
        return original(*args, **kwargs)

    pipeline.transformer.forward = forward
    guarded(pipeline)
    assert np.array_equal(call(), alone)
    assert seen[0] == ("PAGCFGJointAttnProcessor2_0", ())


def test_controlnets_are_looked_at_too():
    transformer = SD3Transformer2DModel(**tiny_sd3.TRANSFORMER)
    controlnet = SD3ControlNetModel.from_transformer(transformer, num_layers=1, num_extra_conditioning_channels=0)
    for controlnets in (controlnet, [controlnet, controlnet]):
        model = types.SimpleNamespace(transformer=transformer, controlnet=controlnets)
        controlnet.set_attn_processor(processors.AttnProcessor2_0())
        found = attention.find_misfits(model)
        assert found
        assert {misfit.path.split(".")[0] for misfit in found} == {"controlnet"}
        attention.restore(model, tuple(misfit.path for misfit in found))
        assert attention.find_misfits(model) == ()


def test_the_single_stream_blocks_of_a_controlnet_fit_with_either():
    controlnet = SD3ControlNetModel(
        num_layers=1, attention_head_dim=32, num_attention_heads=2, caption_projection_dim=None, joint_attention_dim=None,
        pooled_projection_dim=96, use_pos_embed=False, force_zeros_for_pooled_projection=True,
    )  # fmt: skip
    controlnet.set_attn_processor(processors.AttnProcessor2_0())
    assert attention.find_misfits(types.SimpleNamespace(transformer=None, controlnet=controlnet)) == ()


def test_a_compiled_transformer_is_looked_into(pipeline):
    pipeline.transformer.set_attn_processor(processors.AttnProcessor())
    model = types.SimpleNamespace(transformer=torch.compile(pipeline.transformer))
    found = attention.find_misfits(model)
    assert len(found) == 2
    attention.restore(model, tuple(misfit.path for misfit in found))
    assert attention.find_misfits(model) == ()
