"""What a form of weights is asked, and what it answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from sd3deploy.encoders.files import File
from sd3deploy.encoders.stored import Layout, Stored

__all__ = ["Form", "Layer", "Mine", "NotMine", "Unusable"]


@dataclass(frozen=True)
class Layer:
    """A layer with all that lies below its name. path: as transformers names it, "encoder.block.0.layer.0.SelfAttention.q". parts: the
    rest of a key, such as "weight" or "weight_scale" → where that lies. declared: what the file says about it in words, the marker's
    name → its content (declared.py); None where it says nothing. folder: `quantization_config` of the folder's config.json.
    """

    path: str
    parts: Mapping[str, Stored]
    declared: Mapping[str, Any] | None = None
    folder: Mapping[str, Any] = field(default_factory=dict)

    @property
    def file(self) -> File:
        """Where it lies; the first one, where its parts are spread over several."""
        return next(iter(self.parts.values())).file


@dataclass(frozen=True)
class Mine:
    """It is. stored: what is read piece by piece. shape: of the weight. used: parts that the layout reads or that are understood."""

    stored: Stored
    shape: tuple[int, ...]
    layout: Layout
    used: frozenset[str] = frozenset({"weight"})


@dataclass(frozen=True)
class NotMine:
    """It is not. why: in English, for the refusal. near: how many of its signs are there."""

    why: str
    near: int = 0


@dataclass(frozen=True)
class Unusable:
    """It is, and can not be read. id: of the sentence in messages/, which has {file} and {layer} beside these values."""

    id: str
    values: Mapping[str, object] = field(default_factory=dict)


class Form(Protocol):
    """One form. title, example: for docs/files.md, the same in every language; example is a file that people have. read: whether
    it is read at all; what is not is known by its name.
    """

    title: str
    example: str
    read: bool

    @staticmethod
    def look(layer: Layer) -> Mine | NotMine | Unusable:
        """Whether a layer is of this form. Reads no file. Raises nothing."""
        ...
