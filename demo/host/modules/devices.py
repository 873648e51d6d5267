"""The device, the compute type and how memory is given back."""

import contextlib
import gc

import torch

from modules.like import AUGUST
from modules.logger import log

cpu = torch.device("cpu")
backend = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
accelerator = getattr(torch, "accelerator", None) if AUGUST else None  # since torch 2.6
if accelerator is not None and accelerator.is_available():
    device = accelerator.current_accelerator()  # without an index
else:
    device = torch.device("cuda:0" if backend == "cuda" else backend)
dtype = torch.float32 if backend == "cpu" else torch.bfloat16 if backend == "cuda" and torch.cuda.is_bf16_supported() else torch.float16
dtype_vae = dtype
unet_needs_upcast = False
inference_context = torch.inference_mode
opts = None


def normalize_device(dev):
    dev = torch.device(dev)
    return torch.device(dev.type, dev.index or 0) if dev.type != "cpu" else dev


def same_device(a, b):
    return normalize_device(a) == normalize_device(b)


def torch_gc(force=False, fast=False, reason=None):
    """Collect garbage when asked to; an unforced call is cheap and does nothing on a CPU."""
    if not force:
        return
    gc.collect()
    if accelerator is not None and accelerator.is_available():
        accelerator.synchronize()
        accelerator.memory.empty_cache()
    elif backend == "cuda":
        with contextlib.suppress(RuntimeError):
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            torch.cuda.ipc_collect()
    log.debug(f"GC: reason={reason} fast={fast}")
