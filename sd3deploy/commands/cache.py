"""`cache`: the quantized text encoders that are stored on disk. `list` shows them, `clear` removes them, `verify` reads them whole and
removes what is damaged; what is missing is made anew with the next load. Exit code 0 fine, 1 something was damaged or is in use, 2 could
not.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sd3deploy import inside, messages, units
from sd3deploy.commands import progress
from sd3deploy.encoders import choices
from sd3deploy.encoders.cache import Cache, Entry, folder_for, limit_for
from sd3deploy.errors import HostError, SettingError
from sd3deploy.terminal import pad

__all__ = ["add", "opened", "run"]


def add(subparsers: Any) -> None:
    """Describe the command to argparse."""
    parser = subparsers.add_parser("cache", help="the quantized text encoders that are stored on disk", description=__doc__)
    parser.add_argument("action", choices=tuple(_ACTIONS))
    inside.add_options(parser, python=False)
    parser.add_argument("--folder", type=Path, metavar="DIR", help="another folder than the one of that SD.Next")
    parser.add_argument("--json", action="store_true")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Do it, and say what was done. Raises HostError where no folder is known, CacheError when it can not be done."""
    told: list[str] = []
    cache = opened(options, options.folder, lambda id, values: told.append(_said(id, values)))
    code, answer, lines = _ACTIONS[options.action](cache)
    for line in told:
        print(line, file=sys.stderr)
    print(
        json.dumps({"folder": str(cache.folder), "limit": cache.limit, **answer}, ensure_ascii=False) if options.json else "\n".join(lines)
    )
    return 1 if told else code


def opened(options: argparse.Namespace, folder: Path | None, told: Callable[[str, Mapping[str, object]], None]) -> Cache:
    """The cache of that SD.Next, as its settings say. folder: instead of its own. Raises HostError where neither is known."""
    where = inside.folders(options)
    limit = limit_for(where.config.get("sd3_cache_limit"))
    if folder is not None:
        return Cache(folder.expanduser().absolute(), limit, told)
    if where.home is None:
        raise HostError("cache.no-place")
    setting = where.config.get("sd3_cache_folder")
    return Cache(folder_for(where.home, setting if isinstance(setting, str) else ""), limit, told)


Done = tuple[int, dict[str, Any], list[str]]  # exit code, JSON, lines


def _list(cache: Cache) -> Done:
    reports = [_report(entry) for entry in cache.entries()]
    total = sum(report["bytes"] for report in reports)
    lines = [_line(report, "" if report["source"] else messages.text("cache.entry-damaged")) for report in reports]
    sizes = {"size": units.size(total), "limit": units.size(cache.limit)}
    lines.append(messages.text("cache.sum", **sizes, folder=cache.folder) if reports else _nothing(cache))
    return 0, {"entries": reports, "bytes": total}, lines


def _clear(cache: Cache) -> Done:
    freed = cache.clear()
    return 0, {"freed": freed}, [messages.text("cache.cleared", size=units.size(freed)) if freed else _nothing(cache)]


def _verify(cache: Cache) -> Done:
    before = {entry: _report(entry) for entry in cache.entries()}  # what is damaged is gone afterwards
    with progress.shown() as bar:
        title = messages.text("cache.verifying")
        results = dict(cache.verify(lambda done, total: bar.count(title, done, total)))
    reports = [report | {"whole": results[entry]} for entry, report in before.items() if entry in results]
    lines = [_line(report, messages.text("cache.entry-ok" if report["whole"] else "cache.entry-damaged")) for report in reports]
    damaged = sum(not report["whole"] for report in reports)
    if damaged:
        lines.append(messages.text("cache.some-damaged", count=damaged, all=len(reports)))
    else:
        lines.append(messages.text("cache.intact", count=len(reports)) if reports else _nothing(cache))
    return int(damaged > 0), {"entries": reports, "whole": not damaged}, lines


_ACTIONS: dict[str, Callable[[Cache], Done]] = {"list": _list, "clear": _clear, "verify": _verify}


def _report(entry: Entry) -> dict[str, Any]:
    """As JSON-able values; sizes in bytes, times in seconds since the epoch. source: None where the manifest can not be read."""
    found, report = entry.manifest, {"name": entry.folder.name, "choice": entry.choice, "bytes": entry.bytes, "used": entry.used}
    if found is None:
        return {**report, "source": None}
    return {**report, "source": found.source, "made": found.made, "settings": found.settings, "versions": found.versions}


def _line(report: Mapping[str, Any], state: str) -> str:
    try:
        name = choices.find(report["choice"]).name
    except SettingError:  # of another version of this extension
        name = report["choice"]
    used = time.strftime("%Y-%m-%d %H:%M", time.localtime(report["used"]))
    cells = (pad(state, 8), pad(name, 16), f"{units.size(report['bytes']):>9}", used, report["name"], report["source"] or "")
    return "  ".join(cells).strip()


def _nothing(cache: Cache) -> str:
    return messages.text("cache.none", folder=cache.folder)


def _said(id: str, values: Mapping[str, object]) -> str:
    return messages.joined(messages.text(id, **values), messages.remedy(id, **values))
