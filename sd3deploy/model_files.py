"""Where a model may lie that a request names."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

__all__ = ["find_model"]


def find_model(asked: str, folders: Iterable[Path], anywhere: bool = False) -> Path | None:
    """The model folder or file that is asked for: a path below one of the folders, or relative to one; with `anywhere` any path.

    None where there is none, and alike where it lies elsewhere: whoever asks learns nothing about other paths. What lies elsewhere is not
    even looked at (on Windows a look at a path of a network logs in there). A link that lies in the folders may lead out of them, to where
    their owner has laid it; what is below such a link is elsewhere.
    """
    if not asked.strip() or "\0" in asked:
        return None
    if anywhere and os.path.exists(asked):
        return Path(asked)
    for folder in folders:
        top = Path(os.path.abspath(folder))
        place = Path(os.path.abspath(top / asked))  # without its “..”
        if place == top or not place.is_relative_to(top):
            continue
        try:
            inside = (place.parent if place.is_symlink() else place).resolve(strict=True).is_relative_to(top.resolve())
        except (OSError, RuntimeError, ValueError):  # not there, or a link to itself
            continue
        if inside and place.exists():
            return place
    return None
