"""What is installed, as far as a diagnosis needs it: versions, what each package needs, who brings which module, what the host pins."""

from __future__ import annotations

import platform
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from sd3deploy.deps import host_packages
from sd3deploy.deps.requirement import import_name, normal
from sd3deploy.deps.site_folders import infos
from sd3deploy.deps.vendored import InvalidRequirement, Specification, SpecifierSet, version

__all__ = ["STACK", "Installed", "Need", "read_installed"]

# The packages that Stable Diffusion 3 runs on. What others lack or contradict is no failure of it.
_NAMES = """
    accelerate bitsandbytes compel diffusers fastapi filelock fsspec gguf gradio hf-xet httpx huggingface-hub importlib-metadata numpy
    optimum-quanto packaging peft pillow protobuf psutil pydantic pydantic-core pyyaml regex requests safetensors scipy sdnq sentencepiece
    starlette tokenizers torch torchao torchvision transformers triton triton-windows typing-extensions xformers
"""
STACK = frozenset(_NAMES.split())

# Modules that belong to a distribution of another name; import_name() knows those that are no more than spelled otherwise.
_DISTRIBUTIONS = {
    "google": "protobuf",
    "google.protobuf": "protobuf",
    "pil": "pillow",
    "yaml": "PyYAML",
    "cv2": "opencv-python",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "optimum": "optimum-quanto",
    "huggingface_hub": "huggingface_hub",
    "pkg_resources": "setuptools",
    "hf_xet": "hf-xet",
}


@dataclass(frozen=True)
class Need:
    """One line of what `by` says it needs: `name`, and the versions that do (PEP 440, "" for any)."""

    by: str
    name: str
    specifier: str


@dataclass(frozen=True)
class Installed:
    """versions, requires: by normalized name; requires are Requires-Dist lines. pins: what the host pins exactly.

    device: the host's word for the stack (cuda, rocm, cpu, …); system, machine: of the `platform` module. All "" where nobody knows.
    """

    versions: Mapping[str, str]
    requires: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    pins: Mapping[str, str] = field(default_factory=dict)
    host: frozenset[str] = frozenset()
    python: str = ""
    executable: str = ""
    system: str = ""
    machine: str = ""
    device: str = ""

    def version(self, name: str) -> str | None:
        """The version of a distribution, None when it is not there."""
        return self.versions.get(normal(name))

    def pin(self, name: str) -> str | None:
        """The version that the host wants, None where it leaves that open."""
        return self.pins.get(normal(name))

    def belongs_to_host(self, name: str) -> bool:
        """Whether the host brings it, so that it must not be moved without saying so."""
        return normal(name) in self.host or normal(name) in self.pins

    def brings(self, module: str) -> str:
        """The distribution of a module such as "google.protobuf.internal"; the module's own name where nobody else is known."""
        top = module.partition(".")[0]
        if module.startswith("google.protobuf"):
            return "protobuf"
        return _DISTRIBUTIONS.get(top.lower()) or self._names.get(top) or top.replace("_", "-")

    @cached_property
    def needs(self) -> tuple[Need, ...]:
        """Everything that the installed packages say they need here, without extras."""
        return tuple(_needs(self.requires))

    def clashes(self, among: frozenset[str] = STACK) -> tuple[tuple[Need, str | None], ...]:
        """Needs of packages that are not met by what is there, with the version that is (None: missing); both sides in `among`."""
        found = []
        for need in self.needs:
            if normal(need.by) not in among or normal(need.name) not in among:
                continue
            there = self.version(need.name)
            parsed = version(there)
            if there is None or (parsed and not SpecifierSet(need.specifier).contains(parsed, prereleases=True)):
                found.append((need, there))
        return tuple(found)

    def wanted(self, name: str) -> str:
        """The versions of a distribution that everybody here who needs it would take, as one specifier; "" where nobody says."""
        parts = [need.specifier for need in self.needs if normal(need.name) == normal(name) and need.specifier]
        return ",".join(dict.fromkeys(part for text in parts for part in text.split(",")))

    @cached_property
    def _names(self) -> dict[str, str]:
        return {import_name(name).partition(".")[0]: name for name in self.versions}


def read_installed(host_root: Path | None = None, device: str = "") -> Installed:
    """This environment, from the descriptions on disk: 50 to 200 ms. host_root: the folder with the host's pins."""
    versions: dict[str, str] = {}
    requires: dict[str, tuple[str, ...]] = {}
    for info in infos():
        if normal(info.name) not in versions:
            versions[normal(info.name)] = info.version
            requires[normal(info.name)] = _requires(info.path / "METADATA")
    return Installed(
        versions=versions,
        requires=requires,
        pins=dict(_pins(host_root)),
        host=host_packages(),
        python=platform.python_version(),
        executable=sys.executable,
        system=platform.system(),
        machine=platform.machine(),
        device=device,
    )


def _requires(file: Path) -> tuple[str, ...]:
    try:
        head = file.read_text(encoding="utf-8", errors="replace").split("\n\n", 1)[0]
    except OSError:  # an egg-info, or a broken one: it asks for nothing that could be read
        return ()
    return tuple(line.partition(":")[2].strip() for line in head.splitlines() if line.startswith("Requires-Dist:"))


def _needs(requires: Mapping[str, tuple[str, ...]]) -> Iterator[Need]:
    for by, lines in requires.items():
        for line in lines:
            try:
                need = Specification(line)
            except InvalidRequirement:
                continue
            if need.marker is None or need.marker.evaluate({"extra": ""}):
                yield Need(by, need.name, str(need.specifier))


def _pins(host_root: Path | None) -> Iterator[tuple[str, str]]:
    """Exact versions of the host's requirements; the constraints count before them."""
    for file in ("requirements.txt", "constraints.txt"):
        try:
            lines = (host_root / file).read_text(encoding="utf-8").splitlines() if host_root else []
        except OSError:  # not every version of the host has both
            continue
        for line in lines:
            found = re.match(r"\s*([\w.\-]+)(?:\[[^\]]*\])?\s*==\s*([\w.+!]+)\s*(?:#.*)?$", line)
            if found:
                yield normal(found[1]), found[2]
