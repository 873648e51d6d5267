from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from sd3deploy import messages
from sd3deploy.diagnosis.checks import STEPS
from sd3deploy.diagnosis.checks.rules import SEEN
from sd3deploy.diagnosis.knowledge import RULES, UNKNOWN

ROOT = Path(__file__).parent.parent
SOURCES = [*ROOT.glob("sd3deploy/**/*.py"), ROOT / "extension.py", ROOT / "install.py"]
_ID = re.compile(r"[a-z][a-z0-9_]*(\.[a-z0-9_-]+)+|unexpected")


def strings() -> set[str]:
    """Every string constant of the package that is written like the id of a sentence."""
    found = set()
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and _ID.fullmatch(node.value):
                found.add(node.value)
    return found


def test_every_sentence_is_used():
    used = strings() | {f"rule.{rule.id}" for rule in (*RULES, UNKNOWN)}
    used |= {f"checks.rule.{id}" for id in SEEN} | {f"checks.{step.id}.title" for step in STEPS}
    composed = ("encoder.", "guard.", "setting.sd3_")  # ids made of a row's id, an action, a setting's key
    composed += tuple(f"memory.{kind}." for kind in ("verdict", "short", "where", "phase", "part", "change", "plot"))
    unused = [id for id in messages.catalogue("en") if id.removesuffix(".remedy") not in used and not id.startswith(composed)]
    assert unused == []


def test_every_remedy_has_its_sentence():
    catalogue = messages.catalogue("en")
    assert [id for id in catalogue if id.endswith(".remedy") and id.removesuffix(".remedy") not in catalogue] == []


@pytest.mark.parametrize("language", messages.languages())
def test_languages_agree_on_placeholders(language):
    english = messages.catalogue("en")
    for id, sentence in messages.catalogue(language).items():
        assert sorted(re.findall(r"{(\w+)}", sentence)) == sorted(re.findall(r"{(\w+)}", english[id])), id


def test_an_unknown_language_is_english():
    messages.set_language("xx_YY")
    assert messages.text("panel.as-set") == messages.catalogue("en")["panel.as-set"]
