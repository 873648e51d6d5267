"""From the files of T5 to tensors that are quantized: piece by piece, so that nothing is in memory twice.

One thread reads, the others quantize what was read; on a GPU the pieces go there and come back. What they make is the library's own
serialization: the same that is kept on disk, and that an encoder is put together from.
"""

from __future__ import annotations

import math
import os
import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sd3deploy.device import Device
from sd3deploy.encoders.assemble import linears, quantization_config, shapes
from sd3deploy.encoders.encoded import Encoded
from sd3deploy.encoders.finite import NotFinite
from sd3deploy.encoders.mapped import Mapped, stamp
from sd3deploy.encoders.recipe import Recipe
from sd3deploy.encoders.storage import STORAGES, AsItLies, Storage, Wide
from sd3deploy.encoders.weights import Stored, Weights, dtype, mapped
from sd3deploy.errors import EncoderError
from sd3deploy.memory import exhausted

if TYPE_CHECKING:
    import torch

__all__ = ["Stopped", "quantize"]

_PIECE = 8 * 2**20  # bytes read at a time; on a GPU each takes 200 MB (four_bit.py)
_WORKERS = 8  # threads at most: from there on reading is slower
_WORKERS_GPU = 2  # what takes time there is to start its kernels, which threads do one after the other
_ROOM = 2**30  # bytes free on a GPU for quantizing there


class Stopped(EncoderError):
    """Somebody cancelled."""


@dataclass
class _Target:
    """A tensor that is being made. missing: pieces."""

    storage: Storage | AsItLies
    missing: int


@dataclass(frozen=True)
class _Piece:
    name: str
    stored: Stored
    first: int
    rows: int
    offset: int
    size: int


