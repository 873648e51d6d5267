"""T5's weights as they lie on disk: in which file and where each tensor is. Nothing but the headers of the files is read."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sd3deploy.encoders.header import read_header
from sd3deploy.errors import EncoderError

if TYPE_CHECKING:
    import torch

    from sd3deploy.encoders.source import Source

__all__ = ["Stored", "Weights", "dtype", "has_t5", "mapped", "open_weights", "samples_of", "tensors_of"]

# safetensors' name of a type → torch's, for those in which T5 is published
_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"}
# T5 tensors inside a whole-model file, and nothing before them in a file of its own (comfyanonymous/ComfyUI, sd3 "incl_clips_t5xxl").
_PREFIXES = ("", "text_encoders.t5xxl.transformer.", "transformer.")
_BIAS = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"  # every T5 encoder has it, and nothing else
_SAMPLES, _SAMPLE = 64, 4096  # how many pieces of the content are hashed, and their bytes
_SCALE = "scale_weight"  # of a float8 weight, beside it (comfyanonymous/flux_text_encoders, t5xxl_fp8_e4m3fn_scaled)


@dataclass(frozen=True)
class Stored:
    """Where a tensor lies. key: its name in the file. offset, size: bytes there. dtype: safetensors' name. scale: that it is to be
    multiplied with.
    """

    file: Path
    key: str
    offset: int
    size: int
    dtype: str
    shape: tuple[int, ...]
    scale: float | None = None


@dataclass(frozen=True)
class Weights:
    """The encoder of a T5. name: of the source, for the screen. config: transformers' T5Config, as JSON-able values. tensors: name in
    transformers' T5EncoderModel → where it lies.
    """

    name: str
    config: Mapping[str, Any]
    tensors: Mapping[str, Stored]

    @property
    def files(self) -> tuple[Path, ...]:
        """The files in which they lie, each once."""
        return tuple(dict.fromkeys(stored.file for stored in self.tensors.values()))

    @property
    def size(self) -> int:
        """Bytes to read."""
        return sum(stored.size for stored in self.tensors.values())

    def fingerprint(self) -> list[dict[str, Any]]:
        """What changes when the source does: of each file its name, bytes, time of change, and hashes of its header and of samples of its
        content: files out of an archive with normalised times may be alike in all the others.

        Raises OSError, and ValueError for a header that is damaged.
        """
        found = []
        for file in self.files:
            stat = file.stat()
            digest = hashlib.sha256(read_header(file).raw).hexdigest()
            told = {"name": file.name, "size": stat.st_size, "mtime_ns": stat.st_mtime_ns, "header": digest}
            found.append({**told, "samples": samples_of(file)})
        return found


def open_weights(source: Source) -> Weights:
    """Find T5's tensors in a source. Raises EncoderError with a remedy for files that are damaged or hold no T5, OSError as transformers
    does for a repository that can not be reached.
    """
    if source.file is not None:
        tensors = _of_t5([source.file])
        return Weights(source.name, _config({name: stored.shape for name, stored in tensors.items()}), tensors)
    arguments = dict(source.arguments)
    config = arguments.pop("config", None)
    place = str(source.place)
    tensors = _of_t5(_files(place, arguments))
    if config is None:
        import transformers

        config = transformers.T5Config.from_pretrained(place, **arguments)
    return Weights(source.name, config.to_dict(), tensors)


def tensors_of(file: Path) -> Mapping[str, Stored]:
    """Every tensor of a safetensors file. Raises EncoderError for one that is damaged."""
    try:
        header, size = read_header(file), file.stat().st_size
        if header.size != size:
            raise ValueError(f"it has {size} bytes instead of {header.size}")
    except (OSError, ValueError) as error:
        raise EncoderError("source.file-damaged", file=file.name, error=error) from error
    return {name: Stored(file, name, one.offset, one.size, one.dtype, one.shape) for name, one in header.tensors.items()}


def dtype(stored: Stored) -> torch.dtype:
    """torch's type of a stored tensor. Raises EncoderError for a type in which no T5 is published, such as integers."""
    import torch

    name = _DTYPES.get(stored.dtype)
    if name is None:
        raise EncoderError("source.file-type", file=stored.file.name, dtype=stored.dtype)
    return getattr(torch, name)


