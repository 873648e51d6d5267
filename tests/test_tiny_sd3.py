"""The tiny model has the format, the shapes and the habits of the real one."""

import json
import os
import re
import tempfile
from pathlib import Path

import pytest
from safetensors import safe_open

from sd3deploy import tiny_sd3

SIGNED = rb'"(?:_diffusers|transformers)_version": "[^"]*"'
ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def folder():
    return tiny_sd3.ensure()


def test_it_is_small_and_in_the_ordinary_layout(folder):
    index = json.loads((folder / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusion3Pipeline"
    assert all((folder / name).is_dir() for name in index if not name.startswith("_"))
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) < 60e6


def test_t5_has_layers_that_4_bit_blocks_fit(folder):
    with safe_open(folder / "text_encoder_3" / "model.safetensors", "np") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118  it is no dictionary
    linear = {name: shape for name, shape in shapes.items() if name.endswith((".q.weight", ".wi_0.weight", ".wi_1.weight", ".wo.weight"))}
    assert len(linear) == 12
    assert all(rows * columns % 64 == 0 for rows, columns in linear.values())
    config = json.loads((folder / "text_encoder_3" / "config.json").read_text())
    assert config["feed_forward_proj"] == "gated-gelu"


def test_sizes_are_checked_as_in_sd3_medium(folder):
    config = json.loads((folder / "transformer" / "config.json").read_text())
    assert (config["patch_size"], config["in_channels"], config["pos_embed_max_size"]) == (2, 16, 192)


def test_fast_and_slow_tokenizers_agree(folder):
    import sentencepiece
    from tokenizers import Tokenizer

    slow = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer_3" / "spiece.model"))
    fast = Tokenizer.from_file(str(folder / "tokenizer_3" / "tokenizer.json"))
    for prompt in ("a photo of a cat", "HELLO, world!", "two  spaces", "näive"):
        assert [*slow.encode(prompt), 1] == fast.encode(prompt).ids


def test_every_machine_makes_the_same_model(folder, tmp_path):
    """Whichever libraries have written it: `test --newest` may have, and they sign what they write."""
    made = tiny_sd3.make(tmp_path / "again")
    for file in folder.rglob("*.*"):
        if file.is_file():
            again, kept = ((there / file.relative_to(folder)).read_bytes() for there in (made, folder))
            assert re.sub(SIGNED, b"", again) == re.sub(SIGNED, b"", kept), file.name


def test_where_this_folder_may_not_be_written_it_goes_to_a_cache(monkeypatch, tmp_path):
    assert tiny_sd3.cached() == ROOT / ".cache" / "tiny-sd3"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) == tmp_path)
    assert tiny_sd3.cached() == tmp_path / "cache" / "sd3deploy" / "tiny-sd3"
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert tiny_sd3.cached() == Path(tempfile.gettempdir(), "sd3deploy", "tiny-sd3")
