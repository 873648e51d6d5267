"""safetensors, under whatever name, such as `.sft`."""

from __future__ import annotations

import hashlib

from sd3deploy.encoders.containers.content import Content
from sd3deploy.encoders.files import File
from sd3deploy.encoders.header import Header, parse, read_header
from sd3deploy.encoders.stored import Stored

__all__ = ["Safetensors"]

_LENGTH, _LONGEST = 8, 2**24  # bytes before the header, which tell its length; and its limit, as in header.py


class Safetensors:
    """A length, a header in JSON, and the tensors one after the other."""

    title = "safetensors"

    @staticmethod
    def mine(head: bytes, name: str) -> bool:
        return head[_LENGTH : _LENGTH + 1] == b"{"

    @staticmethod
    def read(file: File) -> Content:
        header = _elsewhere(file) if file.path is None else read_header(file.path)
        if header.size != file.size:
            raise ValueError(f"it has {file.size} bytes instead of {header.size}")
        found = {key: Stored(file, key, one.offset, one.size, one.dtype, one.shape) for key, one in header.tensors.items()}
        return Content(file, found, header.metadata, hashlib.sha256(header.raw).hexdigest())


def _elsewhere(file: File) -> Header:
    with file.open() as content:
        length = int.from_bytes(content.read(_LENGTH), "little")
        if not 0 < length <= min(_LONGEST, file.size - _LENGTH):
            raise ValueError("no header")
        raw = content.read(length)
    if len(raw) != length:
        raise ValueError("the header is cut off")
    return parse(raw)
