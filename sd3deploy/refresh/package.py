"""What a changed distribution looks like: on disk, and in this process."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from sd3deploy import installed
from sd3deploy.loaded import is_replaced, loaded_version, real_module
from sd3deploy.refresh.private import ALIASES
from sd3deploy.vendored import canonicalize_name

__all__ = ["Package", "is_loaded", "pattern", "read_package"]



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
    imports = _imports(found, name) if found and version else (canonicalize_name(name).replace("-", "_"),)
    folder = os.path.realpath(found.site) if found and version else ""
    own = canonicalize_name(name).replace("-", "_")
    # of google.protobuf: protobuf and google_protobuf; google alone may be anybody's
    parts = {part for module in imports for part in (module.rpartition(".")[2], module.replace(".", "_"))}
    aliases = tuple(sorted({alias.lower() for alias in (own, *parts, *ALIASES.get(canonicalize_name(name), ()))}))
    return Package(name, version, next(filter(None, map(loaded_version, imports)), ""), imports, aliases, folder)


def _imports(distribution: installed.Distribution, name: str) -> tuple[str, ...]:
    """The modules to import: those that bear the distribution's name if any do, else all but what is shared by habit."""
    found, own = distribution.modules(), canonicalize_name(name)
    named = [module for module in found if own in (canonicalize_name(module), canonicalize_name(module.split(".")[-1]))]
    unfit = installed.SHARED_BY_HABIT | sys.stdlib_module_names
    rest = [module for module in found if module.partition(".")[0] not in unfit and module.isascii()]
    return tuple(named or rest or [own.replace("-", "_")])


def is_loaded(name: str) -> bool:
    """Whether all that a distribution has to import was imported already."""
    return all(map(real_module, read_package(name).imports))
