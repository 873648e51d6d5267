"""What a container of tensors has in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from sd3deploy.encoders.files import File
from sd3deploy.encoders.stored import Stored

__all__ = ["Container", "Content"]


@dataclass(frozen=True)
class Content:
    """tensors: key → where it lies. metadata: what else the header says, JSON-able. digest: a hash of the header."""

    file: File
    tensors: Mapping[str, Stored]
    metadata: Mapping[str, Any]
    digest: str


class Container(Protocol):
    """One kind of file."""

    title: str  # for people, the same in every language

    @staticmethod
    def mine(head: bytes, name: str) -> bool:
        """Whether a file is of this kind, by its first 512 bytes; the name tells only where they do not."""
        ...

    @staticmethod
    def read(file: File) -> Content:
        """Its header. Raises EncoderError for one that can not be used, with a remedy; OSError and ValueError for a damaged one."""
        ...
