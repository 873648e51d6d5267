"""The checks: environment, packages, device, files, and a real run."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Query, Request
from pydantic import Field

from sd3deploy.errors import SettingError
from sd3deploy.webui.api.models import Begun, Verification
from sd3deploy.webui.api.question import Nothing, Question
from sd3deploy.webui.api.route import Route
from sd3deploy.webui.api.services import Services

__all__ = ["Asked", "routes"]


class Asked(Question):
    """What to check."""

    model: str = Field(
        "",
        description="A model by its name, or a folder or file below SD.Next's folders; empty: that of the settings, else a tiny one.",
        examples=[""],
    )
    encoder: str = Field("", description="With which text encoder; empty: the one of the settings.", examples=["", "T5 FP4"])


def routes(services: Services) -> list[Route]:
    """POST verify, GET verify."""
    verifying = services.verifying

    def verify(request: Request, query: Annotated[Nothing, Query()], asked: Asked | None = None) -> dict[str, Any]:
        """Begin the checks: environment, packages, device, files of the model, and a real run in a process of its own, which leaves the
        loaded model alone. One at a time: where they run already, those.
        """
        model, encoder = (asked.model, asked.encoder) if asked else ("", "")
        place = services.find_model(model, request) if model else ""
        if place is None:
            raise SettingError("verify.no-model", path=model)
        return {"job": verifying.start(str(place), encoder).number}

    def progress(query: Annotated[Nothing, Query()]) -> dict[str, Any]:
        """The last run of the checks: its state, how far it is, and the results so far."""
        return verifying.job.report() if verifying.job else {"job": 0, "state": "none", "fraction": 0.0, "text": "", "results": []}

    return [
        Route("POST", "verify", verify, "Begin the checks", Begun),
        Route("GET", "verify", progress, "How far the checks are, and their results", Verification),
    ]
