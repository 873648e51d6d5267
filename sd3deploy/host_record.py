"""What the server has found when it compared SD.Next with what this extension knows of it, kept in the data folder for whoever looks from
outside: the comparison needs the running server, and a server that has just been updated may be gone again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["read", "write"]

_NAME = Path("data") / "sd3-deploy-host.json"


def write(data: Path, found: Mapping[str, Any]) -> None:
    """Keep it below the data folder of SD.Next, where it is not kept already. Raises OSError."""
    if read(data) != found:
        path = data / _NAME
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_suffix(f".{os.getpid()}.new")
        new.write_text(json.dumps(found, indent=1), encoding="utf-8")
        os.replace(new, path)


def read(data: Path | None, commit: str | None = None) -> dict[str, Any]:
    """What was found at the last start; {} where nothing was kept, or where SD.Next has been updated to another `commit` since."""
    try:
        found = json.loads((data / _NAME).read_text(encoding="utf-8")) if data else {}
    except (OSError, ValueError):  # none yet, or damaged: the next start writes it anew
        return {}
    usable = isinstance(found, dict) and (commit is None or found.get("commit") in (None, commit))
    return found if usable else {}
