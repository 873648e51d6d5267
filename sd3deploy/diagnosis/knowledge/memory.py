"""Rules about memory."""

from __future__ import annotations

from collections.abc import Mapping

from sd3deploy import units
from sd3deploy.diagnosis.rule import Advice, Rule, Seen
from sd3deploy.memory.exhausted import read_exhausted

__all__ = ["RULES"]


def _amounts(values: Mapping[str, str], seen: Seen) -> Advice:
    """With the numbers that the error gives, where it gives some."""
    exhausted = read_exhausted(seen.text)
    if exhausted is None or not exhausted.tried:
        return Advice()
    words = {"tried": units.size(exhausted.tried), "free": units.size(exhausted.free or 0)}
    if exhausted.host:
        return Advice(sentence="rule.memory-ram.size" if exhausted.free is None else "rule.memory-ram.free", values=words)
    return Advice(sentence="rule.memory-gpu.size" if exhausted.free is None else "rule.memory-gpu.free", values=words)


RULES: tuple[Rule, ...] = (
    Rule(
        id="memory-killed",
        cause="out-of-memory",
        # The kernel gives a process no chance to say anything: its shell, its container or the system's log does.
        match=r"\bKilled$|: line \d+: +\d+ Killed\b|^(?:zsh: |\[\d+\] [+-]? ?\d* *)killed\b|Killed process \d+ \(python|oom[-_]kill"
        r"|by signal SIGKILL|<Signals\.SIGKILL|exit(?:ed with)? (?:code|status):? ?137\b",
        action="setting",
        source="https://github.com/CompVis/stable-diffusion/issues/21",
    ),
    Rule(
        id="memory-paging",
        cause="out-of-memory",
        match=r"(?:os error|WinError) 1455\b|paging file is too small",
        action="none",
        source="https://github.com/Comfy-Org/ComfyUI/issues/8065",
    ),
    Rule(
        id="memory-ram",
        cause="out-of-memory",
        match=r"DefaultCPUAllocator|not enough memory: you tried to allocate|can't allocate memory: you tried|Cannot allocate memory"
        r"|Unable to allocate .{1,40} for an array with shape|(?:^|[\s:])MemoryError\b",
        action="setting",
        source="https://github.com/Comfy-Org/ComfyUI/issues/6693",
        advise=_amounts,
    ),
    Rule(
        id="memory-spill",
        cause="memory-spill",
        match=r"\[Low GPU VRAM Warning\] If you continue|GPU fallback and test the 10x slower speed"
        r"|safe threshold ; This may cause extreme slow",
        action="setting",
        source="https://github.com/lllyasviel/stable-diffusion-webui-forge/issues/2464",
    ),
    Rule(
        id="memory-gpu",
        cause="out-of-memory",
        # All that sd3deploy.memory.exhausted knows and that is not RAM.
        match=r"(?<!avoid )(?<!avoid running )(?<!prevent )(?<!may cause )\bout[ _]of[ _](?:device[ _]|host[ _])?memory"
        r"|OutOfMemoryError|_OUT_OF_\w*MEMORY"
        r"|Allocation on device|CU(?:BLAS|DNN)_STATUS_ALLOC_FAILED|HIPBLAS_STATUS_ALLOC_FAILED|_ERROR_OUT_OF_RESOURCES"
        r"|Could not allocate tensor with|not enough GPU video memory|NVML_SUCCESS == r INTERNAL ASSERT FAILED|Invalid buffer size: [\d.]+ "
        r"|Insufficient memory",
        action="setting",
        source="https://github.com/vladmandic/sdnext/issues/3572",
        advise=_amounts,
    ),
    Rule(
        id="memory-library",
        cause="out-of-memory",
        match=r"(?:CUBLAS_STATUS_NOT_INITIALIZED|CUDNN_STATUS_NOT_INITIALIZED|CUBLAS_STATUS_EXECUTION_FAILED|HIPBLAS_STATUS_NOT_INITIALIZED)",
        action="setting",
        source="https://github.com/pytorch/pytorch/blob/main/aten/src/ATen/cuda/CublasHandlePool.cpp",
    ),
)
