"""Too little memory, in all its spellings, as one thing."""

from __future__ import annotations

import re
from dataclasses import dataclass

from sd3deploy.lazy import lazy

__all__ = ["Exhausted", "read_exhausted"]

# Spellings of torch's allocators (c10/cuda, c10/xpu, aten/mps, c10/core/impl/alloc_cpu.cpp), of cuBLAS and cuDNN, of the XPU and
# DirectML drivers, of ComfyUI's own error, of Linux and Windows (1455: the paging file; its sentence is in the user's language), and of
# the assertion in which torch ends when NVML can not be asked (pytorch/pytorch#112377).
_SPELLINGS = lazy(
    r"\bout[ _]of[ _](?:device[ _]|host[ _]|GPU[ _]|video[ _])?(?:V?RAM|memory)\b|OutOfMemoryError|_OUT_OF_\w*MEMORY"
    r"|_ERROR_OUT_OF_RESOURCES"
    r"|(?:BLAS|DNN|SPARSE|SOLVER)_STATUS_ALLOC_FAILED|Allocation on device|\bbad_?alloc\b|(?:^|[\s:])MemoryError\b|\[Errno 12\]"
    r"|\(os error 12\)"
    r"|(?:can(?:no|')?t|can not|could not|unable to|failed to) (?:allocate|reserve)\b|(?:os error|WinError) 1455\b"
    r"|Invalid buffer size: [\d.]+ "
    r"|(?:not enough|insufficient) (?:(?:GPU|video|device|host|system|free) )+(?:V?RAM|memory)\b|insufficient memory"
    r"|not enough memory: you|NVML_SUCCESS == r INTERNAL ASSERT",
    re.IGNORECASE,
)
_IN_RAM = lazy(
    r"CPUAllocator|alloc_cpu|for an array with shape|Cannot allocate memory|(?:os error|WinError) 1455\b|\[Errno 12\]|os error 12\b"
    r"|bad_?alloc"
    r"|(?:^|[\s:])MemoryError\b|host memory",
    re.IGNORECASE,
)
_AMOUNT = r"(\d+(?:\.\d+)?)\s*(bytes?|[KMGTPE]i?B)"
_TRIED = lazy(
    rf"(?:tried to allocate|unable to allocate|allocate tensor with|requested\s*:|invalid buffer size:)\s*{_AMOUNT}", re.IGNORECASE
)
# The other order is that of cudaMallocAsync (c10/cuda/CUDAMallocAsyncAllocator.cpp), after a line that ends in the size of the device.
_FREE = lazy(rf"{_AMOUNT}\s+(?:is\s+)?free\b(?!\s*\()|free \(according to CUDA\)\s*:\s*{_AMOUNT}", re.IGNORECASE)


@dataclass(frozen=True)
class Exhausted:
    """What an error says. Bytes; None where it does not say. host: it was RAM, not the device."""

    tried: int | None = None
    free: int | None = None
    host: bool = False

    @property
    def missing(self) -> int | None:
        """How much more was needed at that moment."""
        return None if self.tried is None else max(0, self.tried - (self.free or 0))


def read_exhausted(error: BaseException | str) -> Exhausted | None:
    """What an error, or the text of one, says about too little memory; None when it is about something else."""
    text = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
    if not isinstance(error, MemoryError) and not _SPELLINGS.search(text):
        return None
    host = isinstance(error, MemoryError) or _IN_RAM.search(text) is not None
    return Exhausted(_bytes(_TRIED.search(text)), _bytes(_FREE.search(text)), host)


def _bytes(found: re.Match[str] | None) -> int | None:
    if found is None:
        return None
    number, unit = (group for group in found.groups() if group)
    return int(float(number) * 1024 ** "bkmgtpe".index(unit[0].lower()))
