"""The header of a safetensors file, read as strictly as the safetensors library reads it, and without that library.

Everything here that looks at a safetensors file without loading it reads its header here: the loader, the estimate, and doctor, which also
runs where no library is installed. What the library refuses is refused (a test mutates headers and compares).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn

__all__ = ["Header", "Tensor", "read_header"]

_LENGTH = 8  # bytes before the header, which tell its length
_LONGEST = 2**24  # bytes: that of T5-XXL has 25 KB, of a whole model some 300; parsed it takes 30 times as much memory
_LARGEST = 2**64 - 1  # the library counts in 64 bits
# Bits of one number of each type (safetensors 0.8.0, Dtype).
_BITS = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 16),
    **dict.fromkeys(("I32", "U32", "F32"), 32),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 64),
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
}
_FIELDS = {"dtype", "shape", "data_offsets"}


@dataclass(frozen=True)
class Tensor:
    """What the header says of one tensor. dtype: safetensors' name. offset: bytes from the beginning of the file. size: bytes."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    size: int

    @property
    def count(self) -> int:
        """How many numbers it has."""
        count = 1
        for side in self.shape:
            count *= side
        return count


@dataclass(frozen=True)
class Header:
    """raw: its bytes. size: bytes that the whole file has when nothing is missing. metadata: words that whoever wrote it has added."""

    raw: bytes
    size: int
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]


def read_header(file: Path) -> Header:
    """The header of a file, whose content may be cut off: compare `size` with that of the file.

    Raises ValueError that says what is wrong with it, OSError where it can not be read. It is read again only when the file has changed.
    """
    stat = file.stat()
    return _read(file, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)


@lru_cache(64)
def _read(file: Path, size: int, *_changed: int) -> Header:
    with open(file, "rb") as content:
        length = int.from_bytes(content.read(_LENGTH), "little")
        if not 0 < length <= min(_LONGEST, size - _LENGTH):
            raise ValueError("no header")
        raw = content.read(length)
    if len(raw) != length:
        raise ValueError("the header is cut off")
    return parse(raw)


def parse(raw: bytes) -> Header:
    """A header by its bytes, which follow the eight of its length. Raises ValueError that says what is wrong with it."""
    start = _LENGTH + len(raw)
    found = _json(raw)
    metadata = found.pop("__metadata__", None)
    metadata = {} if metadata is None else metadata
    if not (isinstance(metadata, dict) and all(isinstance(one, str) for one in metadata.values())):
        raise ValueError("its metadata are no texts")
    tensors = _tensors(found, start)
    return Header(raw, max((one.offset + one.size for one in tensors.values()), default=start), tensors, metadata)


def _json(raw: bytes) -> dict[str, Any]:
    """The JSON of a header. Python's reader takes UTF-16, NaN, −0, keys twice and halves of characters: none of them is JSON here."""
    try:
        found = json.loads(raw.decode(), object_pairs_hook=_once, parse_int=_whole, parse_constant=_no_number)
    except RecursionError:
        raise ValueError("the header is nested too deeply") from None
    if not isinstance(found, dict):
        raise ValueError("the header is no JSON object")
    json.dumps(found, ensure_ascii=False).encode()  # raises UnicodeEncodeError, a ValueError, for half a character
    return found


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("the header names something twice")
    return found


def _whole(digits: str) -> int:
    if digits.startswith("-") or len(digits) > 20:  # 2**64 has 20 digits
        raise ValueError(f"{digits[:20]} is no size")
    return int(digits)


def _no_number(word: str) -> NoReturn:
    raise ValueError(f"{word} is no number")


def _tensors(header: dict[str, Any], start: int) -> dict[str, Tensor]:
    """The tensors, which cover all that follows the header, each byte once. start: bytes before them."""
    found = {name: _tensor(name, entry, start) for name, entry in header.items()}
    end = start
    for name, tensor in sorted(found.items(), key=lambda item: (item[1].offset, item[1].size)):
        if tensor.offset != end:
            raise ValueError(f"{name} overlaps with another tensor, or there is a gap before it")
        end += tensor.size
    return found


def _tensor(name: str, entry: Any, start: int) -> Tensor:
    if not isinstance(entry, dict) or entry.keys() != _FIELDS:  # a field that is not known may change what the others mean
        raise ValueError(f"{name} has no description that is known")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _BITS:
        raise ValueError(f"{name} is of an unknown type ({str(dtype)[:40]})")
    if not (_sizes(shape) and _sizes(offsets) and len(offsets) == 2):
        raise ValueError(f"{name} has no shape or no place")
    bits = 1
    for side in (*shape, _BITS[dtype]):
        bits *= side
        if bits > _LARGEST:
            raise ValueError(f"{name} is too large")
    first, last = offsets
    if bits % 8 or last - first != bits // 8:
        raise ValueError(f"{name} has {last - first} bytes for {dtype} {list(shape)}")
    return Tensor(dtype, tuple(shape), start + first, last - first)


def _sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(one) is int and one <= _LARGEST for one in value)
