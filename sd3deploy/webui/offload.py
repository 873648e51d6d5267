"""The host's offload mode for an encoder that has just come into a loaded pipeline."""

from __future__ import annotations

from typing import Any

from modules import devices, sd_offload

__all__ = ["apply"]


def apply(pipeline: Any, mode: str) -> None:
    """Make the new text_encoder_3 follow the offload mode of the other parts.

    The host's own function does that for none and balanced. Its hooks for the other modes were made for the list of parts
    at load, and it does not make them again.
    """
    encoder = pipeline.text_encoder_3
    if mode in ("sequential", "group"):
        if encoder is None or str(devices.device) == "cpu":
            return  # nothing to offload from; diffusers' group offload fails without an accelerator
        if _by_bitsandbytes(encoder):
            encoder.to(devices.device)  # its weights can not be hooked one by one; in 4 bit the whole of it may stay
        elif mode == "sequential":
            from accelerate import cpu_offload

            cpu_offload(encoder, devices.device, offload_buffers=True)
        else:
            from diffusers.hooks import apply_group_offloading

            apply_group_offloading(encoder, onload_device=devices.device, offload_device=devices.cpu, offload_type="leaf_level")
        return
    if mode == "model" and hasattr(pipeline, "remove_all_hooks"):
        pipeline.remove_all_hooks()  # the chain leads from part to part: it has to be made anew
    sd_offload.set_diffuser_offload(pipeline, op="model")


def _by_bitsandbytes(encoder: Any) -> bool:
    return getattr(encoder, "is_loaded_in_4bit", False) or getattr(encoder, "is_loaded_in_8bit", False)
