"""`quantize`: make a quantized T5 ahead of time. Without --out it goes to the stored text encoders of SD.Next, which loads it from there;
with it, to a folder of its own. Exit code 0 made or there already, 1 stopped, 2 could not.
"""

from __future__ import annotations

import argparse
import json
import logging
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sd3deploy import device, inside, messages, units
from sd3deploy.commands import cache, progress
from sd3deploy.deps import require_packages
from sd3deploy.encoders import choices, source
from sd3deploy.encoders.cache import Cache, Entry, export
from sd3deploy.encoders.hub import Repository, Spec
from sd3deploy.encoders.quantize import Stopped, quantize
from sd3deploy.encoders.recipe import Recipe
from sd3deploy.encoders.stopping import stoppable
from sd3deploy.encoders.weights import open_weights
from sd3deploy.errors import EncoderError, SettingError

if TYPE_CHECKING:
    from sd3deploy.encoders.weights import Weights

__all__ = ["add", "devices", "find_source", "interruptible", "run"]


_SUBFOLDER = "text_encoder_3"


def add(subparsers: Any) -> None:
    """Describe the command to argparse."""
    parser = subparsers.add_parser("quantize", help="make a quantized T5 ahead of time", description=__doc__)
    sources = "a model folder, the folder of its T5, a file with T5 (.safetensors, .gguf, …), or a repository: owner/name:file"
    parser.add_argument("src", metavar="SRC", help=sources)
    names = ", ".join(choice.id for choice in choices.CHOICES if choice.quantized)
    usual = "q4, which needs no package; with --stock fp4"
    parser.add_argument("--encoder", metavar="CHOICE", help=f"one of: {names} (default: {usual})")
    parser.add_argument("--out", type=Path, metavar="DIR", help="a folder that is new or empty, in place of the stored ones of SD.Next")
    parser.add_argument("--stock", action="store_true", help="so that transformers.T5EncoderModel itself can read it; it is larger")
    parser.add_argument("--device", default="", metavar="NAME", help="what torch calls it, such as cpu (default: the one of SD.Next)")
    inside.add_options(parser)
    parser.add_argument("--json", action="store_true", help="what was made and where")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Make it. Raises SettingError for words that mean nothing, EncoderError for a source without T5 or a place without room."""
    choice = _choice(options)
    found = find_source(options.src)
    kept = None if options.out else cache.opened(options, None, lambda id, values: print(messages.text(id, **values), file=sys.stderr))
    require_packages(choice.groups)
    logging.disable(logging.WARNING)  # what the libraries remark is none of what is asked here
    try:
        with progress.shown() as bar, interruptible() as stopped:
            weights, entry, new = _make(options, choice, found, kept, bar, stopped)
    except (Stopped, KeyboardInterrupt):
        print(messages.text("quantize.stopped"), file=sys.stderr)
        return 1
    finally:
        logging.disable(logging.NOTSET)
    if options.json:
        made = entry.manifest
        told = {"source": weights.name, "form": weights.form, "quantized_before": None if weights.exact else weights.form}
        facts = {"sha256": made.sha256, "settings": made.settings, "versions": made.versions} if made else {}
        told |= {"encoder": choice.name, "folder": str(entry.folder), "bytes": entry.bytes, "new": new}
        print(json.dumps(told | facts, ensure_ascii=False))
    else:
        size, full = units.size(entry.bytes), units.size(weights.size)
        print(messages.text("quantize.made" if new else "quantize.there", name=choice.name, size=size, full=full, folder=entry.folder))
        if not weights.exact:
            print(messages.text("encoder.quantized-before", form=weights.form))
    return 0


def _make(
    options: argparse.Namespace,
    choice: choices.Choice,
    found: source.Source,
    kept: Cache | None,
    bar: progress.Bar,
    stopped: Callable[[], bool],
) -> tuple[Weights, Entry, bool]:
    """The source, what was made of it, and whether that is new."""
    target, place = devices(options.device)
    choices.require(choice, target)
    recipe = Recipe(choice, target.compute_dtype, stock=options.stock)
    try:
        with stoppable(stopped):
            weights = open_weights(found)
            require_packages(weights.groups)
            before = weights.fingerprint()
        if kept and (there := kept.entry(weights, recipe)):
            return weights, there, False
        reading, writing = messages.text("quantize.reading"), messages.text("quantize.writing")
        journal = kept.journal(weights, recipe, before) if kept and found.remote and found.remote.remote else None
        try:
            encoded = quantize(weights, recipe, place, lambda done, total: bar.count(reading, done, total), stopped, journal)
        except BaseException:
            if journal:
                journal.close()  # the next attempt goes on with it
            raise
    except OSError as error:
        raise EncoderError("encoder.unreadable", source=found.name, error=error) from error

    def written(done: int, total: int) -> None:
        if stopped():
            raise Stopped("encoder.stopped")
        bar.count(writing, done, total)

    if kept is None:
        return weights, export(options.out.expanduser(), weights, encoded, before, written), True
    entry = kept.store(weights, recipe, encoded, before, written, journal)
    if entry is None:
        raise EncoderError("source.changed", file=weights.name)
    return weights, entry, True


def _choice(options: argparse.Namespace) -> choices.Choice:
    choice = choices.find(options.encoder or ("fp4" if options.stock else "q4"))
    quantized = [one for one in choices.CHOICES if one.quantized]
    if choice not in quantized:
        raise SettingError("quantize.not-ours", name=choice.name, known=", ".join(one.id for one in quantized))
    if options.stock:
        readable = [one for one in quantized if "bitsandbytes" in one.groups]
        if choice not in readable:
            raise SettingError("quantize.stock-never", name=choice.name, known=", ".join(one.id for one in readable))
        if not options.out:
            raise SettingError("quantize.stock-out")
    return choice


def find_source(words: str) -> source.Source:
    """Raises EncoderError where there is none of what it may be. What lies on this disk goes before a repository of that name."""
    with source.understood(words):
        return _source_of(words.strip().strip("\"'"))


def _source_of(words: str) -> source.Source:
    path = Path(words).expanduser()
    if not words:
        raise EncoderError("source.file-unset")
    if not path.exists() and (spec := _spec(words)):
        from huggingface_hub import constants

        return source.Source(str(spec), remote=Repository(spec, [constants.HF_HUB_CACHE]))
    if path.is_file():
        return source.find("Local file", source.Facts(""), str(path))
    folder = _snapshot(path)
    if (folder / _SUBFOLDER / "config.json").is_file():
        return source.Source(path.name, str(folder), arguments={"subfolder": _SUBFOLDER})
    if folder.is_dir():
        return source.Source(path.name, str(folder))
    raise EncoderError("quantize.no-source", path=path)


def _spec(words: str) -> Spec | None:
    """None for what is no repository's name: then it is a path that is not there."""
    try:
        return Spec.parse(words)
    except EncoderError:
        return None


