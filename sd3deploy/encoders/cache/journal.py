"""An encoder in the making on disk: what has been quantized of a source that is read over the network, so that a restart does not lose it.

It is the entry's own model.safetensors: large tensors are appended as they are finished, in any order, behind room for the header, which
is written last, with the small tensors behind. Beside it lies a list of what is finished, with the small tensors in it. So each byte is
written once, but for the small tensors (some MB) and the room for the header.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import shutil
import threading
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sd3deploy.encoders.cache.entry import LIST, LOCK, MODEL
from sd3deploy.encoders.cache.tensors import Progress, bytes_of, named, place_of, quiet, type_of
from sd3deploy.file_lock import try_lock

if TYPE_CHECKING:
    import torch

__all__ = ["JOURNAL", "Journal", "finished_of", "folder_of", "source_of"]

JOURNAL = ".sd3-journal-"  # how its folder begins
FORMAT = 3
HEADER = 1 << 20  # bytes of room; that of T5-XXL in NF4 has 150 KB
_SMALL = 1 << 14  # bytes of a tensor that is kept in the list
_STEP = 8  # bytes: where any type may lie, so what is appended is a multiple of it
_PIECE = 1 << 22  # bytes hashed at a time


class Journal:
    """folder: of the journal. `add` is called by several threads. The lock of the folder is held until `close`."""

    def __init__(self, folder: Path, key: str, source: Mapping[str, str], descriptor: int) -> None:
        self.folder = folder
        self._descriptor: int | None = descriptor
        self._head = {"format": FORMAT, "key": key, "source": dict(source)}
        self._lock = threading.Lock()
        self._places: dict[str, tuple[str, list[int], int, int]] = {}  # of what was appended: type, shape, offset, bytes
        self._failed = False
        self._finished: dict[str, dict[str, Any]] = {}  # weight → its line of the list
        self._end = self._read()
        self._data = open(folder / MODEL, "r+b" if (folder / MODEL).exists() else "w+b", buffering=0)  # noqa: SIM115
        self._data.truncate(self._end)

    @classmethod
    def begin(cls, parent: Path, key: str, source: Mapping[str, str]) -> Journal | None:
        """Go on with the one of this key, or begin it. source: hashes of where the weights are (`place`) and of what they are (`content`).
        None where another process is at it. Raises OSError. The caller holds the lock of the cache.
        """
        folder = folder_of(parent, key)
        folder.mkdir(exist_ok=True)
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if try_lock(descriptor):
                return cls(folder, key, source, descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        return None

    @property
    def finished(self) -> frozenset[str]:
        """The weights that are finished."""
        return frozenset(self._finished)

    def take(self) -> dict[str, dict[str, torch.Tensor]]:
        """Weight → its tensors, of those that are finished. What does not have the bytes that were written is forgotten."""
        with self._lock:
            found = {}
            for weight, line in list(self._finished.items()):
                try:
                    found[weight] = self._tensors(line)
                except (OSError, ValueError):
                    self._forget(weight)
            return found

    def add(self, weight: str, tensors: Mapping[str, torch.Tensor]) -> None:
        """A weight is finished. On the disk when this returns; where the disk does not take it the journal ends, and nothing else."""
        with self._lock:
            if self._failed or weight in self._finished:
                return
            try:
                self._add(weight, tensors)
            except OSError:
                self._failed = True

    def whole(self, tensors: Mapping[str, torch.Tensor]) -> bool:
        """Whether `finish` can make the file of these tensors."""
        return not self._failed and self._places.keys() <= tensors.keys()

    def finish(self, tensors: Mapping[str, torch.Tensor], progress: Progress = quiet) -> str:
        """Make the file whole, and flush it to the disk. Returns its sha256. Whoever is interrupted before the folder is an entry goes on
        with it. Raises OSError, and ValueError where the header has no room.
        """
        with self._lock:
            header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers asks for that
            start = 8 + HEADER
            for name, (dtype, shape, offset, size) in self._places.items():
                header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset - start, offset - start + size]}
            end, rest = self._end, []
            for name, tensor in sorted(tensors.items(), key=place_of):
                if name not in self._places:
                    content = bytes_of(tensor)
                    places = [end - start, end - start + len(content)]
                    header[name] = {"dtype": type_of(tensor), "shape": list(tensor.shape), "data_offsets": places}
                    rest.append(content)
                    end += len(content)
            head = json.dumps(header, separators=(",", ":")).encode()
            if len(head) > HEADER:
                raise ValueError(f"a header of {len(head)} bytes")
            self._write(self._end, rest)
            self._write(0, [HEADER.to_bytes(8, "little") + head.ljust(HEADER)])
            self._data.truncate(end)
            os.fsync(self._data.fileno())
            digest = self._hash(end, progress)
        self.close()
        return digest

    def close(self) -> None:
        """Leave it for the next attempt. May be called twice."""
        with self._lock:
            self._data.close()
            if self._descriptor is not None:
                os.close(self._descriptor)
                self._descriptor = None

    def discard(self) -> None:
        """Remove it. Nothing happens to what has become an entry."""
        self.close()
        if self.folder.name.startswith(JOURNAL):
            shutil.rmtree(self.folder, ignore_errors=True)

    # The steps

    def _read(self) -> int:
        """Read the list as far as it is whole. Returns where the tensors end."""
        end, good = 8 + HEADER, 0
        try:
            lines = (self.folder / LIST).read_bytes().splitlines(keepends=True)
            size = (self.folder / MODEL).stat().st_size
        except FileNotFoundError:
            lines, size = [], 0
        for number, text in enumerate(lines):
            try:
                line = _line(text)
                if number == 0:
                    if line != self._head:
                        break
                elif _end_of(line, end) > size:
                    break
                else:
                    end = max(end, _end_of(line, end))
                    self._note(line)
            except (ValueError, KeyError, TypeError):
                break
            good += len(text)
        with open(self.folder / LIST, "ab") as file:
            file.truncate(good)
            if not good:
                file.write(_text(self._head))
        os.utime(self.folder / LIST)  # it is used now
        return end

    def _note(self, line: dict[str, Any]) -> None:
        self._finished[line["weight"]] = line
        for name, one in line["tensors"].items():
            if "at" in one:
                self._places[name] = (one["dtype"], one["shape"], one["at"], one["size"])

    def _forget(self, weight: str) -> None:
        """It is made anew, at the end; the bytes of the old one would be a gap, which the format does not have: so nothing of it stays."""
        self._failed = True
        del self._finished[weight]

    def _tensors(self, line: dict[str, Any]) -> dict[str, torch.Tensor]:
        import torch

        found, check = {}, 0
        for name, one in line["tensors"].items():
            if "data" in one:
                data = bytearray(base64.b64decode(one["data"], validate=True))
            else:
                data = bytearray(one["size"])
                self._data.seek(one["at"])
                view = memoryview(data)
                while view and (count := self._data.readinto(view)):
                    view = view[count:]
            check = zlib.crc32(data, check)
            flat = torch.frombuffer(data, dtype=named(one["dtype"])) if data else torch.empty(0, dtype=named(one["dtype"]))
            found[name] = flat.reshape(one["shape"])
        if check != line["crc32"]:
            raise ValueError("other bytes than were written")
        return found

    def _add(self, weight: str, tensors: Mapping[str, torch.Tensor]) -> None:
        line: dict[str, Any] = {"weight": weight, "tensors": {}, "crc32": 0}
        end, large = self._end, []
        for name, tensor in tensors.items():
            content = bytes_of(tensor)
            one: dict[str, Any] = {"dtype": type_of(tensor), "shape": list(tensor.shape)}
            if _appended(tensor):
                one |= {"at": end, "size": len(content)}
                large.append(content)
                end += len(content)
            elif len(content) > _SMALL:
                return  # of an odd size: it is made again where it has to be
            else:
                one["data"] = base64.b64encode(content).decode()
            line["tensors"][name] = one
            line["crc32"] = zlib.crc32(content, line["crc32"])
        self._write(self._end, large)
        if large:
            os.fsync(self._data.fileno())
        with open(self.folder / LIST, "ab") as file:
            file.write(_text(line))
            file.flush()
            os.fsync(file.fileno())
        self._end = end
        self._note(line)

    def _write(self, offset: int, contents: list[Any]) -> None:
        self._data.seek(offset)
        for content in contents:
            view = memoryview(content)
            while view:
                view = view[self._data.write(view) :]

    def _hash(self, size: int, progress: Progress) -> str:
        digest, piece, done = hashlib.sha256(), bytearray(_PIECE), 0
        self._data.seek(0)
        while count := self._data.readinto(piece):
            digest.update(memoryview(piece)[:count])
            done += count
            progress(done, size)
        return digest.hexdigest()


def folder_of(parent: Path, key: str) -> Path:
    """Where the journal of this key is, or would be."""
    return parent / f"{JOURNAL}{key[:12]}"


def source_of(folder: Path) -> dict[str, str] | None:
    """What the journal in this folder is made of, as `begin` was told; None where that can not be read."""
    try:
        with open(folder / LIST, "rb") as file:
            head = _line(file.readline())
        return dict(head["source"]) if head["format"] == FORMAT else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def finished_of(parent: Path, key: str) -> frozenset[str]:
    """The weights that are finished in the journal of this key, as far as its list is whole. Takes no lock and changes nothing."""
    found: set[str] = set()
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError), open(folder_of(parent, key) / LIST, "rb") as file:
        if _line(file.readline())["key"] == key:
            for text in file:
                found.add(_line(text)["weight"])
    return frozenset(found)


def _appended(tensor: torch.Tensor) -> bool:
    """Whether it goes right into the file."""
    size = tensor.numel() * tensor.element_size()
    return size > _SMALL and size % _STEP == 0


def _text(line: Mapping[str, Any]) -> bytes:
    """A line of the list, with a checksum before it: names, types and shapes are believed as the bytes are."""
    content = json.dumps(line).encode()
    return b"%08x %b\n" % (zlib.crc32(content), content)


def _line(text: bytes) -> dict[str, Any]:
    """The reverse of `_text`. Raises ValueError for one that is not as it was written."""
    check, _, content = text.removesuffix(b"\n").partition(b" ")
    if not text.endswith(b"\n") or int(check, 16) != zlib.crc32(content):
        raise ValueError("another line than was written")
    return json.loads(content)


def _end_of(line: Mapping[str, Any], end: int) -> int:
    return max((one["at"] + one["size"] for one in line["tensors"].values() if "at" in one), default=end)
