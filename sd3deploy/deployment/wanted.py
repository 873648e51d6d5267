"""The text encoder that the settings ask for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sd3deploy.encoders import choices, source
from sd3deploy.encoders.choices import HOST_DEFAULT, NONE, Choice
from sd3deploy.errors import SettingError
from sd3deploy.events import Events

__all__ = ["Settings", "Wanted"]


@dataclass(frozen=True)
class Wanted:
    """A text encoder as the settings ask for it: the choice, the kind of source, and the file where the source is one."""

    choice: Choice
    weights: str = "Automatic"
    file: str = ""


class Settings:
    """The stored settings, read anew each time. option: gives the stored value of a key. Called with any lock held."""

    def __init__(self, option: Callable[[str], Any], events: Events) -> None:
        self._option, self._events = option, events
        self._complained: set[str] = set()

    def wanted(self, choice: object = None) -> Wanted:
        """What they ask for; `choice` instead of the stored one. Raises SettingError for a value that means nothing."""
        found = choices.find(self._option("sd3_text_encoder") if choice is None else choice)
        if found in (HOST_DEFAULT, NONE):
            return Wanted(found)
        kind = self._kind()
        return Wanted(found, kind, str(self._option("sd3_weights_file") or "") if kind == "Local file" else "")

    def wanted_or_default(self, choice: object = None) -> Wanted:
        """As `wanted`, but a value that means nothing is complained about once; what is stored, then the default, answer it."""
        for candidate in (choice, None, HOST_DEFAULT):
            try:
                return self.wanted(candidate)
            except SettingError as error:
                self._complain(error)
        raise AssertionError("the default is a choice")

    def _kind(self) -> str:
        try:
            return source.kind_of(self._option("sd3_weights"))
        except SettingError as error:
            self._complain(error)
            return source.KINDS[0]

    def _complain(self, error: SettingError) -> None:
        """Say it once for each value."""
        if str(error) not in self._complained:
            self._complained.add(str(error))
            self._events.fail(error, "warning")
