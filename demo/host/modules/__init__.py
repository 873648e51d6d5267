"""The package that extensions import from: the part of SD.Next's `modules` that this extension leans on."""

from pathlib import Path

from modules.like import AUGUST

if not AUGUST:
    __path__.append(str(Path(__file__).parents[1] / "until_2026_08"))
