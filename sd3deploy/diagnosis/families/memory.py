"""Too little memory, in every spelling: the GPU's, the machine's, what the loaders make of it, and a limit of the driver for one block."""

from __future__ import annotations

from sd3deploy import units
from sd3deploy.diagnosis.failure import Failure
from sd3deploy.diagnosis.rule import Advice, Kind, Seen, Verdict, kinds
from sd3deploy.lazy import lazy
from sd3deploy.memory.exhausted import Exhausted, read_exhausted

__all__ = ["KINDS", "judge"]

KINDS = kinds(
    Kind("memory-gpu", "out-of-memory", "setting", "https://github.com/vladmandic/sdnext/issues/3572"),
    Kind("memory-ram", "out-of-memory", "setting", "https://github.com/Comfy-Org/ComfyUI/issues/6693"),
    Kind("memory-paging", "out-of-memory", "none", "https://github.com/Comfy-Org/ComfyUI/issues/8065"),
    Kind("memory-killed", "out-of-memory", "setting", "https://github.com/CompVis/stable-diffusion/issues/21"),
    Kind("memory-library", "out-of-memory", "setting", "https://github.com/pytorch/pytorch/blob/main/aten/src/ATen/cuda/CublasHandlePool.cpp"),
    Kind("memory-block", "out-of-memory", "setting", "https://github.com/lllyasviel/stable-diffusion-webui-forge/issues/523"),
    Kind("memory-dispatched", "out-of-memory", "setting", "https://github.com/bitsandbytes-foundation/bitsandbytes/issues/881"),
    Kind("memory-fragmented", "out-of-memory", "setting", "https://pytorch.org/docs/stable/notes/cuda.html#optimizing-memory-usage"),
)

# Advice to avoid it, in settings and warnings, is no lack of it.
_ADVICE = lazy(r"(?i)(?:avoid|prevent|may cause|risk of|to fix)(?: running)? (?:an? )?(?:CUDA |GPU )?out[ _]of[ _]memory|OOM-?safe")
_PAGING = lazy(r"(?:os error|WinError) (?:1455|8)\b|paging file")
_KILLED = lazy(
    r"(?i:\bKilled$|: line \d+: +\d+ Killed\b|^(?:zsh: |\[\d+\] [+-]? ?\d* *)killed\b|Killed process \d+ \(python|oom[-_]kill|oom_reaper)"
    r"|SIGKILL(?!_handler| handler)|(?i:(?:exit|return)\w*(?: with)?(?: exit| return)? (?:code|status)\W{0,3}(?:137|-9)\b)"
)
# A block that is larger than the driver or the API can give, however much is free: Level Zero's and OpenCL's 4 GiB.
_BLOCK = lazy(
    r"(?i)(?:allocat|buffer|block).{0,60}(?:larger|greater|more|exceed)\w*.{0,20}?(\d+(?:\.\d+)? ?[GM]i?B)|INVALID_BUFFER_SIZE"
)
_DISPATCHED = lazy(
    r"(?i)modules are dispatched on the CPU|offload the (?:whole|entire) model to the disk|not have enough GPU memory to fit"
)
_LIBRARY = lazy(r"(?:BLAS|DNN)_STATUS_(?:NOT_INITIALIZED|EXECUTION_FAILED|INTERNAL_ERROR)|unable to find an engine to execute")
_SIZES = {"memory-gpu": ("rule.memory-gpu.size", "rule.memory-gpu.free"), "memory-ram": ("rule.memory-ram.size", "rule.memory-ram.free")}
_UNUSED = lazy(r"([\d.]+) ([KMG]i?B) is reserved by PyTorch but unallocated")


def judge(failure: Failure, seen: Seen) -> Verdict | None:
    """Which memory, and how much of it."""
    said = failure.said
    if _KILLED.search(said):
        return Verdict(KINDS["memory-killed"])
    if _PAGING.search(said) and (failure.errno in (0, 1455) or "memor" in said.lower()):
        return Verdict(KINDS["memory-paging"])
    if _DISPATCHED.search(said):
        return Verdict(KINDS["memory-dispatched"])
    if block := _BLOCK.search(said):
        return Verdict(KINDS["memory-block"], {"limit": block[1] or "4 GB"})
    exhausted = None if "in static TLS block" in said else read_exhausted(said)  # a table of the loader's, which is no memory
    if exhausted and not _ADVICE.search(said) and failure.level != "WARNING":
        return _exhausted(exhausted, said)
    return Verdict(KINDS["memory-library"]) if _LIBRARY.search(said) else None


def _exhausted(exhausted: Exhausted, said: str) -> Verdict:
    """With the numbers that the error gives, where it gives some."""
    kind = "memory-ram" if exhausted.host else "memory-gpu"
    if not exhausted.tried:
        return Verdict(KINDS[kind])
    words = {"tried": units.size(exhausted.tried), "free": units.size(exhausted.free or 0)}
    unused = _UNUSED.search(said)
    if unused and float(unused[1]) * 1024 ** (1 + "KMG".index(unused[2][0])) >= 2 * exhausted.tried:
        return Verdict(KINDS["memory-fragmented"], {**words, "unused": f"{unused[1]} {unused[2]}"})
    return Verdict(KINDS[kind], words, Advice(sentence=_SIZES[kind][exhausted.free is not None]))
