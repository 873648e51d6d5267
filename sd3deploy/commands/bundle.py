"""`bundle`: the report of `doctor` with the last part of the log, the settings and the list of packages, in one file to attach to a report.

Tokens, passwords, user names and e-mail addresses are removed; what is left is shown before it is written. Exit code 0 written, 1 not
wanted, 2 could not.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from sd3deploy import inside, messages
from sd3deploy.bundle import Bundle
from sd3deploy.commands import doctor
from sd3deploy.errors import SettingError

__all__ = ["add", "run"]


def add(subparsers: Any) -> None:
    """Describe the command to argparse."""
    parser = subparsers.add_parser("bundle", help="everything that somebody needs who is to help, in one file", description=__doc__)
    parser.add_argument("out", metavar="OUT.zip")
    inside.add_options(parser)
    parser.add_argument("--log", metavar="FILE", help="instead of the log of that SD.Next")
    parser.add_argument("--yes", action="store_true", help="write it without asking")
    parser.add_argument("--force", action="store_true", help="over a file that is there")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Show the bundle, ask, write it. Raises BundleError when it can not be written."""
    where = inside.folders(options)
    log = Path(options.log) if options.log else where.log
    made = Bundle.make(doctor.examine(where), log)
    print(made.preview())
    if not options.yes:
        if not sys.stdin.isatty():
            raise SettingError("bundle.unasked")
        if input(f"{messages.text('bundle.ask', file=options.out)} ").strip().lower() not in ("y", "yes"):
            return 1
    print(messages.text("bundle.written", file=made.write(Path(options.out), force=options.force)))
    return 0
