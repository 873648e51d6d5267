"""Prompts that are longer than the text encoders read, and a parser that can not do without T5."""

from __future__ import annotations

from typing import Any

from sd3deploy import messages
from sd3deploy.guards.finding import Finding, finding
from sd3deploy.guards.job import Job, Prompt

__all__ = ["T5_DEFAULT", "T5_MOST", "check", "read_prompt"]

# max_sequence_length of diffusers' SD3 pipelines: its default, and the most that they take.
T5_DEFAULT, T5_MOST = 256, 512
_SHOWN = 120  # characters of what is cut


def read_prompt(text: str, pipeline: Any, t5: bool, *, negative: bool = False, t5_limit: int = T5_DEFAULT) -> Prompt:
    """Count the tokens of a prompt with the tokenizers of the pipeline, those of T5 where it takes part; a text that is short in
    any language is not looked at.
    """
    clip, t5_tokenizer = getattr(pipeline, "tokenizer", None), getattr(pipeline, "tokenizer_3", None) if t5 else None
    clip_limit = getattr(clip, "model_max_length", 77)
    most = len(text.encode("utf-8", "replace")) + 2  # no token is shorter than a byte; two marks
    if most <= min(clip_limit, t5_limit):
        return Prompt(negative, most, clip_limit, t5=most if t5_tokenizer else None, t5_limit=t5_limit)
    clip_count, clip_rest = _count(clip, text, clip_limit)
    t5_count, t5_rest = _count(t5_tokenizer, text, t5_limit)
    return Prompt(negative, clip_count, clip_limit, clip_rest, t5_count if t5_tokenizer else None, t5_limit, t5_rest)


def check(job: Job) -> tuple[Finding, ...]:
    """Findings about the prompts of the job."""
    found = []
    if job.prompt_attention == "xhinker" and not job.t5:
        found.append(finding("warning", "prompt.xhinker", {"prompt_attention": "native"}))
    for prompt in job.prompts:
        values = {"which": messages.text("prompt.negative" if prompt.negative else "prompt.positive"), "most": T5_MOST}
        if prompt.t5 is None and prompt.clip > prompt.clip_limit:
            values |= {"tokens": prompt.clip, "limit": prompt.clip_limit, "rest": _shown(prompt.clip_rest)}
            if job.prompt_attention == "fixed":  # hands the text to the pipeline, which cuts it; SD.Next's other parsers do it in pieces
                found.append(finding("warning", "prompt.clip-cut", **values))
            else:
                found.append(finding("advice", "prompt.clip-pieces", **values))
        elif prompt.t5 is not None and prompt.t5 > prompt.t5_limit and job.prompt_attention != "xhinker":
            values |= {"tokens": prompt.t5, "limit": prompt.t5_limit, "rest": _shown(prompt.t5_rest)}
            found.append(finding("warning", "prompt.t5-cut" if prompt.t5_limit < T5_MOST else "prompt.t5-most", **values))
    return tuple(found)


def _count(tokenizer: Any, text: str, limit: int) -> tuple[int, str]:
    """How many tokens the text has, and the text of those beyond `limit`, of which the last is the mark of the end."""
    if tokenizer is None:
        return 0, ""
    tokens = tokenizer(text, truncation=False, verbose=False).input_ids
    rest = tokens[limit - 1 : -1] if len(tokens) > limit else []
    return len(tokens), tokenizer.decode(rest, skip_special_tokens=True).strip() if rest else ""


def _shown(text: str) -> str:
    return text if len(text) <= _SHOWN else text[:_SHOWN].rstrip() + "…"
