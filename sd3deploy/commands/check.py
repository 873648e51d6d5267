"""`check`: whether a job would run, and with which size and sampler. Exit code 0 runs as asked, 1 changed, 2 refused."""

from __future__ import annotations

import argparse
import json
from typing import Any

from sd3deploy import guards, messages
from sd3deploy.guards import request
from sd3deploy.guards.job import MODELS, known

__all__ = ["add", "run"]


def add(subparsers: Any) -> None:
    """Describe the command to argparse. Numbers are taken as they come: the guards say what is wrong with them."""
    parser = subparsers.add_parser("check", help="whether a job would run, and with which size and sampler", description=__doc__)
    parser.add_argument("--width", metavar="PX")
    parser.add_argument("--height", metavar="PX")
    parser.add_argument("--model", default="sd3-medium", metavar="NAME", help=f"one of: {', '.join(MODELS)} (default: sd3-medium)")
    parser.add_argument("--encoder", default="", metavar="CHOICE", help='a text encoder, such as fp4 or "T5 FP4"; none: CLIP alone')
    parser.add_argument("--sampler", default="Default", metavar="NAME")
    parser.add_argument("--steps", default=20, metavar="N")
    parser.add_argument("--guidance", default=6.0, metavar="SCALE")
    parser.add_argument("--hires", metavar="FACTOR", help="of a second pass")
    parser.add_argument("--prompt-attention", default="native", metavar="NAME", help="the host's prompt parser: native, fixed, xhinker, …")
    parser.add_argument("--mode", choices=guards.MODES, default=guards.DEFAULT_MODE, help="of all guards (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="findings, width, height and sampler after the changes")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print what the guards say. Raises SettingError for a model or an encoder that there is not."""
    job = request.job(
        known(options.model),
        options.width,
        options.height,
        hires=options.hires,
        encoder=options.encoder,
        sampler=options.sampler,
        steps=options.steps,
        guidance=options.guidance,
        prompt_attention=options.prompt_attention,
    )
    mode: guards.Mode = options.mode
    outcome = guards.check(job, dict.fromkeys(guards.GUARDS, mode))
    if options.json:
        print(json.dumps(outcome.report(), ensure_ascii=False))
        return outcome.code
    for found, _ in outcome.told:
        print(f"{found.severity}: {messages.joined(found.message, found.remedy)}")
    made = outcome.job
    size = f"{made.width}×{made.height}, sampler {made.sampler}"
    print(messages.text(("check.ok", "check.changed", "check.refused")[outcome.code], job=size))
    return outcome.code
