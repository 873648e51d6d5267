"""`verify`: look at everything that Stable Diffusion 3 needs, step by step, then make a small picture. Exit code 0 healthy, 1 something
has to be done, 2 could not look.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path
from typing import Any

from sd3deploy import inside, messages
from sd3deploy.child import answer, follow_parent
from sd3deploy.commands import progress
from sd3deploy.diagnosis import checks
from sd3deploy.encoders import choices
from sd3deploy.terminal import pad

__all__ = ["add", "run"]

_STATES = {"ok": "ok", "warning": "warning", "failed": "FAILED", "skipped": "skipped", "cancelled": "cancelled"}


def add(subparsers: Any) -> None:
    """Describe the command to argparse."""
    parser = subparsers.add_parser("verify", help="look at everything step by step, then make a small picture", description=__doc__)
    inside.add_options(parser)
    parser.add_argument("--model", type=Path, metavar="PATH", help="a model folder or file (default: the first whole SD3 of SD.Next)")
    parser.add_argument("--models", type=Path, action="append", default=[], metavar="DIR", help="one more folder in which models may lie")
    parser.add_argument(
        "--encoder", default="fp4", metavar="CHOICE", help='the text encoder to try, such as nf4 or "T5 NF4" (default: fp4)'
    )
    parser.add_argument(
        "--device", default="", metavar="NAME", help="what torch calls it, such as cuda:1 (default: the one that SD.Next takes)"
    )
    parser.add_argument("--backend", default="", help=argparse.SUPPRESS)
    parser.add_argument("--host-root", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--quick", action="store_true", help="only look: load no model")
    parser.add_argument("--only-run", action="store_true", help="only load the model and make the picture")
    parser.add_argument("--json", action="store_true", help="all results as one JSON value")
    parser.add_argument("--lines", action="store_true", help="progress and results as they come, one JSON value a line")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Look, and say it. Raises SettingError for a text encoder that there is not, HostError for a folder without SD.Next."""
    choices.find(options.encoder)
    if options.model is not None and not options.model.exists():
        print(messages.text("verify.no-model", path=options.model), file=sys.stderr)
        return 2
    steps = checks.QUICK if options.quick else checks.RUN if options.only_run else checks.STEPS
    if options.lines:
        return _as_lines(steps, _context(options))
    logging.disable(logging.WARNING)  # what the libraries remark is none of what is asked here
    try:
        results, stopped = _each(steps, _context(options), quiet=options.json)
    finally:
        logging.disable(logging.NOTSET)
    if options.json:
        print(json.dumps({"results": [one.report() for one in results], "healthy": _healthy(results)}, ensure_ascii=False))
    else:
        print(messages.text("verify.healthy" if _healthy(results) else "verify.stopped" if stopped else "verify.unhealthy"))
    return int(not _healthy(results))


def _context(options: argparse.Namespace) -> checks.Context:
    where = inside.folders(options)
    models = tuple(dict.fromkeys((*options.models, *where.models)))
    root = options.host_root or where.root
    return checks.Context(root, models, options.model, options.encoder, options.device, options.backend, where.data)


def _healthy(results: list[checks.Result]) -> bool:
    return all(one.healthy for one in results)


def _as_lines(steps: tuple[checks.Step, ...], context: checks.Context) -> int:
    follow_parent()
    write = answer()
    healthy = True
    for result in checks.run(steps, context, lambda progress: write({"progress": progress.report()})):
        write({"result": result.report()})
        healthy = healthy and result.healthy
    return int(not healthy)


def _each(steps: tuple[checks.Step, ...], context: checks.Context, *, quiet: bool) -> tuple[list[checks.Result], bool]:
    """Every result, shown as it comes; and whether somebody pressed Ctrl-C."""
    results: list[checks.Result] = []
    stop = [False]
    with progress.shown() as bar:
        running = checks.run(steps, context, bar.show, lambda: stop[0])
        while True:
            try:
                result = next(running, None)
                if result is None:
                    return results, stop[0] or any(one.state == "cancelled" for one in results)
                results.append(result)
                bar.clear()
                if not quiet:
                    _show(result)
            except KeyboardInterrupt:  # between two steps
                stop[0] = True


def _show(result: checks.Result) -> None:
    """A line for each result, and what is to be done about it."""
    print(f"{_STATES[result.state]:<9} {pad(result.title, 28)} {result.seconds:6.1f} s   {result.message}", flush=True)
    if result.remedy:
        print(f"          {result.remedy}", flush=True)
    for found in result.findings[1:]:
        if found.message != result.message:
            print(f"          – {messages.joined(found.message, found.remedy)}", flush=True)
