"""T5's weights as they lie on disk: in which files, where, and in which form. Nothing but the headers of the files is read."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sd3deploy.encoders import folder, identity
from sd3deploy.encoders.containers import Content, open_content
from sd3deploy.encoders.files import File, LocalFile
from sd3deploy.encoders.forms import Layer, declared_of, layers_declared, recognise_all
from sd3deploy.encoders.stored import Stored, Weight
from sd3deploy.errors import EncoderError
from sd3deploy.lazy import lazy

if TYPE_CHECKING:
    import torch

    from sd3deploy.encoders.source import Source

__all__ = ["Weights", "bytes_of", "has_t5", "mapped", "numbers", "open_weights", "require_t5"]

_COMPUTES = ("relative_attention_max_distance", "layer_norm_epsilon", "feed_forward_proj")  # beside the shapes of its weights
_LOOKS = 4  # places in two embeddings whose rows are compared, from the first to the last
_CLOSE = 0.5  # of the norm: what two roundings of the same rows are apart at most; 4 bit costs 0.2, other rows are 1.4 apart
_COPY = "encoder.embed_tokens"  # of the embedding, which many files have twice
_OTHERS = ("decoder.", "lm_head.")  # of a full T5, which is no encoder alone
_LAYER = lazy(
    r"(shared|encoder\.embed_tokens|encoder\.final_layer_norm|encoder\.block\.\d+\.layer\.[01]\."
    r"(?:layer_norm|SelfAttention\.(?:q|k|v|o|relative_attention_bias)|DenseReluDense\.(?:wi|wi_0|wi_1|wo)))\.(.+)"
)
_METHODS = ("bitsandbytes", "sdnq", "sdnq_training")  # `quant_method` of a config.json
_SCALED = "scaled_fp8"  # says of a whole file that its FP8 has scales
_KNOWN = ("logit_scale", _SCALED, "spiece_model")  # markers, and what other programs keep beside it


@dataclass(frozen=True)
class Weights:
    """The encoder of a T5. name: of the source, for the screen. config: transformers' T5Config, as JSON-able values. tensors: name in
    transformers' T5EncoderModel → what lies on disk. read: all files that were looked at, such as one with scales alone. quantization:
    what their folder says about how they are quantized. notes: ids of sentences for what is to be known of them, without being an error.
    """

    name: str
    config: Mapping[str, Any]
    tensors: Mapping[str, Weight]
    notes: tuple[str, ...] = ()
    read: tuple[File, ...] = ()
    quantization: Mapping[str, Any] = field(default_factory=dict)

    @property
    def files(self) -> tuple[File, ...]:
        """The files in which they lie, each once, and those with what belongs to them."""
        return tuple(dict.fromkeys((*(weight.stored.file for weight in self.tensors.values()), *self.read)))

    @property
    def size(self) -> int:
        """Bytes to read."""
        return sum(weight.stored.size for weight in self.tensors.values())

    def size_of(self, names: Iterable[str]) -> int:
        """Bytes of those of these names."""
        return sum(self.tensors[name].stored.size for name in names if name in self.tensors)

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

    @property
    def groups(self) -> tuple[str, ...]:
        """The optional dependencies of pyproject.toml that reading them needs."""
        return tuple(sorted({group for weight in self.tensors.values() for group in getattr(weight.layout, "groups", ())}))

    def fingerprint(self) -> list[dict[str, Any]]:
        """What changes when the source does, for each file, and what its configuration says. Raises OSError, and EncoderError for a file
        that is damaged.
        """
        said = {name: self.config.get(name) for name in (*identity.SIDES, *_COMPUTES)}
        files = [{**file.fingerprint(), "header": open_content(file).digest} for file in self.files]
        return [*files, {"config": json.loads(json.dumps(said)), "quantization": json.loads(json.dumps(self.quantization, default=str))}]


def open_weights(source: Source) -> Weights:
    """Find T5's tensors in a source. Raises EncoderError with a remedy for files that are damaged or hold no T5, OSError as transformers
    does for a repository that can not be reached.
    """
    if source.remote is not None:
        return _weights(source.name, [open_content(file) for file in source.remote.files()], _config(source.remote.config()))
    if source.file is not None:
        return _weights(source.name, [open_content(LocalFile(source.file))])
    arguments = dict(source.arguments)
    given = arguments.pop("config", None)
    found = folder.find(str(source.place), arguments, None if given is None else given.to_dict())
    return _weights(source.name, [open_content(LocalFile(file)) for file in found.files], found.config, found.quantization)


def has_t5(file: Path) -> bool:
    """Whether there is a T5 in a file. Raises EncoderError for one that is damaged."""
    return identity.prefix_of(open_content(LocalFile(file)).tensors) is not None


def require_t5(file: Path) -> None:
    """Raises EncoderError for a file that has none, with what it is instead, and for one that is damaged."""
    identity.require_prefix(file.name, open_content(LocalFile(file)).tensors)


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


def numbers(weight: Weight, first: int = 0, rows: int | None = None) -> torch.Tensor:
    """A weight decoded, as `Layout.open` has it: as a whole, or so many rows from one on, in multiples of its step. Raises what `bytes_of`
    raises, EncoderError for scales that do not fit.
    """
    stored, all = weight.stored, weight.shape[0] if weight.shape else 1
    rows = all if rows is None else rows
    start, end = (number * stored.size // all for number in (first, first + rows))
    try:
        decode = weight.layout.open(bytes_of)
    except ValueError as error:
        raise EncoderError("source.file-damaged", file=weight.stored.file.name, error=error) from error
    part = replace(stored, offset=stored.offset + start, size=end - start)
    return decode(bytes_of(part), first, rows).reshape((rows, *weight.shape[1:]) if weight.shape else ())


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


def _weights(
    name: str, contents: list[Content], config: Mapping[str, Any] | None = None, quantization: Mapping[str, Any] | None = None
) -> Weights:
    """T5's encoder in these files. quantization: what their folder says about how they are quantized."""
    found: dict[str, Stored] = {}
    for content in contents:
        for key, stored in content.tensors.items():
            if key in found:
                raise EncoderError("source.twice", tensor=key, file=content.file.name, other=found[key].file.name)
            found[key] = stored
    file, quantization = contents[0].file.name, quantization or {}
    prefix = identity.require_prefix(file, found)
    own = {key[len(prefix) :]: stored for key, stored in found.items() if key.startswith(prefix)}
    small = identity.marked(config) or any(identity.marked(content.metadata) for content in contents)
    identity.examine(file, {key: stored.shape for key, stored in own.items()}, small)
    said: dict[str, Any] = {}
    for content in contents:
        for path, words in layers_declared(content.metadata, content.file.name).items():
            if said.setdefault(path, words) != words:
                raise EncoderError("form.declared-unreadable", file=content.file.name, tensor=path, error="another file contradicts it")
    layers = [
        Layer(path, parts, declared_of(parts, said.get(prefix + path), bytes_of), quantization) for path, parts in _layers(own).items()
    ]
    found_in = recognise_all(layers, marked=any(key.rpartition(".")[2] == _SCALED for key in own))
    _require_method(name, quantization)  # only here: the forms refuse some of them by name
    tensors = {f"{path}.weight": Weight(mine.stored, mine.shape, mine.layout) for path, mine in found_in.items()}
    copy = tensors.pop(f"{_COPY}.weight", None)
    if copy is not None and not _same(tensors.setdefault("shared.weight", copy), copy):
        raise EncoderError("source.two-embeddings", file=file)
    shapes = {key: weight.shape for key, weight in tensors.items()}
    identity.check(name, file, shapes, small, config)
    words = (name, file, (config or {}).get("_name_or_path"), *(content.metadata.get("general.name") for content in contents))
    read = tuple(content.file for content in contents)
    return Weights(name, config or identity.config_of(shapes), tensors, identity.notes(words), read, quantization)


def _same(weight: Weight, copy: Weight) -> bool:
    """Whether two embeddings are one, as far as rows of them show: T5 has one, and a file with two others is nobody's. In two forms the
    same numbers are rounded otherwise.
    """
    if weight.shape != copy.shape:
        return False
    if weight.stored == copy.stored:
        return True
    step = min(math.lcm(weight.layout.step, copy.layout.step), weight.shape[0])
    for number in range(_LOOKS):
        first = (weight.shape[0] - step) * number // (_LOOKS - 1) // step * step
        try:
            a, b = (numbers(one, first, step).float().nan_to_num() for one in (weight, copy))
        except (OSError, ImportError):  # told by whoever reads it as a whole, when its packages are there
            return True
        close = a.equal(b) if weight.layout == copy.layout else bool((a - b).norm() <= _CLOSE * a.norm())
        if not close:
            return False
    return True


def _require_method(name: str, quantization: Mapping[str, Any]) -> None:
    """Raises EncoderError unless the forms know the library with which the weights were quantized."""
    method = str(quantization.get("quant_method", "") or "bitsandbytes")[:60]
    if method not in _METHODS:
        raise EncoderError("source.quant-method", source=name, method=method)


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
