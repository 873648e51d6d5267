"""What is installed, as plain values for a diagnosis: taken once from the one reader, or written down by a test."""

from __future__ import annotations

import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from sd3deploy import installed
from sd3deploy.deps import host_packages
from sd3deploy.vendored import SpecifierSet, canonicalize_name, same_version, version

__all__ = ["STACK", "Installed", "Need", "of_stack", "read_installed"]

# The packages that Stable Diffusion 3 runs on. What others lack or contradict is no failure of it.
_NAMES = """
    accelerate bitsandbytes compel diffusers fastapi filelock fsspec gguf gradio hf-xet httpx huggingface-hub importlib-metadata numpy
    optimum-quanto packaging peft pillow pillow-simd protobuf psutil pydantic pydantic-core pytorch-triton-rocm pytorch-triton-xpu pyyaml
    regex requests safetensors scipy sdnq sentencepiece starlette tokenizers torch torchao torchvision transformers triton triton-windows
    typing-extensions xformers
"""
STACK = frozenset(_NAMES.split())

# Modules that belong to a distribution of another name, for logs of machines of which nothing else is known.
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


def of_stack(name: str) -> bool:
    """Whether Stable Diffusion 3 runs on this distribution."""
    return canonicalize_name(name) in STACK


@dataclass(frozen=True)
class Need:
    """One line of what `by` says it needs: `name`, and the versions that do (PEP 440, "" for any)."""

    by: str
    name: str
    specifier: str


@dataclass(frozen=True)
class Installed:
    """False where nothing is known. versions, requires: by canonical name; requires are Requires-Dist lines. pins: what the host wants.

    device: the host's word for the stack (cuda, rocm, cpu, …); system, machine: of the `platform` module. All "" where nobody knows.
    modules: importable name ("cv2", "google.protobuf") → the distributions whose files it is, first the one whose files really lie there.
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
    modules: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.versions or self.pins or self.host or self.system)

    def version(self, name: str) -> str | None:
        """The version of a distribution, or of the one that brings its module in its place; None when neither is there."""
        return self.versions.get(canonicalize_name(name)) or self.versions.get(canonicalize_name(self.in_place_of(name)))

    def in_place_of(self, name: str) -> str:
        """The other distribution that brings the module of one that is not there: "triton-windows" for "triton"; "" where there is none."""
        if canonicalize_name(name) in self.versions:
            return ""
        return next(iter(self.modules.get(installed.import_name(name), ())), "")

    def pin(self, name: str) -> str | None:
        """The version that the host wants, None where it leaves that open."""
        return self.pins.get(canonicalize_name(name))

    def moved(self, name: str) -> bool:
        """Whether somebody has put another version there than the host wants."""
        there, pin = self.version(name), self.pin(name)
        return bool(there and pin and not same_version(there, pin))

    def belongs_to_host(self, name: str) -> bool:
        """Whether the host brings it, so that it must not be moved without saying so."""
        return canonicalize_name(name) in self.host or canonicalize_name(name) in self.pins

    def brings(self, module: str) -> str:
        """The distribution of a module such as "google.protobuf.internal"; the module's own name where nobody else is known."""
        parts = module.split(".")
        for length in range(len(parts), 0, -1):
            if found := self.modules.get(".".join(parts[:length])):
                return found[0]
        if module.startswith("google.protobuf"):
            return "protobuf"
        return _DISTRIBUTIONS.get(parts[0].lower()) or self._names.get(parts[0]) or parts[0].replace("_", "-")

    @cached_property
    def needs(self) -> tuple[Need, ...]:
        """Everything that the installed packages say they need here, without extras."""
        return tuple(Need(by, one.name, str(one.specifier)) for by, lines in self.requires.items() for one in installed.needs(lines))

    def clashes(self, among: frozenset[str] = STACK) -> tuple[tuple[Need, str | None], ...]:
        """Needs of packages that are not met by what is there, with the version that is (None: missing); both sides in `among`.

        What another distribution brings in the place of the one that is needed is as its user wants it.
        """
        found = []
        for need in self.needs:
            if not {canonicalize_name(need.by), canonicalize_name(need.name)} <= among or self.in_place_of(need.name):
                continue
            there = self.version(need.name)
            parsed = version(there)
            if there is None or (parsed and not SpecifierSet(need.specifier).contains(parsed, prereleases=True)):
                found.append((need, there))
        return tuple(found)

    def wanted(self, name: str) -> str:
        """The versions of a distribution that everybody here who needs it would take, as one specifier; "" where nobody says."""
        parts = [need.specifier for need in self.needs if canonicalize_name(need.name) == canonicalize_name(name) and need.specifier]
        return ",".join(dict.fromkeys(part for text in parts for part in text.split(",")))

    @cached_property
    def _names(self) -> dict[str, str]:
        return {installed.import_name(name).partition(".")[0]: name for name in self.versions}


def read_installed(host_root: Path | None = None, device: str = "") -> Installed:
    """This environment, from the descriptions on disk: 100 to 400 ms. host_root: the folder with the host's pins."""
    first: dict[str, installed.Distribution] = {}
    for one in installed.distributions():
        first.setdefault(one.key, one)
    return Installed(
        versions={key: one.version for key, one in first.items()},
        requires={key: one.requires() for key, one in first.items()},
        pins=installed.pins(host_root),
        modules={module: tuple(one.name for one in who) for module, who in installed.modules().items()},
        host=host_packages(),
        python=platform.python_version(),
        executable=sys.executable,
        system=platform.system(),
        machine=platform.machine(),
        device=device,
    )