def _snapshot(path: Path) -> Path:
    """The newest one of a repository that huggingface_hub has downloaded: that is how SD.Next keeps models."""
    found = [one for one in path.glob("snapshots/*") if one.is_dir()]
    try:
        current = path / "snapshots" / (path / "refs" / "main").read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        current = path
    return current if current in found else max(found, key=lambda one: one.stat().st_mtime, default=path)


def devices(name: str) -> tuple[device.Device, device.Device]:
    """The one that it is for, and the one to quantize on: what is made on the CPU is for the GPU all the same."""
    import torch

    own = device.detect_device()
    if not name:
        return own, own
    try:
        kind = torch.empty(1, device=name).device.type
        asked = device.detect_device(name, own.backend if kind == own.torch.partition(":")[0] else kind)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # a word or a card that torch does not know
        raise SettingError("quantize.device", name=name, detail=str(error).splitlines()[0]) from error
    return (own if kind == "cpu" else asked), asked


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Ctrl-C is noted, and asked for between two pieces; pressed again it ends at once."""
    pressed = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield pressed.is_set
        return

    def press(number: int, frame: Any) -> None:
        if pressed.is_set():
            raise KeyboardInterrupt
        pressed.set()

    before = signal.signal(signal.SIGINT, press)
    try:
        yield pressed.is_set
    finally:
        signal.signal(signal.SIGINT, before)
