"""What can be done about a message with one press. Whoever has the message to say knows its buttons; the page has them in a toast and in
the chip beside Generate (javascript/sd3_actions.js).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from sd3deploy import messages

__all__ = ["JOB", "Button", "change", "generate", "take"]

JOB = ("width", "height", "batch", "steps", "guidance")  # what the page can write into its own fields


@dataclass(frozen=True)
class Button:
    """id: what the page does. label: the words on it. fields: what is set by it, by the names of memory.verdict.Change and of a guards'
    Job. seconds: how long after the message it can be pressed; 0 for as long as the message is there.
    """

    id: str
    label: str
    fields: Mapping[str, object] = field(default_factory=dict)
    seconds: int = 0


def take(fields: Mapping[str, object]) -> tuple[Button, ...]:
    """Take over what a guard has changed, or would; nothing where the page has no field for it."""
    known = {name: fields[name] for name in JOB if name in fields}
    return (Button("use", messages.text(f"button.use.{next(iter(known))}", **known), known),) if known else ()


def change(fields: Mapping[str, object], steps: str) -> tuple[Button, ...]:
    """Make a change that lets a picture fit. steps: the same in words. What is the job's own is written into the page, the rest is set."""
    if not fields:
        return ()
    if fields.keys() <= {"width", "height"}:
        return (Button("use", messages.text("button.make", **fields), dict(fields)),)
    return (Button("apply", messages.text("button.apply", steps=steps), dict(fields)),)


def generate(seconds: int) -> tuple[Button, ...]:
    """Press Generate again, for what was held back once."""
    return (Button("generate", messages.text("button.generate"), seconds=seconds),)
