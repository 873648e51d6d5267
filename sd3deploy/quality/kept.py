"""What was measured, as a small file beside the kept encoders: numbers and hashes alone, no word of a prompt and no path.

It is of one source of weights. Numbers of other versions of the libraries that a choice is made with are measured anew; those of another
device stay beside these.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection, Mapping
from dataclasses import astuple
from pathlib import Path
from statistics import mean
from typing import Any

from sd3deploy.device import Device
from sd3deploy.encoders.cache import Cache, CacheError
from sd3deploy.encoders.cache.manifest import versions
from sd3deploy.encoders.choices import CHOICES, Choice
from sd3deploy.encoders.source import Source
from sd3deploy.encoders.weights import open_weights
from sd3deploy.errors import Sd3Error
from sd3deploy.memory.errors import Errors
from sd3deploy.quality.beside import Measured

__all__ = ["Kept", "errors_of", "name_for"]

_FORMAT = 2
_PREFIX = "quality-"
_LIBRARIES = ("sd3deploy", "torch", "transformers")  # of every choice, beside its groups
_CHOICES = {choice.id: choice for choice in CHOICES}


class Kept:
    """The numbers of one source on one device. cache: beside whose encoders they lie; None keeps them for this process alone."""

    def __init__(self, cache: Cache | None, fingerprint: list[Any], device: Device) -> None:
        self._cache, self._name, self._versions = cache, name_for(fingerprint), versions()
        self._device = f"{device.backend} {device.name} {device.compute_dtype}"
        self.lost: CacheError | None = None  # why what was added last could not be written
        self._mine: dict[str, Any] = {}  # what this process has measured
        self._known: dict[str, Any] = {}  # and what was ever seen in the file: others may write over it meanwhile
        self._devices = _devices(_bytes(cache.folder / self._name)) if cache else {}
        self._merge()

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
        return {key: Measured(*one) for key, one in self._known.get(choice.id, {}).items()}

    def add(self, found: Mapping[str, Mapping[str, Measured]], failed: Collection[str] = ()) -> None:
        """found: id of a choice → key of a prompt → what was measured. failed: ids of those that could not run. Raises CacheError where it
        can not be written: `measured` knows it nevertheless, and the next time it is written with the rest.
        """
        for choice in {*found, *failed}:
            numbers = {key: list(astuple(one)) for key, one in found.get(choice, {}).items()}
            before = self._mine.get(choice, {"prompts": {}})
            self._mine[choice] = {"prompts": before["prompts"] | numbers, "failed": choice in failed}
        self._merge()
        if self._cache:
            try:
                self._cache.change_beside(self._name, self._changed)
                self.lost = None
            except CacheError as error:
                self.lost = error
                raise

    def _changed(self, data: bytes | None) -> bytes:
        self._devices = _devices(data)  # another process may have measured these weights meanwhile
        self._merge()
        return json.dumps({"format": _FORMAT, "devices": self._devices}, indent=1).encode()

    def _merge(self) -> None:
        """What this process has measured into what is in the file."""
        here = self._devices.setdefault(self._device, {})
        current = _current(here, self._versions)
        for choice, mine in self._mine.items():
            prompts = current.get(choice, {"prompts": {}})["prompts"] | mine["prompts"]
            here[choice] = current[choice] = {**mine, "versions": _stamp(choice, self._versions), "prompts": prompts}
        for choice, entry in current.items():
            self._known.setdefault(choice, {}).update(entry["prompts"])


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
        devices = _devices(_bytes(cache.folder / name_for(open_weights(source.on_disk()).fingerprint())))
    except (Sd3Error, OSError, ValueError, ImportError):
        return Errors()
    now = versions()
    found = [_errors(_current(entries, now)) for entries in devices.values()]
    return max(found, key=lambda one: (len(one.measured), one.prompts), default=Errors())


def _errors(entries: Mapping[str, Any]) -> Errors:
    """Over the prompts that all have run with of which the recommendation needs to know: the means of others could not be compared."""
    plain = [entry for choice, entry in entries.items() if entry["prompts"] and not _CHOICES[choice].groups]
    needed = [entry for entry in plain if not entry["failed"]] or plain
    shared = set.intersection(*(set(entry["prompts"]) for entry in needed)) if needed else set()
    if not shared:
        return Errors()
    numbers = {choice: entry["prompts"] for choice, entry in entries.items() if shared <= entry["prompts"].keys()}
    errors = {choice: mean(prompts[key][0] for key in shared) for choice, prompts in numbers.items()}
    return Errors(errors, len(shared), frozenset(choice for choice, entry in entries.items() if entry["failed"] and choice not in errors))


def _current(entries: Mapping[str, Any], now: Mapping[str, str | None]) -> dict[str, Any]:
    """Those of choices that there are, made with these versions."""
    return {choice: entry for choice, entry in entries.items() if choice in _CHOICES and entry["versions"] == _stamp(choice, now)}


def _stamp(choice: str, now: Mapping[str, str | None]) -> dict[str, str | None]:
    """The versions of what the encoder is made with."""
    return {name: now.get(name) for name in (*_LIBRARIES, *_CHOICES[choice].groups)}


def _bytes(file: Path) -> bytes | None:
    try:
        return file.read_bytes()
    except (OSError, ValueError):  # ValueError: a name with a zero in it
        return None


def _devices(data: bytes | None) -> dict[str, Any]:
    """Device → id of a choice → versions, prompts and failed; nothing for what can not be understood."""
    try:
        content = json.loads(data or b"")
        whole = content["format"] == _FORMAT
        for entries in content["devices"].values():
            for entry in entries.values():
                whole = whole and isinstance(entry["versions"], dict) and isinstance(entry["failed"], bool)
                whole = whole and all(len(one) == 3 and all(map(_number, one)) for one in entry["prompts"].values())
        return content["devices"] if whole else {}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def _number(value: object) -> bool:
    return isinstance(value, float) and math.isfinite(value)
