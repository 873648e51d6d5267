"""Which model it is: T5-XXL is taken in every spelling of its names; whatever else is refused as what it is."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sd3deploy import messages
from sd3deploy.encoders import identity, weights
from sd3deploy.errors import EncoderError
from tests import t5xxl

BLOCK_1 = identity.BIAS.replace("block.0", "block.1")


def opened(shapes, config=None, quantization=None, name="t5.safetensors", **values):
    return weights._weights(name, [t5xxl.content(shapes, name=name, **values)], config, quantization)


def refusal(shapes, *arguments, **values):
    with pytest.raises(EncoderError) as caught:
        opened(shapes, *arguments, **values)
    assert caught.value.remedy
    return caught.value


def without(shapes, *parts):
    return {name: shape for name, shape in shapes.items() if not any(part in name for part in parts)}


@pytest.mark.parametrize("prefix", identity.PREFIXES)
@pytest.mark.parametrize("copy", [False, True])
def test_t5_xxl_below_each_prefix(prefix, copy):
    shapes = {prefix + name: shape for name, shape in t5xxl.shapes(copy=copy).items()}
    if prefix:
        shapes |= {"model.diffusion_model.x": (3,), "text_encoders.clip_l.logit_scale": ()}
    found = opened(shapes)
    assert len(found.tensors) == 219
    assert (found.config["d_model"], found.config["d_kv"], found.config["d_ff"], found.config["num_layers"]) == (4096, 64, 10240, 24)
    assert found.notes == ()


def test_an_embedding_by_the_name_of_its_copy_alone():
    shapes = t5xxl.shapes(copy=True)
    del shapes["shared.weight"]
    assert len(opened(shapes).tensors) == 219


def test_a_full_t5_is_one():
    more = {"decoder.block.0.layer.0.SelfAttention.q.weight": (4096, 4096), "lm_head.weight": (32128, 4096), "logit_scale": ()}
    assert len(opened(t5xxl.shapes() | more).tensors) == 219


@pytest.mark.parametrize("name", ["flan_t5_xxl_TE-only_FP16.safetensors", "FLAN.safetensors"])
def test_flan_is_taken_with_a_note(name):
    found = opened(t5xxl.shapes(), name=name)
    assert found.notes == ("identity.note.flan",)
    assert "flan" in messages.text(found.notes[0])


def test_flan_by_its_configuration():
    assert opened(t5xxl.shapes(), {"_name_or_path": "google/flan-t5-xxl"}).notes


LOOK_ALIKES = {
    "umt5": (t5xxl.shapes(vocabulary=256384) | {BLOCK_1: (32, 64)}, "identity.umt5", "256384"),
    "pile-t5": (t5xxl.shapes(width=2048, wide=5120, inner=2048, heads=32) | {BLOCK_1: (32, 32)}, "identity.pile", "AuraFlow"),
    "v1.0": (t5xxl.shapes(width=1024, wide=65536, heads=128, inner=16384, gated=False), "identity.t5-v1", "d_model 1024"),
    "unchained": (t5xxl.shapes(vocabulary=69328, copy=True), "identity.unchained", "69328.*32128"),
    "mt5": (t5xxl.shapes(vocabulary=250112, width=2048, wide=5120, inner=2048, heads=32), "identity.mt5", "250112"),
    "byt5": (t5xxl.shapes(vocabulary=1510, width=1472, wide=3584, inner=384, heads=6, blocks=12), "identity.byt5", "1510"),
    "base": (t5xxl.shapes(width=768, wide=2048, inner=768, heads=12, blocks=12), "identity.smaller", r"T5 v1\.1 base.*d_model 768.*4096"),
    "large": (t5xxl.shapes(width=1024, wide=2816, inner=1024, heads=16), "identity.smaller", "large"),
    "xl": (t5xxl.shapes(width=2048, wide=5120, inner=2048, heads=32), "identity.smaller", "XL"),
    "another width": (t5xxl.shapes(width=4000), "identity.numbers", "d_model 4000; needed is d_model 4096"),
    "another feed-forward": (t5xxl.shapes(wide=5120), "identity.numbers", "d_ff 5120.*10240"),
    "fewer blocks": (t5xxl.shapes(blocks=23), "identity.numbers", "blocks 23.*24"),
    "other heads": (t5xxl.shapes(heads=32), "identity.numbers", "heads 32.*64"),
    "another attention": (t5xxl.shapes(inner=8192), "identity.numbers", "d_kv 128.*64"),
    "other buckets": (t5xxl.shapes(buckets=64), "identity.numbers", "buckets 64.*32"),
    "another vocabulary": (t5xxl.shapes(vocabulary=32100), "identity.numbers", "vocabulary 32100.*32128"),
    "distill": ({f"encoder.{name}": (8, 8) for name in t5xxl.shapes()}, "identity.distill", "DistillT5"),
    "distill's end": ({"final_projection.0.weight": (8, 8)}, "identity.distill", "DistillT5"),
    "t5gemma": ({"model.encoder.layers.0.pre_self_attn_layernorm.weight": (8,)}, "identity.t5gemma", "T5Gemma"),
    "mflux": ({"t5_blocks.0.attention.SelfAttention.q.weight": (8, 8)}, "identity.mlx", "MLX"),
    "lora": ({"lora_te3_encoder_block_0_layer_0_SelfAttention_q.lora_up.weight": (8, 8)}, "identity.lora", "LoRA"),
    "peft": ({"text_encoder_3.encoder.block.0.layer.0.SelfAttention.q.lora_A.weight": (8, 8)}, "identity.lora", "LoRA"),
    "llm": ({"model.layers.0.self_attn.q_proj.weight": (8, 8)}, "identity.llm", "language model"),
    "llm in gguf": ({"blk.0.attn_q.weight": (8, 8), "token_embd.weight": (8, 8)}, "identity.llm", "language model"),
    "clip": ({"text_model.encoder.layers.0.self_attn.q_proj.weight": (8, 8)}, "identity.clip", "CLIP"),
    "whole": ({"model.diffusion_model.joint_blocks.0.x": (8,), "text_encoders.clip_l.x": ()}, "identity.whole-without", "without T5"),
    "flux": ({"double_blocks.0.img_attn.qkv.weight": (8, 8)}, "identity.whole-without", "without T5"),
    "vae": ({"decoder.conv_in.weight": (8, 8)}, "source.file-no-t5", "no T5"),
    "unknown prefix": ({f"cond.{name}": shape for name, shape in t5xxl.shapes().items()}, "identity.prefix", "“cond.”"),
    "umt5 in a model": (
        {f"text_encoders.umt5xxl.transformer.{name}": shape for name, shape in (t5xxl.shapes() | {BLOCK_1: (32, 64)}).items()},
        "identity.umt5",
        "UMT5",
    ),
    "two": (
        {prefix + name: shape for prefix in ("te3.", "transformer.") for name, shape in t5xxl.shapes().items()},
        "identity.several",
        "te3",
    ),
    "first shard": (without(t5xxl.shapes(), "final_layer_norm", "block.23."), "identity.part", "one part"),
    "second shard": (without(t5xxl.shapes(), "block.0.", "shared"), "identity.part", "one part"),
}


@pytest.mark.parametrize("case", LOOK_ALIKES)
def test_what_looks_like_it_is_named(case):
    shapes, id, says = LOOK_ALIKES[case]
    error = refusal(shapes)
    assert error.id == id
    assert re.search(says, error.message)
    assert messages.text(id, **error.values) == error.message
    assert "{" not in error.message + error.remedy


def test_every_row_of_the_table_has_a_case():
    assert {row.id for row in identity.LOOK_ALIKES} <= {id for _, id, _ in LOOK_ALIKES.values()}


@pytest.mark.parametrize("case", ["umt5", "unchained", "v1.0", "base"])
def test_they_are_named_whatever_their_form(case):
    """Before anything is asked about the form: of a form that nobody reads too."""
    shapes, id, _ = LOOK_ALIKES[case]
    contents = t5xxl.content(shapes)
    odd = t5xxl.content({name: shape for name, shape in shapes.items() if name.endswith(("q.weight", "wo.weight"))}, "U32").tensors
    with pytest.raises(EncoderError) as caught:
        weights._weights("x", [type(contents)(contents.file, {**contents.tensors, **odd}, {}, "")])
    assert caught.value.id == id


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_one_that_is_missing_is_named(data):
    shapes = t5xxl.shapes()
    gone = data.draw(st.sampled_from(sorted(shapes)))
    del shapes[gone]
    error = refusal(shapes)
    if gone not in ("shared.weight", "encoder.final_layer_norm.weight", identity.BIAS) and not gone.endswith(
        ("block.0.layer.0.SelfAttention.q.weight", "block.0.layer.1.DenseReluDense.wo.weight")
    ):
        assert error.id == "source.incomplete"
        assert gone in error.message


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_one_of_another_shape_is_never_taken(data):
    shapes = t5xxl.shapes()
    name = data.draw(st.sampled_from(sorted(shapes)))
    sides = list(shapes[name])
    at = data.draw(st.integers(0, len(sides) - 1))
    sides[at] = data.draw(st.integers(0, 20000).filter(lambda side: side != sides[at]))
    refusal(shapes | {name: tuple(sides)})


def test_many_that_are_missing_are_named_in_short():
    message = refusal(without(t5xxl.shapes(), "block.7.layer.1", "block.9.layer.0")).message
    assert message.count("encoder.block") == 3
    assert "…" in message


def test_a_block_with_an_absurd_number():
    name = "encoder.block.0.layer.0.layer_norm.weight"
    shapes = t5xxl.shapes(blocks=23) | {name.replace("block.0", f"block.{10**15}"): (4096,)}
    assert refusal(shapes).id == "source.incomplete"


@pytest.mark.parametrize(
    ("name", "value"),
    [("layer_norm_epsilon", 1e-5), ("relative_attention_max_distance", 64), ("dense_act_fn", "relu"), ("is_gated_act", False)],
)
def test_a_configuration_that_is_not_its_own(name, value):
    """Shapes do not show it; the numbers would be others."""
    error = refusal(t5xxl.shapes(), {name: value})
    assert (error.id, error.values["name"]) == ("identity.config", name)


SMALL = t5xxl.shapes(width=64, wide=96, inner=32, heads=4, blocks=2, vocabulary=100)


def test_a_small_one_needs_the_mark():
    assert refusal(SMALL).id == "identity.numbers"
    assert len(opened(SMALL, metadata={identity.MARK: "true"}).tensors) == 21
    assert len(opened(SMALL, {identity.MARK: True, "d_model": 64}).tensors) == 21
    assert refusal(SMALL, {identity.MARK: False}).id == "identity.numbers"


def test_the_mark_loosens_nothing_else():
    for shapes in (SMALL | {BLOCK_1: (32, 4)}, without(SMALL, "block.1.layer.0.SelfAttention.k"), without(SMALL, "final_layer_norm")):
        refusal(shapes, metadata={identity.MARK: "true"})


@pytest.mark.parametrize(
    ("quantization", "id"),
    [({"quant_method": "compressed-tensors"}, "source.quant-method"), ({"quant_method": "something new"}, "source.quant-method")],
)
def test_a_folder_that_was_quantized_by_others(quantization, id):
    error = refusal(t5xxl.shapes(), {"d_model": 4096}, quantization)
    assert error.id == id
    assert quantization["quant_method"] in error.message
