"""The host's offload mode for an encoder that has just come into a loaded pipeline."""

from __future__ import annotations

import logging
from typing import Any

from sd3deploy.webui.host import prompts
from sd3deploy.webui.host.reach import sdnext

__all__ = ["apply", "leave_room", "restore", "switch"]


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
            import torch
            from diffusers.hooks import apply_group_offloading

            cpu = torch.device("cpu")
            apply_group_offloading(encoder, onload_device=sdnext.devices.device, offload_device=cpu, offload_type="leaf_level")
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
    """Change the mode of a loaded pipeline: the host itself does that only when it loads one."""
    if pipeline is None or sdnext.shared.opts.diffusers_offload_mode == mode:
        return
    sdnext.sd_offload.disable_offload(pipeline)
    if hasattr(pipeline, "remove_all_hooks"):
        pipeline.remove_all_hooks()
    pipeline.has_accelerate = False
    sdnext.shared.opts.diffusers_offload_mode = mode
    with prompts.kept(pipeline):
        sdnext.sd_models.clear_caches(full=True)  # the hook of balanced offload is kept there
    sdnext.sd_offload.set_diffuser_offload(pipeline, op="model")


def _by_bitsandbytes(encoder: Any) -> bool:
    return getattr(encoder, "is_loaded_in_4bit", False) or getattr(encoder, "is_loaded_in_8bit", False)
