"""T5's tokenizer: whether one is T5's, and where one is looked for.

transformers makes a tokenizer without words of a folder that has nothing but a config.json, and T5 then ignores every prompt. So what is
found is tried, wherever it comes from.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sd3deploy.encoders import stopping
from sd3deploy.encoders.source import Facts, Source, offline
from sd3deploy.encoders.swap import plain
from sd3deploy.errors import EncoderError
from sd3deploy.memory.t5_shape import T5_XXL

__all__ = ["find", "first", "local", "usable"]

Place = tuple[str, Mapping[str, Any]]  # a folder or repository, and the arguments of from_pretrained to read it with
_FOLDER = "tokenizer_3"
_FILES = ("tokenizer.json", "spiece.model")
_TEXT, _OTHER = "translate English to German: The house is wonderful.", "a red cat"
_IDS = [13959, 1566, 12, 2968, 10, 37, 629, 19, 1627, 5, 1]  # of _TEXT, as in the documentation of transformers (model_doc/t5)
_END, _UNKNOWN = 1, 2


def find(own: Any, encoder: Any, facts: Facts, source: Source | None = None) -> Any:
    """The tokenizer to go with an encoder: `own`, that of the pipeline, where it is usable, else the first one that is.

    It is looked for on this disk first: in the model, beside the weights, among what the host ships. The network is asked last, and not
    where that is forbidden. Called with any lock held. Raises EncoderError (encoder.no-tokenizer) where there is none, and Stopped inside
    `stoppable`.
    """
    vocabulary = plain(encoder).config.vocab_size
    if usable(own, vocabulary):
        return own
    found = first(_places(facts, source), vocabulary)
    if found is None:
        raise EncoderError("encoder.no-tokenizer")
    return found


def first(places: Iterable[Place], vocabulary: int) -> Any:
    """The first usable tokenizer, None where no place has one. vocabulary: how many tokens the encoder knows."""
    import transformers

    for place, arguments in places:
        stopping.check()
        try:
            found = transformers.AutoTokenizer.from_pretrained(place, trust_remote_code=False, **arguments)
        except Exception:  # not in this place (OSError, ValueError); a damaged file raises anything, the bare Exception of tokenizers too
            continue
        if usable(found, vocabulary):
            return found
    return None


def usable(found: Any, vocabulary: int) -> bool:
    """Whether it makes T5's tokens of a text; None does not. An encoder with fewer tokens than T5's is one of the small ones of demo and
    tests: there two texts have to give different tokens, and known ones.
    """
    try:
        if len(found) > vocabulary or found.pad_token_id != 0:
            return False
        ids, other = (found(text).input_ids for text in (_TEXT, _OTHER))
    except Exception:  # what is damaged, or no tokenizer, raises anything
        return False
    return ids == _IDS if vocabulary >= T5_XXL.vocab_size else ids != other and _UNKNOWN not in ids and ids[-1] == _END


def local(folders: Iterable[Path]) -> Iterator[Place]:
    """The places in folders of this disk that have the files of a tokenizer: each folder with a folder tokenizer_3, or with them in it."""
    for folder in dict.fromkeys(folders):
        for place in (folder / _FOLDER, folder):
            if any((place / name).is_file() for name in _FILES):
                yield str(place), {"local_files_only": True}


def _places(facts: Facts, source: Source | None) -> Iterator[Place]:
    weights = (source.file or source.place) if source else None
    named = dict.fromkeys(str(one) for one in (facts.model, weights, facts.tokenizer) if one)
    here = {one: Path(one) for one in named if Path(one).exists()}
    folders = [path if path.is_dir() else path.parent for path in here.values()]
    yield from local(place for folder in folders for place in (folder, folder.parent))
    repositories = [one for one in named if one not in here]
    yield from local(folder for one in repositories for folder in _cached(one, facts.caches))
    if not offline(facts):
        cache = next(iter(facts.caches), None)
        yield from ((one, {"subfolder": folder, "cache_dir": cache}) for one in repositories for folder in (_FOLDER, ""))


def _cached(repository: str, caches: Iterable[str]) -> Iterator[Path]:
    """The folders of caches with the files of a tokenizer. transformers finds none there without the network: it wants a config.json."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    names = [f"{folder}{name}" for folder in (f"{_FOLDER}/", "") for name in _FILES]
    with contextlib.suppress(HFValidationError):  # not the name of a repository, such as a folder that is gone
        found = [try_to_load_from_cache(repository, name, cache) for cache in tuple(caches) or (None,) for name in names]
        yield from (Path(one).parent for one in found if isinstance(one, str))
