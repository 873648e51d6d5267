"""What this machine holds that nobody should read: in its environment, its files of tokens, the host's settings and on the command line."""

from __future__ import annotations

import getpass
import json
import os
import platform
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from sd3deploy.lazy import lazy
from sd3deploy.redact.addresses import AUTHORITY
from sd3deploy.redact.kinds import COMMON, NOTHING, SPECIAL_VALUE, kind_of

__all__ = ["hosts", "people", "secrets"]

# Variables of the environment that hold secrets, and some that only sound like it.
_SECRET_VARIABLE = lazy(r"TOKEN|KEY|SECRET|PASSWORD|PASSWD|CREDENTIAL|COOKIE", re.IGNORECASE)
_NO_SECRET_VARIABLE = lazy(r"TOKENIZERS|MAX_TOKENS|KEYBOARD|KEYMAP|KEYRING|_TIMEOUT$", re.IGNORECASE)
_SECRET_SETTING = lazy(r"(?:^|_)(?:token|key|secret|password|passwd|credentials?)$", re.IGNORECASE)
_SHORTEST = 6  # characters: what is shorter, such as "false" or "8 GB", is in every text


def secrets(host_folders: Iterable[Path], environ: Mapping[str, str]) -> set[str]:
    """Tokens and passwords. host_folders: where config.json and secrets.json are."""
    files = [Path(folder) / name for folder in host_folders for name in ("config.json", "secrets.json")]
    found = {*_of_environment(environ), *_of_huggingface(environ), *_of_command_line(sys.argv)}
    return found.union(*map(_of_settings, files))


def people(environ: Mapping[str, str]) -> set[str]:
    """The names of its user."""
    names = {environ.get(name, "") for name in ("USER", "USERNAME", "LOGNAME", "SUDO_USER")}
    names |= {re.split(r"[\\/]", environ[name].rstrip("\\/"))[-1] for name in ("HOME", "USERPROFILE") if environ.get(name)}
    if environ is os.environ:
        try:
            names.add(getpass.getuser())
        except (OSError, KeyError, ImportError):  # an account without a name, as in containers
            pass
    known = COMMON | {name.lower() for name in sys.stdlib_module_names}
    return {name for name in names if name and name.lower() not in known and not name.isdigit()}


def hosts() -> set[str]:
    """The names of this machine, short and long."""
    return {name for name in (platform.node(), platform.node().partition(".")[0]) if name.lower() not in COMMON}


def _of_environment(environ: Mapping[str, str]) -> Iterator[str]:
    for name, value in environ.items():
        if _SECRET_VARIABLE.search(name) and not _NO_SECRET_VARIABLE.search(name) and not _boring(value) and not _is_path(value):
            yield value
        if "://" in value and (found := AUTHORITY.search(value)):  # a proxy
            password = found[0][:-1].partition(":")[2]
            if not _boring(password):
                yield password


def _is_path(value: str) -> bool:
    try:
        return len(value) < 4096 and os.path.isabs(value) and os.path.exists(value)
    except ValueError:  # a zero in it
        return False


def _of_huggingface(environ: Mapping[str, str]) -> Iterator[str]:
    """Where huggingface_hub keeps tokens (its constants.py)."""
    cache = environ.get("XDG_CACHE_HOME") or os.path.join(environ.get("HOME") or environ.get("USERPROFILE") or "~", ".cache")
    homes = {environ.get("HF_HOME") or "", os.path.join(cache, "huggingface"), os.path.join("~", ".cache", "huggingface")}
    files = {os.path.join(home, name) for home in homes if home for name in ("token", "stored_tokens")}
    files |= {environ[name] for name in ("HF_TOKEN_PATH", "HF_STORED_TOKENS_PATH") if environ.get(name)}
    for file in sorted(files):
        for line in _read(Path(os.path.expanduser(file))).splitlines():
            value = line.rpartition("=")[2].strip()
            if not line.startswith("[") and not _boring(value):
                yield value


def _of_settings(file: Path) -> Iterator[str]:
    try:
        yield from _of_value(json.loads(_read(file) or "{}"), "")
    except (ValueError, RecursionError):  # half-written, or not the host's
        return


def _of_value(value: Any, name: str) -> Iterator[str]:
    if isinstance(value, dict):
        for key, one in value.items():
            yield from _of_value(one, str(key) if not _SECRET_SETTING.search(name) else name)
    elif isinstance(value, list):
        for one in value:
            yield from _of_value(one, name)
    elif isinstance(value, str) and _SECRET_SETTING.search(name) and not _boring(value) and not SPECIAL_VALUE.match(value):
        yield value


def _of_command_line(arguments: list[str]) -> Iterator[str]:
    for before, one in pairwise(["", *arguments]):
        name, equals, value = one.partition("=") if one.startswith("-") else (before, "=", one)
        if name.startswith("-") and equals and kind_of(name) in ("password", "token") and not value.startswith("-"):
            for pair in value.split(","):  # --auth "name:password,name:password"
                password = pair.rpartition(":")[2]
                if not _boring(password):
                    yield password


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace") if file.stat().st_size < 4_000_000 else ""
    except (OSError, ValueError):
        return ""


def _boring(value: str) -> bool:
    value = value.strip()
    short = len(value) < _SHORTEST or (value.isdigit() and len(value) < 8)
    return short or value.lower() in COMMON or NOTHING.match(value) is not None
