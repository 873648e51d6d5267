"""Too little memory, in the words of those who say it. Sizes are those of the messages; the words are the sources'."""

from __future__ import annotations

import numpy
import pytest
import torch

from sd3deploy.errors import EncoderError
from sd3deploy.memory.exhausted import Exhausted, read_exhausted

KIB, MIB, GIB, TIB = 2**10, 2**20, 2**30, 2**40

# (source, message, tried, free, host)
SPELLINGS = [
    (
        "c10/cuda/CUDACachingAllocator.cpp, torch 2",
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 7.79 GiB of which 1.10 GiB is free. Process 4711 "
        "has 5.00 GiB memory in use. Including non-PyTorch memory, this process has 1.69 GiB memory in use. Of the allocated memory 1.50 "
        "GiB is allocated by PyTorch, and 20.00 MiB is reserved by PyTorch but unallocated. If reserved but unallocated memory is large "
        "try setting PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True to avoid fragmentation.",
        2 * GIB,
        int(1.1 * GIB),
        False,
    ),
    (
        "the same, torch 1",
        "CUDA out of memory. Tried to allocate 1.71 GiB (GPU 0; 8.00 GiB total capacity; 6.50 GiB already allocated; 512.00 MiB free; "
        "6.60 GiB reserved in total by PyTorch) If reserved memory is >> allocated memory try setting max_split_size_mb to avoid "
        "fragmentation.",
        int(1.71 * GIB),
        512 * MIB,
        False,
    ),
    (
        "the same, nothing free",
        "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 7.79 GiB of which 0 bytes is free.",
        20 * MIB,
        0,
        False,
    ),
    (
        "the same, on ROCm",
        "HIP out of memory. Tried to allocate 256.00 MiB. GPU 0 has a total capacity of 15.98 GiB of which 130.00 MiB is free.",
        256 * MIB,
        130 * MIB,
        False,
    ),
    (
        "c10/cuda/CUDAMallocAsyncAllocator.cpp, as ComfyUI shows it",
        "Allocation on device 0 would exceed allowed memory. (out of memory)\nCurrently allocated     : 6.89 GiB\n"
        "Requested               : 320.00 MiB\nDevice limit            : 23.69 GiB\nFree (according to CUDA): 2.50 MiB\n"
        "PyTorch limit (set by user-supplied memory fraction)\n                        : 17179869184.00 GiB",
        320 * MIB,
        int(2.5 * MIB),
        False,
    ),
    (
        "the same in one line",
        "Allocation on device 0 would exceed allowed memory. (out of memory) Currently allocated : 12.20 GiB Requested : 1.88 GiB "
        "Device limit : 16.00 GiB Free (according to CUDA): 0 bytes",
        int(1.88 * GIB),
        0,
        False,
    ),
    ("ComfyUI", "Allocation on device \nThis error means you ran out of memory on your GPU.", None, None, False),
    ("c10/cuda/CUDAException.cpp", "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported", None, None, False),
    ("the CUDA driver", "Triton Error [CUDA]: CUDA_ERROR_OUT_OF_MEMORY", None, None, False),
    ("ROCm", "HIP error: out of memory", None, None, False),
    ("bitsandbytes/csrc/pythonInterface.cpp", "Error out of memory at line 380 in file /src/csrc/pythonInterface.cpp", None, None, False),
    (
        "aten/src/ATen/mps/MPSAllocator.mm",
        "MPS backend out of memory (MPS allocated: 8.84 GB, other allocations: 384.00 KB, max allowed: 9.07 GB). Tried to allocate "
        "256.00 MB on private pool. Use PYTORCH_MPS_HIGH_WATERMARK_RATIO=0.0 to disable upper limit for memory allocations (may cause "
        "system failure).",
        256 * MIB,
        None,
        False,
    ),
    ("aten/src/ATen/mps/MPSAllocator.mm", "Invalid buffer size: 11.25 GB", int(11.25 * GIB), None, False),
    (
        "c10/xpu/XPUCachingAllocator.cpp",
        "XPU out of memory. Tried to allocate 16.00 MiB. GPU 0 has a total capacity of 11.93 GiB of which 7.50 MiB is free. Of the "
        "allocated memory 10.43 GiB is allocated by PyTorch, and 94.57 MiB is reserved by PyTorch but unallocated.",
        16 * MIB,
        int(7.5 * MIB),
        False,
    ),
    ("intel-extension-for-pytorch", "Allocation is out of device memory on current platform.", None, None, False),
    ("SYCL", "Native API failed. Native API returns: -5 (PI_ERROR_OUT_OF_RESOURCES) -5 (PI_ERROR_OUT_OF_RESOURCES)", None, None, False),
    ("Unified Runtime", "level_zero backend failed with error: 39 (UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY)", None, None, False),
    ("Unified Runtime", "level_zero backend failed with error: 38 (UR_RESULT_ERROR_OUT_OF_HOST_MEMORY)", None, None, False),
    ("Unified Runtime", "level_zero backend failed with error: 40 (UR_RESULT_ERROR_OUT_OF_RESOURCES)", None, None, False),
    (
        "torch-directml",
        "Could not allocate tensor with 234881024 bytes. There is not enough GPU video memory available!",
        224 * MIB,
        None,
        False,
    ),
    (
        "c10/core/impl/alloc_cpu.cpp, Linux",
        "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 1099511627776 "
        "bytes. Error code 12 (Cannot allocate memory)",
        TIB,
        None,
        True,
    ),
    (
        "c10/core/impl/alloc_cpu.cpp, Windows",
        "[enforce fail at alloc_cpu.cpp:114] data. DefaultCPUAllocator: not enough memory: you tried to allocate 16777216 bytes.",
        16 * MIB,
        None,
        True,
    ),
    ("cuBLAS", "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", None, None, False),
    ("cuDNN", "cuDNN error: CUDNN_STATUS_ALLOC_FAILED", None, None, False),
    ("hipBLAS", "CUDA error: HIPBLAS_STATUS_ALLOC_FAILED when calling `hipblasCreate(handle)`", None, None, False),
    (
        "pytorch/pytorch#112377",
        'NVML_SUCCESS == r INTERNAL ASSERT FAILED at "../c10/cuda/CUDACachingAllocator.cpp":1131, please report a bug to PyTorch.',
        None,
        None,
        False,
    ),
    (
        "numpy/_core/src/multiarray/alloc.c",
        "Unable to allocate 7.28 TiB for an array with shape (1000000, 1000000) and data type float64",
        int(7.28 * TIB),
        None,
        True,
    ),
    ("errno.h", "[Errno 12] Cannot allocate memory", None, None, True),
    ("safetensors, Windows", "The paging file is too small for this operation to complete. (os error 1455)", None, None, True),
    ("safetensors, Windows in Spanish", "El archivo de paginación es demasiado pequeño. (os error 1455)", None, None, True),
    ("Python, Windows", "[WinError 1455] The paging file is too small for this operation to complete. Error loading", None, None, True),
]