def quantize(
    weights: Weights,
    recipe: Recipe,
    device: Device,
    progress: Callable[[int, int], None] = lambda done, total: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Encoded:
    """Read and quantize. progress: called with the bytes read and those to read.

    Raises Stopped soon after `cancelled` says yes, EncoderError for files that lack a part of T5 or hold no numbers.
    """
    place = _place(device) if recipe.choice.quantized else None
    try:
        return _quantize(weights, recipe, place, progress, cancelled)
    except Exception as error:
        if place is None or not exhausted.read_exhausted(error):
            raise
    return _quantize(weights, recipe, None, progress, cancelled)  # somebody else took the room on the GPU


def _quantize(
    weights: Weights, recipe: Recipe, place: str | None, progress: Callable[[int, int], None], cancelled: Callable[[], bool]
) -> Encoded:
    import torch

    config = dict(weights.config) | {"architectures": ["T5EncoderModel"], "dtype": recipe.compute}
    if (known := quantization_config(recipe)) is not None:
        config["quantization_config"] = known.to_dict()
    needed, skeleton = shapes(weights.config)
    stored_as = {name: _whole(weights, name, shape) for name, shape in needed.items()}
    ways = linears(skeleton, recipe)
    found: dict[str, torch.Tensor] = {}
    targets, pieces, as_they_lie = {}, [], []
    before = {file: stamp(file) for file in weights.files}
    straight = mapped(weights) if recipe.choice.stored == "wide" else {}  # what is as wanted needs no copy, and is only looked at
    for name, stored in sorted(stored_as.items(), key=lambda item: (item[1].file, item[1].offset)):  # as they lie on the disk
        kind = ways.get(name.removesuffix(".weight"), "wide")
        made: Storage | AsItLies = STORAGES[kind](name, stored.shape, recipe, kind)
        if name in straight and isinstance(made, Wide) and dtype(stored) is made.dtype:
            made = AsItLies(name, straight[name])
            as_they_lie.append(name)
        parts = list(_split(name, stored, made.step, _PIECE))
        targets[name] = _Target(made, len(parts))
        pieces += parts
    lock = threading.Lock()

    def work(piece: _Piece, buffer: torch.Tensor) -> None:
        rows = buffer[: piece.size].view(dtype(piece.stored)).reshape(piece.rows, *piece.stored.shape[1:])
        target = targets[piece.name]
        if place is not None and target.storage.computes:
            rows = rows.to(place, non_blocking=True)  # what comes back waits for it
        if piece.stored.dtype.startswith("F8"):
            rows = rows.to(torch.bfloat16) * (1 if piece.stored.scale is None else piece.stored.scale)
        try:
            target.storage.add(piece.first, rows)
            with lock:
                target.missing -= 1
                if target.missing:
                    return
            done = target.storage.tensors()
        except NotFinite as error:
            raise EncoderError("encoder.not-finite", tensor=piece.stored.key, file=piece.stored.file.name) from error
        with lock:
            del targets[piece.name]
            found.update(done)

    _run(pieces, work, place, progress, cancelled)
    taken: dict[Path, list[torch.Tensor]] = {}
    for name in as_they_lie:
        taken.setdefault(stored_as[name].file, []).append(found[name])
    return Encoded(recipe, config, found, tuple(Mapped.of(file, before[file], tensors) for file, tensors in taken.items()))


def _run(
    pieces: list[_Piece],
    work: Callable[[_Piece, Any], None],
    place: str | None,
    progress: Callable[[int, int], None],
    cancelled: Callable[[], bool],
) -> None:
    """Read in this thread, ahead of those that work. The number of buffers is how far ahead."""
    import torch

    workers = min(_WORKERS if place is None else _WORKERS_GPU, os.cpu_count() or 1)
    total, done = sum(piece.size for piece in pieces), 0
    largest = max((piece.size for piece in pieces), default=0)
    free: queue.SimpleQueue[torch.Tensor] = queue.SimpleQueue()
    for _ in range(workers + 2):
        free.put(torch.empty(largest, dtype=torch.uint8, pin_memory=place is not None and place.startswith("cuda")))
    failed: list[BaseException] = []

    def one(piece: _Piece, buffer: torch.Tensor) -> None:
        try:
            if not failed:
                work(piece, buffer)
        except BaseException as error:
            failed.append(error)
        finally:
            free.put(buffer)

    with _alone(workers) as pool, ExitStack() as opened:
        files = {file: opened.enter_context(open(file, "rb", buffering=0)) for file in {piece.stored.file for piece in pieces}}
        try:
            for piece in pieces:
                if cancelled():
                    raise Stopped("encoder.stopped")
                buffer = free.get()
                if failed:
                    break
                _read(files[piece.stored.file], piece, buffer)
                pool.submit(one, piece, buffer)
                done += piece.size
                progress(done, total)
        except BaseException as error:
            failed.append(error)  # so that what waits is not done any more
    if failed:
        raise failed[0]


@contextmanager
def _alone(workers: int) -> Iterator[ThreadPoolExecutor]:
    """Threads, and torch starts none of its own meanwhile: two of ours with two of its own each wait for each other all the time."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(workers, "sd3-quantize") as pool:
            yield pool
    finally:
        torch.set_num_threads(before)


def _read(file: Any, piece: _Piece, buffer: torch.Tensor) -> None:
    file.seek(piece.offset)
    view = memoryview(buffer.numpy())[: piece.size]  # pyright: ignore[reportArgumentType]
    while len(view):
        count = file.readinto(view)
        if not count:
            raise EncoderError("source.file-damaged", file=piece.stored.file.name, error="it became shorter while it was read")
        view = view[count:]


def _split(name: str, stored: Stored, step: int, size: int) -> Iterator[_Piece]:
    """Pieces of about `size` bytes: whole rows, in multiples of `step`."""
    rows = stored.shape[0]
    width = stored.size // rows
    many = max(1, size // (width * step)) * step
    for first in range(0, rows, many):
        count = min(many, rows - first)
        yield _Piece(name, stored, first, count, stored.offset + first * width, count * width)


def _whole(weights: Weights, name: str, shape: tuple[int, ...]) -> Stored:
    """Where a tensor lies. Raises EncoderError unless it is there, in this shape."""
    stored = weights.tensors.get(name)
    if stored is None or stored.shape != shape:
        raise EncoderError("source.incomplete", source=weights.name, part=name)
    if stored.size != math.prod(shape) * dtype(stored).itemsize:
        raise EncoderError("source.file-damaged", file=stored.file.name, error=f"{stored.size} bytes for {name}")
    return stored


def _place(device: Device) -> str | None:
    """The GPU to quantize on, None for the CPU: where there is none, bitsandbytes does not know it, or it has no room."""
    import torch

    kind = device.torch.partition(":")[0]
    if kind not in ("cuda", "xpu"):
        return None
    try:
        free, _ = getattr(torch, kind).mem_get_info(device.torch)
    except (AttributeError, RuntimeError):  # older than torch 2.6 for xpu
        return None
    return device.torch if free > _ROOM else None
