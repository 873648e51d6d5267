"""A tokenizer is taken only where it is T5's: one that knows no words makes the same picture of every prompt."""

from __future__ import annotations

import json
import shutil
import types

import pytest

from sd3deploy import tiny_tokenizers
from sd3deploy.encoders import source, tokenizer
from sd3deploy.errors import EncoderError
from sd3deploy.memory.t5_shape import T5_XXL
from tests import t5
from tests.hub_server import Hub, in_place_of_the_hub

FILES = ("tokenizer.json", "spiece.model")


@pytest.fixture
def shipped(tmp_path):
    """A model folder without weights, as the host ships it."""
    tiny_tokenizers.t5(tmp_path / "host" / "tokenizer_3")
    return tmp_path / "host"


@pytest.fixture
def hub(monkeypatch):
    server = Hub()
    in_place_of_the_hub(server, monkeypatch)
    yield server
    server.close()


def found(model="", weights=None, shipped="", own=None, vocabulary=t5.VOCABULARY, **facts):
    encoder = types.SimpleNamespace(config=types.SimpleNamespace(vocab_size=vocabulary))
    return tokenizer.find(own, encoder, source.Facts(str(model), tokenizer=str(shipped), **facts), weights)


def refusal(**arguments):
    with pytest.raises(EncoderError) as caught:
        found(**arguments)
    assert caught.value.id == "encoder.no-tokenizer"


def knows_words(one):
    a, b = one("a red cat").input_ids, one("the blue world").input_ids
    return a != b and 2 not in a + b


def of_words(folder, words, **config):
    """A tokenizer of whole words, each with its number."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    made = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", words["</s>"])])
    folder.mkdir(parents=True, exist_ok=True)
    made.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"} | config
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


SPECIAL = {"<pad>": 0, "</s>": 1, "<unk>": 2}
WORDS = ("translate", "English", "to", "German", ":", "The", "house", "is", "wonderful", ".")
NUMBERS = (13959, 1566, 12, 2968, 10, 37, 629, 19, 1627, 5)  # that T5 gives them


# What is one


def no_files(folder):
    for name in FILES:
        (folder / name).unlink()


def config_alone(folder):
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "t5"}))


def cut(folder):
    """Nothing is left of its words."""
    said = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    said["model"]["vocab"] = said["model"]["vocab"][:3]
    (folder / "tokenizer.json").write_text(json.dumps(said), "utf-8")
    (folder / "spiece.model").unlink()


def clip(folder):
    shutil.rmtree(folder)
    tiny_tokenizers.clip(folder, pad="!")


def another(folder):
    of_words(folder, SPECIAL | {"a": 3, "cat": 4})


def content(words):
    return lambda folder: [(folder / "tokenizer.json").write_text(words), (folder / "spiece.model").unlink()]


DAMAGED = [content(words) for words in ("{}", "[]", "null", '{"model": {"type": "nothing"}}', "no json", "version https://git-lfs")]


@pytest.mark.parametrize("damage", [no_files, config_alone, cut, clip, another, *DAMAGED])
def test_what_is_no_tokenizer_of_t5_is_passed_over(tmp_path, shipped, damage):
    tiny_tokenizers.t5(tmp_path / "model" / "tokenizer_3")
    damage(tmp_path / "model" / "tokenizer_3")
    assert knows_words(found(tmp_path / "model", shipped=shipped))
    refusal(model=tmp_path / "model")


def test_a_folder_of_weights_without_a_tokenizer_has_none(tmp_path, shipped):
    t5.make(tmp_path)
    (tmp_path / "model").mkdir()
    weights = source.find("Local file", source.Facts(""), str(tmp_path / "text_encoder_3"))
    assert knows_words(found(tmp_path / "model", weights, shipped))


def test_one_with_more_tokens_than_the_encoder_knows_does_not_fit(shipped):
    refusal(shipped=shipped, vocabulary=16)


def test_t5_xxl_takes_the_tokens_of_t5_alone(tmp_path, shipped):
    refusal(shipped=shipped, vocabulary=T5_XXL.vocab_size)
    of_words(tmp_path / "japanese" / "tokenizer_3", SPECIAL | {word: number for number, word in enumerate(WORDS, 3)})
    refusal(model=tmp_path / "japanese", vocabulary=T5_XXL.vocab_size)
    of_words(tmp_path / "real" / "tokenizer_3", SPECIAL | dict(zip(WORDS, NUMBERS, strict=True)))
    assert found(tmp_path / "real", vocabulary=T5_XXL.vocab_size)("The house.").input_ids == [37, 629, 5, 1]


def test_that_of_the_pipeline_stays_where_it_is_one(tmp_path, shipped):
    own = found(shipped=shipped)
    assert found(tmp_path / "model", own=own) is own
    of_words(tmp_path / "words", SPECIAL)
    import transformers

    wordless = transformers.AutoTokenizer.from_pretrained(str(tmp_path / "words"))
    assert knows_words(found(own=wordless, shipped=shipped))
    refusal(own=wordless)


# Where it is looked for


@pytest.mark.parametrize("place", ["tokenizer_3", "", "../tokenizer_3"])
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_it_may_lie_beside_the_weights(tmp_path, kind, place):
    t5.make(tmp_path / "made")
    folder = tmp_path / "made" / "text_encoder_3"
    tiny_tokenizers.t5(folder / place)
    weights = source.Source("", file=folder / "model.safetensors") if kind == "file" else source.Source("", str(folder))
    assert knows_words(found(weights=weights))


def published(hub, shipped):
    hub.repositories["org/sd3"] = {f"tokenizer_3/{one.name}": one.read_bytes() for one in (shipped / "tokenizer_3").iterdir()}


def test_the_network_is_asked_only_where_nothing_on_this_disk_has_one(hub, tmp_path, shipped):
    published(hub, shipped)
    caches = (str(tmp_path / "first"), str(tmp_path / "second"))
    assert knows_words(found("org/sd3", shipped=shipped, caches=caches))
    assert hub.requests == []
    assert knows_words(found("org/sd3", caches=caches[1:]))
    assert hub.requests
    hub.requests.clear()
    assert knows_words(found("org/sd3", caches=caches))
    assert hub.requests == []
    assert not (tmp_path / "first").exists()


def test_offline_asks_no_network(hub, tmp_path, shipped):
    published(hub, shipped)
    refusal(model="org/sd3", caches=(str(tmp_path / "cache"),), offline=True)
    assert hub.requests == []
