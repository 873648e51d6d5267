"""The host's offload mode for an encoder that has just come into a loaded pipeline."""

from __future__ import annotations

import logging
from typing import Any

from sd3deploy.webui.host import prompts
from sd3deploy.webui.host.reach import sdnext

__all__ = ["apply", "leave_room", "restore", "switch"]

# Of diffusers.hooks.group_offloading, 0.36 to 0.42; it has no function that takes them out.
_GROUP_HOOKS = ("group_offloading", "layer_execution_tracker", "lazy_prefetch_group_offloading")


def apply(pipeline: Any, mode: str) -> None:
    """Make the new text_encoder_3 follow the offload mode of the other parts.

    The host's own function does that for none and balanced. Its hooks for the other modes were made for the list of parts
    at load, and it does not make them again.
    """
    encoder = pipeline.text_encoder_3
    if mode in ("sequential", "group"):
        if encoder is None or str(sdnext.devices.device) == "cpu":
            return  # nothing to offload from; diffusers' group offload fails without an accelerator
        if _by_bitsandbytes(encoder):
            encoder.to(sdnext.devices.device)  # its weights can not be hooked one by one; in 4 bit the whole of it may stay
        elif mode == "sequential":
            from accelerate import cpu_offload

            cpu_offload(encoder, sdnext.devices.device, offload_buffers=True)
        else:
            _offload_groups(encoder)
        return
    if mode == "none" and encoder is not None and not _by_bitsandbytes(encoder):
        encoder.to(sdnext.devices.device)  # the host moves a pipeline only when its first part is elsewhere; bitsandbytes loads in place
    if mode == "model" and hasattr(pipeline, "remove_all_hooks"):
        pipeline.remove_all_hooks()  # the chain leads from part to part: it has to be made anew
    sdnext.sd_offload.set_diffuser_offload(pipeline, op="model")


def leave_room(encoder: Any) -> None:
    """While a model is being loaded: off the device that it was quantized on, as the host does with its own encoders."""
    import torch

    if encoder is not None and sdnext.shared.opts.diffusers_offload_mode != "none":
        sdnext.sd_models.move_model(encoder, torch.device("cpu"))


def restore(pipeline: Any, mode: str) -> None:
    """After too little memory: a part that was half-way on its way to the device goes back to where the mode wants it."""
    try:
        if mode == "balanced":
            sdnext.sd_offload.apply_balanced_offload(pipeline, force=True)
        elif mode == "model":
            pipeline.maybe_free_model_hooks()
        elif mode == "none":
            sdnext.sd_models.move_model(pipeline, sdnext.devices.device)
    except Exception as error:  # the model may be usable all the same, and the next job says so
        logging.getLogger("sd").warning(f"SD3 Deploy: parts could not be put back: {error}")


def switch(pipeline: Any, mode: str) -> None:
    """Change the mode of a loaded pipeline, with the host's queue held. The host does that when it loads one; since 2026-08-22 also when
    the setting is changed, under its queue: so the value is stored here, and not set.
    """
    if pipeline is None or sdnext.shared.opts.diffusers_offload_mode == mode:
        return
    sdnext.sd_offload.disable_offload(pipeline)
    if hasattr(pipeline, "remove_all_hooks"):
        pipeline.remove_all_hooks()
    _free_groups(pipeline)
    pipeline.has_accelerate = False
    sdnext.shared.opts.diffusers_offload_mode = mode
    with prompts.kept(pipeline):
        sdnext.sd_models.clear_caches(full=True)  # the hook of balanced offload is kept there
    sdnext.sd_offload.set_diffuser_offload(pipeline, op="model")


def _offload_groups(encoder: Any) -> None:
    """As the host does it with the other parts, by the settings that it has for it."""
    import torch
    from diffusers.hooks import apply_group_offloading

    opts, devices = sdnext.shared.opts, sdnext.devices
    if type(encoder).__name__ in (name.strip() for name in opts.diffusers_offload_never.replace(";", ",").split(",")):
        encoder.to(devices.device)
        return
    apply_group_offloading(
        encoder,
        onload_device=devices.device,
        offload_device=torch.device("cpu"),
        offload_type=opts.group_offload_type,
        num_blocks_per_group=opts.group_offload_blocks,
        non_blocking=opts.diffusers_offload_nonblocking,
        use_stream=opts.group_offload_stream,
        record_stream=opts.group_offload_record,
    )


def _free_groups(pipeline: Any) -> None:
    """Take out diffusers' own hooks, which group offload is made of; `remove_all_hooks` knows accelerate's alone, and with those of both
    kinds on one part diffusers refuses to go on.
    """
    for part in getattr(pipeline, "components", {}).values():
        for module in part.modules() if hasattr(part, "modules") else ():
            registry = getattr(module, "_diffusers_hook", None)
            for name in _GROUP_HOOKS:
                if registry is not None and name in registry.hooks:
                    registry.remove_hook(name, recurse=False)


def _by_bitsandbytes(encoder: Any) -> bool:
    return getattr(encoder, "is_loaded_in_4bit", False) or getattr(encoder, "is_loaded_in_8bit", False)
