"""From one text encoder to the next: the old one stays in the pipelines, and usable, as long as memory holds both of them.

RAM does not hold both: the old one goes before the next is read. The device does not: it makes way before the next is placed. The next one
fails, or somebody cancels it: the old one comes back. The change stands once `put` has returned; nothing that comes after it raises.
"""

from __future__ import annotations

import time
import traceback
import weakref
from collections.abc import Callable
from typing import Any, Protocol

from sd3deploy.encoders import measure, swap
from sd3deploy.encoders.choices import find
from sd3deploy.memory.capacity import Capacity
from sd3deploy.memory.sizes import PARTS
from sd3deploy.memory.t5_shape import T5_XXL

__all__ = ["Handover", "Host", "forget_tensors"]

WORK = 600_000_000  # bytes that reading and quantizing take beside the result: the limit that bench/load.py holds the loader to
_PAUSES = (0.1, 0.3, 1.0)  # seconds until a call that has the old encoder in its hands is looked for again
_LARGEST = T5_XXL.bytes(find("bf16"))


class Host(Protocol):
    """What it needs of the webui. swapped: place the encoder that has just come into a pipeline, and forget what the one before it has
    computed; raises where that fails, and is then called again with the old one. free: give unused memory back.
    """

    def capacity(self) -> Capacity: ...
    def swapped(self, pipeline: Any) -> None: ...
    def free(self) -> None: ...


class Handover:
    """One change of the encoder of a model, in all of its pipelines. Its methods are called with the queue and `Busy` held, or within the
    load of the model. again: loads the old one anew. mapped: the old one is read from a file as it is needed, and takes no memory that
    others could not have. gone: called when the old one has left before the next is there. failed: called with what a step raises that
    nothing depends on.
    """

    def __init__(
        self,
        pipeline: Any,
        host: Host,
        again: Callable[[], Any],
        mapped: bool,
        gone: Callable[[], None],
        failed: Callable[[Exception], None] = lambda error: None,
    ) -> None:
        self._pipeline, self._host, self._again, self._mapped, self._gone, self._failed = pipeline, host, again, mapped, gone, failed
        self._taken = False  # out of the pipelines and out of memory
        self._parked: Any = None  # the device that the old one has left for RAM
        old = swap.plain(pipeline.text_encoder_3)
        self._modules = [weakref.ref(module) for module in old.modules()] if old is not None else []

    def before_reading(self, need: Callable[[Any], int]) -> None:
        """Take the old one out where RAM does not hold another one beside it. need: the bytes of RAM that the next one takes while it is
        read, given the old one; asked only where the largest there is would not fit.
        """
        there = self._host.capacity()
        old = self._pipeline.text_encoder_3
        if old is None or not there.ram_usable or there.ram_usable >= _LARGEST + WORK:
            return
        taken = need(old)
        if not taken or there.ram_usable >= taken + WORK:
            return
        if there.unified or (_on_cpu(old) and not self._mapped):  # else nothing would be won
            del old
            self._take()

    def before_placing(self, need: Callable[[Any], int]) -> None:
        """Let the old one make way where the device does not hold another one beside it: into RAM, else out of the pipelines. need: the
        bytes that the next one takes there, given the old one.
        """
        there = self._host.capacity()
        old = self._pipeline.text_encoder_3
        if old is None or _on_cpu(old) or not there.usable or there.usable - _held(self._pipeline) >= need(old):
            return
        if not there.unified and there.ram_usable >= _bytes(old):
            device = _device(old)
            try:
                old.to("cpu")
                self._parked = device
            except Exception:  # one that can not be moved, such as with hooks of its own
                pass
        if self._parked is None:
            del old
            self._take()
        self._free()

    def put(self, encoder: Any, tokenizer: Any) -> None:
        """Put the next one in place. When the host can not take it the old one comes back everywhere, and the error goes on."""
        old = self._pipeline.text_encoder_3
        try:
            swap.replace(self._pipeline, encoder, tokenizer)
            self._host.swapped(self._pipeline)
        except Exception:
            swap.replace(self._pipeline, old)
            self._shielded(lambda: self._host.swapped(self._pipeline))
            raise

    def back(self) -> None:
        """The old one as it was, because there will be no next one. Raises what its loader raises; then the pipelines have none."""
        if self._taken or self._parked is not None:
            self._free()
        if self._parked is not None and self._pipeline.text_encoder_3 is not None:
            try:
                self._pipeline.text_encoder_3.to(self._parked)
            except Exception:  # something else has taken its place meanwhile
                self._take()
        if self._taken:
            swap.replace(self._pipeline, self._again())
            try:
                self._host.swapped(self._pipeline)
            except Exception:
                swap.replace(self._pipeline, None)
                raise

    def settle(self) -> list[str]:
        """After `put`: give back the memory of the old one. Returns the kinds of the objects that still hold it, empty as it should be.
        Raises nothing.
        """
        try:
            for pause in (*_PAUSES, 0.0):
                self._free()
                kept = self._holders()
                if kept != [swap.A_CALL] or not pause:
                    return kept
                time.sleep(pause)  # such as a request that asks for its size
            return []
        except Exception as error:
            self._failed(error)
            return []

    def _holders(self) -> list[str]:
        """The kinds of what holds the old one. In a function of its own: a name here would hold it, too."""
        return next((swap.kept_by(module) for one in self._modules if (module := one()) is not None), [])

    def _take(self) -> None:
        swap.replace(self._pipeline, None)
        self._taken = True
        self._gone()
        self._shielded(lambda: self._host.swapped(self._pipeline))
        self._free()

    def _free(self) -> None:
        self._shielded(self._host.free)

    def _shielded(self, step: Callable[[], Any]) -> None:
        try:
            step()
        except Exception as error:
            self._failed(error)


def forget_tensors(error: BaseException | None) -> None:
    """Let go of what the frames of an error hold: the encoder that has failed takes the memory that the one before it needs."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def _device(module: Any) -> Any:
    return next(module.parameters()).device


def _on_cpu(module: Any) -> bool:
    return _device(module).type in ("cpu", "meta")


def _bytes(module: Any, on_device: bool = False) -> int:
    tensors = [tensor for tensor in measure.tensors(module) if not on_device or tensor.device.type not in ("cpu", "meta")]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _held(pipeline: Any) -> int:
    """Bytes of the pipeline's parts that are on a device."""
    return sum(_bytes(part, on_device=True) for name in PARTS if (part := getattr(pipeline, name, None)) is not None)
