"""Every sentence id of the extension, with what it means and what to do: docs/messages.json → the tables of docs/messages.md.

A row of that file explains one id or several that mean the same, in each language. An id that ends in "*" is a family, whose sentences
come with their own remedies: they are listed below the tables. "words" are the rest: labels, progress, parts of other sentences.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

from publish.markdown import plain, table
from sd3deploy import messages

__all__ = ["explained", "ids", "row_of", "source", "tables"]

_FILE = Path(__file__).resolve().parent.parent / "docs" / "messages.json"
_LONGEST = 110  # characters of a sentence in a table: it is there to be recognised
_WORDS = {
    "en": {"says": "It says", "means": "It means", "do": "Do", "id": "Id", "families": "Families", "words": "Other words"},
    "zh": {"says": "提示", "means": "含义", "do": "处理", "id": "Id", "families": "各类消息", "words": "其他文字"},
}


@lru_cache
def source() -> dict[str, Any]:
    """docs/messages.json: "sections" with an id, a title and rows, and "words", which are rows without a remedy."""
    return json.loads(_FILE.read_text(encoding="utf-8"))


def explained() -> list[str]:
    """Every id and family that has a row, in the order of the file."""
    rows = [*(row for section in source()["sections"] for row in section["rows"]), *source()["words"]]
    return [id for row in rows for id in row["ids"]]


def ids() -> list[str]:
    """The ids of all sentences that are no remedy; of a plural the one without its ending."""
    known = messages.catalogue("en")
    plurals = {id.removesuffix(".one") for id in known if id.endswith(".one")}
    bare = {id: id.removesuffix(".one").removesuffix(".other") for id in known if not id.endswith(".remedy")}
    return list(dict.fromkeys(base if base in plurals else id for id, base in bare.items()))


def row_of(id: str) -> str | None:
    """The id or the family whose row explains a sentence: the longest that fits; None where there is none."""
    fitting = [one for one in explained() if one == id or (one.endswith("*") and id.startswith(one[:-1]))]
    return max(fitting, key=lambda one: (one == id, len(one)), default=None)


def tables(language: str) -> str:
    """All sections, then the families, then the words. Called while `language` is spoken."""
    words = _WORDS[language]
    heads = (words["says"], words["means"], words["do"])
    lines: list[str] = []
    families: list[str] = []
    for section in source()["sections"]:
        rows = [["<br>".join(map(_said, row["ids"])), row["means"][language], row["do"][language]] for row in section["rows"]]
        lines += [f"## {section['title'][language]}", "", table(heads, rows), ""]
        for row in section["rows"]:
            for family in (id for id in row["ids"] if id.endswith("*")):
                listed = [[f"`{id}`", plain(_open(id)), plain(_open(f"{id}.remedy"))] for id in _members(family)]
                listed = table((words["id"], words["says"], words["do"]), listed)
                families += [f"### {family.removesuffix('.*')}", "", row["means"][language], "", listed, ""]
    lines += [f"## {words['families']}", "", *families, f"## {words['words']}", ""]
    for row in source()["words"]:
        for family in row["ids"]:
            listed = table((words["id"], words["says"]), [[f"`{id}`", plain(_open(id))] for id in _members(family)])
            lines += [f"### {family.removesuffix('.*')}", "", row["means"][language], "", listed, ""]
    return "\n".join(lines).rstrip()


def _said(id: str) -> str:
    """An id in a table, after the beginning of its sentence; a family, with a link to its list."""
    if id.endswith("*"):
        return f"[`{id}`](#{id.removesuffix('.*')})"
    sentence = re.split(r"(?<=[.!?]) |(?<=[。！？])", _open(id))[0]
    cut = sentence.rstrip(".。 ") if len(sentence) <= _LONGEST else f"{sentence[:_LONGEST].rpartition(' ')[0] or sentence[:_LONGEST]} …"
    return f"{plain(cut)} `{id}`" if cut.strip("… ") else f"`{id}`"


def _open(id: str) -> str:
    """The sentence with an ellipsis for what is filled in; "" where there is none."""
    known = messages.catalogue("en")
    there = id in known or f"{id}.other" in known
    return re.sub(r"{\w+}", "…", messages.sentence(id)) if there else ""


def _members(family: str) -> list[str]:
    """The ids that a family explains, in the order of the alphabet; of plurals the general form, without its ending."""
    return sorted(id for id in ids() if row_of(id) == family)
