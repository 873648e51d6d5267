"""Ways to get T5 into memory, ours and those of others: each is timed in this process, with the libraries loaded and used before."""

from __future__ import annotations

import gc
import os
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench import _weights
from bench._memory import Peak, read_through

__all__ = ["WAYS", "Job", "device", "done", "quantized_copy", "source"]

CACHE_LIMIT = 10**12  # bytes, never reached
PAGE = 4096


@dataclass(frozen=True)
class Job:
    """One measurement. way: a key of WAYS. choice: the id of an encoder, where the way has several. folder: a model folder with T5 in
    `text_encoder_3`. cache: the folder of quantized copies, "" for none; the way that reads a plain file reads the copy in there.
    """

    way: str
    choice: str = ""
    folder: str = ""
    cache: str = ""


def device() -> Any:
    """The facts about the device that is measured: the GPU if there is one."""
    import torch

    from sd3deploy.device import detect_device

    kind = "cuda" if torch.cuda.is_available() else "cpu"
    if kind == "cpu":
        os.environ.setdefault("SDNQ_USE_TORCH_COMPILE", "0")  # as the host does, or the import of sdnq compiles a kernel
    return detect_device(kind, kind)


def source(folder: str) -> Any:
    """T5 of that model folder as our loader takes it."""
    from sd3deploy.encoders import source as sources

    return sources.find("Model", sources.Facts(folder))


def quantized_copy(folder: str) -> Path:
    """The one quantized copy in a cache folder."""
    return max(Path(folder).rglob("*.safetensors"), key=lambda file: file.stat().st_size)


def done(job: Job) -> dict[str, Any]:
    """Do it and say what it took.

    s: seconds until it is usable; cpu_s: of all threads until then. touched_s: until every page of it has been touched, for what is mapped
    is read only then. on_disk_s: until the copy that is written behind it is on the disk. bytes: resident. peak, peak_anonymous: growth of
    the process until all of that, in bytes, with and without mapped files; on a GPU also gpu_peak, of what is allocated there.
    """
    import torch

    on = device()
    cuda = on.torch != "cpu"
    with tempfile.TemporaryDirectory(prefix="sd3deploy-bench-") as folder:
        _warm(job, Path(folder))
    gc.collect()
    found: dict[str, Any] = {}
    allocated = torch.cuda.memory_allocated() if cuda else 0
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    with Peak() as peak:
        started, cpu = time.perf_counter(), time.process_time()

        def seconds() -> float:
            if cuda:
                torch.cuda.synchronize()
            return round(time.perf_counter() - started, 4)

        result = WAYS[job.way](job, found)
        found |= {"s": seconds(), "cpu_s": round(time.process_time() - cpu, 4)}
        if job.way == "ours, written behind":
            _writing()
            found["on_disk_s"] = seconds()
        else:
            _touch(_tensors(result))
            found["touched_s"] = seconds()
    found["bytes"] = _bytes(result)
    found |= {"peak": peak.resident, "peak_anonymous": peak.anonymous}
    if cuda:
        found["gpu_peak"] = torch.cuda.max_memory_allocated() - allocated
    del result
    gc.collect()  # the next one in this process begins without it, and no file of it is mapped any more
    return found


def _warm(job: Job, folder: Path) -> None:
    """The same way with a tiny T5: what is imported or set up at the first use belongs to no load."""
    import torch
    from safetensors.torch import save_file

    if job.way in ("load_file", "raw read", "raw read, thrown away"):
        save_file({"x": torch.zeros(PAGE)}, folder / "tiny.safetensors")
        WAYS[job.way](replace(job, cache=str(folder)), {})
        return
    _weights.make(folder, _weights.SMALL)
    tiny = replace(job, folder=str(folder), cache=str(folder / "cache") if job.cache else "")
    for _ in range(2 if job.way == "ours, from the cache" else 1):
        WAYS[job.way](tiny, {})
        _writing()


def _writing() -> None:
    from sd3deploy.encoders import load

    thread = load.writing()
    if thread is not None:
        thread.join()


# The ways


def _ours(job: Job, found: dict[str, Any]) -> Any:
    from sd3deploy.encoders import choices, load
    from sd3deploy.encoders.cache import Cache

    cache = Cache(Path(job.cache), CACHE_LIMIT) if job.cache else None
    read = load.read(choices.find(job.choice), source(job.folder), device(), cache=cache)
    found["cached"] = read.cached
    encoder = read.place()
    where = device().torch
    return encoder if where == "cpu" else encoder.to(where)  # what is none of bitsandbytes' waits in RAM until the host moves it


def _transformers_bnb(job: Job, _found: dict[str, Any]) -> Any:
    """As documented: the stock class, double quantization, bfloat16 to compute in."""
    import torch
    import transformers

    config = transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type=job.choice, bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.bfloat16
    )
    return _from_pretrained(job, quantization_config=config, device_map={"": device().torch})


def _sdnq(job: Job, _found: dict[str, Any]) -> Any:
    """The host's own quantizer, with its other settings as they come; the choice is a type of its, rotated or not: "uint4 Hadamard"."""
    from sdnq import SDNQConfig

    dtype, _, rotated = job.choice.partition(" ")
    return _from_pretrained(job, quantization_config=SDNQConfig(dtype, use_hadamard=bool(rotated))).to(device().torch)


def _plain(job: Job, _found: dict[str, Any]) -> Any:
    return _from_pretrained(job).to(device().torch)


def _from_pretrained(job: Job, **arguments: Any) -> Any:
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    return transformers.T5EncoderModel.from_pretrained(job.folder, subfolder="text_encoder_3", dtype=torch.bfloat16, **arguments)


def _load_file(job: Job, _found: dict[str, Any]) -> Any:
    from safetensors.torch import load_file

    return load_file(quantized_copy(job.cache), device=device().torch)


def _raw_read(job: Job, _found: dict[str, Any]) -> Any:
    """Into memory of its size, with the plainest of calls, 16 MiB at a time."""
    import torch

    copy = quantized_copy(job.cache)
    memory: Any = torch.empty(copy.stat().st_size, dtype=torch.uint8).numpy()
    return read_through([copy], memoryview(memory))


def _thrown_away(job: Job, _found: dict[str, Any]) -> Any:
    return read_through([quantized_copy(job.cache)])


WAYS: dict[str, Callable[[Job, dict[str, Any]], Any]] = {
    "ours": _ours,
    "ours, written behind": _ours,
    "ours, from the cache": _ours,
    "transformers + bitsandbytes": _transformers_bnb,
    "SDNQ": _sdnq,
    "from_pretrained": _plain,
    "load_file": _load_file,
    "raw read": _raw_read,
    "raw read, thrown away": _thrown_away,
}


# What came of it


def _tensors(result: Any) -> list[Any]:
    from sd3deploy.encoders.measure import tensors

    if isinstance(result, int):
        return []
    return list(result.values()) if isinstance(result, dict) else tensors(result)


def _bytes(result: Any) -> int:
    from sd3deploy.encoders.measure import measure

    if isinstance(result, int):
        return result
    return sum(tensor.numel() * tensor.element_size() for tensor in result.values()) if isinstance(result, dict) else measure(result).bytes


def _touch(tensors: Iterable[Any]) -> int:
    """Read one byte of each page, and the last one. Tensors on a GPU have been read."""
    import torch

    total = 0
    for tensor in tensors:
        if tensor.device.type == "cpu" and tensor.numel():
            flat = tensor.detach().data.reshape(-1).view(torch.uint8)
            total += int(flat[::PAGE].sum()) + int(flat[-1])
    return total
