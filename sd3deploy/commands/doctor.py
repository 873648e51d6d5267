"""`doctor`: what is wrong with an SD.Next that runs, that does not start, or that somebody else has sent the log of.

Without --log it looks at the environment, the packages, the device and the models, and reads the log since the last start. With --log it
reads that log alone; nothing is known then about the machine where it was written, unless --sdnext says that it is this one.
Exit code 0 healthy, 1 findings, 2 could not look.
"""

from __future__ import annotations

import argparse
import platform
from collections.abc import Iterable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from sd3deploy import host_record, inside
from sd3deploy.commands import progress
from sd3deploy.commands.fixing import fix
from sd3deploy.diagnosis import checks, logfile, matcher
from sd3deploy.diagnosis.finding import Finding
from sd3deploy.diagnosis.installed import Installed
from sd3deploy.encoders.choices import HOST_DEFAULT, Choice, find, successor
from sd3deploy.errors import SettingError
from sd3deploy.redact import Redactor
from sd3deploy.report import Report
from sd3deploy.vendored import canonicalize_name

__all__ = ["add", "examine", "run"]

_DEVICE = ("device", "backend", "name", "capability", "driver", "total", "ram")  # facts of the check that stand in the head


def add(subparsers: Any) -> None:
    """Describe the command to argparse."""
    parser = subparsers.add_parser("doctor", help="what is wrong, and what helps", description=__doc__)
    inside.add_options(parser)
    parser.add_argument("--log", metavar="FILE", help="a log of any program with diffusers, compressed or not; - reads what is piped in")
    parser.add_argument("--fix", action="store_true", help="install what is missing of this extension's packages, put back broken ones")
    parser.add_argument("--yes", action="store_true", help="do so without asking")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--markdown", action="store_true", help="to paste into a report")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the report. Raises HostError or LogError when it could not look."""
    where = inside.folders(options)
    if options.fix:
        fix(where.root, sure=options.yes)
    here = not options.log or bool(options.sdnext or options.python)
    # On the user's own screen commands are to be copied, whatever the user is called; what is pasted elsewhere names nobody.
    report = examine(where, Path(options.log) if options.log else None, here=here, names=not options.markdown)
    print(report.json() if options.json else report.markdown() if options.markdown else report.text())
    return 1 if report.findings else 0


def examine(where: inside.Folders, log: Path | None = None, *, here: bool = True, names: bool = False) -> Report:
    """Look at everything that needs no running server. here: the log was written on this machine. names: those of users may stay."""
    encoder = _encoder(where)
    context = checks.Context(where.root, where.models, encoder=encoder.id, data_dir=where.data, groups=encoder.groups)
    found = context.installed if here else None
    results: list[checks.Result] = []
    if log is None:
        with progress.shown() as bar:
            results = list(checks.run(checks.QUICK, context, bar.show))
        said = matcher.read(_current(where.log), lambda: found, since_start=True)
    else:
        said = matcher.read(logfile.blocks(log), lambda: found)
    findings = [one for result in results for one in result.findings]
    wrong = {canonicalize_name(one.package) for one in findings if one.package}
    # what is wrong on disk explains what the log says of it
    findings += [one for one in said if canonicalize_name(one.package) not in wrong]
    redactor = Redactor.of_this_machine({*filter(None, (where.root, where.data))}, names=not names)
    return _report(where, found, findings, results, redactor)


def _encoder(where: inside.Folders) -> Choice:
    """As in the settings; a value there that means nothing, or nothing any more, is for the server to complain about."""
    value = where.config.get("sd3_text_encoder") or HOST_DEFAULT.id
    try:
        return successor(value) or find(value)
    except SettingError:
        return HOST_DEFAULT


def _current(log: Path | None) -> Iterable[str]:
    """The host's log and, where the last start is not in it, the part that was rotated away before."""
    for path in logfile.rotated(log)[-2:] if log else ():
        yield from logfile.blocks(path)


def _report(
    where: inside.Folders, found: Installed | None, findings: list[Finding], results: list[checks.Result], redactor: Redactor
) -> Report:
    facts = {one.id: one.facts for one in results}
    return Report(
        generated=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        host={"root": str(where.root), "commit": inside.commit(where.root)} if where.root else {},
        python={"version": found.python, "platform": platform.platform(), "executable": found.executable} if found else {},
        device={name: value for name, value in facts.get("device", {}).items() if name in _DEVICE and value},
        packages=dict(found.versions) if found else {},
        settings=where.config if found else {},
        contract=host_record.read(where.data, inside.commit(where.root) if where.root else None) if found else {},
        findings=[one.report() for one in findings],
        checks=[one.report() for one in results],
        redactor=redactor,
    )
