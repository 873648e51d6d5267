"""What is no container of tensors that can be read here: files that people take for a text encoder, or get in place of one."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from sd3deploy.lazy import lazy

__all__ = ["FOREIGN", "of_file", "of_folder"]

_HTML = lazy(rb"\s*<(!doctype|html|head|body|!--)", re.IGNORECASE)
_XML = lazy(rb"\s*<\?xml")


@dataclass(frozen=True)
class Foreign:
    """id: of the sentence, whose remedy says what to do. head: whether a file begins so. names: endings that tell where the head does not,
    also of files and folders in a folder."""

    id: str
    head: Callable[[bytes], object] = lambda head: False
    names: tuple[str, ...] = ()


FOREIGN = (
    Foreign("foreign.empty", lambda head: not head),
    Foreign("foreign.pointer", lambda head: head.startswith(b"version https://git-lfs")),
    Foreign("foreign.draw-things", lambda head: head.startswith(b"SQLite format 3\0")),
    Foreign("foreign.tensorflow", lambda head: head.startswith(b"\x89HDF\r\n\x1a\n"), ("tf_model.h5", ".h5")),
    Foreign("foreign.openvino", names=("openvino_model.xml", "openvino_model.bin")),
    Foreign("foreign.page", lambda head: _HTML.match(head)),
    Foreign("foreign.openvino", lambda head: _XML.match(head)),
    Foreign("foreign.onnx", names=(".onnx", ".onnx_data")),
    Foreign("foreign.flax", names=(".msgpack",)),
    Foreign("foreign.coreml", names=(".mlpackage", ".mlmodelc", ".mlmodel")),
)


def of_file(head: bytes, name: str) -> str | None:
    """The id of the sentence for a file that begins so and is called so."""
    return next((row.id for row in FOREIGN if row.head(head) or name.lower().endswith(row.names or ("\0",))), None)


def of_folder(names: Iterable[str]) -> str | None:
    """The same for a folder that holds these, and no weights."""
    lower = sorted(name.lower() for name in names)
    return next((row.id for row in FOREIGN if row.names and any(name.endswith(row.names) for name in lower)), None)
