"""What the extension does inside of the host's own work, part by part, and what becomes of a part that fails there."""

from __future__ import annotations

import functools
import logging
import threading
import traceback
from collections.abc import Callable
from typing import Any

from sd3deploy import messages
from sd3deploy.events import Event, Events
from sd3deploy.webui.host.contract import Need
from sd3deploy.webui.host.patch import DELIBERATE
from sd3deploy.webui.host.reach import HostChanged, described, state, words_of

__all__ = ["Feature", "Features"]


class Feature:
    """One part. Its first exception switches it off and is told once, with its name in plain words and with what is lost.

    id, values: of the sentence "feature.<id>" in messages/, its name, and of "feature.<id>.lost".
    """

    def __init__(self, whole: Features, id: str, values: dict[str, object]) -> None:
        self._whole, self._id, self._values = whole, id, values
        self._lock = threading.Lock()
        self._failed = False
        self.notice = ""  # what was told when it failed

    @property
    def active(self) -> bool:
        return not self._failed and not self._whole.ended and not state.lacks(self._id)

    def fail(self, error: BaseException) -> None:
        """Switch it off and say so, unless that was told already because of what has changed in the host. Raises nothing, and is called
        from any thread with any lock held.
        """
        with self._lock:
            first, self._failed = not self._failed, True
        if first and not _was_told(error) and not self._whole.ended:
            self.notice = self._whole.tell(error, self._id, self._values)

    def shield(self, work: Callable[..., Any], passing: tuple[type[Exception], ...] = DELIBERATE) -> Callable[..., Any]:
        """`work` as the host may call it: it raises nothing of its own but `passing`, and answers None once it is switched off."""

        @functools.wraps(work)
        def shielded(*args: Any, **kwargs: Any) -> Any:
            if not self.active:
                return None
            try:
                return work(*args, **kwargs)
            except passing:
                raise
            except Exception as error:
                self.fail(error)
                return None

        return shielded


def _was_told(error: BaseException | None) -> bool:
    """Whether it is, or comes of, something in the host that is not as it should be: whatever found that has told it."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, HostChanged):
            return True
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return False


class Features:
    """All parts by name. ended: whether the extension as a whole has been taken out of the host again. notice: its words for that.

    leave: takes it out, because of that error. keep: called at the begin of each job, before its parts are.
    """

    def __init__(self, events: Events, leave: Callable[[Exception], object] = lambda error: None) -> None:
        self._events, self._leave = events, leave
        self._known: dict[tuple[str, str], Feature] = {}
        self.ended = False
        self.notice = ""
        self.keep: Callable[[], None] = lambda: None

    def changed(self, found: dict[Need, str]) -> Event | None:
        """Say in one sentence what the host has no longer, or has otherwise, and what of the extension is off because of it; without what
        it can not do without, it ends. Raises nothing, and is called from any thread with any lock held.
        """
        try:
            essential = {need: what for need, what in found.items() if need.feature == ""}
            if self.ended:
                return None
            if essential:
                self._leave(HostChanged(next(iter(essential)), "; ".join(essential.values())))
                return None
            return self._events.tell("warning", "host.changed", names=described(found), **words_of(found))
        except Exception:
            logging.getLogger("sd").exception("SD3 Deploy: %s", described(found))
            return None

    def get(self, id: str, **values: object) -> Feature:
        """The part of that name; the same one for the same values."""
        return self._known.setdefault((id, str(values)), Feature(self, id, values))

    def shield(self, id: str, work: Callable[..., Any]) -> Callable[..., Any]:
        """`work` as a part of its own: see Feature.shield."""
        return self.get(id).shield(work)

    def tell(self, error: BaseException, id: str, values: dict[str, object]) -> str:
        """Say that a part is off; where not even that works, the log has the error. Returns what was said."""
        try:
            log = logging.getLogger("sd")  # the host's own, wherever it keeps it
            log.debug("".join(traceback.format_exception(type(error), error, error.__traceback__)))  # for a report
            name, lost = messages.text(f"feature.{id}", **values), messages.text(f"feature.{id}.lost", **values)
            values = {"feature": name, "lost": lost, "error": f"{type(error).__name__}: {error}"}
            self._events.tell("warning", "host.feature-off", **values)
            return messages.joined(messages.text("host.feature-off", **values), messages.remedy("host.feature-off"))
        except Exception:
            logging.getLogger("sd").exception("SD3 Deploy: %s", id)
            return ""
