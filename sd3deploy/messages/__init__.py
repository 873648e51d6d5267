"""Every sentence that a user sees. A sentence has a stable id; its remedy, where there is one, has the id plus ".remedy".

A language is a file `<code>.json` of id → sentence with {placeholders}; adding one is adding its file. English is complete; a sentence
that another language lacks is shown in English. A sentence about a number of things is there as "<id>.one" and "<id>.other"; a language
that does not tell them apart has "<id>.other" alone. The id goes to the log, so that a screenshot in any language can be searched.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from pathlib import Path

__all__ = ["catalogue", "joined", "language", "languages", "preferred", "remedy", "sentence", "set_language", "speaking", "text"]

_FOLDER = Path(__file__).parent
_LONGEST = 2000  # characters of one value; the longest of our own, the last lines of pip, are shorter
_language = "en"
_spoken: ContextVar[str | None] = ContextVar("sd3deploy_language", default=None)


@lru_cache
def catalogue(language: str) -> dict[str, str]:
    """All sentences of one language, as written in its file."""
    return json.loads((_FOLDER / f"{language}.json").read_text(encoding="utf-8"))


@lru_cache
def languages() -> tuple[str, ...]:
    """The codes of the languages that have a file."""
    return tuple(sorted(path.stem for path in _FOLDER.glob("*.json")))


def language() -> str:
    """The code of the language that is spoken here and now."""
    return _spoken.get() or _language


def set_language(code: str) -> None:
    """What is spoken where nobody asks for another: by a locale such as "zh_CN" or "en"; an unknown one is English."""
    global _language
    _language = _known(code) or "en"


@contextmanager
def speaking(code: str) -> Iterator[None]:
    """Another language for what is said inside, on this thread alone: the answer to a request."""
    token = _spoken.set(_known(code))
    try:
        yield
    finally:
        _spoken.reset(token)


def preferred(header: str | None) -> str | None:
    """The first language of an Accept-Language header (RFC 9110, 12.5.4) that has a file; None where it names none of them."""
    wanted = []
    for place, one in enumerate((header or "")[:1000].split(",")):
        code, _, weight = one.partition(";")
        try:
            quality = float(weight.partition("=")[2] or 1)
        except ValueError:  # not a number: as if it were not there
            quality = 0.0
        if quality > 0 and (known := _known(code.strip())):
            wanted.append((-quality, place, known))
    return min(wanted)[2] if wanted else None


def text(id: str, **values: object) -> str:
    """The sentence with its placeholders filled; of those with a plural the one for `count`. Raises KeyError for an unknown id: that is our
    bug, not the user's.
    """
    return sentence(id, values.get("count")).format(**{name: _shown(value) for name, value in values.items()})


def sentence(id: str, count: object = None) -> str:
    """As it is written, with its placeholders. Raises KeyError for an unknown id."""
    # A language without a form for one thing says the general one, also where the form for one is asked for by its id.
    ids = [id, *([f"{id}.one"] if count == 1 else []), f"{id.removesuffix('.one')}.other"]
    for sentences in (catalogue(language()), catalogue("en")):
        for one in ids:
            if one in sentences:
                return sentences[one]
    raise KeyError(id)


def remedy(id: str, **values: object) -> str:
    """What to do about it, or "" where the sentence needs none."""
    return text(f"{id}.remedy", **values) if f"{id}.remedy" in catalogue("en") else ""


def joined(*sentences: str) -> str:
    """One after the other, without those of nothing; a space goes between them but behind the full stop of a script that needs none."""
    text = ""
    for sentence in filter(None, sentences):
        text += sentence if not text or unicodedata.east_asian_width(text[-1]) in "WF" else f" {sentence}"
    return text


def _shown(value: object) -> object:
    """A value as a sentence can have it: what came from outside may be of any length, and may be no text that can be written anywhere."""
    if isinstance(value, (int, float)):
        return value
    words = str(value)
    cut = words if len(words) <= _LONGEST else f"{words[:_LONGEST]}… ({len(words):,})"
    return cut.encode("utf-8", "backslashreplace").decode("utf-8")


def _known(code: str) -> str | None:
    short = code.strip().replace("-", "_").split("_")[0].lower()
    return short if short in languages() else None
