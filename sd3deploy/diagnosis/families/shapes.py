"""Weights and tensors whose shapes do not fit: which part it is, by its key, and which models the numbers belong to."""

from __future__ import annotations

import re

from sd3deploy.diagnosis.failure import Failure
from sd3deploy.diagnosis.rule import Advice, Kind, Seen, Verdict, kinds
from sd3deploy.lazy import lazy

__all__ = ["KINDS", "judge"]

_MEDIUM = "https://huggingface.co/stabilityai/stable-diffusion-3.5-medium/blob/main/transformer/config.json"
KINDS = kinds(
    Kind("model-newer", "version-too-old", "none", "https://github.com/Acly/krita-ai-diffusion/issues/1348"),
    Kind("model-mixed", "unknown", "none", "https://github.com/Stability-AI/sd3.5/issues/22"),
    Kind("encoder-other", "missing-text-encoder", "none", "https://github.com/hayd-zju/ICEdit-ComfyUI-official/issues/12"),
    Kind("weights-packed", "platform-unsupported", "none", "https://github.com/comfyanonymous/ComfyUI_bitsandbytes_NF4/issues/51"),
    Kind("encoder-width", "missing-text-encoder", "none", "https://huggingface.co/stabilityai/stable-diffusion-3-medium-diffusers/tree/main"),
    Kind("vae-channels", "host-bug", "setting", "https://github.com/vladmandic/sdnext/issues/3260"),
    Kind("weights-mismatch", "version-too-old", "none", "https://github.com/huggingface/diffusers/issues/8493", "diffusers"),
    Kind("weights-other", "unknown", "none", "https://pytorch.org/docs/stable/generated/torch.nn.Module.html#torch.nn.Module.load_state_dict"),
)

# Widths and sizes of vocabularies, each from the config.json of the model.
_OF = {
    320: "Stable Diffusion 1.5 or SDXL", 640: "Stable Diffusion 1.5 or SDXL", 768: "CLIP-L (Stable Diffusion 1.5)", 1280: "CLIP-G",
    1024: "OpenCLIP-H (Stable Diffusion 2)", 1536: "Stable Diffusion 3 or 3.5 medium", 2048: "CLIP-L and CLIP-G together (SDXL)",
    2432: "Stable Diffusion 3.5 large", 3072: "Flux", 4096: "T5-XXL", 5120: "Wan", 32128: "T5", 49408: "CLIP", 256384: "UMT5",
}  # fmt: skip
_INSIDE = (1536, 2432)  # of the transformers of Stable Diffusion 3
_CHANNELS = {3: "a picture", 4: "latents of Stable Diffusion 1.5 and SDXL", 9: "an inpainting model", 16: "latents of Stable Diffusion 3"}
# Per block of the transformer: 6 vectors of 1536 for the modulation, 9 in those of 3.5 medium that have a second attention; and the square
# of pos_embed_max_size, 192 and 384. See _MEDIUM.
_NEWER = ({13824, 9216}, {147456, 36864})
_SIZES = lazy(r"(?:torch\.Size\(\[|tensor\(\.\.\., (?:[^)]*?)size=\(|shape \(?\[?|\()(\d+(?:, ?\d+)*),?[\])]")
_MISMATCH = lazy(
    r"size mismatch for (\S+?):|shape mismatch for key (\S+?),|because (\S+) expected shape|(?:key|tensor) ['\"]?(\S+?)['\"]? (?:has"
    r"|expected)"
)
_PACKED = lazy(r"shape torch\.Size\(\[(\d{5,}), 1\]\) from checkpoint")  # bitsandbytes in 4 bit: two weights a byte, in one column
_LOADING = lazy(
    r"Error\(s\) in loading state_dict for (\w+)|Cannot load .{0,300}?because \S+ expected shape|shape mismatch for key|(?:Missing"
    r"|Unexpected) key\(s\) in state_dict"
)
_MULTIPLIED = lazy(r"shapes? cannot be multiplied \((\d+)x(\d+) and (\d+)x(\d+)\)")
_TENSORS = lazy(
    r"size of tensor a \((\d+)\) must match the size of tensor b \((\d+)\)|shapes? \[[^\]]*?(\d+)\] (?:and|vs) \[[^\]]*?(\d+)\]"
)
_CONVOLUTION = lazy(r"expected input\[[\d, ]*\] to have (?P<wanted>\d+) channels, but got (?P<given>\d+)")
_SD3 = lazy(r"SD3|MMDiT|MMDIT|joint_blocks|context_embedder|time_text_embed|transformer_blocks|pos_embed")


