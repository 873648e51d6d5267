"""A Stable Diffusion 3 without its T5, as diffusers loads it from this disk."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sd3deploy.device import Device

__all__ = ["load", "place", "without_bars"]


def load(model: Path, device: Device, config: str = "") -> Any:
    """The StableDiffusion3Pipeline of a folder or file, in the device's compute type and in RAM. config: a folder with what a file does
    not tell, such as tokenizers; without it that is downloaded. Raises what diffusers raises.
    """
    import torch
    from diffusers import StableDiffusion3Pipeline

    arguments: dict[str, Any] = {"text_encoder_3": None, "tokenizer_3": None, "torch_dtype": getattr(torch, device.compute_dtype)}
    if model.is_dir():
        pipeline = StableDiffusion3Pipeline.from_pretrained(str(model), local_files_only=True, **arguments)
    else:
        local = {"config": config, "local_files_only": True} if config else {}
        pipeline = StableDiffusion3Pipeline.from_single_file(str(model), **local, **arguments)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def place(pipeline: Any, device: Device) -> None:
    """Make it compute on the device: on a graphics card one part at a time, and the others stay in RAM."""
    if device.torch.partition(":")[0] in ("cuda", "xpu"):
        pipeline.enable_model_cpu_offload(device=device.torch)
    else:
        pipeline.to(device.torch)


@contextmanager
def without_bars() -> Iterator[None]:
    """No bars of the libraries: whoever loads has one of its own."""
    import diffusers.utils.logging
    import transformers.utils.logging

    shown = [one for one in (diffusers.utils.logging, transformers.utils.logging) if one.is_progress_bar_enabled()]
    for one in shown:
        one.disable_progress_bar()
    try:
        yield
    finally:
        for one in shown:
            one.enable_progress_bar()
