"""What a changed distribution looks like: on disk, and in this process."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType

from sd3deploy import installed
from sd3deploy.refresh.private import ALIASES
from sd3deploy.vendored import canonicalize_name, same_version

__all__ = ["Package", "is_loaded", "is_replaced", "normal", "note", "pattern", "read_package", "real_module", "same_version"]


normal: Callable[[str], str] = canonicalize_name  # the name that this package uses

_noted: dict[str, str] = {}  # distribution → the version of which this process has loaded its modules


@dataclass(frozen=True)
class Package:
    """One distribution. `version` is that on disk ("" = not there), `loaded` that in memory ("" = never imported)."""

    name: str
    version: str
    loaded: str
    imports: tuple[str, ...]
    aliases: tuple[str, ...]
    folder: str = ""  # where it is installed

    @property
    def replaced(self) -> bool:
        """True when what is in memory is not what is on disk."""
        return any(is_replaced(self.name, module, self.version) for module in self.imports)

    @property
    def haunted(self) -> bool:
        """True when a native library of a former build is mapped though the package is not loaded: a failed import left it.

        The loader goes by the path, so a new import would get the old library, whatever is on disk. Seen on Linux only.
        """
        if self.loaded or not self.folder:
            return False
        try:
            lines = Path("/proc/self/maps").read_text(errors="replace").splitlines()
        except OSError:
            return False
        # pip renames a folder to ~ame before it deletes it
        tops = "|".join(rf"(?:{re.escape(top[0])}|~){re.escape(top[1:])}" for top in {name.partition(".")[0] for name in self.imports})
        gone = re.compile(rf"{re.escape(self.folder)}/(?:{tops})/.* \(deleted\)$")
        return any(gone.search(line) for line in lines)

    def mentioned_in(self, text: str) -> bool:
        """True where an identifier or string speaks of this distribution: is_bnb_4bit_available, USE_PEFT_BACKEND."""
        return pattern(self.aliases).search(text.lower()) is not None


def pattern(aliases: tuple[str, ...]) -> re.Pattern[str]:
    """Matches a whole word of a lower-case identifier, where "_" and "." separate words."""
    return re.compile(rf"(?<![a-z0-9])({'|'.join(map(re.escape, aliases))})(?![a-z0-9])")


def read_package(name: str) -> Package:
    """The facts of one distribution. Raises nothing: a broken installation is one without a version."""
    found = installed.find(name)
    version = found.version if found and found.described() else ""
    imports = _imports(found, name) if found and version else (normal(name).replace("-", "_"),)
    folder = os.path.realpath(found.site) if found and version else ""
    own = normal(name).replace("-", "_")
    # of google.protobuf: protobuf and google_protobuf; google alone may be anybody's
    parts = {part for module in imports for part in (module.rpartition(".")[2], module.replace(".", "_"))}
    aliases = tuple(sorted({alias.lower() for alias in (own, *parts, *ALIASES.get(normal(name), ()))}))
    return Package(name, version, next(filter(None, map(loaded_version, imports)), ""), imports, aliases, folder)


def _imports(distribution: installed.Distribution, name: str) -> tuple[str, ...]:
    """The modules to import: those that bear the distribution's name if any do, else all but what is shared by habit."""
    found, own = distribution.modules(), normal(name)
    named = [module for module in found if own in (normal(module), normal(module.split(".")[-1]))]
    unfit = installed.SHARED_BY_HABIT | sys.stdlib_module_names
    rest = [module for module in found if module.partition(".")[0] not in unfit and module.isascii()]
    return tuple(named or rest or [own.replace("-", "_")])


def real_module(name: str) -> ModuleType | None:
    """A loaded module with a file. A namespace, such as an empty leftover folder makes, does not count."""
    module = sys.modules.get(name)
    return module if isinstance(module, ModuleType) and vars(module).get("__file__") else None


def is_loaded(name: str) -> bool:
    """Whether all that a distribution has to import was imported already."""
    return all(map(real_module, read_package(name).imports))


def loaded_version(name: str) -> str:
    """The version of a loaded module, "?" when it does not say, "" when it is not loaded."""
    module = real_module(name)
    if module is None:
        return ""
    # The host cuts torch.__version__; torch.version keeps the whole one.
    for holder in (sys.modules.get(f"{name}.version"), sys.modules.get(f"{name}._version"), module):
        value = vars(holder).get("__version__") if isinstance(holder, ModuleType) else None
        if isinstance(value, str):
            return str(value)
    return "?"


def is_replaced(name: str, module: str, version: str) -> bool:
    """True when what is loaded as `module` is not what lies on disk as version `version` of the distribution `name` ("": nothing does).

    What was installed before this process began is what was loaded, whatever `__version__` says: that of an editable install may lag
    behind, and that of a library may differ from its metadata for good. After that the version decides which was loaded: the one that a
    former refresh has noted, else the one that the module tells.
    """
    loaded = loaded_version(module)
    if not loaded or not version:
        return loaded != ""
    if installed.snapshot().get(normal(name), ("", 0))[1] <= _started() * 1e9:
        return False
    known = _noted.get(normal(name)) or (version if loaded == "?" else loaded)
    return not same_version(known, version)


def note(name: str, version: str) -> None:
    """Remember that what is loaded of a distribution is this version of it."""
    _noted[normal(name)] = version


@cache
def _started() -> float:
    """When this process began, in seconds since the epoch; 0 where that can not be told, and then every installation counts as later."""
    try:
        import psutil

        return min(psutil.Process().create_time(), time.time())
    except Exception:  # not there, or a system that does not tell
        return 0.0
