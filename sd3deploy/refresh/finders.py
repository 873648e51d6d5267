"""Let Python see new files: finders, folder listings of importlib.metadata, new .pth files, residue of failed imports."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import site
import sys

from sd3deploy.loaded import real_module
from sd3deploy.refresh.package import Package
from sd3deploy.refresh.private import LIBRARIES, METADATA_CACHE

__all__ = ["clean", "invalidate"]


def invalidate() -> None:
    """Forget every folder listing, and take in a user site that did not exist when Python started."""
    if site.ENABLE_USER_SITE and (folder := site.getusersitepackages()) not in sys.path and os.path.isdir(folder):
        site.addsitedir(folder)
    importlib.invalidate_caches()
    holder, method = METADATA_CACHE
    for library in ("importlib.metadata", "importlib_metadata"):  # the second is the backport that some packages bring
        clear = getattr(getattr(getattr(sys.modules.get(library), holder, None), method, None), "cache_clear", None)
        if clear is not None:
            clear()


def clean(packages: list[Package]) -> tuple[dict[int, str], list[str]]:
    """Remove what stands in the way of a first import. Returns id → name of the namespaces removed, and the steps."""
    steps = []
    namespaces = {}
    for name in [name for package in packages if package.version for name in package.imports] + list(LIBRARIES):
        if real_module(name) is not None:
            continue
        if name in sys.modules and name not in LIBRARIES:
            module = sys.modules.pop(name)
            if module is not None:
                namespaces[id(module)] = name
            steps.append(f"residue: {name}")
        if name not in sys.modules:  # submodules without their package: what a failed import leaves
            orphans = [key for key in list(sys.modules) if key.startswith(f"{name}.")]
            for key in orphans:
                sys.modules.pop(key, None)
            if orphans:
                steps.append(f"residue: {len(orphans)} submodules of {name}")
    return namespaces, steps
