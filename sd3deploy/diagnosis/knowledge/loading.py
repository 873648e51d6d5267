"""Rules about loading and running the model: processors, text encoders, formats, types, devices."""

from __future__ import annotations

import re
from collections.abc import Mapping

from sd3deploy.diagnosis.rule import Advice, Rule, Seen

__all__ = ["RULES"]

# What only the joint attention of Stable Diffusion 3 has in its traceback, or among the arguments of the call: prompt embeds of 77 CLIP
# tokens and 77, 256 or 512 of T5 (diffusers/models/attention.py, models/transformers/transformer_sd3.py).
_JOINT = r"context_attn_output|transformer_sd3|JointTransformerBlock|SD3Transformer2DModel|\b(?:154|333|589), \d+\]"
_JOINT_TOKENS = frozenset({"154", "333", "589"})
_UNET = r"\bunet|UNet2D|openaimodel|transformer_flux"


def _joint_sizes(values: Mapping[str, str], seen: Seen) -> Advice | None:
    """Two lengths that do not fit: the joint attention's, by their numbers or by where it happened; anything else is another failure."""
    image = int(values["image"])
    telltale = values["tokens"] in _JOINT_TOKENS and image >= 256
    return Advice() if telltale or re.search(_JOINT, seen.text) else None


RULES: tuple[Rule, ...] = (
    Rule(
        id="joint-attention",
        cause="attention-processor",
        match=r"(?:too many|not enough) values to unpack \(expected 2\b",
        also=(_JOINT,),
        unless=_UNET,
        action="setting",
        source="https://github.com/huggingface/diffusers/issues/8539",
    ),
    Rule(
        id="joint-attention-sizes",
        cause="attention-processor",
        match=r"The size of tensor a \((?P<tokens>\d+)\) must match the size of tensor b \((?P<image>\d+)\) at non-singleton dimension 1\b",
        unless=_UNET,
        action="setting",
        source="https://github.com/huggingface/diffusers/issues/8610",
        advise=_joint_sizes,
    ),
    Rule(
        id="xformers-operator",
        cause="attention-processor",
        match=r"No operator found for .memory_efficient_attention_forward|No such operator xformers"
        r"|xFormers wasn't build with CUDA support",
        action="setting",
        source="https://github.com/AUTOMATIC1111/stable-diffusion-webui/issues/7973",
    ),
    Rule(
        id="attention-kernel",
        cause="attention-processor",
        match=r"No available kernel\. ?\s*Aborting execution|No viable backend for scaled_dot_product_attention",
        action="setting",
        source="https://github.com/facebookresearch/sam2/issues/48",
    ),
    Rule(
        id="host-encoder-name",
        cause="host-bug",
        match=r"type=te file=\"(?P<name>[^\"]+)\" not found|Repo id must .{0,200}: ?['\"](?P<name2>None|T5 \w+)['\"]",
        action="setting",
        source="https://github.com/vladmandic/sdnext/blob/master/pipelines/generic_text_encoder.py",
        advise=lambda values, seen: Advice(values={"name": values["name"] or values["name2"]}),
    ),
    Rule(
        id="host-encoder-cast",
        cause="host-bug",
        match=r"T5: Failed to cast text encoder to (?P<wanted>[\w.]+), set dtype to (?P<dtype>[\w.]+)",
        action="setting",
        source="https://github.com/vladmandic/sdnext/blob/master/modules/model_te.py",
    ),
    Rule(
        id="single-file-parts",
        cause="missing-text-encoder",
        match=r"Failed to load (?P<part>CLIPTextModelWithProjection|T5EncoderModel)\. Weights for this component appear to be missing",
        unless=r"StableDiffusionXL|sd_xl|sdxl",
        action="none",
        source="https://github.com/huggingface/diffusers/issues/8546",
    ),
    Rule(
        id="encoder-not-chosen",
        cause="missing-text-encoder",
        match=r"You do not have (?P<part>CLIP|T5) state dict|clip input is invalid: None|One of Text Encoders might be missing"
        r"|'NoneType' object has no attribute 'tokenize'",
        action="none",
        source="https://github.com/lllyasviel/stable-diffusion-webui-forge/issues/1075",
    ),
    Rule(
        id="pipeline-parts",
        cause="missing-text-encoder",
        match=r"StableDiffusion3\w*'?>? expected .{5,500}?, but only .{2,500}? were passed",
        action="none",
        source="https://github.com/huggingface/diffusers/blob/main/src/diffusers/pipelines/pipeline_utils.py",
    ),
    Rule(
        id="tokenizer-unreadable",
        cause="missing-text-encoder",
        match=r"Can't load tokenizer for '(?P<model>[^']+)'",
        action="none",
        source="https://github.com/bghira/SimpleTuner/issues/447",
    ),
    Rule(
        id="nan-picture",
        cause="float16-overflow",
        # Without more words the VAE is tried once more in float32: nothing is lost yet.
        match=r"NansException: A tensor|A tensor with (?:all )?NaNs was produced in \w+\. (?:This could|Use )"
        r"|image contains invalid NaN values"
        r"|invalid value encountered in cast|Decode: sample=.{0,80}? invalid=[1-9]\d* ",
        action="setting",
        source="https://github.com/huggingface/diffusers/issues/8604",
    ),
    Rule(
        id="quantized-move",
        cause="quantized-move",
        match=r"`?\.to`? is not supported for `?4-bit`? or `?8-bit`?|You cannot cast a bitsandbytes model"
        r"|Calling `cuda\(\)` is not supported for `(?:4|8)-bit`",
        action="setting",
        source="https://github.com/huggingface/transformers/issues/38717",
    ),
    Rule(
        id="offload-move",
        cause="offload-conflict",
        match=r"can't move a model that has some modules offloaded",
        action="setting",
        source="https://github.com/01-ai/Yi/issues/302",
    ),
    Rule(
        id="offload-sequential",
        cause="offload-conflict",
        match=r"activated sequential model offloading",
        action="setting",
        source="https://github.com/huggingface/diffusers/issues/9953",
    ),
    Rule(
        id="offload-group",
        cause="offload-conflict",
        match=r"sequential CPU offloading to a pipeline that contains components with group offloading enabled"
        r"|activated a device mapping strategy on the pipeline",
        action="setting",
        source="https://github.com/huggingface/diffusers/blob/main/src/diffusers/pipelines/pipeline_utils.py",
    ),
    Rule(
        id="prompt-parser-t5",
        cause="prompt-parser",
        match=r"'NoneType' object has no attribute 'device'",
        also=(r"Prompt encode|prompt_parser|xhinker|weighted_text_embeddings",),
        action="setting",
        source="https://github.com/vladmandic/sdnext/blob/master/modules/prompt_parser_diffusers.py",
    ),
    Rule(
        id="sampler-schedule",
        cause="unknown",
        match=r"\b(?P<sampler>\w{1,80}Scheduler)'>'s `set_timesteps` does not support custom (?:sigmas|timestep) schedules",
        action="setting",
        source="https://github.com/vladmandic/sdnext/issues/3129",
    ),
    Rule(
        id="lora-foreign",
        cause="unknown",
        match=r"Target modules .{1,600}? not found in the base model",
        action="none",
        source="https://github.com/nunchux-ai/nunchaku/issues/448",
    ),
    Rule(
        id="sequence-length",
        cause="prompt-parser",
        match=r"`?max_sequence_length`? cannot be greater than (?P<limit>\d+) but is (?P<given>\d+)",
        action="setting",
        source="https://github.com/huggingface/diffusers/blob/main/src/diffusers/pipelines/stable_diffusion_3/pipeline_stable_diffusion_3.py",
    ),
)
