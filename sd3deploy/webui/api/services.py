"""What the routes ask."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from fastapi import Request

from sd3deploy.deployment import Deployment
from sd3deploy.deployment.locks import PATIENCE_S
from sd3deploy.encoders.quantize import Stopped
from sd3deploy.origin import is_local
from sd3deploy.webui.jobs.forecast import Forecast
from sd3deploy.webui.jobs.guarding import Guarding
from sd3deploy.webui.jobs.watching import Watching
from sd3deploy.webui.services.diagnosing import Diagnosing
from sd3deploy.webui.services.installing import Installing
from sd3deploy.webui.services.measuring import Measuring
from sd3deploy.webui.services.reporting import Reporting
from sd3deploy.webui.services.verifying import Verifying

__all__ = ["Services"]


@dataclass(frozen=True)
class Services:
    """Those of the running extension."""

    deployment: Deployment
    guarding: Guarding
    watching: Watching
    reporting: Reporting
    installing: Installing
    measuring: Measuring
    _one: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def changing(self) -> Iterator[None]:
        """One request at a time changes the setting of the encoder, or the setting of the one would stay with the encoder of the other.
        Called with no lock held. Raises Stopped for one that was cancelled while another was under way.
        """
        with self.deployment.cancellable() as cancelled:
            while not self._one.acquire(timeout=PATIENCE_S):
                _check(cancelled)
            try:
                _check(cancelled)
                yield
            finally:
                self._one.release()

    def find_model(self, asked: str, request: Request) -> Path | None:
        """The model that a request names. One from another machine is told about SD.Next's models alone."""
        local = is_local(request.client.host if request.client else None, request.headers)
        return self.deployment.host.find_model(asked, local)  # type: ignore[attr-defined]

    @property
    def active(self) -> bool:
        """Whether something is under way that may soon have something to tell: a load, a job, the checks, an installation, a
        measurement.
        """
        working = self.verifying.running or self.installing.running or self.measuring.running
        return bool(working or self.deployment.loading or self.deployment.phase or self.watching.monitor.running)

    @property
    def forecast(self) -> Forecast:
        return self.watching.forecast

    @property
    def diagnosing(self) -> Diagnosing:
        return self.watching.diagnosing

    @property
    def verifying(self) -> Verifying:
        return self.reporting.verifying


def _check(cancelled: Callable[[], bool]) -> None:
    if cancelled():
        raise Stopped("api.cancelled")
