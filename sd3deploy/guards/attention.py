"""Attention processors that do not fit. SD3's transformer attends to picture and prompt in one go: its blocks expect a pair from the
processor. One that was written for a UNet returns a single tensor, and the block fails (huggingface/diffusers#8539, #8610, #10066):
with batch size 1 “not enough values to unpack”, with 2 the tensor is split in silence and the next addition does not fit, with
more “too many values to unpack”. Where a layer attends to the picture alone, a processor that leaves out the normalization of
queries and keys is wrong without any error.
"""

from __future__ import annotations

import functools
import types
import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from sd3deploy.guards.finding import Finding, finding
from sd3deploy.guards.job import Job, Misfit

if TYPE_CHECKING:
    import torch

__all__ = ["check", "find_misfits", "fits", "layers", "restore"]

_PARTS = ("transformer", "controlnet")
# Whoever attends jointly has to project the prompt's queries, by one of these layers of diffusers' Attention; PAG, IP-Adapter, RAS,
# fused and xFormers' joint processors all do, no UNet processor does.
_JOINT = frozenset({"add_q_proj", "to_added_qkv"})
_NORMALIZED = frozenset({"norm_q"})
# The processor that each setting of the host (Settings → Attention method) is known to put in place.
_SETTINGS = {
    "AttnProcessor": "Batch matrix-matrix",
    "XFormersAttnProcessor": "xFormers",
    "XFormersAttnAddedKVProcessor": "xFormers",
    "DynamicAttnProcessorBMM": "Dynamic Attention BMM",
}
_read: weakref.WeakKeyDictionary[Any, frozenset[str]] = weakref.WeakKeyDictionary()


def find_misfits(pipeline: Any) -> tuple[Misfit, ...]:
    """Every attention layer of the transformer and the controlnets whose processor does not fit it."""
    return tuple(
        Misfit(path, type(layer.processor).__name__, type(layer.processor).__module__)
        for path, layer in layers(pipeline)
        if not fits(layer.processor, layer)
    )


def fits(processor: Any, layer: Any) -> bool:
    """Whether the processor can serve the attention layer, by the names in its code. One whose code can not be read is left alone."""
    alone = layer.added_kv_proj_dim is None
    if type(processor) is type(_default()) or (alone and layer.norm_q is None):
        return True
    needed = _JOINT | _NORMALIZED if alone else _JOINT
    own = getattr(processor, "__dict__", {})
    held = [*own.values(), *own.get("_modules", {}).values()]  # a processor around another one
    names = _names(_kind(processor)).union(*(_names(_kind(one)) for one in held if callable(one)))
    return not names or not needed.isdisjoint(names)


def check(job: Job) -> tuple[Finding, ...]:
    """One finding for all the layers: whoever set one processor has set them all."""
    if not job.misfits:
        return ()
    first = job.misfits[0]
    values = {"processor": first.processor, "count": len(job.misfits), "module": first.module}
    change = {"processors": tuple(misfit.path for misfit in job.misfits)}
    setting = _SETTINGS.get(first.processor)
    if setting and setting == job.attention_setting:
        return (finding("error", "attention.setting", change, setting=setting, **values),)
    return (finding("error", "attention.other", change, **values),)


def restore(pipeline: Any, paths: tuple[str, ...]) -> None:
    """Give the layers at `paths` the processor that this version of diffusers makes an SD3 block with."""
    found = dict(layers(pipeline))
    for path in paths:
        if path in found:
            found[path].set_processor(_default())


def layers(pipeline: Any) -> Iterator[tuple[str, Any]]:
    """Path in the pipeline → attention layer, of the transformer and of the controlnets."""
    for part in _PARTS:
        found = getattr(pipeline, part, None)
        models = found if isinstance(found, (list, tuple)) else [found]
        for number, model in enumerate(models):
            name = part if len(models) == 1 else f"{part}.{number}"
            if model is not None:
                yield from _attention(model, name)


def _attention(model: torch.nn.Module, path: str) -> Iterator[tuple[str, Any]]:
    """Attention layers below a module; it does not look into them, because this runs before each image."""
    for name, child in model._modules.items():
        if _attends(type(child)):
            yield f"{path}.{name}", child
        elif child is not None and child._modules:
            yield from _attention(child, f"{path}.{name}")


@functools.cache
def _attends(kind: type) -> bool:
    """Whether modules of that class are attention layers. Kept, because it is asked of five hundred modules, most of which are not."""
    return hasattr(kind, "set_processor")


def _kind(processor: Any) -> Any:
    """What holds the code: a function, or a class."""
    function = getattr(processor, "__func__", processor)
    return function if isinstance(function, (types.FunctionType, type)) else type(processor)


def _names(kind: Any) -> frozenset[str]:
    """Every name in the code of a class or function: of what it inherits, wraps or encloses, and of the helpers in its file."""
    if kind not in _read:
        _read[kind] = _read_names(kind)
    return _read[kind]


def _read_names(kind: Any) -> frozenset[str]:
    if isinstance(kind, types.FunctionType):
        waiting = [kind]
    else:
        bases = [base for base in kind.__mro__ if base.__module__ not in ("builtins", "torch.nn.modules.module")]
        waiting = [method for base in bases for name, method in vars(base).items() if name != "__init__"]
    names: set[str] = set()
    seen: set[Any] = set()
    while waiting:
        function = waiting.pop()
        if not isinstance(function, types.FunctionType) or function in seen:
            continue
        seen.add(function)
        own = _code_names(function.__code__)
        names |= own
        helpers = (function.__globals__.get(name) for name in own)
        waiting += [helper for helper in helpers if getattr(helper, "__module__", None) == function.__module__]
        waiting += [cell.cell_contents for cell in function.__closure__ or ()]
    return frozenset(names)


def _code_names(code: types.CodeType) -> set[str]:
    nested = (_code_names(constant) for constant in code.co_consts if isinstance(constant, types.CodeType))
    return set(code.co_names).union(*nested)


@functools.cache
def _default() -> Any:
    """Asked of diffusers itself, by making a block: the class has had more than one name. It holds no state, one serves all layers."""
    import torch
    from diffusers.models.attention import JointTransformerBlock

    with torch.device("meta"):  # its random weights would be drawn from the generator that seeds the user's pictures
        return JointTransformerBlock(dim=8, num_attention_heads=1, attention_head_dim=8).attn.processor
