"""What a guard has found, and what is done about it in each mode."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from sd3deploy import button, messages
from sd3deploy.button import Button

__all__ = ["MODES", "Action", "Finding", "Mode", "Severity", "action", "finding"]

# advice: runs as asked, but not well. warning: runs, but not as asked. error: can not run as asked.
Severity = Literal["advice", "warning", "error"]

# off: not looked at. warn: said, nothing is changed. fix: mended and said. block: refused instead of changed.
Mode = Literal["off", "warn", "fix", "block"]
MODES: tuple[Mode, ...] = ("off", "warn", "fix", "block")

Action = Literal["tell", "apply", "refuse"]

# Fields that a guard changes; of several, the first says it for all.
_MADE = ("processors", "width", "hires_width", "sampler", "hires_sampler", "steps", "guidance", "prompt_attention")


@dataclass(frozen=True)
class Finding:
    """One thing that a guard has to say about a job.

    id: of the sentence in messages/. change: fields of the job → values with which it runs; empty where nothing can be mended. offer: the
    same of values with which it would be better, which no guard sets by itself.
    """

    id: str
    severity: Severity
    message: str
    remedy: str
    change: Mapping[str, object] = field(default_factory=dict)
    offer: Mapping[str, object] = field(default_factory=dict)

    @property
    def buttons(self) -> tuple[Button, ...]:
        """What a person can take over of it with one press."""
        return button.take(self.change or self.offer)

    def told(self, done: Action) -> str:
        """The sentence, with what was done about it, where there was something to be done."""
        nothing = self.severity == "advice" or (done == "tell" and not self.change)
        if nothing:
            return self.message
        return messages.joined(self.message, self._made() if done == "apply" else messages.text(f"guard.{done}"))

    def advised(self, done: Action) -> str:
        """What is left to do: nothing, where it was mended, but to keep a processor from coming back."""
        return "" if done == "apply" and "processors" not in self.change else self.remedy

    def _made(self) -> str:
        """With what the picture is made instead."""
        name = next(name for name in _MADE if name in self.change)
        return messages.text(f"guard.apply.{name}", **dict(self.change))


def finding(
    severity: Severity, id: str, change: Mapping[str, object] | None = None, offer: Mapping[str, object] | None = None, **values: object
) -> Finding:
    """A finding in the words of messages/; `values` fill the placeholders."""
    return Finding(id, severity, messages.text(id, **values), messages.remedy(id, **values), change or {}, offer or {})


def action(mode: Mode, found: Finding) -> Action:
    """What is done about a finding. What can not run is refused even in mode warn: the host would fail without a word."""
    if found.change and mode == "fix":
        return "apply"
    if found.severity == "error" or (found.change and mode == "block" and found.severity == "warning"):
        return "refuse"
    return "tell"
