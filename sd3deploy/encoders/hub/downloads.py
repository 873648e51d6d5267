"""What huggingface_hub keeps of repositories on this disk."""

from __future__ import annotations

from pathlib import Path

__all__ = ["downloaded"]


def downloaded(repository: str, path: str, cache: str, revision: str | None = None) -> Path | None:
    """Where a file of a repository lies in the folder `cache`. None where it does not, where what lies there is damaged, and for what is no
    name of a repository: the hub says so.
    """
    from huggingface_hub import try_to_load_from_cache

    try:
        found = try_to_load_from_cache(repository, path, cache, revision=revision)
    except (OSError, ValueError):  # HFValidationError is one
        return None
    return Path(found) if isinstance(found, str) else None
