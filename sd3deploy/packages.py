"""What is installed, read off the disk: the metadata of this process may be older than the disk."""

from __future__ import annotations

import os
import re
import sys
from importlib import metadata

__all__ = ["snapshot", "version"]


def snapshot() -> dict[str, tuple[str, int]]:
    """Distribution name → (version, time of its installation in ns), by the names of the dist-info folders: a millisecond or two.

    Two snapshots that differ tell what somebody has installed, reinstalled or upgraded in between. Raises nothing.
    """
    found: dict[str, tuple[str, int]] = {}
    for folder in sys.path:
        try:
            entries = list(os.scandir(folder or "."))
        except OSError:  # sys.path holds zip files and folders that are not there
            continue
        for entry in entries:
            if entry.name.endswith(".dist-info"):
                name, _, installed = entry.name.removesuffix(".dist-info").partition("-")
                try:
                    found.setdefault(re.sub(r"[-_.]+", "-", name).lower(), (installed, entry.stat().st_mtime_ns))
                except OSError:  # it has vanished since the folder was listed: pip is at work
                    continue
    return found


def version(name: str) -> str | None:
    """The installed version of a distribution, None when there is none."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
