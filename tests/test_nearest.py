"""Which of the known names somebody meant."""

from __future__ import annotations

from pathlib import Path

import pytest

from sd3deploy.encoders import choices
from sd3deploy.errors import SettingError
from sd3deploy.nearest import LONGEST, nearest

ROOT = Path(__file__).parent.parent
NAMES = ("sd3-medium", "sd3.5-large", "T5 FP4")


def test_the_nearest_one_in_any_case():
    assert nearest("SD3-Medum", NAMES) == "sd3-medium"
    assert nearest("t5 fp44", NAMES) == "T5 FP4"


def test_none_is_near_enough():
    assert nearest("something else", NAMES, 0.6) is None
    assert nearest("", NAMES) in NAMES
    assert nearest("x", ()) is None


def test_a_text_without_an_end_is_compared_by_its_beginning():
    beginning = "sd3.5-larg".ljust(LONGEST)
    assert nearest(beginning + "sd3-medium" * 10**6, NAMES) == nearest(beginning, NAMES) == "sd3.5-large"
    with pytest.raises(SettingError) as caught:
        choices.find("t5 fp44" * 10**6)
    assert len(str(caught.value)) < 300


def test_names_are_compared_nowhere_else():
    files = [file for file in ROOT.glob("sd3deploy/**/*.py") if "difflib" in file.read_text(encoding="utf-8")]
    assert [file.name for file in files] == ["nearest.py"]
