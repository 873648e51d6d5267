"""What was measured, as a small file beside the kept encoders: numbers and hashes alone, no word of a prompt and no path.

It is of one source of weights. Numbers of other versions of the libraries are measured anew; those of another device stay beside these.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import astuple
from pathlib import Path
from statistics import mean
from typing import Any

from sd3deploy.device import Device
from sd3deploy.encoders.cache import Cache
from sd3deploy.encoders.cache.manifest import versions
from sd3deploy.encoders.choices import Choice
from sd3deploy.encoders.source import Source
from sd3deploy.encoders.weights import open_weights
from sd3deploy.errors import Sd3Error
from sd3deploy.memory.errors import Errors
from sd3deploy.quality.beside import Measured

__all__ = ["Kept", "errors_of", "name_for"]

_FORMAT = 1
_PREFIX = "quality-"


class Kept:
    """The numbers of one source on one device. cache: beside whose encoders they lie; None keeps them for this process alone."""

    def __init__(self, cache: Cache | None, fingerprint: list[Any], device: Device) -> None:
        self._cache, self._name, self._versions = cache, name_for(fingerprint), versions()
        self._device = f"{device.backend} {device.name} {device.compute_dtype}"
        self._mine: dict[str, Any] = {}  # what this process has measured
        self._data = _bytes(cache.folder / self._name) if cache else None  # of the file, as it was seen last
        self._all = self._merged()

    @property
    def fingerprint(self) -> str:
        """Of the weights, hexadecimal."""
        return self._name.removeprefix(_PREFIX).removesuffix(".json")

    @property
    def versions(self) -> Mapping[str, str | None]:
        """Of the libraries."""
        return self._versions

    def measured(self, choice: Choice) -> dict[str, Measured]:
        """Key of a prompt → what was measured."""
        return {key: Measured(*one) for key, one in self._all.get(self._device, {}).get(choice.id, {}).items()}

    def add(self, found: Mapping[str, Mapping[str, Measured]]) -> None:
        """id of a choice → key of a prompt → what was measured. Raises CacheError where it can not be written."""
        for choice, measured in found.items():
            self._mine.setdefault(choice, {}).update({key: list(astuple(one)) for key, one in measured.items()})
        self._all = self._merged()
        if self._cache:
            self._cache.change_beside(self._name, self._changed)

    def _changed(self, data: bytes | None) -> bytes:
        self._data = data  # another process may have measured these weights meanwhile
        self._all = self._merged()
        return json.dumps({"format": _FORMAT, "versions": self._versions, "devices": self._all}, indent=1).encode()

    def _merged(self) -> dict[str, Any]:
        """What is in the file, and what this process has measured."""
        content = _parsed(self._data)
        devices = content["devices"] if content and content["versions"] == self._versions else {}
        here = devices.setdefault(self._device, {})
        for choice, measured in self._mine.items():
            here.setdefault(choice, {}).update(measured)
        return devices


def name_for(fingerprint: list[Any]) -> str:
    """Of the file."""
    return f"{_PREFIX}{hashlib.sha256(json.dumps(fingerprint, sort_keys=True).encode()).hexdigest()[:16]}.json"


def errors_of(cache: Cache, source: Source) -> Errors:
    """What was measured of these weights by this version, on the device on which most was; empty where nothing was. Only what lies on this
    disk is looked at, and nothing is raised: whoever reads the weights says what is wrong with them.
    """
    try:
        if not any(cache.folder.glob(f"{_PREFIX}*.json")):
            return Errors()
        content = _parsed(_bytes(cache.folder / name_for(open_weights(source.on_disk()).fingerprint())))
    except (Sd3Error, OSError, ValueError, ImportError):
        return Errors()
    if not content or content["versions"].get("sd3deploy") != versions()["sd3deploy"]:
        return Errors()
    found = [errors for choices in content["devices"].values() if (errors := _errors(choices)) is not None]
    return max(found, key=lambda one: (len(one.measured), one.prompts), default=Errors())


def _errors(choices: Mapping[str, Mapping[str, list[float]]]) -> Errors | None:
    """Over the prompts that all of them have run with: the means of others could not be compared."""
    shared = set.intersection(*map(set, choices.values())) if choices else set()
    if not shared:
        return None
    return Errors({choice: mean(measured[key][0] for key in shared) for choice, measured in choices.items()}, len(shared))


def _bytes(file: Path) -> bytes | None:
    try:
        return file.read_bytes()
    except (OSError, ValueError):  # ValueError: a name with a zero in it
        return None


def _parsed(data: bytes | None) -> dict[str, Any] | None:
    """None for what can not be understood."""
    try:
        content = json.loads(data or b"")
        whole = content["format"] == _FORMAT and isinstance(content["versions"], dict)
        for choices in content["devices"].values():
            for measured in choices.values():
                whole = whole and all(len(one) == 3 and all(map(_number, one)) for one in measured.values())
        return content if whole else None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _number(value: object) -> bool:
    return isinstance(value, float) and math.isfinite(value)
