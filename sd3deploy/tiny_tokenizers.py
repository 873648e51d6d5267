"""The tokenizers of the tiny model, written as the files that the real ones come as, for the fast and the slow loaders alike."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["CLIP_VOCABULARY", "T5_VOCABULARY", "clip", "t5"]

# A handful of whole words; every other text is spelled out, so that any prompt has a length that grows with it.
WORDS = ("a", "the", "of", "in", "on", "and", "with", "cat", "photo", "holding", "sign", "that", "says", "hello", "world", "red", "blue")
CLIP_VOCABULARY = 2 * 256 + len([word for word in WORDS if len(word) == 2]) + 2
T5_VOCABULARY = 384  # a multiple of 128 with room for the pieces, as the real 32128 is


def clip(folder: Path, *, pad: str) -> None:
    """Byte-level BPE: vocab.json and merges.txt. `pad`: what the tokenizer pads with; CLIP-L and CLIP-G differ."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = list(_byte_letters().values())
    merges = [(word[0], f"{word[1]}</w>") for word in WORDS if len(word) == 2]
    pieces = letters + [f"{letter}</w>" for letter in letters] + ["".join(pair) for pair in merges]
    pieces += ["<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({piece: number for number, piece in enumerate(pieces)}, ensure_ascii=False), "utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges), "utf-8")
    special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>", "pad_token": pad}
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=2))
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "do_lower_case": True, "errors": "replace"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config | special, indent=2))


def t5(folder: Path) -> None:
    """A unigram model: spiece.model for the slow loader, tokenizer.json for the fast one."""
    folder.mkdir(parents=True, exist_ok=True)
    pieces = _unigram()
    (folder / "spiece.model").write_bytes(_sentencepiece(pieces))
    (folder / "tokenizer.json").write_text(_fast(pieces), "utf-8")
    special = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=2))
    config = {"tokenizer_class": "T5Tokenizer", "model_max_length": 512, "extra_ids": 0, "legacy": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(config | special, indent=2))


def _byte_letters() -> dict[int, str]:
    """A printable letter for each byte, the convention of every byte-level BPE: printable ones stand for themselves."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + number) for number, byte in enumerate(others)}


def _unigram() -> list[tuple[str, float]]:
    """Pieces with their log probability: the specials, whole words (likely), single letters (unlikely)."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -3.0)]
    pieces += [(f"▁{word}", -4.0) for word in WORDS]
    pieces += [(chr(code), -6.0) for code in [*range(33, 127), *range(161, 256)]]
    return pieces


def _sentencepiece(pieces: list[tuple[str, float]]) -> bytes:
    from sentencepiece import sentencepiece_model_pb2

    format: Any = sentencepiece_model_pb2  # its classes are made at import
    model = format.ModelProto()
    kinds = {"<pad>": format.ModelProto.SentencePiece.CONTROL, "</s>": format.ModelProto.SentencePiece.CONTROL,
             "<unk>": format.ModelProto.SentencePiece.UNKNOWN}  # fmt: skip
    for piece, score in pieces:
        model.pieces.add(piece=piece, score=score, type=kinds.get(piece, format.ModelProto.SentencePiece.NORMAL))
    model.trainer_spec.model_type = format.TrainerSpec.UNIGRAM
    model.trainer_spec.vocab_size = len(pieces)
    model.trainer_spec.pad_id, model.trainer_spec.eos_id, model.trainer_spec.unk_id, model.trainer_spec.bos_id = 0, 1, 2, -1
    model.normalizer_spec.name = "identity"
    normalizer = model.normalizer_spec
    normalizer.add_dummy_prefix = normalizer.remove_extra_whitespaces = normalizer.escape_whitespaces = True
    return model.SerializeToString()


def _fast(pieces: list[tuple[str, float]]) -> str:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)])
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in ("<pad>", "</s>", "<unk>")])
    return tokenizer.to_str(pretty=True)
