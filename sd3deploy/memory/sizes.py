"""How many bytes each part of a model takes, without loading it: for the published models, a folder, a single file, a loaded pipeline."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sd3deploy.encoders.choices import HOST_DEFAULT, NONE, Choice
from sd3deploy.encoders.header import Tensor, read_header
from sd3deploy.errors import SettingError
from sd3deploy.memory.t5_shape import DTYPES, T5_XXL, T5Shape
from sd3deploy.nearest import nearest

__all__ = ["MODELS", "PARTS", "Part", "Weights", "guess", "known", "measure_pipeline", "read_model", "tiled", "unknown"]

PARTS = ("transformer", "text_encoder", "text_encoder_2", "text_encoder_3", "vae")  # CLIP-L, CLIP-G, T5: as the pipeline names them


@dataclass(frozen=True)
class Part:
    """One module. numbers: parameters and persistent buffers that take the type in which the model is loaded.
    fixed: bytes that stay as they are, such as quantized weights and indices.
    """

    numbers: int = 0
    fixed: int = 0

    def bytes(self, dtype: str) -> int:
        """Resident bytes when loaded as `dtype`."""
        return self.numbers * DTYPES[dtype] + self.fixed


@dataclass(frozen=True)
class Weights:
    """A model as far as memory goes.

    width: of the transformer's tokens. dual: it has a second attention in some blocks (SD3.5 medium). channels: of the VAE at full
    resolution, the widest. tile: px, the edge of a tile when the VAE decodes in tiles.
    """

    name: str
    parts: Mapping[str, Part]
    t5: T5Shape | None = T5_XXL
    width: int = 1536
    dual: bool = False
    channels: int = 256
    tile: int = 1024
    measured: Mapping[str, int] = field(default_factory=dict)

    def bytes(self, encoder: Choice, dtype: str, compute: str = "bfloat16") -> dict[str, int]:
        """Resident bytes of each part. encoder: which T5. dtype: in which the model is loaded; compute: of a quantized T5.

        The host's own T5 is taken as 16 or 32 bit wide. What has been measured on the loaded model counts before all.
        """
        found = {name: self.parts[name].bytes(dtype) for name in PARTS if name in self.parts}
        if encoder is NONE:
            found["text_encoder_3"] = 0
        elif encoder is not HOST_DEFAULT and self.t5:
            found["text_encoder_3"] = self.t5.bytes(encoder, compute)
        elif self.t5 and not self.parts["text_encoder_3"].fixed:
            found["text_encoder_3"] = self.t5.bytes(HOST_DEFAULT, dtype)
        return found | dict(self.measured)


def _published(name: str, transformer: int, **facts: Any) -> Weights:
    parts = {
        "transformer": Part(transformer),
        "text_encoder": Part(123_650_304, fixed=77 * 8),
        "text_encoder_2": Part(694_659_840, fixed=77 * 8),
        "text_encoder_3": Part(T5_XXL.numbers),
        "vae": Part(83_819_683),
    }
    return Weights(name, parts, **facts)


# Parameters and position embeddings of the configurations of stabilityai/stable-diffusion-3-medium-diffusers, -3.5-medium, -3.5-large and
# -3.5-large-turbo; a test builds the same modules on the meta device and counts.
MODELS = {
    weights.name: weights
    for weights in (
        _published("sd3-medium", 2_028_328_000 + 56_623_104),
        _published("sd3.5-medium", 2_243_171_520 + 226_492_416, dual=True),
        _published("sd3.5-large", 8_056_627_520 + 89_653_248, width=2432),
        _published("sd3.5-large-turbo", 8_056_627_520 + 89_653_248, width=2432),
    )
}


def known(name: str) -> Weights:
    """A published model by its name, or whatever lies at a path. Raises SettingError that names the nearest one."""
    if found := MODELS.get(name.strip().lower()):
        return found
    try:
        there = Path(name).exists()
    except (OSError, ValueError):  # longer than a name can be, none at all, or in a folder that may not be looked into
        there = False
    if there:
        return read_model(Path(name))
    raise unknown(name)


def unknown(name: str) -> SettingError:
    """The error for a model that there is not, which names the nearest one."""
    return SettingError("setting.model-unknown", value=repr(name)[:60], nearest=nearest(name, MODELS), known=", ".join(MODELS))


def guess(name: str) -> Weights | None:
    """The published model that a name is likely to mean, such as that of a repository or a file; None for one that is none of them."""
    plain = re.sub(r"[-_. ]", "", name.lower()).replace("stablediffusion", "sd")
    if "sd3" not in plain:
        return None
    if "sd35" in plain:
        kind = "medium" if "medium" in plain else "large-turbo" if "turbo" in plain else "large" if "large" in plain else "medium"
        return MODELS[f"sd3.5-{kind}"]
    return MODELS["sd3-medium"]


# What lies on a disk: the headers alone are read.

_IN_FILE = {  # prefix of a single file's tensors → part (comfyanonymous/ComfyUI, sd3_medium_incl_clips_t5xxl)
    "model.diffusion_model.": "transformer",
    "first_stage_model.": "vae",
    "text_encoders.clip_l.": "text_encoder",
    "text_encoders.clip_g.": "text_encoder_2",
    "text_encoders.t5xxl.": "text_encoder_3",
}
_WIDTH = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "U16": 2, "U32": 4, "U64": 8}  # all else: 1 byte


def read_model(path: Path) -> Weights:
    """The sizes of a model folder (with model_index.json) or of a single .safetensors file. Parts that it lacks, which the host takes
    from elsewhere, count as published. Raises SettingError when it can not be read.
    """
    try:
        return _folder(path) if path.is_dir() else _file(path)
    except SettingError:
        raise
    except Exception as error:  # a damaged header, a broken JSON file, no permission
        raise SettingError("memory.unreadable", path=path.name, error=f"{type(error).__name__}: {error}") from error


def _file(path: Path) -> Weights:
    tensors: dict[str, dict[str, Tensor]] = {}
    for name, tensor in _header(path).items():
        for prefix, part in _IN_FILE.items():
            if name.startswith(prefix):
                tensors.setdefault(part, {})[name[len(prefix) :].removeprefix("transformer.")] = tensor
    if "transformer" not in tensors:
        raise SettingError("memory.no-model", path=path.name)
    patches = tensors["transformer"].get("x_embedder.proj.weight")
    last = tensors.get("vae", {}).get("decoder.conv_out.weight")
    return _weights(
        path.stem,
        {part: _part(named) for part, named in tensors.items()},
        _t5(tensors.get("text_encoder_3", {})),
        width=patches.shape[0] if patches else 1536,
        dual=any("attn2" in name for name in tensors["transformer"]),
        channels=2 * last.shape[1] if last else 256,
    )


def _folder(path: Path) -> Weights:
    if not (path / "model_index.json").is_file():
        raise SettingError("memory.no-model", path=path.name)
    transformer, vae = _config(path / "transformer"), _config(path / "vae")
    tensors = {part: _part_tensors(path / part) for part in PARTS}
    parts = {part: _part(named) if named else _on_meta(path / part) for part, named in tensors.items() if (path / part).is_dir()}
    return _weights(
        path.name,
        parts,
        _t5(tensors["text_encoder_3"]) or _t5_of_config(_config(path / "text_encoder_3")),
        width=transformer.get("num_attention_heads", 24) * transformer.get("attention_head_dim", 64),
        dual=bool(transformer.get("dual_attention_layers")),
        channels=(vae.get("block_out_channels") or [128, 256])[1],
        tile=vae.get("sample_size") or 1024,
    )


def _weights(name: str, parts: Mapping[str, Part], t5: T5Shape | None, **facts: Any) -> Weights:
    published = MODELS["sd3-medium"].parts
    return Weights(name, {part: parts.get(part, published[part]) for part in PARTS}, t5 or T5_XXL, **facts)


def _config(folder: Path) -> dict[str, Any]:
    file = folder / "config.json"
    return json.loads(file.read_text("utf-8")) if file.is_file() else {}


def _part_tensors(folder: Path) -> Mapping[str, Tensor]:
    """The tensors of one part. Of several variants, such as fp16 beside float32, one: their shapes are the same."""
    if not folder.is_dir():
        return {}
    for index in sorted(folder.glob("*.safetensors.index*.json"), key=lambda file: len(file.name)):
        names = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
        if all((folder / name).is_file() for name in names):
            return {name: tensor for file in names for name, tensor in _header(folder / file).items()}
    whole = (file for file in folder.glob("*.safetensors") if "-of-" not in file.name)  # a shard without the others tells too little
    files = sorted(whole, key=lambda file: len(file.name))
    return _header(files[0]) if files else {}


def _header(file: Path) -> Mapping[str, Tensor]:
    """Raises ValueError for a file that is damaged."""
    header, size = read_header(file), file.stat().st_size
    if header.size != size:
        raise ValueError(f"{file.name} has {size} bytes instead of {header.size}")
    return header.tensors


def _part(tensors: Mapping[str, Tensor]) -> Part:
    """Floating tensors take the type of the model. A part with codes in it is quantized, and stays as stored."""
    tied = {"encoder.embed_tokens.weight"} if "shared.weight" in tensors else set()
    tensors = {name: tensor for name, tensor in tensors.items() if name not in tied}
    stored = sum(tensor.count * _WIDTH.get(tensor.dtype, 1) for tensor in tensors.values())
    if any(tensor.dtype in ("U8", "I8") for tensor in tensors.values()):
        return Part(0, stored)
    numbers = sum(tensor.count for tensor in tensors.values() if "F" in tensor.dtype)
    positions = next((t.shape[0] for name, t in tensors.items() if name.endswith("embeddings.position_embedding.weight")), 0)
    return Part(numbers, 8 * positions)  # CLIP's position ids, which no file needs to hold


def _t5(tensors: Mapping[str, Tensor]) -> T5Shape | None:
    """The shapes of T5, read off its tensors; None where there is none, or one that is quantized already."""
    bias = tensors.get("encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight")
    query = tensors.get("encoder.block.0.layer.0.SelfAttention.q.weight")
    wo = tensors.get("encoder.block.0.layer.1.DenseReluDense.wo.weight")
    embedding = tensors.get("shared.weight") or tensors.get("encoder.embed_tokens.weight")
    if not (bias and query and wo and embedding and len(wo.shape) == 2 and "F" in wo.dtype and "F" in query.dtype):  # `wo` may stay wide
        return None
    return T5Shape(
        vocab_size=embedding.shape[0],
        d_model=embedding.shape[1],
        d_kv=query.shape[0] // bias.shape[1],
        d_ff=wo.shape[1],
        num_layers=1 + max(int(name.split(".")[2]) for name in tensors if name.startswith("encoder.block.")),
        num_heads=bias.shape[1],
        buckets=bias.shape[0],
        gated="encoder.block.0.layer.1.DenseReluDense.wi_0.weight" in tensors,
    )


def _t5_of_config(config: Mapping[str, Any]) -> T5Shape | None:
    if "d_ff" not in config:
        return None
    names = ("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads")
    gated = str(config.get("feed_forward_proj", "")).startswith("gated")
    return T5Shape(**{name: config[name] for name in names}, buckets=config.get("relative_attention_num_buckets", 32), gated=gated)


def _on_meta(folder: Path) -> Part:
    """A part without safetensors: built from its configuration on the meta device, and counted."""
    import diffusers
    import torch
    import transformers

    config = _config(folder)
    with torch.device("meta"):
        if name := config.get("_class_name"):
            module = getattr(diffusers, name).from_config(config)
        else:
            module = getattr(transformers, config["architectures"][0])(transformers.AutoConfig.from_pretrained(folder))
    tensors: Iterable[Any] = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}.values()
    numbers = sum(tensor.numel() for tensor in tensors if tensor.is_floating_point())
    return Part(numbers, sum(tensor.numel() * 8 for tensor in tensors if not tensor.is_floating_point()))


def measure_pipeline(pipeline: Any, name: str, measured: Mapping[str, int], t5: T5Shape | None = T5_XXL) -> Weights:
    """The facts of a loaded pipeline. measured: bytes of its parts as they are. t5: the shapes that a T5 for it has when none is loaded."""
    transformer, vae = pipeline.transformer.config, pipeline.vae.config
    config = getattr(getattr(pipeline, "text_encoder_3", None), "config", None)
    return replace(
        Weights(name, {part: Part() for part in PARTS}),
        t5=_t5_of_config(config.to_dict()) if config is not None else t5,
        width=transformer.num_attention_heads * transformer.attention_head_dim,
        dual=bool(getattr(transformer, "dual_attention_layers", ())),
        channels=vae.block_out_channels[1],
        tile=vae.sample_size,
        measured=dict(measured),
    )


def tiled(weights: Weights, edge: int) -> Weights:
    """The same model, its VAE told to decode in tiles of at most `edge` px."""
    return replace(weights, tile=min(weights.tile, edge))