@pytest.mark.parametrize(("source", "message", "tried", "free", "host"), SPELLINGS, ids=[row[1][:30] for row in SPELLINGS])
def test_spellings(source, message, tried, free, host):
    expected = Exhausted(tried, free, host)
    assert read_exhausted(message) == expected
    assert read_exhausted(RuntimeError(message)) == expected
    assert read_exhausted(OSError(message)) == expected


NEAR_MISSES = [
    "CUDA error: an illegal memory access was encountered",
    "CUDA error: device-side assert triggered",
    "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
    "CUDA driver version is insufficient for CUDA runtime version",
    "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED",
    "out of resource: shared memory, Required: 147456, Hardware limit: 101376. Reducing block sizes or `num_stages` may help.",
    "level_zero backend failed with error: 20 (UR_RESULT_ERROR_DEVICE_LOST)",
    "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu!",
    "memory format option is only supported by strided tensors",
    "index 77 is out of bounds for dimension 1 with size 77",
    "The size of tensor a (333) must match the size of tensor b (1024) at non-singleton dimension 1",
    "Could not load tensor with 2 dimensions",
    "Invalid buffer size: expected a multiple of 4",
    "No space left on device",
    "[WinError 126] The specified module could not be found (os error 14551)",
    "4.00 GiB is free",
    "",
]


@pytest.mark.parametrize("message", NEAR_MISSES)
def test_other_errors_that_sound_alike(message):
    assert read_exhausted(message) is None
    assert read_exhausted(RuntimeError(message)) is None


def test_our_own_words_for_it_are_no_news():
    assert read_exhausted(EncoderError("encoder.out-of-memory", name="T5 BF16", size="9.5")) is None


@pytest.mark.parametrize("error", [MemoryError(), MemoryError("std::bad_alloc"), MemoryError("whatever")])
def test_pythons_own(error):
    assert read_exhausted(error) == Exhausted(host=True)


def test_torchs_class_of_its_own_needs_no_words():
    assert read_exhausted(torch.OutOfMemoryError("")) == Exhausted()


def test_a_real_tensor_that_is_too_large():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert read_exhausted(caught.value) == Exhausted(2**60, None, True)


def test_a_real_array_that_is_too_large():
    with pytest.raises(MemoryError) as caught:
        numpy.empty(2**60, numpy.uint8)
    assert read_exhausted(caught.value) == Exhausted(2**60, None, True)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_real_tensor_that_is_too_large_for_the_gpu():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50, dtype=torch.uint8, device="cuda")
    found = read_exhausted(caught.value)
    assert (found.tried, found.host) == (2**50, False)
    assert found.free == pytest.approx(torch.cuda.mem_get_info()[0], rel=0.05)


@pytest.mark.parametrize(
    ("found", "missing"),
    [(Exhausted(5, 2), 3), (Exhausted(5, None), 5), (Exhausted(5, 9), 0), (Exhausted(None, 9), None), (Exhausted(), None)],
)
def test_what_was_missing(found, missing):
    assert found.missing == missing


@pytest.mark.parametrize("unit", ["bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB", "KB", "MB", "GB", "TB", "PB", "EB", "gib"])
def test_every_unit_counts_in_powers_of_two(unit):
    """torch and numpy divide by 1024 whatever they call it."""
    power = "bkmgtpe".index(unit[0].lower())
    assert read_exhausted(f"CUDA out of memory. Tried to allocate 1.50 {unit}.").tried == int(1.5 * 1024**power)


def test_numbers_that_are_none_are_no_error():
    assert read_exhausted("out of memory: tried to allocate ... bytes") == Exhausted()
    assert read_exhausted("out of memory: tried to allocate some bytes") == Exhausted()
