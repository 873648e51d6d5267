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


def _driver(values: Mapping[str, str], seen: Seen) -> Advice:
    """11070 is CUDA 11.7."""
    number = int(values["found"] or 0)
    return Advice(values={"cuda": f"{number // 1000}.{number % 1000 // 10}"} if number else {"cuda": "?"})


def _lacking(values: Mapping[str, str], seen: Seen) -> Advice:
    """What transformers calls its weights is that of a text encoder; the transformer and the VAE have diffusion_pytorch_model."""
    file = values["file"] or values["file2"]
    words = {"file": file, "folder": values["folder"] or values["folder2"] or "of the model"}
    if re.match(r"(?:model|pytorch_model)\b", file):
        return Advice(cause="missing-text-encoder", sentence="rule.folder-incomplete.encoder", values=words)
    return Advice(values=words)


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
        id="gated",
        cause="gated-access",
        match=r"(?:Cannot access gated repo|GatedRepoError|trying to access a gated repo)"
        r"(?:.{0,400}?Access to model (?P<model>[\w./-]{1,200}\w))?"
        r"|Access to model (?P<model2>[\w./-]{1,200}\w) is restricted",
        action="setting",
        source="https://github.com/vladmandic/sdnext/issues/3293",
        advise=lambda values, seen: Advice(values={"model": values["model"] or values["model2"] or "the model"}),
    ),
    Rule(
        id="token-invalid",
        cause="gated-access",
        match=r"Invalid token passed|Invalid credentials in Authorization header|Invalid user token"
        r"|Token has been deleted from your machine"
        r"|Token is required, but no token found",
        action="setting",
        source="https://github.com/vladmandic/sdnext/issues/4130",
    ),
    Rule(
        id="repository-missing",
        cause="gated-access",
        match=r"Repository Not Found for url: https?://[^/\s]+/(?:api/models/)?(?P<name>[\w.-]+(?:/[\w.-]*\w)?)"
        r"|(?<![\w./-])(?P<name2>[\w./-]{1,200}) is not a local folder and is not a valid model identifier",
        action="setting",
        source="https://github.com/huggingface/diffusers/issues/8541",
        advise=lambda values, seen: Advice(values={"name": values["name"] or values["name2"]}),
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
        id="encoder-width",
        cause="missing-text-encoder",
        # 4096: width of T5's tokens, 2048: of both pooled CLIP ones; 1536: inside SD3 medium and 3.5 medium, 2432: inside 3.5 large
        # (transformer/config.json)
        match=r"mat1 and mat2 shapes cannot be multiplied \((?P<given>\d+x\d+) and (?P<wanted>(?:4096|2048)x(?:1536|2432))\)",
        unless=r"wanvideo|wan2",
        action="none",
        source="https://github.com/huggingface/diffusers/blob/main/src/diffusers/models/transformers/transformer_sd3.py",
    ),
    Rule(
        id="file-not-weights",
        cause="network",
        match=r"Error while deserializing header: ?(?:HeaderToo(?:Large|Small)|header too (?:large|small)|InvalidHeader\w*|invalid header)"
        r"|invalid load key, '[<v]'|cloned a repository without having git-lfs",
        action="none",
        source="https://github.com/huggingface/diffusers/issues/5520",
    ),
    Rule(
        id="file-truncated",
        cause="network",
        match=r"Error while deserializing header: ?(?:MetadataIncompleteBuffer|incomplete metadata|InvalidOffset|invalid offset)"
        r"|file not fully covered"
        r"|PytorchStreamReader failed (?:reading zip archive|locating file)",
        action="none",
        source="https://github.com/invoke-ai/InvokeAI/issues/7009",
    ),
    Rule(
        id="folder-incomplete",
        cause="network",
        match=r"no file named (?P<file>[\w.-]{1,100})(?:(?:, or |, | or )[\w.-]{1,100}){0,9},? found in directory"
        r"(?: (?P<folder>.{1,300}?)\.?(?=['\")]|\s*$|\. ))?"
        r"|(?<![\w./\\:-])(?P<folder2>[\w./\\:-]{1,300}) does not appear to have a file named (?P<file2>[\w./-]*\w)",
        action="none",
        source="https://github.com/huggingface/diffusers/blob/main/src/diffusers/configuration_utils.py",
        advise=_lacking,
    ),
    Rule(
        id="file-missing",
        cause="network",
        match=r"No such file or directory: ['\"]?(?=[^'\"]{0,300}(?:text_encoder|transformer|tokenizer|\bvae|models--|-\d{5}-of-\d{5}))"
        r"(?P<path>[^'\"]{1,400}?\.(?:safetensors|json|model)\b)",
        action="none",
        source="https://github.com/kijai/ComfyUI-HunyuanVideoWrapper/issues/81",
    ),
    Rule(
        id="weights-mismatch",
        cause="version-too-old",
        match=r"Error\(s\) in loading state_dict for (?P<model>SD3Transformer2DModel|T5EncoderModel|CLIPTextModelWithProjection|MMDiT\w*)"
        r"|Cannot load .{0,300}?because (?P<name>\S*(?:pos_embed|context_embedder|transformer_blocks|time_text_embed|SelfAttention)\S*)"
        r" expected shape",
        package="diffusers",
        action="none",
        source="https://github.com/huggingface/diffusers/issues/8493",
        advise=lambda values, seen: Advice(values={"model": values["model"] or "the model"}),
    ),
    Rule(
        id="vae-channels",
        cause="host-bug",
        # latents: 4 channels in SD 1.5 and SDXL, 16 in SD3 (vae/config.json)
        match=r"expected input\[\d+, (?P<given>4|16), \d+, \d+\] to have (?P<wanted>4|16) channels, but got",
        action="setting",
        source="https://github.com/vladmandic/sdnext/issues/3260",
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
        id="float16-on-cpu",
        cause="platform-unsupported",
        match=r"['\"](?P<op>\w+)['\"] not implemented for 'Half'",
        action="setting",
        source="https://github.com/vladmandic/sdnext/issues/342",
    ),
    Rule(
        id="float8-compute",
        cause="fp8-storage-only",
        match=r"['\"](?P<op>\w+)['\"] not implemented for '(?P<type>Float8_\w+)'|Promotion for Float8 Types is not supported",
        action="setting",
        source="https://github.com/huggingface/transformers/issues/33186",
    ),
    Rule(
        id="float8-on-mac",
        cause="fp8-storage-only",
        match=r"Trying to convert Float8_\w+ to the MPS backend|Float8_\w+ is not supported on MPS",
        action="setting",
        source="https://github.com/pytorch/pytorch/issues/148420",
    ),
    Rule(
        id="float8-old-torch",
        cause="version-too-old",
        match=r"module 'torch' has no attribute '(?P<type>float8_\w+)'",
        package="torch",
        action="setting",
        source="https://github.com/Comfy-Org/ComfyUI/issues/4297",
    ),
    Rule(
        id="bfloat16-on-mac",
        cause="platform-unsupported",
        match=r"BFloat16 is not supported on MPS|Trying to convert BFloat16 to the MPS backend",
        action="setting",
        source="https://github.com/pytorch/pytorch/issues/141864",
    ),
    Rule(
        id="bfloat16-missing",
        cause="platform-unsupported",
        match=r"Current CUDA Device does not support bfloat16|Bfloat16 is only supported on GPUs"
        r"|['\"]\w+['\"] not implemented for 'BFloat16'",
        action="setting",
        source="https://github.com/Nerogar/OneTrainer/issues/186",
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
        id="quantized-accelerate",
        cause="version-too-old",
        match=r"models quantized with `bitsandbytes`\. Your current `accelerate` installation does not support it",
        package="accelerate",
        action="install",
        source="https://github.com/huggingface/diffusers/pull/9840",
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
        id="meta-tensor",
        cause="offload-conflict",
        match=r"Cannot copy out of meta tensor|Tensor on device meta is not on the expected device",
        action="setting",
        source="https://github.com/vladmandic/sdnext/issues/3080",
    ),
    Rule(
        id="two-devices",
        cause="device-mismatch",
        match=r"Expected all tensors to be on the same device(?:, but (?:found at least two devices, |got \w+ is on )(?P<one>\w+(?::\d+)?)"
        r"(?: and |, different from other tensors on )(?P<other>\w+(?::\d+)?))?"
        r"|Input type \(torch\.(?:cuda|xpu|mps)\.\w+\) and (?:bias|weight) type \(torch\.\w+Tensor\)"
        r"|Input type \(torch\.\w+Tensor\) and (?:bias|weight) type \(torch\.(?:cuda|xpu|mps)\.\w+\)",
        action="setting",
        source="https://github.com/vladmandic/sdnext/issues/4209",
        advise=lambda values, seen: Advice(values={"one": values["one"] or "cpu", "other": values["other"] or "the GPU"}),
    ),
    Rule(
        id="two-types",
        cause="device-mismatch",
        match=r"Input type \((?P<one>[\w.: ]+)\) and (?:bias|weight) type \((?P<other>[\w.: ]+)\) should be (?:the )?same"
        r"|expected scalar type (?P<one2>\w+) but found (?P<other2>\w+)"
        r"|(?:expected m1 and m2|expected mat1 and mat2) to have the same dtype, but got: (?P<one3>[\w:. ]+) != (?P<other3>[\w:.]+)"
        r"|(?:mat1|self) and mat2 must have the same dtype, but got (?P<one4>\w+) and (?P<other4>\w+)",
        action="setting",
        source="https://github.com/vladmandic/sdnext/issues/1431",
        advise=lambda values, seen: Advice(
            values={name: next(filter(None, (values[f"{name}{n}"] for n in ("", "2", "3", "4"))), "") for name in ("one", "other")}
        ),
    ),
    Rule(
        id="no-kernel-image",
        cause="platform-unsupported",
        match=r"no kernel image is available for execution on the device"
        r"|with CUDA capability (?P<capability>sm_\d+) is not compatible with the current PyTorch",
        package="torch",
        action="none",
        source="https://github.com/pytorch/pytorch/issues/149845",
    ),
    Rule(
        id="hip-function",
        cause="platform-unsupported",
        match=r"HIP error: invalid device function|hipErrorInvalidDeviceFunction|hipErrorNoBinaryForGpu"
        r"|rocBLAS error: Cannot read .{0,200}TensileLibrary",
        action="restart",
        source="https://github.com/pytorch/pytorch/issues/164346",
    ),
    Rule(
        id="driver-old",
        cause="platform-unsupported",
        match=r"NVIDIA driver on your system is too old(?: \(found version (?P<found>\d+)\))?",
        action="restart",
        source="https://github.com/lllyasviel/stable-diffusion-webui-forge/issues/2053",
        advise=_driver,
    ),
    Rule(
        id="driver-start",
        cause="platform-unsupported",
        match=r"system has unsupported display driver|CUDA unknown error|CUDA driver initialization failed|Driver/library version mismatch",
        action="restart",
        source="https://github.com/easydiffusion/easydiffusion/issues/379",
    ),
    Rule(
        id="driver-missing",
        cause="platform-unsupported",
        match=r"Found no NVIDIA driver on your system|No CUDA GPUs are available|Torch is not able to use GPU",
        action="restart",
        source="https://github.com/AUTOMATIC1111/stable-diffusion-webui/issues/16522",
    ),
    Rule(
        id="torch-without-cuda",
        cause="platform-unsupported",
        match=r"Torch not compiled with CUDA enabled|CPU version installed and (?:CUDA|ROCm) is available",
        unless=r"GPU stats:",  # SD.Next of 2025 asks for them on every machine
        package="torch",
        action="restart",
        source="https://github.com/pytorch/pytorch/blob/main/torch/cuda/__init__.py",
    ),
    Rule(
        id="device-assert",
        cause="device-mismatch",
        match=r"device-side assert triggered|Assertion `?srcIndex < srcSelectDimSize`? failed",
        action="restart",
        source="https://github.com/cocktailpeanut/fluxgym/issues/158",
    ),
    Rule(
        id="illegal-access",
        cause="platform-unsupported",
        match=r"(?:CUDA|HIP) error: (?:an illegal memory access was encountered|unspecified launch failure|misaligned address)",
        action="restart",
        source="https://github.com/pytorch/pytorch/blob/main/c10/cuda/CUDAException.cpp",
    ),
    Rule(
        id="mps-operator",
        cause="platform-unsupported",
        match=r"The operator '(?P<operator>aten::[\w.]+)' is not current(?:ly)? implemented for the MPS device",
        action="restart",
        source="https://github.com/pytorch/pytorch/issues/77764",
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
