"""A job of the host, the object that it calls p: `gather` reads it as the guards see it, `apply` writes their changes back into it."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from sd3deploy.encoders.swap import is_sd3
from sd3deploy.errors import SettingError
from sd3deploy.guards import attention, request
from sd3deploy.guards.job import MODELS, Hires, Job, Prompt, describe_model, known
from sd3deploy.guards.number import number
from sd3deploy.guards.prompt import T5_DEFAULT, T5_MOST, read_prompt
from sd3deploy.webui.host.contract import BY_NAME
from sd3deploy.webui.host.reach import optional_field, sdnext, state

__all__ = ["apply", "attention_facts", "floorable", "gather", "largest", "question"]

# Field of a guards' Job → attribute of p. What is more than an attribute is in apply().
_ATTRIBUTES = {
    "width": "width",
    "height": "height",
    "hires_width": "hr_resize_x",
    "hires_height": "hr_resize_y",
    "sampler": "sampler_name",
    "hires_sampler": "hr_sampler_name",
    "steps": "steps",
    "guidance": "cfg_scale",
}


def gather(p: Any, pipeline: Any, name: str, requested: tuple[Any, Any]) -> Job:
    """Read a job as the guards see it. requested: width and height as they were before the host cut them to a multiple of 16."""
    width, height = _size(p, requested)
    parser = optional_field(p, "prompt_attention") or sdnext.shared.opts.prompt_attention
    sampler, hires_sampler = p.sampler_name or "Default", optional_field(p, "hr_sampler_name") or "Default"
    hires, t5, limit = _hires(p), pipeline.text_encoder_3 is not None, _t5_limit(p, parser)
    return Job(
        describe_model(pipeline, name),
        width=width,
        height=height,
        hires=hires,
        sampler=sampler,
        hires_sampler=hires_sampler,
        not_flow=frozenset(one for one in {sampler, hires_sampler} if not _suits(one, pipeline)),
        steps=p.steps,
        guidance=p.cfg_scale,
        t5=t5,
        prompts=(
            *_prompts(p.all_prompts or [p.prompt], False, pipeline, t5, parser, limit),
            *_prompts(p.all_negative_prompts or [p.negative_prompt], True, pipeline, t5, parser, limit),
        ),
        prompt_attention=parser,
        misfits=attention.find_misfits(pipeline),
        attention_setting=_attention_setting(),
    )


def largest(p: Any) -> tuple[int, int]:
    """Return width and height in px of the larger one of the job's two passes, once its size is final."""
    width, height = (int(number(side) or 0) or 1024 for side in _size(p, (p.width, p.height)))
    second = _hires(p)
    return max((width, height), second.size(width, height) if second else (0, 0), key=lambda size: size[0] * size[1])


def attention_facts(pipeline: Any, name: str) -> Job:
    """Return what the attention guard needs, and nothing else."""
    return Job(describe_model(pipeline, name), misfits=attention.find_misfits(pipeline), attention_setting=_attention_setting())


def _attention_setting() -> str:
    return sdnext.shared.opts.cross_attention_optimization


def question(pipeline: Any, name: str, model: str, prompt: str, negative_prompt: str, **words: Any) -> Job:
    """Return a job that somebody asks about, in the words of guards.request: with the loaded pipeline, unless another `model`
    is named. Raises SettingError for a name that means nothing, and when there is neither.
    """
    loaded = is_sd3(pipeline) and model in ("", name)
    if not loaded and not model:
        raise SettingError("setting.no-model", known=", ".join(MODELS))
    if not loaded:
        return request.job(known(model), **words)
    parser = words["prompt_attention"] = words["prompt_attention"] or sdnext.shared.opts.prompt_attention
    asked = request.job(describe_model(pipeline, name), **words)
    t5 = asked.t5 if words["encoder"] else pipeline.text_encoder_3 is not None
    return replace(
        asked,
        t5=t5,
        not_flow=frozenset() if _suits(asked.sampler, pipeline) else frozenset({asked.sampler}),
        prompts=(*_prompts([prompt], False, pipeline, t5, parser), *_prompts([negative_prompt], True, pipeline, t5, parser)),
        misfits=attention.find_misfits(pipeline),
        attention_setting=_attention_setting(),
    )


def apply(p: Any, pipeline: Any, change: Mapping[str, Any], undo: ExitStack | None = None) -> None:
    """Make the changes: the only place that writes into p and into the pipeline. undo: closed when the job ends, it puts back what is no
    part of the job itself.
    """
    for field, value in change.items():
        if field == "processors":
            attention.restore(pipeline, value)
        elif field == "prompt_attention":
            if hasattr(p, "prompt_attention"):
                p.prompt_attention = value
            elif undo is not None:  # hosts before 2026-05 have only the setting
                undo.callback(setattr, sdnext.shared.opts, "prompt_attention", sdnext.shared.opts.prompt_attention)
                sdnext.shared.opts.prompt_attention = value
        else:
            setattr(p, _ATTRIBUTES[field], value)
            if field in (optional_field(p, "task_args") or {}):  # Control hands the size on in there, too
                p.task_args[field] = value
    if "width" in change and _keeps_picture(p):
        p.resize_mode = 1  # to the size that is now given, instead of not at all


