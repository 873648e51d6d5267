

from __future__ import annotations

from pathlib import Path

folder: Path | None = None  # the extension's folder that this package runs for, as the host has named it
