"""What pyproject.toml asks for. It is the allow-list: nothing else is ever installed by name."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from sd3deploy.vendored import Specification, canonicalize_name

__all__ = ["Requirement", "groups", "host_packages", "requirements"]

_PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"


@dataclass(frozen=True)
class Requirement:
    """One line of pyproject.toml: a distribution, the versions that do (PEP 440, "" for any), and the group it stands in.

    `group` is "" for what every user needs, else the name of the optional group.
    """

    name: str
    specifier: str = ""
    group: str = ""


def requirements(groups: Iterable[str] = ()) -> tuple[Requirement, ...]:
    """The core requirements, then those of the named optional groups, for this platform.

    Raises KeyError for a group that pyproject.toml does not have: that is our bug, not the user's.
    """
    project = _pyproject()["project"]
    lines = [(line, "") for line in project["dependencies"]]
    for group in groups:
        lines += [(line, group) for line in project["optional-dependencies"][group]]
    parsed = [(Specification(line), group) for line, group in lines]
    return tuple(Requirement(one.name, str(one.specifier), group) for one, group in parsed if one.marker is None or one.marker.evaluate())


def groups() -> tuple[str, ...]:
    """The names of the optional groups: with the core, everything that may ever be installed."""
    return tuple(_pyproject()["project"]["optional-dependencies"])


def host_packages() -> frozenset[str]:
    """Normalized names of the packages that belong to the host."""
    return frozenset(canonicalize_name(name) for name in _pyproject()["tool"]["sd3deploy"]["host-packages"])


@lru_cache
def _pyproject() -> dict:
    return _toml_reader()(_PYPROJECT.read_text(encoding="utf-8"))


def _toml_reader():
    """Python 3.10 has no tomllib; pip carries the same library inside, and the host installs `toml`."""
    try:
        from tomllib import loads
    except ImportError:
        try:
            from pip._vendor.tomli import loads
        except ImportError:
            from toml import loads
    return loads
