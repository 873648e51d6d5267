"""Whether tensors are T5-XXL's, by their names and shapes, before anything is asked about their form.

What looks like it and is another model is a row of LOOK_ALIKES: a new one is a line there, and its sentence in messages/.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sd3deploy import messages
from sd3deploy.errors import EncoderError
from sd3deploy.lazy import lazy

__all__ = [
    "BIAS",
    "LOOK_ALIKES",
    "MARK",
    "PREFIXES",
    "SIDES",
    "WIDTH",
    "check",
    "config_of",
    "examine",
    "marked",
    "notes",
    "prefix_of",
    "require_prefix",
]

BIAS = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"  # every T5 encoder has it, and nothing else
# What stands before the names inside of files that hold a whole model (ComfyUI, sd-scripts, stable-diffusion.cpp).
PREFIXES = ("", "text_encoders.t5xxl.transformer.", "text_encoders.t5xxl.", "te3.", "transformer.")
# What a configuration says that the shapes of the weights say too.
SIDES = ("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads", "relative_attention_num_buckets")
WIDTH = 4096  # of T5-XXL's hidden states, d_model
MARK = "sd3deploy_small_t5"  # in the config or the metadata of the small models of demo and tests

# T5 v1.1 XXL (ComfyUI: comfy/text_encoders/t5_config_xxl.json; sd-scripts: library/flux_utils.py).
_NEEDED = {"d_model": 4096, "d_ff": 10240, "d_kv": 64, "blocks": 24, "heads": 64, "buckets": 32, "vocabulary": 32128}
_CONFIG = {
    "relative_attention_max_distance": 128,
    "layer_norm_epsilon": 1e-6,
    "dense_act_fn": "gelu_new",
    "is_gated_act": True,
}
_EMBEDDINGS = ("shared.", "encoder.embed_tokens.")
_SMALLER = {512: "small", 768: "base", 1024: "large", 2048: "XL"}  # d_model of T5 v1.1
_BLOCK = lazy(r"(?:^|\.)encoder\.block\.(\d+)\.")


@dataclass(frozen=True)
class Facts:
    """What names and shapes tell. names: with the prefix, or without it where that is known. numbers: found, as far as they are sure."""

    names: tuple[str, ...]
    numbers: Mapping[str, int]

    @staticmethod
    def of(shapes: Mapping[str, tuple[int, ...]], logical: bool) -> Facts:
        """logical: whether the shapes are those of the weights; else of what lies on disk, where some have another one."""
        numbers = {"blocks": len({found[1] for name in shapes if (found := _BLOCK.search(name))})}
        norm, bias = shapes.get("encoder.final_layer_norm.weight", ()), shapes.get(BIAS, ())
        if len(norm) == 1:
            numbers["d_model"] = norm[0]
        if len(bias) == 2:
            numbers |= {"buckets": bias[0], "heads": bias[1]}
        for name in ("shared.weight", "encoder.embed_tokens.weight"):
            shape = shapes.get(name, ())
            if len(shape) == 2 and shape[1:] == norm:
                numbers["vocabulary"] = shape[0]
        out = shapes.get("encoder.block.0.layer.1.DenseReluDense.wo.weight", ())
        query = shapes.get("encoder.block.0.layer.0.SelfAttention.q.weight", ())
        if logical and len(out) == len(query) == 2:
            numbers |= {"d_ff": out[1], "d_kv": query[0] // max(1, numbers.get("heads", 1))}
        return Facts(tuple(shapes), numbers)

    def any(self, *parts: str) -> bool:
        return any(part in name for name in self.names for part in parts)

    def begins(self, *parts: str) -> bool:
        return any(name.startswith(parts) for name in self.names)

    @property
    def bias_everywhere(self) -> bool:
        return self.any(BIAS.replace("block.0", "block.1"))

    @property
    def vocabulary(self) -> int | None:
        return self.numbers.get("vocabulary")


@dataclass(frozen=True)
class LookAlike:
    """Another model. id: of its sentence, which says what it is, and whose remedy what to get instead. name: for lists, the same in every
    language. test: whether it is the one; the rows before it have said no.
    """

    id: str
    name: str
    test: Callable[[Facts], bool]


LOOK_ALIKES = (
    LookAlike("identity.lora", "LoRA", lambda facts: facts.any("lora_A.", "lora_B.", "lora_up.", "lora_down.", "lora_te")),
    LookAlike("identity.distill", "DistillT5", lambda facts: facts.begins("final_projection.", "encoder.encoder.block.")),
    LookAlike("identity.t5gemma", "T5Gemma", lambda facts: facts.any("pre_self_attn_layernorm.")),
    LookAlike("identity.mlx", "MLX", lambda facts: facts.begins("t5_blocks.") or facts.any(".t5_blocks.")),
    LookAlike(
        "identity.umt5",
        "UMT5",
        lambda facts: facts.bias_everywhere and (facts.any("umt5") or facts.vocabulary != _NEEDED["vocabulary"]),
    ),
    LookAlike("identity.pile", "pile-T5", lambda facts: facts.bias_everywhere),
    LookAlike(
        "identity.t5-v1",
        "T5 v1.0",
        lambda facts: facts.any(".DenseReluDense.wi.") and not facts.any(".DenseReluDense.wi_0."),
    ),
    LookAlike("identity.unchained", "T5XXL-Unchained", lambda facts: facts.vocabulary == 69328),
    LookAlike("identity.mt5", "mT5", lambda facts: facts.vocabulary in (250100, 250112)),
    LookAlike("identity.byt5", "ByT5", lambda facts: facts.vocabulary in (384, 1510)),
    LookAlike("identity.smaller", "T5 v1.1 small, base, large, XL", lambda facts: facts.numbers.get("d_model") in _SMALLER),
)
# What holds no T5 at all, by the names in it.
_WITHOUT = (
    LookAlike(
        "identity.whole-without",
        "a diffusion model without T5",
        lambda facts: facts.any("diffusion_model.", "double_blocks.0.", "joint_blocks.0.", "transformer_blocks.0."),
    ),
    LookAlike(
        "identity.clip",
        "CLIP",
        lambda facts: facts.any("text_model.encoder.layers.0.", "transformer.resblocks.0.", "text_model.embeddings."),
    ),
    LookAlike("identity.llm", "a language model", lambda facts: facts.any("model.layers.0.") or facts.begins("blk.0.", "language_model.")),
)


def prefix_of(names: Iterable[str]) -> str | None:
    """What stands before the names of T5's encoder; None where there is none, or under a prefix that nobody is known to write."""
    found = _prefixes(names)
    return found[0] if len(found) == 1 and found[0] in PREFIXES else None


