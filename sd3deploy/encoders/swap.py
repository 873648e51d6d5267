"""Put a text encoder into every pipeline of an SD3 model, and take the old one out for good."""

from __future__ import annotations

import contextlib
import gc
from typing import Any

__all__ = ["give_tokenizer", "holders", "is_sd3", "kept_by", "plain", "replace"]

A_CALL = "a call"
_PLACE, _TOKENIZER = "text_encoder_3", "tokenizer_3"


def is_sd3(pipeline: object) -> bool:
    """Whether this is a Stable Diffusion 3 pipeline of any task, with a place for T5."""
    return "StableDiffusion3" in type(pipeline).__name__ and hasattr(pipeline, _PLACE)


def plain(part: Any) -> Any:
    """The module inside of one that torch.compile has wrapped; any other part as it is."""
    return getattr(part, "_orig_mod", part)


def holders(pipeline: Any) -> list[Any]:
    """Everything that has to change with the encoder of `pipeline`, which comes first: the objects whose `text_encoder_3` is the same, or
    is None as in the pipeline while they share its transformer, and the dictionaries with the encoder under that name.

    A webui makes pipelines of other tasks from the parts of the first and keeps them wherever it likes. They are not listed but found: the
    garbage collector knows what refers to an object. It is asked twice, 0.05 s each with 500,000 objects, a sixth of one collection.
    """
    encoder, transformer = plain(pipeline.text_encoder_3), plain(getattr(pipeline, "transformer", None))
    parts = {id(part): part for part in (pipeline.text_encoder_3, encoder, getattr(pipeline, "transformer", None), transformer)}
    direct = gc.get_referrers(*(part for part in parts.values() if part is not None))
    dictionaries = [one for one in direct if isinstance(one, dict)]
    found, attributes = {id(pipeline): pipeline}, {id(_attributes(pipeline))}
    for one in (*direct, *gc.get_referrers(*dictionaries)):
        values = _attributes(one)
        if values is None or _PLACE not in values or plain(values[_PLACE]) is not encoder:
            continue
        if encoder is not None or (transformer is not None and plain(values.get("transformer")) is transformer):
            found[id(one)] = one
            attributes.add(id(values))
    if encoder is not None:
        registries = [one for one in dictionaries if id(one) not in attributes and plain(one.get(_PLACE)) is encoder]
        found |= {id(one): one for one in registries}
    return list(found.values())


def replace(pipeline: Any, encoder: Any, t5_tokenizer: Any = None) -> None:
    """Set `text_encoder_3` in the pipeline and in whatever shares its encoder (None: CLIP only), and the tokenizer that goes with it.

    accelerate's hooks on the old encoder are removed first: they hold it, and model offload keeps it in its chain. Raises what setting it
    in the pipeline itself raises.
    """
    old, everywhere = plain(pipeline.text_encoder_3), holders(pipeline)
    if old is not None and hasattr(old, "_hf_hook"):
        from accelerate.hooks import remove_hook_from_module

        remove_hook_from_module(old, recurse=True)
    for one in everywhere:
        with contextlib.nullcontext() if one is pipeline else contextlib.suppress(Exception):  # one that refuses is told by `kept_by`
            if old is not None:
                _unlink(one, old)
            if isinstance(one, dict):
                one[_PLACE] = encoder
            else:
                setattr(one, _PLACE, encoder)
    if encoder is not None and t5_tokenizer is not None:
        _give(everywhere, pipeline, t5_tokenizer)


def give_tokenizer(pipeline: Any, t5_tokenizer: Any) -> None:
    """Set `tokenizer_3` in the pipeline and in whatever shares its encoder. Raises what setting it in the pipeline itself raises."""
    _give(holders(pipeline), pipeline, t5_tokenizer)


def kept_by(module: Any) -> list[str]:
    """The kinds of the objects that have a module as an attribute, each once; else those of the containers that it is in; "a call" where
    there is nothing but a function that is running.
    """
    owners: dict[str, None] = {}
    containers: dict[str, None] = {}
    for one in gc.get_referrers(module):
        if type(one) is not dict:
            (containers if _attributes(one) is None else owners)[type(one).__name__] = None
            continue
        for other in gc.get_referrers(one):
            if _attributes(other) is one:
                owners[type(other).__name__] = None
    containers.pop("cell", None)  # of the functions that transformers puts around its own forward
    return list(owners) or list(containers) or [A_CALL]


def _give(everywhere: list[Any], pipeline: Any, t5_tokenizer: Any) -> None:
    for one in everywhere:
        with contextlib.nullcontext() if one is pipeline else contextlib.suppress(Exception):
            if isinstance(one, dict):
                one[_TOKENIZER] = t5_tokenizer
            elif getattr(one, _TOKENIZER, None) is not t5_tokenizer:
                setattr(one, _TOKENIZER, t5_tokenizer)


def _attributes(one: Any) -> dict[str, Any] | None:
    """The dictionary of an object's attributes; None where it has none, such as of a list or a frame."""
    try:
        found = vars(one)
    except TypeError:
        return None
    return found if type(found) is dict else None


def _unlink(pipeline: Any, old: Any) -> None:
    """Take an encoder out of a pipeline's chain of accelerate's model offload, where each part knows the one before it."""
    hooks = getattr(pipeline, "_all_hooks", None)
    if not hooks:
        return
    for one in hooks:
        before = getattr(one.hook, "prev_module_hook", None)
        if before is not None and plain(before.model) is old:
            one.hook.prev_module_hook = getattr(before.hook, "prev_module_hook", None)
    pipeline._all_hooks = [one for one in hooks if plain(one.model) is not old]
