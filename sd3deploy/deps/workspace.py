"""The one folder in which installs keep their lock, their constraints and what they moved out of the way."""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path

__all__ = ["workspace"]


def workspace() -> Path:
    """`.sd3deploy` inside the environment that is changed, so that all processes of this environment agree on it.

    Where the environment can not be written, a folder of the user's cache that belongs to this environment alone.
    Nothing is created here: who writes creates.
    """
    prefix = Path(sys.prefix)
    if os.access(prefix, os.W_OK):
        return prefix / ".sd3deploy"
    mark = hashlib.sha256(str(prefix).encode()).hexdigest()[:12]
    return Path.home() / ".cache" / "sd3deploy" / mark