def require_prefix(file: str, names: Iterable[str]) -> str:
    """The same. Raises EncoderError that says what is there instead."""
    names = tuple(names)
    prefix = prefix_of(names)
    if prefix is None:
        raise _absent(file, names)
    return prefix


def _absent(file: str, names: Iterable[str]) -> EncoderError:
    """What a file is that has no T5 which can be used, by the names in it."""
    facts = Facts(tuple(names), {})
    found = _prefixes(facts.names)
    for row in LOOK_ALIKES if found else (*LOOK_ALIKES[:4], *_WITHOUT):
        if row.test(facts):
            return EncoderError(row.id, file=file, **_numbers(facts))
    if len(found) > 1:
        return EncoderError("identity.several", file=file, prefixes=", ".join(f"“{one}”" for one in found[:3]))
    if found:
        return EncoderError("identity.prefix", file=file, prefix=found[0][:80])
    if any(_BLOCK.search(name) for name in facts.names):
        return EncoderError("identity.part", file=file)
    return EncoderError("source.file-no-t5", file=file)


def examine(file: str, shapes: Mapping[str, tuple[int, ...]], small: bool, logical: bool = False) -> None:
    """Raise EncoderError unless it is T5-XXL's encoder, as far as that can be seen. shapes: key without the prefix → shape. small: whether
    it is one of ours for demo and tests, whose numbers are others. logical: as Facts.of.
    """
    facts = Facts.of(shapes, logical)
    if not (facts.begins("encoder.block.0.layer.0.SelfAttention.q.") and facts.begins(*_EMBEDDINGS)):
        raise EncoderError("source.file-no-t5", file=file)
    for row in LOOK_ALIKES:
        if row.test(facts) and not (small and row.id in ("identity.smaller", "identity.byt5")):
            raise EncoderError(row.id, file=file, **_numbers(facts))
    if not facts.begins("encoder.final_layer_norm."):
        raise EncoderError("identity.part", file=file)
    if not small and any(_NEEDED[name] != number for name, number in facts.numbers.items()):
        raise EncoderError("identity.numbers", file=file, **_numbers(facts))


