"""The text encoder that the settings ask for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from sd3deploy.encoders import choices, source
from sd3deploy.encoders.choices import HOST_DEFAULT, NONE, Choice
from sd3deploy.errors import SettingError
from sd3deploy.events import Events

__all__ = ["Settings", "Wanted"]


@dataclass(frozen=True)
class Wanted:
    """A text encoder as the settings ask for it: the choice, the kind of source, and the file where the source is one.
    repository: where it is one, or may be. keep: store what is read of that among the host's own; that makes no other encoder.
    """

    choice: Choice
    weights: str = "Automatic"
    file: str = ""
    repository: str = ""
    keep: bool = field(default=False, compare=False)


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
        if kind == "Local file":
            return Wanted(found, kind, self._text("sd3_weights_file"))
        if kind in ("Automatic", "Repository"):
            return Wanted(found, kind, "", self._text("sd3_weights_repository"), self._option("sd3_weights_keep") is True)
        return Wanted(found, kind)

    def wanted_or_default(self, choice: object = None) -> Wanted:
        """As `wanted`, but a value that means nothing is complained about once; what took its place, else what is stored, then the default,
        answer it.
        """
        for candidate in (choice, None, HOST_DEFAULT):
            try:
                return self.wanted(candidate)
            except SettingError as error:
                new = choices.successor(self._option("sd3_text_encoder") if candidate is None else candidate)
                self._complain(error, replaced=new is not None)
                if new:
                    return self.wanted(new)
        raise AssertionError("the default is a choice")

    def _text(self, key: str) -> str:
        return str(self._option(key) or "")

    def _kind(self) -> str:
        try:
            return source.kind_of(self._option("sd3_weights"))
        except SettingError as error:
            self._complain(error)
            return source.KINDS[0]

    def _complain(self, error: SettingError, *, replaced: bool = False) -> None:
        """Say it once for each value. replaced: there is nothing that anybody has to do about it."""
        if str(error) not in self._complained:
            self._complained.add(str(error))
            self._events.add("warning", error.id, error.message, "" if replaced else error.remedy)
