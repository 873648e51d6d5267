"""Which choice is nearest to float32: by what was measured on the very weights, else by the table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field

from sd3deploy import messages
from sd3deploy.encoders.choices import Choice

__all__ = ["Errors"]


@dataclass(frozen=True)
class Errors:
    """measured: id of a choice → mean relative error of its output on the weights that are meant. prompts: with which each of them was
    measured. failed: ids of those that could not run where it was measured. Empty where nothing was.
    """

    measured: Mapping[str, float] = field(default_factory=dict)
    prompts: int = 0
    failed: Set[str] = frozenset()

    def cover(self, choices: Iterable[Choice]) -> bool:
        """Whether they can take the place of the table for all of these that run without further packages: measured errors of some can not
        be compared with the table's of others. Without its packages nothing can be measured of the rest, nor ever of what has failed.
        """
        wanted = {choice.id for choice in choices if choice.error is not None and not choice.groups} - self.failed
        return bool(wanted) and wanted <= self.measured.keys()

    def order(self, choices: Iterable[Choice]) -> list[Choice]:
        """Those with a T5 of known error, the best first. Where they go by what was measured: then what was not, and what failed."""
        known = {choice: (0, choice.error) for choice in choices if choice.error is not None}
        if self.cover(known):
            ranks = {**dict.fromkeys(self.failed, 2), **dict.fromkeys(self.measured, 0)}
            known |= {choice: (ranks.get(choice.id, 1), self.measured.get(choice.id, choice.error)) for choice in known}
        return sorted(known, key=lambda choice: known[choice])

    def sentence(self, choices: Iterable[Choice]) -> str:
        """By what they are put in order."""
        return messages.text("memory.by-measured", count=self.prompts) if self.cover(choices) else messages.text("memory.by-table")
