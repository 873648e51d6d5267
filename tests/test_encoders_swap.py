"""Every pipeline that shares an encoder changes with it, wherever it is kept, and nothing of the old one stays."""

from __future__ import annotations

import copy
import gc
import types
import weakref

import pytest
import torch

from sd3deploy import tiny_sd3
from sd3deploy.encoders import swap


@pytest.fixture
def pipeline():
    import diffusers

    return diffusers.StableDiffusion3Pipeline.from_pretrained(tiny_sd3.ensure(), torch_dtype=torch.float32)


def parts(pipeline, **other):
    encoders = [f"{kind}{number}" for kind in ("text_encoder", "tokenizer") for number in ("", "_2", "_3")]
    names = ["transformer", "scheduler", "vae", *encoders]
    return {name: getattr(pipeline, name) for name in names} | other


def another(pipeline, kind="StableDiffusion3Img2ImgPipeline", **other):
    """A pipeline of another task from the same parts, as a webui makes it."""
    import diffusers

    return getattr(diffusers, kind)(**parts(pipeline, **other))


def with_controlnet(pipeline):
    import diffusers

    controlnet = diffusers.SD3ControlNetModel.from_transformer(pipeline.transformer, num_layers=1)
    return another(pipeline, "StableDiffusion3ControlNetPipeline", controlnet=controlnet)


def encoder(pipeline):
    import transformers

    return transformers.T5EncoderModel(pipeline.text_encoder_3.config).eval()


def gone(module):
    return [weakref.ref(part) for part in module.modules()]


def alive(references):
    gc.collect()
    return sum(one() is not None for one in references)


class Wrapper:
    """As the webui's own wrappers: a pipeline with a second one inside."""

    def __init__(self, pipe):
        self.pipe, self.text_encoder_3 = pipe, pipe.text_encoder_3


def in_closure(pipeline):
    return lambda: pipeline


def test_every_pipeline_that_shares_it_gets_the_new_one_wherever_it_is_kept(pipeline):
    module = types.ModuleType("control_run")
    module.original_pipeline = another(pipeline)
    hidden, wrapper = in_closure(with_controlnet(pipeline)), Wrapper(another(pipeline))
    inpaint = [another(pipeline, "StableDiffusion3InpaintPipeline")]
    registry = parts(pipeline)
    cycle = another(pipeline)
    cycle.itself = cycle
    everywhere = [pipeline, module.original_pipeline, hidden(), wrapper, wrapper.pipe, inpaint[0], cycle]
    old, new = gone(pipeline.text_encoder_3), encoder(pipeline)
    assert {id(one) for one in swap.holders(pipeline)} == {id(one) for one in [*everywhere, registry]}
    swap.replace(hidden(), new)  # from any of them
    assert all(one.text_encoder_3 is new for one in everywhere)
    assert registry["text_encoder_3"] is new
    assert pipeline.components["text_encoder_3"] is new
    assert alive(old) == 0
    swap.give_tokenizer(hidden(), given := copy.copy(pipeline.tokenizer_3))
    assert all(one.tokenizer_3 is given for one in everywhere)
    assert registry["tokenizer_3"] is given


def test_a_pipeline_of_another_model_or_with_an_encoder_of_its_own_is_left_alone(pipeline):
    import diffusers

    other = diffusers.StableDiffusion3Pipeline.from_pretrained(tiny_sd3.ensure(), torch_dtype=torch.float32)
    own, without = another(pipeline, text_encoder_3=encoder(pipeline)), another(pipeline, text_encoder_3=None)
    before = [one.text_encoder_3 for one in (other, own, without)]
    swap.replace(pipeline, encoder(pipeline))
    assert [one.text_encoder_3 for one in (other, own, without)] == before


def test_without_t5_those_that_share_the_transformer_belong_together(pipeline):
    import diffusers

    other = diffusers.StableDiffusion3Pipeline.from_pretrained(tiny_sd3.ensure(), torch_dtype=torch.float32, text_encoder_3=None)
    control, new = with_controlnet(pipeline), encoder(pipeline)
    swap.replace(pipeline, None)
    assert control.text_encoder_3 is None
    control.tokenizer_3, given = None, copy.copy(pipeline.tokenizer_3)
    swap.replace(pipeline, new, given)
    assert control.text_encoder_3 is new
    assert control.tokenizer_3 is pipeline.tokenizer_3 is given
    assert (other.text_encoder_3, other.tokenizer_3 is given) == (None, False)


def test_a_pipeline_that_refuses_stops_nothing_and_is_named(pipeline):
    class Frozen:
        def __init__(self, one):
            self.__dict__["text_encoder_3"] = one

        def __setattr__(self, name, value):
            raise AttributeError(name)

    frozen, new = Frozen(pipeline.text_encoder_3), encoder(pipeline)
    swap.replace(pipeline, new)
    assert pipeline.text_encoder_3 is new
    assert swap.kept_by(frozen.text_encoder_3) == ["Frozen"]


def compiled(module):
    """As the webui compiles a part; nothing is compiled before the first call."""
    return torch.compile(module, backend="eager")


def test_an_encoder_that_was_compiled_is_replaced_and_gone(pipeline):
    before = another(pipeline)  # made from the plain one
    pipeline.text_encoder_3, pipeline.transformer = compiled(pipeline.text_encoder_3), compiled(pipeline.transformer)
    after = with_controlnet(before)
    assert type(pipeline.text_encoder_3).__name__ == "OptimizedModule"
    old, new = gone(pipeline.text_encoder_3), encoder(before)
    swap.replace(pipeline, new)
    assert [one.text_encoder_3 is new for one in (pipeline, before, after)] == [True] * 3
    assert alive(old) == 0


def offloaded(pipeline):
    """accelerate's chain as diffusers' enable_model_cpu_offload makes it, on the CPU, where that one refuses."""
    from accelerate import cpu_offload_with_hook

    pipeline._all_hooks, hook = [], None
    for name in ("text_encoder", "text_encoder_2", "text_encoder_3", "transformer", "vae"):
        _, hook = cpu_offload_with_hook(getattr(pipeline, name), "cpu", prev_module_hook=hook)
        pipeline._all_hooks.append(hook)


def test_the_chain_of_model_offload_holds_on_to_none_and_is_not_broken(pipeline):
    control = with_controlnet(pipeline)
    offloaded(pipeline)
    offloaded(control)
    old, new = gone(pipeline.text_encoder_3), encoder(pipeline)
    swap.replace(control, new)
    assert alive(old) == 0
    for one in (pipeline, control):
        chain = [(hook.model, getattr(hook.hook.prev_module_hook, "model", None)) for hook in one._all_hooks]
        expected = [one.text_encoder, one.text_encoder_2, one.transformer, one.vae]
        assert chain == list(zip(expected, [None, *expected], strict=False))
        one._all_hooks[2].hook.pre_forward(one.transformer)  # asks the part before it to leave


def test_sequential_offload_holds_on_to_none(pipeline):
    from accelerate import cpu_offload

    cpu_offload(pipeline.text_encoder_3, "cpu", offload_buffers=True)
    old, new = gone(pipeline.text_encoder_3), encoder(pipeline)
    swap.replace(pipeline, new)
    assert alive(old) == 0
