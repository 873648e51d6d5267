"""What could not be brought: it is not tried again with every picture, and what was told of it is over when that is."""

from __future__ import annotations

from sd3deploy.deployment.wanted import Wanted
from sd3deploy.events import Event, Events

__all__ = ["SETTINGS", "TRIAL", "Failures"]

SETTINGS, TRIAL = "settings", "trial"  # askers, beside the pages that have an encoder of their own


class Failures:
    """Of each asker, a page or the settings, what has failed for it. Changed by whoever holds `busy` or the queue, read by any thread."""

    def __init__(self, events: Events) -> None:
        self._events = events
        self._tried: dict[str, dict[Wanted, Event]] = {}  # asker → what it has asked for in vain
        self._left: list[Event] = []  # of changes that came to nothing: all is as it was before

    @property
    def names(self) -> list[str]:
        """The choices that have failed, sorted."""
        return sorted({wanted.choice.name for tried in list(self._tried.values()) for wanted in list(tried)})

    def has(self, wanted: Wanted, asker: str) -> bool:
        """Whether that asker has asked for it in vain."""
        return wanted in self._tried.get(asker, {})

    def add(self, wanted: Wanted, asker: str, told: Event) -> None:
        """Note what has failed for an asker, and what was told of it."""
        self._tried.setdefault(asker, {})[wanted] = told

    def leave(self, told: Event) -> None:
        """Note that a change of the settings came to nothing."""
        self._left.append(told)

    def begin(self) -> int:
        """The settings or the model are others: everything may be tried again. Returns what `end` wants to know when that has succeeded."""
        for asker in list(self._tried):
            self.forget(asker)
        return self._events.count

    def load(self) -> int:
        """As `begin`, of a model that is being loaded: that another load has failed is over."""
        self._events.end(self._events.errors("model", self._events.count))
        return self.begin()

    def end(self, begun: int) -> None:
        """What the settings ask for is there: all that was told of encoders before it was begun is over."""
        self._events.end(self._events.errors("encoder", begun))

    def recover(self, asker: str) -> None:
        """What it asks for now is there: what it has asked for in vain is over, and may be tried again."""
        self._events.end(self._tried.pop(asker, {}).values())

    def forget(self, asker: str) -> None:
        """It may be tried again; what was told of it stays."""
        self._left.extend(self._tried.pop(asker, {}).values())

    def settle(self) -> None:
        """A picture is made with what the settings ask for: the state is no failure any more, whatever a page has asked for. The messages
        stay, or nobody would have read them.
        """
        of_pages = [told for asker, tried in list(self._tried.items()) if asker != SETTINGS for told in list(tried.values())]
        self._events.settle([*self._left, *of_pages, *self._events.errors("model", self._events.count)])
        self._left = []