def check(source: str, file: str, shapes: Mapping[str, tuple[int, ...]], small: bool, config: Mapping[str, Any] | None) -> None:
    """Raise EncoderError unless these are all the weights of T5-XXL's encoder, with the shape that each must have, and the configuration
    is its own. shapes: name in transformers' T5EncoderModel → shape of the weight.
    """
    examine(file, shapes, small, logical=True)
    wanted = _expected(shapes)
    wrong = [name for name, shape in wanted.items() if shapes.get(name) != shape or 0 in shape] + sorted(shapes.keys() - wanted)
    if wrong:
        raise EncoderError("source.incomplete", source=source, part=", ".join(wrong[:3]) + (", …" if len(wrong) > 3 else ""))
    said = config or {}
    own = {name: value for name, value in config_of(shapes).items() if name in SIDES}
    for name, needed in {**own, **({} if small else _CONFIG)}.items():
        if said.get(name, needed) != needed:
            raise EncoderError("identity.config", source=source, name=name, found=str(said[name])[:40], needed=needed)


def notes(words: Iterable[object]) -> tuple[str, ...]:
    """Ids of sentences for what is to be known of weights that can be used. words: names of files and models. flan-T5-XXL has the names,
    shapes and vocabulary of T5-XXL, so that only they tell.
    """
    return ("identity.note.flan",) if any("flan" in word.lower() for word in words if isinstance(word, str)) else ()


def marked(values: Mapping[str, Any] | None) -> bool:
    """Whether a configuration or metadata say that it is one of our small models."""
    return str((values or {}).get(MARK, "")).lower() not in ("", "false", "0", "none")


def config_of(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """A T5Config read off the shapes of the weights."""
    import transformers

    buckets, heads = shapes[BIAS]
    vocabulary, width = shapes["shared.weight"]
    return transformers.T5Config(
        vocab_size=vocabulary,
        d_model=width,
        d_kv=shapes["encoder.block.0.layer.0.SelfAttention.q.weight"][0] // heads,
        d_ff=shapes["encoder.block.0.layer.1.DenseReluDense.wo.weight"][1],
        num_layers=1 + max(int(name.split(".")[2]) for name in shapes if name.startswith("encoder.block.")),
        num_heads=heads,
        relative_attention_num_buckets=buckets,
        feed_forward_proj="gated-gelu",
    ).to_dict()


def _prefixes(names: Iterable[str]) -> list[str]:
    return [name[: -len(BIAS)] for name in names if name.endswith(BIAS)]


def _numbers(facts: Facts) -> dict[str, str]:
    """A sentence on those that are others than needed; and which size of T5 v1.1 it would be."""
    other = [name for name, needed in _NEEDED.items() if facts.numbers.get(name, needed) != needed]
    found, needed = (", ".join(f"{name} {numbers[name]}" for name in other) for numbers in (facts.numbers, _NEEDED))
    return {
        "found": messages.text("identity.found", found=found, needed=needed) if other else "",
        "size": f"T5 v1.1 {_SMALLER.get(facts.numbers.get('d_model', 0), '')}",
    }


def _expected(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Name → shape of all the weights of a gated T5 encoder with the sides that these have in block 0: T5-XXL's are checked before."""

    def side(name: str, number: int) -> int:
        shape = shapes.get(name, ())
        return shape[number] if len(shape) == 2 else 0

    width = (shapes.get("encoder.final_layer_norm.weight") or (0,))[0]
    feed_forward = side("encoder.block.0.layer.1.DenseReluDense.wo.weight", 1)
    heads = side("encoder.block.0.layer.0.SelfAttention.q.weight", 0)
    found = {"shared.weight": (side("shared.weight", 0), width), "encoder.final_layer_norm.weight": (width,)}
    found[BIAS] = (side(BIAS, 0), side(BIAS, 1))
    for number in range(len({block[1] for name in shapes if (block := _BLOCK.search(name))})):
        attention, dense = (f"encoder.block.{number}.layer.{part}" for part in (0, 1))
        found |= {f"{attention}.SelfAttention.{one}.weight": (heads, width) for one in "qkv"}
        found |= {f"{dense}.DenseReluDense.{one}.weight": (feed_forward, width) for one in ("wi_0", "wi_1")}
        found[f"{attention}.SelfAttention.o.weight"] = (width, heads)
        found[f"{dense}.DenseReluDense.wo.weight"] = (width, feed_forward)
        found |= {f"{part}.layer_norm.weight": (width,) for part in (attention, dense)}
    return found
