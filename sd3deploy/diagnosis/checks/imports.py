"""Whether the libraries really load, in a fresh process of the same Python: what this process has loaded proves nothing about the disk."""

from __future__ import annotations

import time
from collections.abc import Mapping

from sd3deploy import messages
from sd3deploy.child import Child
from sd3deploy.diagnosis.checks.context import Context
from sd3deploy.diagnosis.checks.result import Outcome, Say, conclude
from sd3deploy.diagnosis.checks.runner import crashed, explain, known
from sd3deploy.diagnosis.finding import Finding
from sd3deploy.vendored import canonicalize_name

__all__ = ["IMPORTS", "check"]

# Name of the distribution → what Stable Diffusion 3 takes from it. Foundations first: what fails on them fails after them too.
IMPORTS: Mapping[str, str] = {
    "numpy": "import numpy.fft, numpy.linalg, numpy.random; from numpy.lib.stride_tricks import as_strided",
    "torch": "import torch; torch.zeros(2).numpy()",
    "safetensors": "import safetensors.torch",
    "tokenizers": "import tokenizers",
    "sentencepiece": "import sentencepiece",
    "protobuf": "from google.protobuf import descriptor_pb2; from sentencepiece import sentencepiece_model_pb2",
    "huggingface_hub": "from huggingface_hub import hf_hub_download, snapshot_download",
    "accelerate": "import accelerate; from accelerate.hooks import remove_hook_from_module",
    "bitsandbytes": "import bitsandbytes",
    "peft": "import peft",
    "transformers": "from transformers import BitsAndBytesConfig, CLIPTextModelWithProjection, T5EncoderModel, T5TokenizerFast",
    "diffusers": "from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline",
}
OPTIONAL = ("bitsandbytes", "peft")  # tried where they are installed
_LIMIT = 600  # s: the first import after an update compiles everything, from a slow disk


def check(context: Context, say: Say) -> Outcome:
    """The step: 5 to 20 s."""
    names = [name for name in IMPORTS if name not in OPTIONAL or context.installed.version(name)]
    errors, seconds, at = {}, {}, names[0]
    deadline = time.monotonic() + _LIMIT

    def tick() -> None:
        say(len(seconds) / len(names), at)
        if time.monotonic() > deadline:
            raise TimeoutError(messages.text("checks.imports.slow", package=at, limit=_LIMIT))

    with Child(["-m", "sd3deploy.diagnosis.checks.probe", "imports", *names], {"HF_HUB_OFFLINE": "1"}) as child:
        for value in child.values(tick):
            at = value["name"]
            if "seconds" in value:
                seconds[at] = value["seconds"]
                if value["error"]:
                    errors[at] = value["error"]
        code, said = child.code, child.said
    wrong = context.held.get("wrong", ())
    findings = [one for one in _read(errors, context) if canonicalize_name(one.package) not in wrong]
    died = len(seconds) < len(names)
    if died and canonicalize_name(at) not in wrong:
        findings.append(crashed(at, code, said, context))
    if not findings and (errors or died):
        names = ", ".join([*sorted(errors), *([at] if died else [])])
        return Outcome("failed", messages.text("checks.imports.follows", names=names), messages.text("checks.imports.follows.remedy"))
    facts = {"seconds": seconds, "errors": {name: text.strip().splitlines()[-1] for name, text in errors.items()}}
    return conclude(messages.text("checks.imports.ok", count=len(names)), findings, facts=facts)


def _read(errors: Mapping[str, str], context: Context) -> list[Finding]:
    """One finding for each cause. What nobody knows counts only where nothing else is known: one broken package makes many errors."""
    found: dict[tuple[str, str], Finding] = {}
    for text in errors.values():
        for one in known(text, context):
            found.setdefault((one.rule, one.package), one)
    if found:
        return list(found.values())
    unknown: dict[str, Finding] = {}
    for text in errors.values():
        for one in explain(text, context):
            unknown.setdefault(one.message, one)
    return list(unknown.values())
