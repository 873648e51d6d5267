"""What torch.save writes, such as `pytorch_model.bin`: a zip with a pickle, which names the tensors, and a file for each of them.

The pickle is read by torch's own reader for files from strangers, with tensors that have no memory: it tells where each of them lies.
"""

from __future__ import annotations

import hashlib
import math
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sd3deploy.encoders.containers.content import Content
from sd3deploy.encoders.files import File
from sd3deploy.encoders.stored import Stored
from sd3deploy.errors import EncoderError
from sd3deploy.lazy import lazy

__all__ = ["TorchZip"]

_LOCAL, _NAME, _EXTRA = 30, 26, 28  # of a zip's local header: its bytes, and where the lengths of name and extra field stand
_LARGEST = 2**22  # bytes of a pickle; that of T5-XXL has 40 KB
_SAFE = (2, 6)  # torch.load(weights_only=True) could run code before (CVE-2025-32434)
_BARE = lazy(rb"\x80[\x02-\x05][\x8a}cXU(\x95]")  # a pickle outside of a zip, as torch wrote before 1.6


@dataclass(frozen=True)
class _Record:
    """A file in the zip. name: without the folder; empty where torch has looked the place up. Since 2.7 it calculates the places, as they
    are where nobody has packed the zip anew: then the names must be "data/0" and so on, in the order of the pickle.
    """

    name: str
    size: int


class TorchZip:
    """A pickle in a zip."""

    title = "PyTorch (.bin, .pt)"

    @staticmethod
    def mine(head: bytes, name: str) -> bool:
        return head.startswith(b"PK\x03\x04") or _BARE.match(head) is not None

    @staticmethod
    def read(file: File) -> Content:
        path = file.path
        if path is None:
            raise EncoderError("pickle.elsewhere", file=file.name)
        with file.open() as opened:
            if opened.read(2) != b"PK":
                raise EncoderError("pickle.bare", file=file.name)
        records, raw = _records(path, file.name)
        tensors: dict[str, Stored] = {}
        storages: dict[int, int] = {}  # offset → number, in the order of the pickle
        for key, tensor in _load(path, file.name).items():
            tensors[str(key)] = _stored(file, str(key), tensor, records, storages)
        return Content(file, tensors, {}, hashlib.sha256(raw).hexdigest())


def _records(path: Path, name: str) -> tuple[dict[int, _Record], bytes]:
    """Offset → what lies in the zip as it is; and the pickle. Raises EncoderError for a zip that torch did not write."""
    found, pickled, calculated = {}, None, False
    try:
        with zipfile.ZipFile(path) as archive, path.open("rb") as opened:
            for one in archive.infolist():
                if one.filename.endswith("/data.pkl") and one.filename.count("/") == 1:
                    if one.file_size > _LARGEST:
                        raise ValueError("its pickle is too large")
                    pickled = archive.read(one)
                elif one.compress_type == zipfile.ZIP_STORED and not one.flag_bits & 1:
                    opened.seek(one.header_offset)
                    local = opened.read(_LOCAL)
                    if len(local) < _LOCAL:
                        raise ValueError("it is cut off")
                    lengths = sum(int.from_bytes(local[at : at + 2], "little") for at in (_NAME, _EXTRA))
                    found[one.header_offset + _LOCAL + lengths] = _Record(one.filename.partition("/")[2], one.file_size)
                calculated = calculated or one.filename.endswith("/.format_version")
                if one.filename.endswith("/byteorder") and one.file_size < 100 and archive.read(one) != b"little":
                    raise EncoderError("pickle.big-endian", file=name)
    except (EncoderError, OSError, ValueError):
        raise
    except Exception as error:  # a damaged archive makes zipfile and the decompressors fail in ways of their own
        raise ValueError(f"{type(error).__name__}: {error}") from error
    if pickled is None:
        raise EncoderError("pickle.archive", file=name)
    if calculated:
        return found, pickled
    return {start: _Record("", record.size) for start, record in found.items()}, pickled


def _load(path: Path, name: str) -> Mapping[Any, Any]:
    """The tensors, without memory. Raises EncoderError for a pickle that names anything else than tensors."""
    import pickle

    import torch

    version = tuple(int(part) for part in re.findall(r"\d+", torch.__version__)[:2])
    if version < _SAFE:
        raise EncoderError("pickle.torch", file=name, version=torch.__version__)
    from torch._subclasses.fake_tensor import FakeTensorMode

    try:
        with FakeTensorMode():
            found = torch.load(path, weights_only=True, map_location="cpu")
    except pickle.UnpicklingError as error:
        raise EncoderError("pickle.unsafe", file=name) from error
    except (OSError, ValueError):
        raise
    except Exception as error:  # a pickle may make any call of the few that are allowed fail
        raise ValueError(f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}") from error
    if not isinstance(found, dict):
        raise EncoderError("pickle.unsafe", file=name)
    return found


def _stored(file: File, key: str, tensor: Any, records: Mapping[int, _Record], storages: dict[int, int]) -> Stored:
    import torch

    names = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
    if not isinstance(tensor, torch.Tensor):
        raise EncoderError("pickle.no-tensor", file=file.name, key=key[:100], kind=type(tensor).__name__)
    if tensor.dtype not in names or not tensor.is_contiguous():
        kind = str(tensor.dtype).removeprefix("torch.") if tensor.is_contiguous() else "not contiguous"
        raise EncoderError("pickle.no-tensor", file=file.name, key=key[:100], kind=kind)
    start = getattr(tensor.untyped_storage(), "_checkpoint_offset", None)  # since torch 2.6
    if start is None:
        raise EncoderError("pickle.torch", file=file.name, version=torch.__version__)
    inside, size = tensor.storage_offset() * tensor.element_size(), math.prod(tensor.shape) * tensor.element_size()
    number = storages.setdefault(start, len(storages))
    if start not in records or records[start].name not in ("", f"data/{number}"):
        raise EncoderError("pickle.repacked", file=file.name)
    if inside + size > records[start].size:
        raise ValueError(f"{key[:100]} does not lie in the file as its shape says")
    return Stored(file, key, start + inside, size, names[tensor.dtype], tuple(tensor.shape))
