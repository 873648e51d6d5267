"""The text encoder that is in a pipeline. The pipeline is asked, so that nothing here can disagree with what is loaded."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any

from sd3deploy import messages, units
from sd3deploy.deployment.wanted import Wanted
from sd3deploy.encoders import measure
from sd3deploy.encoders.choices import HOST_DEFAULT, NONE, Choice
from sd3deploy.encoders.mapped import Mapped
from sd3deploy.encoders.swap import plain
from sd3deploy.events import Events

__all__ = ["Made", "Placed"]


@dataclass(frozen=True)
class Made:
    """What is known about an encoder of ours. took: how long it was loaded and from where, as a sentence. mapped: it lies in a file.
    files: those that parts of it lie in. quantized_before: the form of its weights where they were quantized before they were read.
    """

    wanted: Wanted
    measure: measure.Measure
    took: str
    mapped: bool
    files: tuple[Mapped, ...] = ()
    quantized_before: str = ""


class Placed:
    """Knows the encoders that were made here, as long as they live. A part that the webui has compiled is known by the part inside of it.
    Called with any lock held; nothing here waits.
    """

    def __init__(self) -> None:
        self._made: weakref.WeakKeyDictionary[Any, Made] = weakref.WeakKeyDictionary()
        self._emptied: weakref.WeakSet[Any] = weakref.WeakSet()  # transformers whose pipelines were left without T5 by us

    def add(self, encoder: Any, made: Made) -> None:
        """Know an encoder that was made here."""
        self._made[encoder] = made

    def read(self, pipeline: Any) -> Wanted:
        """What is in the pipeline now."""
        encoder = pipeline.text_encoder_3
        if encoder is None:
            return Wanted(NONE if plain(getattr(pipeline, "transformer", None)) in self._emptied else HOST_DEFAULT)
        known = self._made.get(plain(encoder))
        return known.wanted if known else Wanted(HOST_DEFAULT)

    def set_emptied(self, pipeline: Any, emptied: bool) -> None:
        """Note whether a pipeline without T5 is so because of us."""
        (self._emptied.add if emptied else self._emptied.discard)(plain(pipeline.transformer))

    def measure(self, encoder: Any) -> measure.Measure:
        """What an encoder takes, which is known of one of ours and read off the tensors of another."""
        known = self._made.get(plain(encoder))
        return known.measure if known else measure.measure(encoder)

    def quantized_before(self, encoder: Any) -> str:
        """The form of its weights, where they were quantized before they were read; else ""."""
        known = self._made.get(plain(encoder)) if encoder is not None else None
        return known.quantized_before if known else ""

    def is_mapped(self, encoder: Any) -> bool:
        """Whether its tensors lie in a file, and take no memory that others could not have."""
        known = self._made.get(plain(encoder)) if encoder is not None else None
        return known is not None and known.mapped

    def changed_on_disk(self, encoder: Any) -> dict[str, Any] | None:
        """The name of the choice, and the file from which the encoder still reads where somebody has written to it: a stat, unless so."""
        known = self._made.get(plain(encoder)) if encoder is not None else None
        if known is None:
            return None
        for one in known.files:
            if one.changed(measure.tensors(plain(encoder))):
                return {"name": known.wanted.choice.name, "file": one.file}
        return None

    def tell_ready(self, choice: Choice, encoder: Any, events: Events) -> None:
        """Say that an encoder is in place, what it takes and how long that took."""
        if encoder is None:
            events.tell("success", "encoder.none-ready")
            return
        measured, known = self.measure(encoder), self._made.get(plain(encoder))
        id = "encoder.ready-smaller" if measured.bytes < measured.bytes_16bit * 0.95 else "encoder.ready"
        text = messages.text(id, name=choice.shown, size=units.size(measured.bytes), full=units.size(measured.bytes_16bit))
        events.add("success", id, messages.joined(text, known.took if known else ""), "")