def judge(failure: Failure, seen: Seen) -> Verdict | None:
    """By the numbers where they are those of known models; which part does not fit, where not."""
    if not failure.failed:
        return None
    said = failure.said
    if loading := _LOADING.search(said):
        return _state_dict(failure, loading[1] or "")
    if channels := _CONVOLUTION.search(said):
        wanted, given = int(channels["wanted"]), int(channels["given"])
        if {wanted, given} == {4, 16}:
            return Verdict(KINDS["vae-channels"], {"wanted": wanted, "given": given})
        return _mixed(failure, given, wanted, _CHANNELS)
    if product := _MULTIPLIED.search(said):
        tokens, given, wanted, inside = map(int, product.groups())
        if wanted == 1 and inside > 100_000:
            return Verdict(KINDS["weights-packed"], {"key": f"{wanted}x{inside}"})
        if wanted in (4096, 2048) and inside in _INSIDE:
            return Verdict(KINDS["encoder-width"], {"given": f"{tokens}x{given}", "wanted": f"{wanted}x{inside}"})
        return _mixed(failure, given, wanted)
    if tensors := _TENSORS.search(said):
        one, other = (int(side) for side in tensors.groups() if side)
        return _mixed(failure, one, other)
    return None


def _state_dict(failure: Failure, model: str) -> Verdict:
    """Of the first keys that are named: their numbers, and the part that they belong to."""
    said = failure.said
    numbers = {int(number) for sizes in _SIZES.findall(said) for number in re.findall(r"\d+", sizes)}
    named = _MISMATCH.search(said)
    key = next(filter(None, named.groups()), "") if named else ""
    words = {"model": model or key, "key": key or "state_dict"}
    if _PACKED.search(said):
        return Verdict(KINDS["weights-packed"], words)
    if any(pair <= numbers for pair in _NEWER) or ("Unexpected" in said and re.search(r"x_block\.attn2|\battn2\.(?:add|norm)", said)):
        diffusers = "low_cpu_mem_usage" in said or "diffusers" in failure.tops
        return Verdict(KINDS["model-newer"], words, Advice("diffusers" if diffusers else ""))
    vocabulary = numbers & {256384, 32128, 49408}
    if len(vocabulary) == 2:
        one, other = sorted(vocabulary)
        return Verdict(KINDS["encoder-other"], {**words, "one": _OF[one], "other": _OF[other]})
    if numbers >= set(_INSIDE):
        return _mixed(failure, _INSIDE[0], _INSIDE[1]) or Verdict(KINDS["weights-other"], words)
    if re.match(r"(?:T5|UMT5|CLIP)", model) and not re.search(r"\bSD3|stable-diffusion-3|\b4096\b", said):
        return Verdict(KINDS["encoder-other"], {**words, "one": model, "other": key})
    ours = re.match(r"SD3Transformer2DModel|T5EncoderModel|CLIPTextModelWithProjection|MMDiT", model) or (not model and _SD3.search(key))
    return Verdict(KINDS["weights-mismatch" if ours else "weights-other"], words)


def _mixed(failure: Failure, one: int, other: int, of: dict[int, str] = _OF) -> Verdict | None:
    """Two parts of two models, where both numbers tell which."""
    if one == other or one not in of or other not in of or of[one] == of[other]:
        return None
    words = {"one": one, "of_one": of[one], "other": other, "of_other": of[other]}
    control = re.search(r"control", failure.text, re.IGNORECASE)
    return Verdict(KINDS["model-mixed"], words, Advice(sentence="rule.model-mixed.control" if control else ""))
