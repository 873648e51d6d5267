"""`recommend`: which T5 to take on a GPU of that size, and why not the others. Exit code 1 when not even CLIP alone fits."""

from __future__ import annotations

import argparse
import json
from typing import Any

from sd3deploy import messages
from sd3deploy.commands import estimate as words
from sd3deploy.encoders import choices
from sd3deploy.memory.verdict import recommend

__all__ = ["add", "run"]


def add(subparsers: Any) -> None:
    """Describe the command to argparse."""
    parser = subparsers.add_parser("recommend", help="which T5 to take", description=__doc__)
    words.arguments(parser)
    parser.add_argument("--vram", type=words.gigabytes, required=True, metavar="GB", help="of the GPU")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the choice with its reasons. Raises SettingError for words that mean nothing."""
    advice = recommend(words.setup(options, options.vram, choices.HOST_DEFAULT), words.there(options, options.vram))
    if options.json:
        considered = {choice.id: verdict.answer for choice, verdict in advice.considered}
        name, change = advice.choice.name if advice.choice else None, advice.change.sentence if advice.change else None
        print(json.dumps({"choice": name, "change": change, "considered": considered}, ensure_ascii=False))
        return int(advice.choice is None)
    print(messages.text("memory.take", name=advice.choice.name) if advice.choice else messages.text("memory.take-none"))
    if advice.change:
        print(advice.change.sentence)
    print("\n".join(["", *advice.reasons]))
    return int(advice.choice is None)
