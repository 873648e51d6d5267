"""From the files of T5 to tensors that are quantized: piece by piece, so that nothing is in memory twice.

One thread reads, the others quantize what was read; on a GPU the pieces go there and come back. What they make is the library's own
serialization: the same that is kept on disk, and that an encoder is put together from.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sd3deploy.device import Device
from sd3deploy.encoders.assemble import layers, quantization_config, shapes
from sd3deploy.encoders.encoded import Encoded
from sd3deploy.encoders.files import File, Foreseeing
from sd3deploy.encoders.finite import NotFinite
from sd3deploy.encoders.mapped import Mapped, stamp
from sd3deploy.encoders.recipe import Recipe
from sd3deploy.encoders.stopping import Stopped, stoppable
from sd3deploy.encoders.storage import STORAGES, AsItLies, Storage, Taken, Wide
from sd3deploy.encoders.stored import Decode, Weight
from sd3deploy.encoders.weights import Weights, bytes_of, mapped, read_into, straight
from sd3deploy.errors import EncoderError
from sd3deploy.memory import exhausted, heap

if TYPE_CHECKING:
    import torch

    from sd3deploy.encoders.cache.journal import Journal

__all__ = ["Stopped", "quantize"]

_PIECE = 8 * 2**20  # bytes read at a time; on a GPU each takes 200 MB (four_bit.py)
_TRIM = 64  # pieces after which free memory is given back: results lie between what was needed for a moment, and keep it resident
_WORKERS = 8  # threads at most: from there on reading is slower
_WORKERS_GPU = 2  # what takes time there is to start its kernels, which threads do one after the other
_ROOM = 2**30  # bytes free on a GPU for quantizing there
_numbering = threading.Lock()  # held while a thread gets its number of torch's threads


@dataclass
class _Target:
    """A tensor that is being made. missing: pieces. decode: set when the first one is read."""

    storage: Storage | AsItLies | Taken
    missing: int
    decode: Decode | None = None


@dataclass(frozen=True)
class _Piece:
    name: str
    weight: Weight
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
    journal: Journal | None = None,
) -> Encoded:
    """Read and quantize. progress: called with the bytes of the source that are done and those of all of it. journal: has what was finished
    before, which counts as done and is not read again, and gets what is finished now.

    Raises Stopped soon after `cancelled` says yes, EncoderError for files that lack a part of T5 or hold no numbers.
    """
    place = _place(device) if recipe.choice.quantized else None
    try:
        return _quantize(weights, recipe, place, progress, cancelled, journal)
    except Exception as error:
        if place is None or not exhausted.read_exhausted(error):
            raise
    return _quantize(weights, recipe, None, progress, cancelled, journal)  # somebody else took the room on the GPU


def _quantize(
    weights: Weights,
    recipe: Recipe,
    place: str | None,
    progress: Callable[[int, int], None],
    cancelled: Callable[[], bool],
    journal: Journal | None,
) -> Encoded:
    unread = [(file, file.fingerprint()) for file in weights.files]
    config = dict(weights.config) | {"architectures": ["T5EncoderModel"], "dtype": recipe.compute}
    if (known := quantization_config(recipe)) is not None:
        config["quantization_config"] = known.to_dict()
    needed, skeleton = shapes(weights.config)
    stored_as = {name: _whole(weights, name, shape) for name, shape in needed.items() if 0 not in shape}  # a part of T5 has no embedding
    ways = layers(skeleton, recipe)
    finished = journal.take() if journal else {}
    found: dict[str, torch.Tensor] = {key: tensor for tensors in finished.values() for key, tensor in tensors.items()}
    targets, pieces, as_they_lie = {}, [], []
    before = {file.path: stamp(file.path) for file in weights.files if file.path}
    order = {file: number for number, file in enumerate(weights.files)}
    lying = mapped(_only(weights, stored_as)) if recipe.choice.stored == "wide" else {}  # what is as wanted needs no copy
    for name, weight in sorted(stored_as.items(), key=lambda item: (order[item[1].stored.file], item[1].stored.offset)):
        if name in finished:
            continue
        kind = ways.get(name.removesuffix(".weight"), "wide")
        made: Storage | AsItLies | Taken | None = Taken.of(name, weight, recipe, kind, bytes_of)
        made = made or STORAGES[kind](name, weight.shape, recipe, kind)
        if name in lying and isinstance(made, Wide) and straight(weight) is made.dtype:
            made = AsItLies(name, lying[name])
            as_they_lie.append(name)
        parts = list(_split(name, weight, math.lcm(made.step, weight.layout.step), _PIECE))
        targets[name] = _Target(made, len(parts))
        pieces += parts
    lock = threading.Lock()

    def work(piece: _Piece, buffer: torch.Tensor) -> None:
        target = targets[piece.name]
        assert target.decode is not None
        rows = target.decode(buffer[: piece.size], piece.first, piece.rows)
        if not isinstance(target.storage, Taken):
            rows = rows.reshape(piece.rows, *piece.weight.shape[1:])
        if place is not None and target.storage.computes:
            rows = rows.to(place, non_blocking=True)  # what comes back waits for it
        try:
            target.storage.add(piece.first, rows)
            with lock:
                target.missing -= 1
                if target.missing:
                    return
            done = target.storage.tensors()
        except NotFinite as error:
            stored = piece.weight.stored
            raise EncoderError("encoder.not-finite", tensor=stored.key, file=stored.file.name) from error
        if journal:
            journal.add(piece.name, done)
        with lock:
            del targets[piece.name]
            found.update(done)

    def begin(piece: _Piece) -> None:
        if targets[piece.name].decode is None:
            try:
                taken = isinstance(targets[piece.name].storage, Taken)
                targets[piece.name].decode = _as_bytes if taken else piece.weight.layout.open(bytes_of)
            except ValueError as error:
                raise EncoderError("source.file-damaged", file=piece.weight.stored.file.name, error=error) from error

    _run(pieces, begin, work, place, progress, cancelled, sum(stored_as[name].stored.size for name in finished))
    for file, as_it_was in unread:
        if _changed(file, as_it_was):
            raise EncoderError("source.changed", file=file.name)
    taken: dict[Path, list[torch.Tensor]] = {}
    for name in as_they_lie:
        if path := stored_as[name].stored.file.path:
            taken.setdefault(path, []).append(found[name])
    return Encoded(recipe, config, found, tuple(Mapped.of(file, before[file], tensors) for file, tensors in taken.items()))


def _changed(file: File, before: dict[str, Any]) -> bool:
    """Whether a file is another one than before it was read: then what was read is of both. One that is gone was open to the end."""
    try:
        return file.fingerprint() != before
    except OSError:
        return False


def _as_bytes(data: torch.Tensor, first: int, rows: int) -> torch.Tensor:
    """What is taken as it is stored."""
    return data


def _run(
    pieces: list[_Piece],
    begin: Callable[[_Piece], None],
    work: Callable[[_Piece, Any], None],
    place: str | None,
    progress: Callable[[int, int], None],
    cancelled: Callable[[], bool],
    before: int = 0,
) -> None:
    """Read in this thread, ahead of those that work. The number of buffers is how far ahead. begin: called before a piece is read. before:
    bytes that were done earlier.
    """
    import torch

    workers = min(_WORKERS if place is None else _WORKERS_GPU, os.cpu_count() or 1)
    total, done = before + sum(piece.size for piece in pieces), before
    if before:
        progress(done, total)
    largest = max((piece.size for piece in pieces), default=0)
    free: queue.SimpleQueue[torch.Tensor] = queue.SimpleQueue()
    for _ in range(workers + 2):
        free.put(torch.empty(largest, dtype=torch.uint8, pin_memory=place is not None and place.startswith("cuda")))
    failed: list[BaseException] = []
    begun: set[File] = set()

    def one(piece: _Piece, buffer: torch.Tensor) -> None:
        try:
            if not failed:
                work(piece, buffer)
        except BaseException as error:
            failed.append(error)
        finally:
            free.put(buffer)

    with ThreadPoolExecutor(workers, "sd3-quantize", _alone) as pool, stoppable(cancelled), ExitStack() as opened:
        files: dict[File, Any] = {file: opened.enter_context(file.open()) for file in {piece.weight.stored.file for piece in pieces}}
        try:
            for number, piece in enumerate(pieces, 1):
                if number % _TRIM == 0:
                    heap.trim()
                if piece.weight.stored.file not in begun:
                    begun.add(piece.weight.stored.file)
                    _announce(files[piece.weight.stored.file], piece.weight.stored.file, pieces)
                if cancelled():
                    raise Stopped("encoder.stopped")
                buffer = free.get()
                if failed:
                    break
                begin(piece)
                _read(files[piece.weight.stored.file], piece, buffer)
                pool.submit(one, piece, buffer)
                done += piece.size
                progress(done, total)
        except BaseException as error:
            failed.append(error)  # so that what waits is not done any more
    if failed:
        raise failed[0]


def _alone() -> None:
    """Let torch start no threads for this one: two of ours with two of its own each wait for each other all the time.

    A thread keeps its number, which only OpenMP sets for one thread. torch's own function sets it for all threads too that have not used
    torch yet, which are not ours: where OpenMP is not found, another thread puts that number back at once.
    """
    import torch

    of_others = torch.get_num_threads()  # with its first use of torch this thread gets a number of its own
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(str(Path(torch.__file__).with_name("lib") / "libtorch_cpu.so")).omp_set_num_threads(1)
    with _numbering:
        if torch.get_num_threads() != 1:
            torch.set_num_threads(1)
            back = threading.Thread(target=torch.set_num_threads, args=(of_others,))
            back.start()
            back.join()


def _announce(content: Any, file: File, pieces: list[_Piece]) -> None:
    """Tell a reader that fetches ahead what of its file will be read. Only now: the file before has been read to its end."""
    if isinstance(content, Foreseeing):
        content.expect((piece.offset, piece.size) for piece in pieces if piece.weight.stored.file == file)


def _read(file: Any, piece: _Piece, buffer: torch.Tensor) -> None:
    file.seek(piece.offset)
    view = memoryview(buffer.numpy())[: piece.size]  # pyright: ignore[reportArgumentType]
    read_into(file, view, piece.weight.stored.file.name)


def _split(name: str, weight: Weight, step: int, size: int) -> Iterator[_Piece]:
    """Pieces of about `size` bytes: whole rows, in multiples of `step`. Of less than 16 bit, as many numbers: decoded they take as much."""
    rows = weight.shape[0]
    width = weight.stored.size / rows  # of some forms the rows of one step together fill whole bytes
    many = max(1, int(size // (max(width, 2 * math.prod(weight.shape[1:])) * step))) * step
    for first in range(0, rows, many):
        count = min(many, rows - first)
        start, end = round(first * width), round((first + count) * width)
        yield _Piece(name, weight, first, count, weight.stored.offset + start, end - start)


def _whole(weights: Weights, name: str, shape: tuple[int, ...]) -> Weight:
    """What lies on disk. Raises EncoderError unless it is there, in this shape."""
    weight = weights.tensors.get(name)
    if weight is None or weight.shape != shape:
        raise EncoderError("source.incomplete", source=weights.name, part=name)
    return weight


def _only(weights: Weights, needed: dict[str, Weight]) -> Weights:
    """Those that lie on disk as numbers."""
    return Weights(weights.name, weights.config, {name: weight for name, weight in needed.items() if straight(weight)})


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
