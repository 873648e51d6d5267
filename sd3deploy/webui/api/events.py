"""What happened, and the words of the page."""

from __future__ import annotations

import os
import time
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import Query
from pydantic import Field

from sd3deploy.events import Event
from sd3deploy.webui.api.models import Events, Texts
from sd3deploy.webui.api.question import Nothing, Question
from sd3deploy.webui.api.route import Route
from sd3deploy.webui.api.services import Services
from sd3deploy.webui.page import texts as page
from sd3deploy.webui.page.actions import buttons

__all__ = ["Since", "routes"]


class Since(Question):
    """What is known already."""

    since: int = Field(0, description="The number of the last event that is known.", examples=[0, 7])
    server: str = Field("", description="The server that has numbered it, as the last answer had it.", examples=["4711-1795660000"])


def routes(services: Services) -> list[Route]:
    """GET events, GET texts."""
    process = f"{os.getpid()}-{time.time():.0f}"  # a restart by exec keeps the process id

    def events(query: Annotated[Since, Query()]) -> dict[str, Any]:
        """What happened after event number `since` of the process `server`, oldest first, which of it is over, whether something is under
        way, the number of the last load or job, whether checks, an installation or a measurement are running, and how far a text encoder is
        that is being read. Quick: ask every second while something is under way.

        Another process has numbered its events anew: all of them are new to whoever asks with the name of an old one.
        """
        found = services.deployment.events.since(query.since if query.server in ("", process) else 0)
        last, progress = services.watching.monitor.last, services.deployment.progress
        return {
            "server": process,
            "now": time.time(),
            "events": [_report(event) for event in found],
            "over": services.deployment.events.over,
            "busy": services.deployment.phase,
            "run": last.number if last else 0,
            "verifying": services.verifying.running,
            "installing": services.installing.running,
            "measuring": services.measuring.running,
            "loading": services.deployment.loading,
            "progress": progress.report() if progress else None,
            "active": services.active,
        }

    def texts(query: Annotated[Nothing, Query()]) -> dict[str, Any]:
        """The sentences that the page says by itself, in the language of the request."""
        return page.texts()

    return [
        Route("GET", "events", events, "What happened since the last question", Events),
        Route("GET", "texts", texts, "The sentences of the page", Texts),
    ]


def _report(event: Event) -> dict[str, Any]:
    offered = [asdict(one) for one in buttons(event)]
    return asdict(event) | {"buttons": offered, "action": offered[0] if offered else None}
