"""`quality`: how near each text encoder comes to float32, on your own weights and with real prompts: relative error and cosine of the
output, bytes, time. What was measured is kept beside the text encoders of SD.Next and not measured again; `recommend` and the panel go by
it. --pictures adds pictures of the model with each of them. Exit code 0 measured, 1 stopped, 2 could not.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from sd3deploy import inside, messages
from sd3deploy.commands import cache, progress
from sd3deploy.commands.quantize import devices, find_source, interruptible
from sd3deploy.deps import require_packages
from sd3deploy.diagnosis.checks import files
from sd3deploy.encoders import choices
from sd3deploy.encoders.cache import Cache
from sd3deploy.encoders.choices import Choice
from sd3deploy.encoders.source import Source
from sd3deploy.encoders.stopping import Stopped, stoppable
from sd3deploy.errors import EncoderError, HostError, SettingError
from sd3deploy.quality import measuring, page, painting, prompts
from sd3deploy.quality.measuring import OURS
from sd3deploy.quality.pictures import Setting

__all__ = ["add", "run"]


def add(subparsers: Any) -> None:
    """Describe the command to argparse."""
    parser = subparsers.add_parser("quality", help="how near each T5 comes to float32, on your own weights", description=__doc__)
    parser.add_argument(
        "src",
        metavar="SRC",
        nargs="?",
        help="a model folder, the folder of its T5, or a file with T5 (default: the first Stable Diffusion 3 of SD.Next that has one)",
    )
    names = ",".join(choice.id for choice in OURS)
    parser.add_argument("--encoders", metavar="CHOICES", help=f"of {names} (default: all that this machine can run)")
    parser.add_argument("--prompts", type=Path, metavar="FILE", help="one prompt a line, UTF-8 (default: 100 that come with this)")
    parser.add_argument("--device", default="", metavar="NAME", help="what torch calls it, such as cpu (default: the one of SD.Next)")
    inside.add_options(parser)
    parser.add_argument("--folder", type=Path, metavar="DIR", help="keep what is measured in another folder than that of SD.Next")
    parser.add_argument("--json", type=Path, metavar="FILE", help="all numbers of all prompts")
    parser.add_argument("--html", type=Path, metavar="FILE", help="a page to look at and to post; it shows the prompts")
    parser.add_argument(
        "--pictures",
        type=int,
        nargs="?",
        const=4,
        choices=range(1, painting.MOST + 1),
        metavar="N",
        help=f"add to the page the same N pictures with each choice, 1 to {painting.MOST} (default: 4); SRC is a whole model folder",
    )
    usual = Setting()
    sizes = range(128, 2049, 128)
    parser.add_argument("--size", type=int, choices=sizes, metavar="PX", default=usual.size, help=f"of pictures (default: {usual.size})")
    parser.add_argument("--steps", type=_positive, metavar="N", default=usual.steps, help=f"of pictures (default: {usual.steps})")
    guidance = f"scale, 1 for a turbo model (default: {usual.guidance:g})"
    parser.add_argument("--guidance", type=float, metavar="X", default=usual.guidance, help=guidance)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Measure, and say it. Raises Sd3Error for what can not be measured."""
    texts = prompts.read(options.prompts.expanduser() if options.prompts else prompts.OWN)
    for file in filter(None, (options.json, options.html)):
        if not file.expanduser().absolute().parent.is_dir() or file.expanduser().is_dir():
            raise SettingError("quality.unwritable", file=file)
    if options.pictures and not options.html:
        raise SettingError("quality.pictures.no-page")
    named = _named(options.encoders)
    found = find_source(options.src) if options.src else _first(options)
    beside = _cache(options)
    require_packages(())
    logging.disable(logging.WARNING)  # as quantize
    result = None
    try:
        with progress.shown() as bar, interruptible() as stopped, stoppable(stopped):
            _, device = devices(options.device)
            setting = Setting(options.size, options.steps, options.guidance)
            model = painting.require(found, setting, device) if options.pictures else None
            weights = measuring.opened(found)

            def went_on(fraction: float, done: int, all: int, name: str) -> None:
                bar.fill(fraction, messages.text("quality.running", percent=round(100 * fraction, 1), done=done, all=all, name=name))

            result = measuring.measured(weights, named, texts, _places(options), beside, device, went_on, stopped)
            if model and result.rows:
                able, asked = [row.choice for row in result.rows], prompts.varied(result.prompts, options.pictures)
                (empty,) = prompts.tokenized([""], measuring.tokenizer(weights, _places(options)))
                pictures = painting.make(model, weights, able, asked, empty, setting, device, bar.fill, stopped)
                result = replace(result, pictures=pictures)
    except (Stopped, KeyboardInterrupt) as ended:
        lost = ended.message if isinstance(ended, Stopped) and ended.id == "quality.lost" else result.lost if result else ""
        kept = "quality.stopped-pictures" if result else "quality.stopped"
        print(lost or messages.text(kept if beside else "quality.stopped-lost"), file=sys.stderr)
        return 1
    except OSError as error:
        raise EncoderError("encoder.unreadable", source=found.name, error=error) from error
    finally:
        logging.disable(logging.NOTSET)
    print("\n".join(result.lines))
    if result.lost:
        print(result.lost, file=sys.stderr)
    if options.json:
        _write(options.json, json.dumps(result.report(), ensure_ascii=False, indent=1))
    if options.html:
        _write(options.html, page.page(result))
    return 0 if result.rows else 2


def _positive(text: str) -> int:
    """For argparse."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError("it is 1 or more")
    return number


def _named(words: str | None) -> list[Choice]:
    """Those that are asked for; [] for all. Raises SettingError for one that there is not, or that is not made by this extension."""
    asked = [choices.find(word) for word in (words or "").split(",") if word.strip()]
    for choice in asked:
        if choice not in OURS:
            raise SettingError("quality.not-ours", name=choice.name, known=", ".join(one.id for one in OURS))
    return list(dict.fromkeys(asked))


def _first(options: argparse.Namespace) -> Source:
    """T5 of the first model of SD.Next that has one. Raises HostError where there is none."""
    for model in files.search(inside.folders(options).models):
        if model.complete and files.T5 in model.parts:
            return find_source(str(model.path))
    raise HostError("quality.no-model")


def _places(options: argparse.Namespace) -> list[Path]:
    """Where SD.Next ships T5's tokenizer."""
    root = inside.folders(options).root
    return [root / "configs" / "sd3"] if root else []


def _cache(options: argparse.Namespace) -> Cache | None:
    """Beside which encoders what is measured is kept; None, which is said, where no folder is known."""
    try:
        return cache.opened(options, options.folder, lambda id, values: None)
    except HostError:
        print(messages.text("quality.not-kept"), file=sys.stderr)
        return None


def _write(file: Path, text: str) -> None:
    try:
        file.expanduser().write_text(text, encoding="utf-8")
    except OSError as error:
        raise SettingError("quality.unwritable", file=file) from error
    print(messages.text("quality.written", file=file), file=sys.stderr)