def mapped(weights: Weights) -> dict[str, torch.Tensor]:
    """The tensors, memory-mapped; those in float8 made bfloat16, with their scale."""
    import torch
    from safetensors import safe_open

    state = {}
    for file in weights.files:
        with safe_open(file, "pt") as content:
            for name, stored in weights.tensors.items():
                if stored.file == file:
                    tensor = content.get_tensor(stored.key)
                    if tensor.dtype.itemsize == 1:
                        tensor = tensor.to(torch.bfloat16) * (1 if stored.scale is None else stored.scale)
                    state[name] = tensor
    return state


def samples_of(file: Path) -> str:
    """A hash of 64 pieces of 4 KiB from the first byte to the last; of all of it where it is no longer than that.

    Of a file of 2.6 GB that took 0.2 ms from the system's memory and 5 ms from the disk (virtio, two cores of an AMD EPYC; medians of 7).
    """
    digest = hashlib.sha256()
    with open(file, "rb", buffering=0) as content:
        behind = max(0, content.seek(0, os.SEEK_END) - _SAMPLE)
        for number in range(_SAMPLES):
            content.seek(behind * number // (_SAMPLES - 1))
            digest.update(content.read(_SAMPLE))
    return digest.hexdigest()


def has_t5(file: Path) -> bool:
    """Whether there is a T5 in a safetensors file. Raises EncoderError for one that is damaged."""
    return _prefix(tensors_of(file)) is not None


def _prefix(names: Iterable[str]) -> str | None:
    known = set(names)
    return next((prefix for prefix in _PREFIXES if prefix + _BIAS in known), None)


def _of_t5(files: list[Path]) -> dict[str, Stored]:
    """The tensors of T5's encoder in these files, without the prefix of their names."""
    found = {key: stored for file in files for key, stored in tensors_of(file).items()}
    prefix = _prefix(found)
    if prefix is None:
        raise EncoderError("source.file-no-t5", file=files[0].name)
    own = {key[len(prefix) :]: stored for key, stored in found.items() if key.startswith(prefix)}
    tensors = {}
    for key, stored in own.items():
        scale = own.get(key.removesuffix("weight") + _SCALE) if stored.dtype.startswith("F8") else None
        if (key.startswith("encoder.block.") and not key.endswith(_SCALE)) or key == "encoder.final_layer_norm.weight":
            tensors[key] = stored if scale is None else replace(stored, scale=_number(scale))
    embedding = own.get("shared.weight", own.get("encoder.embed_tokens.weight"))
    if embedding is None:
        raise EncoderError("source.file-no-t5", file=files[0].name)
    return tensors | {"shared.weight": embedding}


def _number(stored: Stored) -> float:
    import torch

    with open(stored.file, "rb") as file:
        file.seek(stored.offset)
        return float(torch.frombuffer(bytearray(file.read(stored.size)), dtype=dtype(stored))[0])


def _files(place: str, arguments: Mapping[str, Any]) -> list[Path]:
    """The safetensors files of a folder or repository; what is missing of a repository is downloaded, as transformers does it."""
    from transformers.utils.hub import cached_file, get_checkpoint_shard_files

    quiet = {"_raise_exceptions_for_missing_entries": False}
    index = cached_file(place, "model.safetensors.index.json", **arguments, **quiet)
    if index is not None:
        shards: Any = get_checkpoint_shard_files(place, index, **arguments)[0]
        return [Path(shard) for shard in shards]
    return [Path(str(cached_file(place, "model.safetensors", **arguments)))]


def _config(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """A T5Config read off the shapes of the tensors."""
    import transformers

    buckets, heads = shapes[_BIAS]
    vocabulary, width = shapes["shared.weight"]
    return transformers.T5Config(
        vocab_size=vocabulary,
        d_model=width,
        d_kv=shapes["encoder.block.0.layer.0.SelfAttention.q.weight"][0] // heads,
        d_ff=shapes["encoder.block.0.layer.1.DenseReluDense.wo.weight"][1],
        num_layers=1 + max(int(name.split(".")[2]) for name in shapes if name.startswith("encoder.block.")),
        num_heads=heads,
        relative_attention_num_buckets=buckets,
        feed_forward_proj="gated-gelu" if "encoder.block.0.layer.1.DenseReluDense.wi_0.weight" in shapes else "relu",
    ).to_dict()