def floorable(value: Any) -> Any:
    """Return `value`, or 0 where the host's own arithmetic, which comes before any guard, would fail on it."""
    return value if value is None or (number(value) is not None and not isinstance(value, str)) else 0


def _size(p: Any, requested: tuple[Any, Any]) -> tuple[Any, Any]:
    """Return the size that counts: that of the picture where one is given and is not resized, or where no size is given."""
    given = optional_field(p, "init_images")
    first: Any = given[0] if isinstance(given, list) and given else given
    if not hasattr(first, "width"):
        return requested
    scale = 1.0 if _keeps_picture(p) else optional_field(p, "scale_by") or 1.0
    own = int(first.width * scale), int(first.height * scale)
    return own if _keeps_picture(p) else (requested[0] or own[0], requested[1] or own[1])


def _keeps_picture(p: Any) -> bool:
    """Return whether img2img takes its picture as large as it is (the host's init of such a job)."""
    if not optional_field(p, "init_images") or p.resize_mode:
        return False
    return not (optional_field(p, "inpaint_full_res") and optional_field(p, "image_mask") is not None)


def _hires(p: Any) -> Hires | None:
    """Return the second pass where it is one of the model, not of an upscaler alone (the host's process_hires)."""
    upscaler = str(optional_field(p, "hr_upscaler") or "None")
    strength = number(optional_field(p, "hr_denoising_strength")) or number(p.denoising_strength) or 0
    passes = optional_field(p, "enable_hr") and strength > 0 and (upscaler.lower().startswith("latent") or p.hr_force)
    resized = p.hr_resize_mode > 0 and (upscaler != "None" or p.hr_resize_mode == 5)
    if not passes or not resized:
        return None
    sides = int(number(p.hr_resize_x) or 0), int(number(p.hr_resize_y) or 0)
    return Hires(number(p.hr_scale) or 1.0, *sides, latent=upscaler.lower().startswith("latent"))


def _prompts(texts: list[Any], negative: bool, pipeline: Any, t5: bool, parser: str, t5_limit: int = T5_DEFAULT) -> list[Prompt]:
    """Return the prompts as the encoders get them: without networks such as <lora:…> and, unless the parser is “fixed”, weights."""
    different = dict.fromkeys(text for text in texts[:8] if isinstance(text, str))
    return [read_prompt(_plain(text, parser), pipeline, t5, negative=negative, t5_limit=t5_limit) for text in different]


def _plain(text: str, parser: str) -> str:
    if len(text.encode("utf-8", "replace")) > 70:  # shorter ones fit whatever is in them
        text = (sdnext.extra_networks.parse_prompt(text) or (text,))[0]
        if parser != "fixed":
            try:
                parsed = sdnext.prompt_parser.parse_prompt_attention(text) or [(text, 1.0)]
                return " ".join(words for words, weight in parsed if weight != -1)
            except Exception as error:  # the host's parser has its own words for what it can not read; only the count gets less exact
                _try_parser(error)
                return text
    return text


def _try_parser(error: Exception) -> None:
    """Report the host's parser of prompts as changed because of that error, where it fails with plain words too."""
    need = BY_NAME["modules.prompt_parser:parse_prompt_attention"]
    try:
        sdnext.prompt_parser.parse_prompt_attention("a cat")
    except Exception:
        state.report({need: f"raises {type(error).__name__}: {error}"})


def _t5_limit(p: Any, parser: str) -> int:
    """Return how many tokens T5 gets: the pipeline's default, more only where the text goes to the pipeline (the host's sd_hijack_te)."""
    if parser != "fixed":
        return T5_DEFAULT
    given = number((optional_field(p, "task_args") or {}).get("max_sequence_length")) or T5_DEFAULT
    return min(T5_MOST, int(max(given, number(os.environ.get("MAX_SEQUENCE_LENGTH")) or T5_DEFAULT)))


def _suits(name: str, pipeline: Any) -> bool:
    """Return whether a sampler of the host suits a model that predicts flows; True for one that only the host can tell about."""
    opts = sdnext.shared.opts
    redirects = opts.schedulers_fallback and "modules.shared:opts.schedulers_fallback" not in state.absent  # since 2026-06
    return _flows(name, opts.schedulers_prediction_type, redirects, type(pipeline))


@functools.lru_cache(maxsize=256)
def _flows(name: str, prediction_type: str, redirects: bool, kind: type) -> bool:
    """Let the host make the sampler, as it decides it itself; the cache has everything that the answer depends on in its key."""
    if name in ("Default", "None", "Same as primary"):
        return True
    find = sdnext.sd_samplers.find_sampler_config
    redirected = find(f"{name} FlowMatch") if redirects and "Flow" not in name else None
    config = redirected or find(name)
    if "modules.sd_samplers:find_sampler_config" in state.unmet:
        return True  # only the host could tell
    if config is None or config.constructor is None:
        return False
    try:
        sampler = config.constructor(sdnext.modeldata.model_data.sd_model).sampler
    except Exception:  # the host would fail too, and has its own words for that
        return True
    if sampler is None:
        return False
    return "FlowMatch" in type(sampler).__name__ or sampler.config.get("prediction_type") == "flow_prediction"
