"""What the checks are about: which host, which models, which device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from sd3deploy.diagnosis import installed
from sd3deploy.diagnosis.installed import Installed

__all__ = ["Context"]


@dataclass(frozen=True)
class Context:
    """host_root: the folder of SD.Next, None where nobody knows it. models: folders in which models may lie; model: the one that is meant,
    a folder or a file. encoder: id or name of a choice. device: what torch calls it, backend: the host's word for the stack; "": look.
    data_dir: the host's data folder. groups: optional packages (of pyproject.toml) that the settings cannot do without.

    held: what the steps of a run hand on to each other; cleanups: what is called when it is over.
    """

    host_root: Path | None = None
    models: tuple[Path, ...] = ()
    model: Path | None = None
    encoder: str = "fp4"
    device: str = ""
    backend: str = ""
    data_dir: Path | None = None
    groups: tuple[str, ...] = ()
    held: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)
    cleanups: list[Callable[[], None]] = field(default_factory=list, compare=False, repr=False)

    @cached_property
    def installed(self) -> Installed:
        """What is in this environment, and what the host pins."""
        return installed.read_installed(self.host_root, self.backend)

    def release(self) -> None:
        """Let go of everything that a run has made."""
        self.held.clear()
        while self.cleanups:
            self.cleanups.pop()()
