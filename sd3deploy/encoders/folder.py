"""Which files of a folder or a repository hold its text encoder, in the order and under the names that transformers and diffusers use."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sd3deploy.encoders.containers import foreign
from sd3deploy.errors import EncoderError
from sd3deploy.lazy import lazy

__all__ = ["Found", "find", "shard_names", "spellings"]

# transformers 5.13, modeling_utils.py `_add_variant`; "model.fp16.safetensors.index.json" is diffusers', "-of-00002.fp16" old AuraFlow's.
_STEMS = (("model", "safetensors"), ("pytorch_model", "bin"))
_VARIANT = lazy(
    r"(?:pytorch_)?model(?:\.(?:safetensors|bin)\.index\.([\w-]+?)\.json"
    r"|(?:-\d+-of-\d+)?\.([\w-]+?)(?:-\d+-of-\d+)?\.(?:safetensors|bin)(?:\.index\.json)?)"
)
_SHARD = lazy(r"(.+?)-(\d{1,5})-of-(\d{1,5})((?:\.[\w-]+)?\.(?:safetensors|bin))")
_USUAL = ("fp16", "bf16", "fp32")  # the variants that are asked for first; of a repository they are the only ones
_WEIGHTS = (".safetensors", ".sft", ".gguf", ".bin", ".pt", ".pth")
_PARTS = ("text_encoder_3", "text_encoder_2")  # T5 in a model's folder: SD3's, FLUX.1's
_LARGEST = 64 * 2**20  # bytes of an index or a configuration
_MOST = 1000  # shards


@dataclass(frozen=True)
class Found:
    """files: that hold the weights. config: T5Config's values, None where nothing says them. quantization: `quantization_config`, by which
    its libraries know weights that are quantized; empty for others.
    """

    files: tuple[Path, ...]
    config: Mapping[str, Any] | None
    quantization: Mapping[str, Any]


def find(place: str, arguments: Mapping[str, Any], config: Mapping[str, Any] | None = None) -> Found:
    """The text encoder of a folder or repository. arguments: of transformers' from_pretrained. config: where somebody else has it.

    What is missing of a repository is downloaded, as transformers does it; it raises OSError where that can not be. Raises EncoderError
    with a remedy for a folder that lacks a part, or has nothing that can be read.
    """
    arguments = dict(arguments)
    variant = str(arguments.pop("variant", None) or "")
    folder = Path(place, arguments.get("subfolder") or "")
    return _local(folder, variant, config) if Path(place).is_dir() else _repository(place, arguments, variant, config)


def _local(folder: Path, variant: str, config: Mapping[str, Any] | None) -> Found:
    try:
        names = {one.name for one in folder.iterdir()}
    except OSError as error:
        raise EncoderError("source.folder-unreadable", folder=folder.name, error=error.strerror or error) from error
    inner = next((part for part in _PARTS if part in names and (folder / part / "config.json").is_file()), None)
    if inner and ("model_index.json" in names or not any(_is_weights(name) for name in names)):
        return _local(folder / inner, variant, config)
    files = _files(folder, names, variant)
    quantization: Any = None
    if "config.json" in names:
        said = _json(folder / "config.json")
        quantization = said.pop("quantization_config", None)
        config = _t5_config(said, folder) if config is None else config
    if "quantization_config.json" in names:  # SDNQ's
        quantization = _json(folder / "quantization_config.json")
    return Found(files, config, quantization if isinstance(quantization, dict) else {})


def _files(folder: Path, names: set[str], variant: str) -> tuple[Path, ...]:
    found = {one for name in names if (match := _VARIANT.fullmatch(name)) for one in match.groups() if one}
    rest = sorted(found, key=lambda one: (_USUAL.index(one) if one in _USUAL else len(_USUAL), one))
    for one in dict.fromkeys((variant, "", *rest)):
        for name in spellings(one):
            if name in names:
                return _named(folder, folder / name) if name.endswith(".json") else (folder / name,)
        if shards := _without_index(folder, names, one):
            return shards
    others = sorted(name for name in names if _is_weights(name) and (folder / name).is_file())
    if len(others) == 1:
        return (folder / others[0],)
    if others:
        raise EncoderError("source.folder-several", folder=folder.name, names=", ".join(others[:4]) + (", …" if len(others) > 4 else ""))
    if row := foreign.of_folder({*names, folder.name}):
        raise EncoderError(row, file=folder.name)
    raise EncoderError("source.folder-empty", folder=folder.name)


def _is_weights(name: str) -> bool:
    return name.lower().endswith(_WEIGHTS) and name not in ("training_args.bin", "optimizer.bin", "openvino_model.bin")


def spellings(variant: str) -> Iterator[str]:
    """Names of the one file with all, and of an index, in the order of transformers."""
    dotted = f".{variant}" if variant else ""
    for stem, suffix in _STEMS:
        yield f"{stem}{dotted}.{suffix}"
        yield f"{stem}.{suffix}.index{dotted}.json"
        if variant:
            yield f"{stem}{dotted}.{suffix}.index.json"


def _named(folder: Path, index: Path) -> tuple[Path, ...]:
    """The files that an index names."""
    shards = _shards(index)
    for number, shard in enumerate(shards, 1):
        if not (folder / shard).is_file():
            raise EncoderError("source.shard-missing", folder=folder.name, number=number, total=len(shards), file=shard)
    return tuple(folder / shard for shard in shards)


def _shards(index: Path) -> list[str]:
    """The names of files in an index. None leads out of the folder."""
    places = _json(index).get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(one, str) for one in places.values()):
        raise EncoderError("source.json-damaged", file=index.name, error="no weight_map")
    return shard_names(places, index.name)


def shard_names(places: Mapping[str, str], index: str) -> list[str]:
    """The files that the `weight_map` of an index names. Raises EncoderError for one that leads out of the folder, or can be no name."""
    shards = sorted(set(places.values()))
    if len(shards) > _MOST or not all(map(_can_be, shards)):
        raise EncoderError("source.json-damaged", file=index, error="the weight_map names no files of this folder")
    return shards


def _can_be(name: str) -> bool:
    return name.isprintable() and 0 < len(name.encode("utf-8", "replace")) < 256 and not set("/\\:") & set(name) and name not in (".", "..")


def _without_index(folder: Path, names: set[str], variant: str) -> tuple[Path, ...]:
    """Shards of one set, where the index was not downloaded: all are needed."""
    dotted = f".{variant}" if variant else ""
    for stem, suffix in _STEMS:
        for before, behind in dict.fromkeys(((stem + dotted, f".{suffix}"), (stem, f"{dotted}.{suffix}"))):
            found = {}
            for name in sorted(names):
                match = _SHARD.fullmatch(name)
                if match and match[1] == before and match[4] == behind and (folder / name).is_file():
                    found.setdefault(int(match[3]), {})[int(match[2])] = folder / name
            whole = {total: parts for total, parts in found.items() if len(parts) == total}  # an older set may have left some
            for total, parts in (whole or found).items():
                for number in range(1, min(total, _MOST) + 1):
                    if number not in parts:
                        file = f"{before}-{number:05d}-of-{total:05d}{behind}"
                        raise EncoderError("source.shard-missing", folder=folder.name, number=number, total=total, file=file)
                return tuple(parts[number] for number in sorted(parts))
    return ()


def _repository(place: str, arguments: Mapping[str, Any], variant: str, config: Mapping[str, Any] | None) -> Found:
    import transformers
    from transformers.utils.hub import cached_file, get_checkpoint_shard_files

    fetch: Callable[..., Any] = cached_file
    if config is None:
        config = transformers.T5Config.from_pretrained(place, **arguments).to_dict()
    quantization = config.get("quantization_config")
    quantization = quantization if isinstance(quantization, dict) else {}
    config = {name: value for name, value in config.items() if name != "quantization_config"}
    for one in dict.fromkeys((variant, "", *_USUAL)):
        for name in spellings(one):
            file = fetch(place, name, **arguments, _raise_exceptions_for_missing_entries=False)
            if file is None:
                continue
            if not name.endswith(".json"):
                return Found((Path(file),), config, quantization)
            _shards(Path(file))  # is one that can be used
            shards: Any = get_checkpoint_shard_files(place, file, **arguments)[0]
            return Found(tuple(Path(shard) for shard in shards), config, quantization)
    return Found((Path(str(fetch(place, "model.safetensors", **arguments))),), config, quantization)  # raises as transformers does


def _t5_config(said: dict[str, Any], folder: Path) -> dict[str, Any]:
    import transformers

    try:
        return transformers.T5Config.from_dict({"_name_or_path": "", **said}).to_dict()
    except Exception as error:  # whatever a class that is made for right values raises for others
        raise EncoderError("source.json-damaged", file=f"{folder.name}/config.json", error=str(error).splitlines()[0][:200]) from error


def _json(file: Path) -> dict[str, Any]:
    try:
        if not file.is_file():  # a pipe would be waited for
            raise ValueError("it is no file")
        with file.open("rb") as opened:
            size = os.fstat(opened.fileno()).st_size  # what is asked for is allocated, whatever the file has
            raw = opened.read(min(size, _LARGEST))
        if size > _LARGEST:
            raise ValueError("it is too large")
        found = json.loads(raw.decode())
        if not isinstance(found, dict):
            raise ValueError("it is no JSON object")
        return found
    except (OSError, ValueError, RecursionError) as error:
        raise EncoderError("source.json-damaged", file=file.name, error=str(error)[:200]) from error
