"""Rules about loading and running the model: processors, text encoders, formats, types, devices."""

from __future__ import annotations

import re
from collections.abc import Mapping

from sd3deploy.diagnosis.rule import Advice, Rule, Seen

__all__ = ["RULES"]

_DIFFUSERS = "https://github.com/huggingface/diffusers/"
_FORGE = "https://github.com/lllyasviel/stable-diffusion-webui-forge/issues/"
_SDNEXT = "https://github.com/vladmandic/sdnext/"

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
    Rule("joint-attention", "attention-processor", "setting", f"{_DIFFUSERS}issues/8539",
         match=r"(?:too many|not enough) values to unpack \(expected 2\b", also=(_JOINT,), unless=_UNET),
    Rule("joint-attention-sizes", "attention-processor", "setting", f"{_DIFFUSERS}issues/8610",
         match=r"The size of tensor a \((?P<tokens>\d+)\) must match the size of tensor b \((?P<image>\d+)\)"
         r" at non-singleton dimension 1\b",
         unless=_UNET, advise=_joint_sizes),
    Rule("xformers-operator", "attention-processor", "setting", "https://github.com/AUTOMATIC1111/stable-diffusion-webui/issues/7973",
         match=r"No operator found for .memory_efficient_attention_forward|No such operator xformers"
         r"|xFormers wasn't build with CUDA support"),
    Rule("attention-kernel", "attention-processor", "setting", "https://github.com/facebookresearch/sam2/issues/48",
         match=r"No available kernel\. ?\s*Aborting execution|No viable backend for scaled_dot_product_attention"),
    Rule("host-encoder-name", "host-bug", "setting", f"{_SDNEXT}blob/master/pipelines/generic_text_encoder.py",
         match=r"type=te file=\"(?P<name>[^\"]+)\" not found|Repo id must .{0,200}: ?['\"](?P<name2>None|T5 \w+)['\"]",
         advise=lambda values, seen: Advice(values={"name": values["name"] or values["name2"]})),
    Rule("host-encoder-cast", "host-bug", "setting", f"{_SDNEXT}blob/master/modules/model_te.py",
         match=r"T5: Failed to cast text encoder to (?P<wanted>[\w.]+), set dtype to (?P<dtype>[\w.]+)"),
    Rule("single-file-parts", "missing-text-encoder", "none", f"{_DIFFUSERS}issues/8546",
         match=r"Failed to load (?P<part>CLIPTextModelWithProjection|T5EncoderModel)\. Weights for this component appear to be missing",
         unless=r"StableDiffusionXL|sd_xl|sdxl"),
    Rule("encoder-not-chosen", "missing-text-encoder", "none", f"{_FORGE}1075",
         match=r"You do not have (?P<part>CLIP|T5) state dict|clip input is invalid: None|One of Text Encoders might be missing"
         r"|'NoneType' object has no attribute 'tokenize'"),
    Rule("pipeline-parts", "missing-text-encoder", "none", f"{_DIFFUSERS}blob/main/src/diffusers/pipelines/pipeline_utils.py",
         match=r"StableDiffusion3\w*'?>? expected .{5,500}?, but only .{2,500}? were passed"),
    Rule("tokenizer-unreadable", "missing-text-encoder", "none", "https://github.com/bghira/SimpleTuner/issues/447",
         match=r"Can't load tokenizer for '(?P<model>[^']+)'"),
    Rule("nan-picture", "float16-overflow", "setting", f"{_DIFFUSERS}issues/8604",
         # Without more words the VAE is tried once more in float32: nothing is lost yet.
         match=r"NansException: A tensor|A tensor with (?:all )?NaNs was produced in \w+\. (?:This could|Use )"
         r"|image contains invalid NaN values"
         r"|invalid value encountered in cast|Decode: sample=.{0,80}? invalid=[1-9]\d* "),
    Rule("quantized-move", "quantized-move", "setting", "https://github.com/huggingface/transformers/issues/38717",
         match=r"`?\.to`? is not supported for `?4-bit`? or `?8-bit`?|You cannot cast a bitsandbytes model"
         r"|Calling `cuda\(\)` is not supported for `(?:4|8)-bit`"),
    Rule("offload-move", "offload-conflict", "setting", "https://github.com/01-ai/Yi/issues/302",
         match=r"can't move a model that has some modules offloaded"),
    Rule("offload-sequential", "offload-conflict", "setting", f"{_DIFFUSERS}issues/9953",
         match=r"activated sequential model offloading"),
    Rule("offload-group", "offload-conflict", "setting", f"{_DIFFUSERS}blob/main/src/diffusers/pipelines/pipeline_utils.py",
         match=r"sequential CPU offloading to a pipeline that contains components with group offloading enabled"
         r"|activated a device mapping strategy on the pipeline"),
    Rule("prompt-parser-t5", "prompt-parser", "setting", f"{_SDNEXT}blob/master/modules/prompt_parser_diffusers.py",
         match=r"'NoneType' object has no attribute 'device'", also=(r"Prompt encode|prompt_parser|xhinker|weighted_text_embeddings",)),
    Rule("sampler-schedule", "unknown", "setting", f"{_SDNEXT}issues/3129",
         match=r"\b(?P<sampler>\w{1,80}Scheduler)'>'s `set_timesteps` does not support custom (?:sigmas|timestep) schedules"),
    Rule("lora-foreign", "unknown", "none", "https://github.com/nunchux-ai/nunchaku/issues/448",
         match=r"Target modules .{1,600}? not found in the base model"),
    Rule("sequence-length", "prompt-parser", "setting",
         f"{_DIFFUSERS}blob/main/src/diffusers/pipelines/stable_diffusion_3/pipeline_stable_diffusion_3.py",
         match=r"`?max_sequence_length`? cannot be greater than (?P<limit>\d+) but is (?P<given>\d+)"),
    Rule("memory-spill", "memory-spill", "setting", f"{_FORGE}2464",
         match=r"\[Low GPU VRAM Warning\] If you continue|GPU fallback and test the 10x slower speed"
         r"|safe threshold ; This may cause extreme slow"),
)  # fmt: skip
