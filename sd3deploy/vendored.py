"""`packaging`, or the copy inside pip where the very first start finds no other; and how two versions are compared."""

from __future__ import annotations

try:
    from packaging.requirements import InvalidRequirement
    from packaging.requirements import Requirement as Specification
    from packaging.specifiers import InvalidSpecifier, SpecifierSet
    from packaging.utils import canonicalize_name
    from packaging.version import InvalidVersion, Version
except ImportError:  # `packaging` is itself one of our requirements
    from pip._vendor.packaging.requirements import InvalidRequirement
    from pip._vendor.packaging.requirements import Requirement as Specification
    from pip._vendor.packaging.specifiers import InvalidSpecifier, SpecifierSet
    from pip._vendor.packaging.utils import canonicalize_name
    from pip._vendor.packaging.version import InvalidVersion, Version

__all__ = [
    "InvalidRequirement",
    "InvalidSpecifier",
    "InvalidVersion",
    "Specification",
    "SpecifierSet",
    "Version",
    "canonicalize_name",
    "same_version",
    "version",
]


def version(text: str | None) -> Version | None:
    """A version that can be compared, or None for what is not one."""
    try:
        return Version(text) if text else None  # pyright: ignore[reportReturnType]  one library, two places
    except InvalidVersion:
        return None


def same_version(one: str, other: str) -> bool:
    """Whether two versions are equal; a local part such as "+cu128" counts only where both have one."""
    first, second = version(one), version(other)
    if first is None or second is None:
        return one == other
    return first == second or (first.public == second.public and not (first.local and second.local))
