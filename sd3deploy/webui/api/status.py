"""What is loaded, and another text encoder."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Query
from pydantic import Field

from sd3deploy.deployment import Wanted
from sd3deploy.encoders import choices
from sd3deploy.errors import Sd3Error
from sd3deploy.webui.api.models import Status
from sd3deploy.webui.api.question import Nothing, Question
from sd3deploy.webui.api.route import Conflict, Route
from sd3deploy.webui.api.services import Services
from sd3deploy.webui.host.reach import sdnext, state
from sd3deploy.webui.page.panel import state_line

__all__ = ["Encoder", "routes"]

_OPTION = "sd3_text_encoder"


class Encoder(Question):
    """Which text encoder to take."""

    encoder: str = Field(
        description="Name or id of a choice of the setting.", examples=["T5 FP4", "nf4", "None (CLIP only)", "Host default"]
    )


def routes(services: Services) -> list[Route]:
    """GET status, POST encoder."""
    deployment = services.deployment

    def now() -> dict[str, Any]:
        found = deployment.status()
        return {**found, "line": state_line(found), "findings": [one.report() for one in list(services.diagnosing.findings)]}

    def status(query: Annotated[Nothing, Query()]) -> dict[str, Any]:
        """Model, encoder and packages as they are now, and what has failed lately. Answers at once, also while a model is being loaded."""
        return now()

    def encoder(asked: Encoder, query: Annotated[Nothing, Query()]) -> dict[str, Any]:
        """Take another text encoder, as choosing it in Settings → SD3 Deploy does: what is missing is installed, a running job is waited
        for, the encoder is loaded and put into the loaded model, and the setting is saved. Answers when all of that is done, with the
        status. Where it can not be done everything is as it was, the setting too.
        """
        choice = choices.find(asked.encoder)
        with services.changing():
            _choose(services, choice)
            return now()

    return [
        Route("GET", "status", status, "Model, text encoder and packages", Status),
        Route("POST", "encoder", encoder, "Choose the text encoder", Status, (409,)),
    ]


def _choose(services: Services, choice: choices.Choice) -> None:
    """Set the option and bring the model to it; the option is put back where that fails. The host's own opts.set would keep the reason
    to itself. Raises Conflict.
    """
    deployment = services.deployment
    state.retry()
    before = deployment.host.option(_OPTION)
    setattr(sdnext.shared.opts, _OPTION, choice.name)

    def undo(_: Wanted | None) -> None:
        if deployment.host.option(_OPTION) == choice.name:  # else somebody has chosen again meanwhile
            setattr(sdnext.shared.opts, _OPTION, before)

    try:
        deployment.change(services.forecast.allow, undo)
    except Exception as error:
        if isinstance(error, Sd3Error):
            raise Conflict(error.id, error.message, error.remedy) from None
        sdnext.errors.display(error, "SD3 Deploy")
        told = deployment.events.since(0)[-1]  # by `change`
        raise Conflict(told.id, told.message, told.remedy) from None
    sdnext.shared.opts.save()
