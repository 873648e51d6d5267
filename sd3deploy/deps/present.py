"""Whether what a choice, or the form of some weights, needs can be used in this Python."""

from __future__ import annotations

import importlib.util
import sys

from sd3deploy.deps.requirement import requirements
from sd3deploy.deps.status import State, check
from sd3deploy.errors import DependencyError

__all__ = ["require_packages"]


def require_packages(groups: tuple[str, ...]) -> None:
    """Raises DependencyError for packages that are missing or broken: those of groups of pyproject.toml, and what all of them need."""
    missing = [name for name in ("torch", "transformers", "safetensors") if importlib.util.find_spec(name) is None]
    if groups:
        missing += [status.requirement.name for status in check(requirements(groups)) if status.state is not State.OK]
    if missing:
        raise DependencyError("quantize.packages", names=", ".join(missing), executable=sys.executable)
