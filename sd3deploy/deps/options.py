"""How the host wants installs done."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from sd3deploy.errors import DependencyError

__all__ = ["Options"]

_WINDOWS = os.name == "nt"
_YES = ("1", "true", "yes", "on")


@dataclass(frozen=True)
class Options:
    """uv: install with uv where it is there. offline: no network. refusal: the id of the sentence that says why nothing may be installed
    here, "" where it may. extra_args: the host's PIP_EXTRA_ARGS, one string as for a shell. host_root: the host's folder, where its pins
    are; relative paths in extra_args start there.
    """

    uv: bool = False
    offline: bool = False
    refusal: str = ""
    extra_args: str = ""
    host_root: Path | None = None

    @property
    def forbids(self) -> str:
        """The id of the sentence that says why nothing can be installed now; "" where it can. Offline the user may still have a folder of
        wheels, and says so with --no-index.
        """
        return self.refusal or ("deps.offline" if self.offline and "--no-index" not in self.extra_args else "")

    @property
    def extra(self) -> tuple[str, ...]:
        """The words of extra_args. Raises DependencyError where a quote is not closed."""
        return _words(self.extra_args, _WINDOWS)

    @classmethod
    def from_environment(cls, argv: Iterable[str], environ: Mapping[str, str]) -> Options:
        """What install.py can know: it runs in a process of its own, with the host's environment and PYTHONPATH.

        The host's own skip flags count here, because they speak of launch time; a running server decides by `--sd3-no-install`.
        """
        arguments = set(argv)
        root = _host_root(environ.get("PYTHONPATH", ""))
        skipped = {"--skip-all", "--skip-requirements", "--sd3-no-install"} & arguments or any(
            _flag(environ, name) for name in ("SD_SKIPALL", "SD_SKIPREQUIREMENTS", "SD3_NO_INSTALL")
        )
        return cls(
            uv="--uv" in arguments or _flag(environ, "SD_UV"),
            offline=_offline(root, environ),
            refusal="deps.not_allowed" if skipped else "",
            extra_args=environ.get("PIP_EXTRA_ARGS", "").strip(),
            host_root=root,
        )


def _words(text: str, windows: bool) -> tuple[str, ...]:
    """Split as the system's own shell does: on Windows a backslash is a part of a path, and only double quotes hold words together."""
    lexer = shlex.shlex(text, posix=True, punctuation_chars=False)
    lexer.whitespace_split, lexer.commenters = True, ""
    if windows:
        lexer.escape, lexer.quotes = "", '"'
    try:
        return tuple(lexer)
    except ValueError as error:
        raise DependencyError("deps.extra_args", detail=error) from error


def _flag(environ: Mapping[str, str], name: str) -> bool:
    return environ.get(name, "").strip().lower() in _YES


def _host_root(pythonpath: str) -> Path | None:
    """The host puts its own folder first on PYTHONPATH when it runs an installer; it is known by its list of requirements."""
    for entry in pythonpath.split(os.pathsep):
        if entry and any((Path(entry) / name).is_file() for name in ("constraints.txt", "requirements.txt")):
            return Path(entry)
    return None


def _offline(root: Path | None, environ: Mapping[str, str]) -> bool:
    """The host's setting `offline_mode`, from the settings file that its environment names, or from the usual place."""
    data = environ.get("SD_DATADIR") or root
    file = environ.get("SD_CONFIG") or (Path(data) / "config.json" if data else None)
    if file is None:
        return False
    try:
        stored = json.loads(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # no settings yet, or not readable: the host starts with its defaults, and so do we
        return False
    return isinstance(stored, dict) and stored.get("offline_mode") is True
