"""`quality`: how near each text encoder comes to float32, on your own weights and with real prompts: relative error and cosine of the
output, bytes, time. What was measured is kept beside the text encoders of SD.Next and not measured again; `recommend` and the panel go by
it. Exit code 0 measured, 1 stopped, 2 could not.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sd3deploy import inside, messages
from sd3deploy.commands import cache, progress
from sd3deploy.commands.quantize import devices, find_source, interruptible, require_packages
from sd3deploy.device import Device
from sd3deploy.diagnosis.checks import files
from sd3deploy.encoders import choices
from sd3deploy.encoders.cache import Cache
from sd3deploy.encoders.choices import CHOICES, Choice
from sd3deploy.encoders.need import shape_of
from sd3deploy.encoders.source import Source
from sd3deploy.encoders.stopping import Stopped, stoppable
from sd3deploy.encoders.weights import Weights, open_weights
from sd3deploy.errors import DependencyError, EncoderError, HostError, SettingError
from sd3deploy.quality import page, prompts, running
from sd3deploy.quality.kept import Kept
from sd3deploy.quality.result import Result, Row

__all__ = ["add", "run"]

_OURS = [choice for choice in CHOICES if choice.error is not None]


def add(subparsers: Any) -> None:
    """Describe the command to argparse."""
    parser = subparsers.add_parser("quality", help="how near each T5 comes to float32, on your own weights", description=__doc__)
    parser.add_argument(
        "src",
        metavar="SRC",
        nargs="?",
        help="a model folder, the folder of its T5, or a file with T5 (default: the first Stable Diffusion 3 of SD.Next that has one)",
    )
    names = ",".join(choice.id for choice in _OURS)
    parser.add_argument("--encoders", metavar="CHOICES", help=f"of {names} (default: all that this machine can run)")
    parser.add_argument("--prompts", type=Path, metavar="FILE", help="one prompt a line, UTF-8 (default: 100 that come with this)")
    parser.add_argument("--device", default="", metavar="NAME", help="what torch calls it, such as cpu (default: the one of SD.Next)")
    inside.add_options(parser)
    parser.add_argument("--folder", type=Path, metavar="DIR", help="keep what is measured in another folder than that of SD.Next")
    parser.add_argument("--json", type=Path, metavar="FILE", help="all numbers of all prompts")
    parser.add_argument("--html", type=Path, metavar="FILE", help="a page to look at and to post; it shows the prompts")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Measure, and say it. Raises Sd3Error for what can not be measured."""
    texts = prompts.read(options.prompts.expanduser() if options.prompts else prompts.OWN)
    for file in filter(None, (options.json, options.html)):
        if not file.expanduser().absolute().parent.is_dir() or file.expanduser().is_dir():
            raise SettingError("quality.unwritable", file=file)
    named = _named(options.encoders)
    found = find_source(options.src) if options.src else _first(options)
    beside = _cache(options)
    require_packages(())
    logging.disable(logging.WARNING)  # as quantize
    try:
        with progress.shown() as bar, interruptible() as stopped, stoppable(stopped):
            result = _measured(options, named, found, texts, beside, bar, stopped)
    except (Stopped, KeyboardInterrupt):
        print(messages.text("quality.stopped" if beside else "quality.stopped-lost"), file=sys.stderr)
        return 1
    except OSError as error:
        raise EncoderError("encoder.unreadable", source=found.name, error=error) from error
    finally:
        logging.disable(logging.NOTSET)
    print("\n".join(result.lines))
    if options.json:
        _write(options.json, json.dumps(result.report(), ensure_ascii=False, indent=1))
    if options.html:
        _write(options.html, page.page(result))
    return 0 if result.rows else 2


def _measured(
    options: argparse.Namespace,
    named: list[Choice],
    found: Source,
    texts: list[str],
    beside: Cache | None,
    bar: progress.Bar,
    stopped: Callable[[], bool],
) -> Result:
    _, device = devices(options.device)
    weights = open_weights(found)
    require_packages(weights.groups)
    if any(file.path is None for file in weights.files):
        raise EncoderError("quality.remote", source=found.name)
    asked = prompts.tokenized(texts, prompts.tokenizer(_places(options, found), weights.config["vocab_size"]))
    able, left_out = _able(named, device)
    fingerprint = weights.fingerprint()
    kept = Kept(beside, fingerprint, device)

    def went_on(fraction: float, done: int, all: int, name: str) -> None:
        bar.fill(fraction, messages.text("quality.running", done=done, all=all, name=name))

    failed = running.run(weights, fingerprint, able, asked, kept, device, went_on, stopped)
    left_out |= {choice.name: failed[choice.id] for choice in able if choice.id in failed}
    return _result(weights, [choice for choice in able if choice.id not in failed], asked, kept, device, left_out)


def _result(
    weights: Weights, able: list[Choice], asked: list[prompts.Prompt], kept: Kept, device: Device, left_out: dict[str, str]
) -> Result:
    import transformers

    shape = shape_of(transformers.T5Config(**weights.config))
    rows = []
    for choice in able:
        measured = kept.measured(choice)
        rows.append(Row(choice, shape.bytes(choice, device.compute_dtype), tuple(measured[prompt.key] for prompt in asked)))
    rows.sort(key=lambda row: row.error)
    return Result(weights.name, weights.form, kept.fingerprint, kept.versions, device, asked, rows, left_out)


def _named(words: str | None) -> list[Choice]:
    """Those that are asked for; [] for all. Raises SettingError for one that there is not, or that is not made by this extension."""
    asked = [choices.find(word) for word in (words or "").split(",") if word.strip()]
    for choice in asked:
        if choice not in _OURS:
            raise SettingError("quality.not-ours", name=choice.name, known=", ".join(one.id for one in _OURS))
    return list(dict.fromkeys(asked))


def _able(named: list[Choice], device: Device) -> tuple[list[Choice], dict[str, str]]:
    """Those to measure, and why not the others. Raises for one that was asked for and can not run here."""
    for choice in named:
        choices.require(choice, device)
        require_packages(choice.groups)
    if named:
        return named, {}
    left_out = {choice.name: reason for choice in _OURS if (reason := choices.unsuitable(choice, device))}
    for choice in _OURS:
        try:
            require_packages(choice.groups)
        except DependencyError as error:
            left_out.setdefault(choice.name, str(error))
    return [choice for choice in _OURS if choice.name not in left_out], left_out


def _first(options: argparse.Namespace) -> Source:
    """T5 of the first model of SD.Next that has one. Raises HostError where there is none."""
    for model in files.search(inside.folders(options).models):
        if model.complete and files.T5 in model.parts:
            return find_source(str(model.path))
    raise HostError("quality.no-model")


def _places(options: argparse.Namespace, found: Source) -> list[Path]:
    """Where T5's tokenizer may lie: with the model, beside the file, and where SD.Next ships one."""
    own = [Path(place) for place in (found.place, found.file) if place]
    root = inside.folders(options).root
    return [*own, *(place.parent for place in own), *([root / "configs" / "sd3"] if root else [])]


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
