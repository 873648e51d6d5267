"""Errors of an SD3 model's loads and jobs, explained beside the host's own traceback. The host does with them what it always does."""

from __future__ import annotations

import traceback
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from sd3deploy import messages
from sd3deploy.diagnosis import installed, matcher
from sd3deploy.diagnosis.finding import Finding
from sd3deploy.diagnosis.record import PASTED, bounded
from sd3deploy.errors import Sd3Error
from sd3deploy.events import Events
from sd3deploy.webui.host.adapter import SdNext

__all__ = ["Diagnosing"]

_KEPT = 20
_NOTED = 8  # errors of one load or job: one cause can have a row of consequences


class Diagnosing:
    """`note` is called with every error that the host or a module meets, `tell` when it is sure that the load or the job has failed:
    the host tries some things a second way. findings: the latest first.
    """

    def __init__(self, host: SdNext, events: Events) -> None:
        self.host, self.events = host, events
        self.findings: deque[Finding] = deque(maxlen=_KEPT)
        self._noted: deque[str] = deque(maxlen=_NOTED)
        self._running = 0

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Errors from here on belong to what runs inside; what is inside of something else belongs to that."""
        if not self._running:
            self._noted.clear()
        self._running += 1
        try:
            yield
        finally:
            self._running -= 1

    def note(self, error: BaseException) -> None:
        """Keep the text of an error: its frames would hold on to the tensors of the job."""
        if self._running and not isinstance(error, Sd3Error):
            text = _text(error)
            if text not in self._noted:
                self._noted.append(text)

    def tell(self, *, job: bool) -> None:
        """Say what has failed, if it is known: once, with the error that came first and is known best."""
        noted, self._noted = list(self._noted), deque(maxlen=_NOTED)
        for text in noted:
            if found := self.explain(text):
                self.events.found(found, job=job, about="" if job else "model")
                return

    def explain(self, error: BaseException | str) -> Finding | None:
        """What is known about an error; it is kept among the findings."""
        try:
            found = matcher.diagnose(error, self._look)
        except Exception as bug:  # an explanation that fails must not cost the user the error itself
            self.events.tell("warning", "unexpected", error=f"{type(bug).__name__}: {bug}")
            return None
        if not found:
            return None
        for old in [old for old in self.findings if (old.rule, old.package) == (found[0].rule, found[0].package)]:
            self.findings.remove(old)
        self.findings.appendleft(found[0])
        return found[0]

    def read(self, text: str) -> tuple[list[Finding], str]:
        """What a pasted error or a part of a log tells, as if it were of this machine; of nothing: what has failed last. And what
        is to be said beside: that it is not known, how much of it was not read; "" as a rule.
        """
        if not text.strip():
            found, last = list(self.findings)[:1], self.events.last_error
            if last is None or any(one.message == last.message for one in found):
                return found, ""
            return found, messages.joined(last.message, last.remedy)
        text, left_out = bounded(text)
        found = matcher.read([text], self._look)
        notes = [] if found else [messages.text("panel.diagnose.unknown")]
        notes += [messages.text("panel.diagnose.left-out", count=f"{left_out:,}", read=f"{PASTED:,}")] if left_out else []
        return found, messages.joined(*notes)

    def _look(self) -> installed.Installed:
        return installed.read_installed(self.host.install_options().host_root, self.host.device().backend)


def _text(error: BaseException) -> str:
    return "".join(traceback.format_exception(type(error), error, error.__traceback__))
