"""From a source of weights to an encoder that is ready to go into a pipeline."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sd3deploy.device import Device
from sd3deploy.encoders.assemble import assemble
from sd3deploy.encoders.choices import Choice, require
from sd3deploy.encoders.encoded import Encoded
from sd3deploy.encoders.mapped import Mapped
from sd3deploy.encoders.mode import ordinary
from sd3deploy.encoders.quantize import quantize
from sd3deploy.encoders.recipe import Recipe
from sd3deploy.encoders.rounding import quantized_before
from sd3deploy.encoders.source import Source
from sd3deploy.encoders.stopping import Stopped, stoppable
from sd3deploy.encoders.weights import Weights, bytes_of, open_weights
from sd3deploy.errors import EncoderError
from sd3deploy.memory import exhausted
from sd3deploy.units import size

if TYPE_CHECKING:
    import transformers

    from sd3deploy.encoders.cache import Cache
    from sd3deploy.encoders.cache.journal import Journal

__all__ = ["Read", "load", "read", "too_large", "writing"]

_writing: threading.Thread | None = None


@dataclass(frozen=True)
class Read:
    """An encoder in RAM that waits to be put where it is computed. cached: it comes from the disk's cache, and is memory-mapped. mapped:
    the files in which it lies. quantized_before: the form of weights that had been quantized when they were read, "Q5_K"; else "". notes:
    ids of sentences about the weights.
    """

    choice: Choice
    device: Device
    cached: bool
    _make: Callable[[], Any]
    mapped: tuple[Mapped, ...] = ()
    quantized_before: str = ""
    notes: tuple[str, ...] = ()

    def place(self) -> transformers.T5EncoderModel:
        """The encoder, in evaluation mode: with bitsandbytes' layers on the device, else on the CPU. Raises EncoderError with a remedy."""
        with _explained(self.choice, ""), ordinary():
            return self._make()


def read(
    choice: Choice,
    source: Source,
    device: Device,
    cache: Cache | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Read:
    """Read T5 from the cache, else from `source`, and quantize it as `choice` says; then it is written to the cache in the background.

    progress, cancelled: as for quantize. Raises Stopped, and EncoderError with a remedy when the device can not run the choice, the weights
    can not be read, or do not fit into memory.
    """
    require(choice, device)
    _quiet()
    with _explained(choice, source.name), stoppable(cancelled), ordinary():
        weights = open_weights(source)
        recipe = Recipe(choice, device.compute_dtype)
        before_us = quantized_before(weights, recipe, bytes_of)
        place = device.torch if "bitsandbytes" in choice.groups else "cpu"
        cache = cache if choice.quantized else None
        found = cache.find(weights, recipe) if cache else None
        if found is not None:
            progress(weights.size, weights.size)
            return Read(choice, device, True, lambda: assemble(found, place), found.mapped, before_us, weights.notes)
        before = weights.fingerprint()
        journal = cache.journal(weights, recipe, before) if cache and source.remote and source.remote.remote else None
        try:
            encoded = quantize(weights, recipe, device, progress, cancelled, journal)
        except BaseException as error:
            if journal:
                journal.close()  # the next attempt goes on with it
                if isinstance(error, Stopped) and (kept := weights.size_of(journal.finished)):
                    done, total = size(kept), size(weights.size)  # of the source, as in the progress
                    raise Stopped("encoder.cancelled-kept", name=choice.shown, done=done, total=total) from None
            raise
    if cache:
        _keep(cache, weights, recipe, encoded, before, journal)
    return Read(choice, device, False, lambda: assemble(encoded, place), encoded.mapped, before_us, weights.notes)


def load(choice: Choice, source: Source, device: Device, cache: Cache | None = None) -> transformers.T5EncoderModel:
    """`read`, and put where it is computed."""
    return read(choice, source, device, cache).place()


def writing() -> threading.Thread | None:
    """The thread that writes the last encoder to the cache, for whoever wants to wait for it."""
    return _writing


def _keep(cache: Cache, weights: Weights, recipe: Recipe, encoded: Encoded, before: list[Any], journal: Journal | None) -> None:
    """Write to the cache while the encoder is used already. The tensors are the encoder's own, of which none is changed in place."""
    global _writing

    _writing = threading.Thread(target=cache.keep, args=(weights, recipe, encoded, before, journal), name="sd3-cache", daemon=True)
    _writing.start()


@contextmanager
def _explained(choice: Choice, source: str) -> Iterator[None]:
    """Whatever goes wrong inside, as an EncoderError."""
    try:
        yield
    except EncoderError:
        raise
    except OSError as error:  # what transformers raises for a missing folder, file or repository, and the network's own errors
        if exhausted.read_exhausted(error):  # Windows has one of its own for that
            raise too_large(choice) from error
        raise EncoderError("encoder.unreadable", source=source, error=_first_line(error)) from error
    except Exception as error:
        if exhausted.read_exhausted(error):
            raise too_large(choice) from error
        raise EncoderError("encoder.failed", name=choice.shown, error=f"{type(error).__name__}: {_first_line(error)}") from error


def _quiet() -> None:
    """Keep two harmless messages of bitsandbytes out of the log; it repeats one of them for every layer of every prompt."""
    for logger in ("bitsandbytes.autograd._functions", "bitsandbytes.backends.cpu.ops"):
        logging.getLogger(logger).addFilter(_not_noise)


def _not_noise(record: logging.LogRecord) -> bool:
    return not record.msg.startswith(("MatMul8bitLt: inputs will be cast", "Failed to load CPU gemm_4bit_forward"))


def too_large(choice: Choice) -> EncoderError:
    """The error for a choice that did not fit into memory."""
    return EncoderError("encoder.out-of-memory", name=choice.shown, size=f"{(choice.bytes or 0) / 1e9:.1f}")


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
