"""T5's weights as they lie on disk: in which files, where, and in which form. Nothing but the headers of the files is read."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sd3deploy.encoders import identity
from sd3deploy.encoders.containers import Content, open_content
from sd3deploy.encoders.files import File, LocalFile
from sd3deploy.encoders.forms import Layer, recognise
from sd3deploy.encoders.stored import Stored, Weight
from sd3deploy.errors import EncoderError

if TYPE_CHECKING:
    import torch

    from sd3deploy.encoders.source import Source

__all__ = ["Weights", "bytes_of", "has_t5", "mapped", "numbers", "open_weights"]

_COPY = "encoder.embed_tokens"  # of the embedding, which many files have twice
_OTHERS = ("decoder.", "lm_head.")  # of a full T5, which is no encoder alone
_LAYER = re.compile(
    r"(shared|encoder\.embed_tokens|encoder\.final_layer_norm|encoder\.block\.\d+\.layer\.[01]\."
    r"(?:layer_norm|SelfAttention\.(?:q|k|v|o|relative_attention_bias)|DenseReluDense\.(?:wi|wi_0|wi_1|wo)))\.(.+)"
)
_KNOWN = ("logit_scale", "scaled_fp8", "spiece_model")  # markers, and what other programs keep beside it


@dataclass(frozen=True)
class Weights:
    """The encoder of a T5. name: of the source, for the screen. config: transformers' T5Config, as JSON-able values. tensors: name in
    transformers' T5EncoderModel → what lies on disk.
    """

    name: str
    config: Mapping[str, Any]
    tensors: Mapping[str, Weight]

    @property
    def files(self) -> tuple[File, ...]:
        """The files in which they lie, each once."""
        return tuple(dict.fromkeys(weight.stored.file for weight in self.tensors.values()))

    @property
    def size(self) -> int:
        """Bytes to read."""
        return sum(weight.stored.size for weight in self.tensors.values())

    @property
    def form(self) -> str:
        """That of most numbers, for people, the same in every language."""
        sizes: Counter[str] = Counter()
        for weight in self.tensors.values():
            sizes[weight.layout.name] += weight.stored.size
        return sizes.most_common(1)[0][0]

    @property
    def exact(self) -> bool:
        """Whether nothing of them has been quantized before."""
        return all(weight.layout.exact for weight in self.tensors.values())

    def fingerprint(self) -> list[dict[str, Any]]:
        """What changes when the source does, for each file. Raises OSError, and EncoderError for a file that is damaged."""
        return [{**file.fingerprint(), "header": open_content(file).digest} for file in self.files]


def open_weights(source: Source) -> Weights:
    """Find T5's tensors in a source. Raises EncoderError with a remedy for files that are damaged or hold no T5, OSError as transformers
    does for a repository that can not be reached.
    """
    if source.remote is not None:
        return _weights(source.name, [open_content(file) for file in source.remote.files()], _config(source.remote.config()))
    if source.file is not None:
        return _weights(source.name, [open_content(LocalFile(source.file))])
    arguments = dict(source.arguments)
    config = arguments.pop("config", None)
    place = str(source.place)
    files = _files(place, arguments)
    if config is None:
        import transformers

        config = transformers.T5Config.from_pretrained(place, **arguments)
    return _weights(source.name, [open_content(LocalFile(file)) for file in files], config.to_dict())


def has_t5(file: Path) -> bool:
    """Whether there is a T5 in a file. Raises EncoderError for one that is damaged."""
    return identity.prefix_of(open_content(LocalFile(file)).tensors) is not None


def bytes_of(stored: Stored) -> torch.Tensor:
    """Those of a tensor: uint8 [n]. Raises OSError, EncoderError for a file that has become shorter."""
    import torch

    data = bytearray(stored.size)
    with stored.file.open() as file:
        file.seek(stored.offset)
        read_into(file, memoryview(data), stored.file.name)
    return torch.frombuffer(data, dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)


def read_into(file: Any, view: memoryview, name: str) -> None:
    """Fill `view` from where a file is. Raises OSError, EncoderError for a file that has become shorter."""
    while len(view):
        count = file.readinto(view)
        if not count:
            raise EncoderError("source.file-damaged", file=name, error="it became shorter while it was read")
        view = view[count:]


def numbers(weight: Weight) -> torch.Tensor:
    """A weight decoded as a whole, as `Layout.open` has it. Raises what that and `bytes_of` raise."""
    rows = weight.shape[0] if weight.shape else 1
    return weight.layout.open(bytes_of)(bytes_of(weight.stored), 0, rows).reshape(weight.shape)


def mapped(weights: Weights) -> dict[str, torch.Tensor]:
    """The tensors: memory-mapped where they lie as numbers on this machine; the others in bfloat16."""
    import torch

    whole: dict[Path, Any] = {}
    state = {}
    for name, weight in weights.tensors.items():
        stored, path = weight.stored, weight.stored.file.path
        dtype = straight(weight)
        if path is None or dtype is None:
            found = numbers(weight)
            state[name] = found if weight.layout.exact else found.to(torch.bfloat16)
            continue
        if path not in whole:
            whole[path] = torch.UntypedStorage.from_file(str(path), False, path.stat().st_size)
        empty: Any = torch.empty(0, dtype=dtype)
        state[name] = empty.set_(whole[path][stored.offset : stored.offset + stored.size], 0, stored.shape)
    return state


def straight(weight: Weight) -> torch.dtype | None:
    """The type of one that lies on disk as it is computed with; None for others."""
    import torch

    dtype = {"FP32": torch.float32, "FP16": torch.float16, "BF16": torch.bfloat16}.get(weight.layout.name)
    return dtype if dtype and weight.stored.file.path and weight.stored.offset % dtype.itemsize == 0 else None


def _weights(name: str, contents: list[Content], config: Mapping[str, Any] | None = None) -> Weights:
    """T5's encoder in these files."""
    found: dict[str, Stored] = {}
    for content in contents:
        for key, stored in content.tensors.items():
            if key in found:
                raise EncoderError("source.twice", tensor=key, file=content.file.name, other=found[key].file.name)
            found[key] = stored
    prefix = identity.prefix_of(found)
    if prefix is None:
        raise EncoderError("source.file-no-t5", file=contents[0].file.name)
    own = {key[len(prefix) :]: stored for key, stored in found.items() if key.startswith(prefix)}
    tensors = {}
    for path, parts in _layers(own).items():
        mine = recognise(Layer(path, parts, None, (config or {}).get("quantization_config") or {}))
        tensors[f"{path}.weight"] = Weight(mine.stored, mine.shape, mine.layout)
    copy = tensors.pop(f"{_COPY}.weight", None)
    if "shared.weight" not in tensors:
        if copy is None:
            raise EncoderError("source.file-no-t5", file=contents[0].file.name)
        tensors["shared.weight"] = copy
    return Weights(name, config or identity.config_of({key: weight.shape for key, weight in tensors.items()}), tensors)


