"""What the device that runs the text encoder can do. One thin function looks, the choices decide on plain values."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

__all__ = ["Device", "cpu_has_bfloat16", "detect_device"]


@dataclass(frozen=True)
class Device:
    """A compute device.

    torch: what torch calls it, "cuda:0". backend: the host's word for the software stack: cuda, rocm, zluda, xpu (ipex),
    mps, directml, openvino or cpu. capability: CUDA compute capability such as (8, 6), None elsewhere.
    bf16, fp8: whether tensors of that type can be computed with, or at least stored. emulates: a CPU that has no bfloat16 in hardware.
    """

    torch: str
    backend: str
    name: str
    capability: tuple[int, int] | None = None
    bf16: bool = True
    fp8: bool = True
    emulates: bool = False

    @property
    def compute_dtype(self) -> str:
        """The 16-bit type to compute in: T5 overflows float16 (huggingface/diffusers#8604), so bfloat16 wherever it is native."""
        return "bfloat16" if self.bf16 else "float16"

    @property
    def product_dtype(self) -> str:
        """The type in which T5 is computed between its first and its last norm: float32 where bfloat16 is emulated. What is stored and
        kept in the cache, its bytes and what the encoder gives are of `compute_dtype`, and so the same on every CPU.
        """
        return "float32" if self.bf16 and self.emulates else self.compute_dtype


@lru_cache
def cpu_has_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware, as far as torch's library for that knows. One that emulates it (AVX2 alone) takes
    3.4 times as long for a product as in float32.
    """
    import torch

    try:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    except (AttributeError, RuntimeError):  # a torch without that library
        return False


def detect_device(device: object = "", backend: str = "") -> Device:
    """The facts about a torch device; "" for the one that the host would take. `backend` is the host's name of the stack, because torch
    calls ROCm and ZLUDA "cuda" too.
    """
    import torch

    if device == "":
        device, backend = _guess()
    device = torch.device(device)  # type: ignore[arg-type]
    fp8 = hasattr(torch, "float8_e4m3fn") and device.type != "mps"  # pytorch/pytorch#148420
    if device.type == "cuda" and torch.cuda.is_available():
        capability = torch.cuda.get_device_capability(device)
        # torch calls emulated bfloat16 supported too, and it is slower than float16: ask the hardware (Ampere and later; every ROCm card).
        bf16 = backend == "rocm" or capability >= (8, 0)
        return Device(str(device), backend, torch.cuda.get_device_name(device), capability, bf16, fp8)
    if device.type == "mps":
        return Device(str(device), backend, "Apple GPU", None, True, fp8)
    if device.type == "cpu":
        import platform

        return Device("cpu", backend, platform.processor() or "CPU", None, True, fp8, not cpu_has_bfloat16())
    return Device(str(device), backend, device.type, None, device.type == "xpu", fp8)


def _guess() -> tuple[str, str]:
    """The device that the host would take, and its word for the stack."""
    import torch

    if torch.cuda.is_available():
        if torch.version.hip:
            return "cuda", "rocm"
        return "cuda", "zluda" if "[ZLUDA]" in torch.cuda.get_device_name(0) else "cuda"
    if hasattr(torch, "xpu") and torch.xpu.is_available():
        return "xpu", "ipex"
    return ("mps", "mps") if torch.backends.mps.is_available() else ("cpu", "cpu")
