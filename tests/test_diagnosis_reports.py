"""Whole reports of users of many programs end in the right finding, and a healthy one in none."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from sd3deploy.diagnosis import logfile, matcher

FOLDER = Path(__file__).parent / "reports"
EXPECTED = json.loads((FOLDER / "expected.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", EXPECTED)
def test_a_report(name):
    found = matcher.read(logfile.blocks(FOLDER / f"{name}.log"))
    if not EXPECTED[name]["causes"]:
        assert [one.message for one in found] == []
        return
    assert found[0].cause in EXPECTED[name]["causes"]
    assert re.search(EXPECTED[name]["words"], json.dumps(found[0].report(), ensure_ascii=False)), found[0]