def _layers(own: Mapping[str, Stored]) -> dict[str, dict[str, Stored]]:
    """Path of a layer → what lies below it."""
    found: dict[str, dict[str, Stored]] = {}
    for key, stored in own.items():
        path, part = _split(key)
        if path is not None:
            found.setdefault(path, {})[part] = stored
    return found


def _split(key: str) -> tuple[str | None, str]:
    """A key as path and part; None for what is known and is no weight of the encoder."""
    if key.startswith(_OTHERS) or key.rpartition(".")[2] in _KNOWN:
        return None, key
    if found := _LAYER.fullmatch(key):
        return found[1], found[2]
    raise EncoderError("source.unknown-tensor", tensor=key)


def _config(found: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """A T5Config by the content of its file."""
    import transformers

    return None if found is None else transformers.T5Config.from_dict(dict(found)).to_dict()


def _files(place: str, arguments: Mapping[str, Any]) -> list[Path]:
    """The safetensors files of a folder or repository; what is missing of a repository is downloaded, as transformers does it."""
    from transformers.utils.hub import cached_file, get_checkpoint_shard_files

    quiet = {"_raise_exceptions_for_missing_entries": False}
    index = cached_file(place, "model.safetensors.index.json", **arguments, **quiet)
    if index is not None:
        shards: Any = get_checkpoint_shard_files(place, index, **arguments)[0]
        return [Path(shard) for shard in shards]
    return [Path(str(cached_file(place, "model.safetensors", **arguments)))]
