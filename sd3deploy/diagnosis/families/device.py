"""What the driver of a GPU says, by the names and numbers of its errors, and a torch that was not built for one."""

from __future__ import annotations

import re

from sd3deploy.diagnosis import cure
from sd3deploy.diagnosis.failure import Failure
from sd3deploy.diagnosis.rule import Advice, Kind, Seen, Verdict, kinds
from sd3deploy.lazy import lazy

__all__ = ["KINDS", "judge"]

_CUDA = "https://docs.nvidia.com/cuda/cuda-runtime-api/group__CUDART__TYPES.html"
KINDS = kinds(
    Kind("driver-old", "platform-unsupported", "restart", "https://github.com/lllyasviel/stable-diffusion-webui-forge/issues/2053"),
    Kind("driver-start", "platform-unsupported", "restart", "https://github.com/easydiffusion/easydiffusion/issues/379"),
    Kind("driver-missing", "platform-unsupported", "restart", "https://github.com/AUTOMATIC1111/stable-diffusion-webui/issues/16522"),
    Kind("zluda-missing", "platform-unsupported", "restart", "https://github.com/vladmandic/sdnext/issues/4259"),
    Kind("torch-without-cuda", "platform-unsupported", "restart",
         "https://github.com/pytorch/pytorch/blob/main/torch/cuda/__init__.py", "torch"),
    Kind("device-assert", "device-mismatch", "restart", "https://github.com/cocktailpeanut/fluxgym/issues/158"),
    Kind("illegal-access", "platform-unsupported", "restart", _CUDA),
    Kind("cudnn-version", "mixed-package-files", "none", "https://github.com/bmaltais/kohya_ss/issues/1096", "torch"),
)

# cudaError_t and its twin of HIP: number, what the runtime says, its name.
_ERRORS = (
    ("zluda-missing", (), r"Failed to load ZLUDA|ZLUDA: .{0,40}Failed to load|Could not (?:find module|load) .{0,200}zluda[\\/]"),
    ("driver-old", (35,), r"driver (?:on your system )?(?:is too old|version is insufficient)|InsufficientDriver"),
    ("driver-start", (803, 804, 999, 3), r"unsupported display driver|(?:CUDA|HIP) unknown error|driver initialization failed"
     r"|Driver/library version mismatch|SystemDriverMismatch|CompatNotSupported|cuInit.{0,40}(?:failed|error)"),
    ("driver-missing", (100, 101, 38, 10), r"Found no NVIDIA driver|No (?:CUDA|HIP|XPU)(?: GPUs| devices?|-capable device)"
     r"|invalid device ordinal|not able to use GPU|ErrorNoDevice|libcuda\.so[.\d]*: cannot open"),
    ("device-assert", (710,), r"device-side assert triggered|Assertion `?\w+ < \w+`? failed|ErrorAssert\b"),
    ("illegal-access", (700, 715, 716, 717, 718, 719), r"illegal memory access|unspecified launch failure|misaligned address"
     r"|illegal instruction was encountered|ErrorIllegalAddress|ErrorLaunchFailure|GPU (?:has fallen|hang)|uncorrectable ECC"),
)  # fmt: skip
_MATCHES = tuple((kind, numbers, lazy(pattern, re.IGNORECASE)) for kind, numbers, pattern in _ERRORS)
_NUMBER = lazy(r"\b(?:CUDA|HIP|Cuda|cuda\w*) ?(?:runtime |driver )?error ?\(?(\d+)\b|\bError (\d+): \w")
_VERSION = lazy(r"found version (\d+)")
_BUILT = lazy(
    r"(?i)not (?:compiled|built) with (?:CUDA|ROCm|XPU) (?:enabled|support)|CPU version installed and (?:CUDA|ROCm) is available"
)
_STATISTICS = lazy(r"GPU stats:|Processed: memory=")  # SD.Next of 2025 asks for them on every machine
_CUDNN = lazy(r"cuDNN version (?:incompatibility|mismatch): PyTorch was compiled against \(?(?P<built>[\d, ]*\d)\)? but"
                    r" (?:found runtime version|linked against) \(?(?P<found>[\d, ]*\d)", re.IGNORECASE)  # fmt: skip


def judge(failure: Failure, seen: Seen) -> Verdict | None:
    """Drivers that are missing, too old, or have stopped. What they say in a warning holds as well: torch goes on without the GPU."""
    said = failure.said
    if cudnn := _CUDNN.search(said):
        return Verdict(KINDS["cudnn-version"], cudnn.groupdict(), cure.say("torch", values=cure.vocabulary("torch", seen)))
    if _BUILT.search(said) and not _STATISTICS.search(said):
        return Verdict(KINDS["torch-without-cuda"])
    number = _NUMBER.search(said)
    code = int(next(filter(None, number.groups()))) if number else 0
    kind = next((kind for kind, numbers, pattern in _MATCHES if pattern.search(said) or (code in numbers)), "")
    if not kind:
        return None
    version = _VERSION.search(said)
    cuda = int(version[1]) if version else 0  # 11070 is CUDA 11.7
    bare = Advice(sentence="rule.driver-old.bare") if kind == "driver-old" and not cuda else Advice()
    return Verdict(KINDS[kind], {"cuda": f"{cuda // 1000}.{cuda % 1000 // 10}"}, bare)
