"""Every sentence that a user sees. A sentence has a stable id; its remedy, where there is one, has the id plus ".remedy".

A language is a file `<code>.json` of id → sentence with {placeholders}. English is complete; a sentence that another
language lacks is shown in English. The id goes to the log, so that a screenshot in any language can be searched.
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

__all__ = ["catalogue", "languages", "remedy", "set_language", "text"]

_FOLDER = Path(__file__).parent
_language = "en"


@lru_cache
def catalogue(language: str) -> dict[str, str]:
    """All sentences of one language, as written in its file."""
    return json.loads((_FOLDER / f"{language}.json").read_text(encoding="utf-8"))


def languages() -> list[str]:
    """The codes of the languages that have a file."""
    return sorted(path.stem for path in _FOLDER.glob("*.json"))


def set_language(code: str) -> None:
    """Choose by a locale such as "zh_CN" or "en"; an unknown one leaves English."""
    global _language
    short = code.replace("-", "_").split("_")[0].lower()
    _language = short if short in languages() else "en"


def text(id: str, **values: object) -> str:
    """The sentence with its placeholders filled. Raises KeyError for an unknown id: that is our bug, not the user's."""
    sentence = catalogue(_language).get(id) or catalogue("en")[id]
    return sentence.format(**values)


def remedy(id: str, **values: object) -> str:
    """What to do about it, or "" where the sentence needs none."""
    return text(f"{id}.remedy", **values) if f"{id}.remedy" in catalogue("en") else ""
