"""What a traceback tells about who asked for what, and in which Python."""

from __future__ import annotations

import re

from sd3deploy.diagnosis.installed import Installed
from sd3deploy.diagnosis.rule import Seen
from sd3deploy.vendored import canonicalize_name

__all__ = ["asker", "brings", "elsewhere", "extension", "extension_asks", "failed", "tops"]

_SITE = re.compile(r"(?:site|dist)-packages[\\/](?P<top>\w+)")
_FRAME = re.compile(r"File \"(?P<folder>(?:/|[A-Za-z]:)[^\"]*?(?:site|dist)-packages)[\\/]")
_EXTENSION = re.compile(r"[\\/](?:extensions|custom_nodes)[\\/](?P<name>[^\\/\"'\s]+)")
_USER_SITE = re.compile(r"/\.local/lib/|appdata/roaming/python|/library/python/", re.IGNORECASE)  # of no one Python


def tops(text: str) -> list[str]:
    """The packages whose code ran in a traceback, the last one last, by the names of their folders."""
    return [found["top"] for found in _SITE.finditer(text)]


def asker(text: str, owner: str) -> str:
    """The distribution whose code was the last to run in a traceback, other than the owner of what it asked for."""
    if extension_asks(text):
        return ""
    return next((top.replace("_", "-") for top in reversed(tops(text)) if canonicalize_name(top) != canonicalize_name(owner)), "")


def brings(module: str, installed: Installed | None) -> str:
    return (installed or Installed({})).brings(module)


def elsewhere(seen: Seen) -> str:
    """The folder of another Python's packages in which a traceback ran; "" when it is ours, or when nobody can tell."""
    executable = seen.installed.executable if seen.installed else ""
    if not executable:
        return ""
    plain = lambda path: path.replace("\\\\", "/").replace("\\", "/").lower()  # noqa: E731
    ours = re.sub(r"/(?:(?:bin|scripts)/)?[^/]+$", "", plain(executable))
    folders = [found["folder"] for found in _FRAME.finditer(seen.text) if found["folder"].startswith("/") == executable.startswith("/")]
    if any(plain(folder).startswith(f"{ours}/") or _USER_SITE.search(plain(folder)) for folder in folders):
        return ""
    return folders[-1] if folders else ""


def extension(text: str) -> str:
    """The extension whose code has asked, "?" where none is named."""
    names = [found["name"] for found in _EXTENSION.finditer(text)]
    return names[-1] if names else "?"


def extension_asks(text: str) -> bool:
    """Whether the last code that ran was an extension's: what it asks for is its own affair."""
    last = lambda pattern: max((found.start() for found in pattern.finditer(text)), default=-1)  # noqa: E731
    return last(_EXTENSION) > last(_SITE)


def failed(text: str) -> bool:
    return "Traceback" in text or "Failed to import" in text
