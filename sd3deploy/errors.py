"""One tree of errors. Each carries a stable id, a sentence and the remedy, all from `messages/`.

Sd3Error
├── BundleError         a support bundle that can not be written
├── DependencyError     a package is missing, broken, or could not be installed
├── RestartRequired     a library that is loaded was replaced on disk; only a new process sees the new one
├── EncoderError        a text encoder can not run here, can not be found, or could not be loaded
├── SettingError        a stored or requested value that means nothing
├── HostError           an SD.Next that is not there, or whose Python does not run
├── LogError            a log that can not be read
└── JobRefused          a job that can not run, or that a guard was told to stop
"""

from __future__ import annotations

from typing import Any

from sd3deploy import messages
from sd3deploy.button import Button

__all__ = [
    "BundleError",
    "DependencyError",
    "EncoderError",
    "HostError",
    "JobRefused",
    "LogError",
    "RestartRequired",
    "Sd3Error",
    "SettingError",
]


class Sd3Error(Exception):
    """An expected failure. `id` names the sentence in messages/, `values` fills its placeholders.

    str(error) is what a person reads: the sentence, then the remedy. buttons: what can be done about it with one press. told: the event
    (events.py) that has said it already, if one has.
    """

    buttons: tuple[Button, ...] = ()
    told: Any = None

    def __init__(self, id: str, **values: object) -> None:
        self.id = id
        self.values = values
        self.message = messages.text(id, **values)
        self.remedy = messages.remedy(id, **values)
        super().__init__(messages.joined(self.message, self.remedy))


class BundleError(Sd3Error):
    """A support bundle that can not be written."""


class DependencyError(Sd3Error):
    """A package is missing, broken, or could not be installed."""


class RestartRequired(Sd3Error):
    """A loaded library was replaced on disk: only a new process sees the new one."""


class EncoderError(Sd3Error):
    """A text encoder can not run here, can not be found, or could not be loaded."""


class SettingError(Sd3Error):
    """A stored or requested value that means nothing."""


class HostError(Sd3Error):
    """An SD.Next that is not there, or whose Python does not run."""


class LogError(Sd3Error):
    """A log that can not be read."""


class JobRefused(Sd3Error):
    """A job that can not run, or that a guard was told to stop. `message`, `remedy`: as its findings have them."""

    def __init__(self, id: str, message: str, remedy: str) -> None:
        self.id, self.values, self.message, self.remedy = id, {}, message, remedy
        Exception.__init__(self, messages.joined(message, remedy))
