"""`recommend`: which T5 to take on a GPU of that size, and why not the others. Exit code 1 when not even CLIP alone fits."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from sd3deploy import inside, messages
from sd3deploy.commands import cache
from sd3deploy.commands import estimate as words
from sd3deploy.commands.quantize import find_source
from sd3deploy.encoders import choices
from sd3deploy.errors import EncoderError, HostError
from sd3deploy.memory.errors import Errors
from sd3deploy.memory.verdict import recommend
from sd3deploy.quality.kept import errors_of

__all__ = ["add", "run"]


def add(subparsers: Any) -> None:
    """Describe the command to argparse."""
    parser = subparsers.add_parser("recommend", help="which T5 to take", description=__doc__)
    words.arguments(parser)
    inside.add_options(parser, python=False)
    parser.add_argument("--folder", type=Path, metavar="DIR", help="where `quality` has kept what it measured (default: that of SD.Next)")
    parser.add_argument("--vram", type=words.gigabytes, required=True, metavar="GB", help="of the GPU")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the choice with its reasons. Raises SettingError for words that mean nothing."""
    setup = replace(words.setup(options, options.vram, choices.HOST_DEFAULT), errors=_errors(options))
    advice = recommend(setup, words.there(options, options.vram))
    if options.json:
        considered = {choice.id: verdict.answer for choice, verdict in advice.considered}
        name, change = advice.choice.name if advice.choice else None, advice.change.sentence if advice.change else None
        print(json.dumps({"choice": name, "change": change, "considered": considered, "basis": advice.basis}, ensure_ascii=False))
        return int(advice.choice is None)
    print(messages.text("memory.take", name=advice.choice.shown) if advice.choice else messages.text("memory.take-none"))
    if advice.change:
        print(advice.change.sentence)
    print("\n".join(["", *advice.reasons, "", advice.basis]))
    return int(advice.choice is None)


def _errors(options: argparse.Namespace) -> Errors:
    """Those that were measured on a model that lies on this disk and are kept by that SD.Next."""
    if not Path(options.model).expanduser().exists():
        return Errors()
    try:
        return errors_of(cache.opened(options, options.folder, lambda id, values: None), find_source(options.model))
    except (HostError, EncoderError):  # no SD.Next, or no T5
        return Errors()
