"""How near each text encoder comes to float32 on the weights that are set."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import Body, Query
from fastapi.responses import HTMLResponse
from pydantic import Field

from sd3deploy.errors import SettingError
from sd3deploy.webui.api.models import Begun, Quality
from sd3deploy.webui.api.question import Nothing, Question
from sd3deploy.webui.api.route import Route
from sd3deploy.webui.api.services import Services

__all__ = ["Shape", "routes"]


class Shape(Question):
    """How the result is written."""

    format: Literal["json", "html"] = Field("json", description="html for a page to look at and to post.", examples=["json"])


def routes(services: Services) -> list[Route]:
    """POST quality, GET quality."""
    measuring = services.measuring

    def quality(query: Annotated[Nothing, Query()], asked: Annotated[Nothing, Body()]) -> dict[str, Any]:
        """Begin to measure every text encoder that this machine can run, beside float32, on the weights that the settings name and with a
        hundred prompts. It takes a graphics card minutes and a processor hours, and gives way to pictures. What is measured is kept, is not
        measured again, and is what recommendations go by. One at a time: where it runs already, that one.
        """
        return {"job": measuring.start().number}

    def progress(query: Annotated[Shape, Query()]) -> Any:
        """The last measurement: its state, how far it is, and when it is done the numbers of each text encoder, or a page with them."""
        job = measuring.job
        if query.format == "html":
            if job is None or job.done is None:
                raise SettingError("quality.no-result")
            return HTMLResponse(job.done["page"])
        return job.report() if job else {"job": 0, "state": "none", "fraction": 0.0, "text": "", "rows": [], "notes": [], "error": None}

    page = {200: {"content": {"text/html": {"schema": {"type": "string"}}}, "description": "The measurement."}}
    return [
        Route("POST", "quality", quality, "Measure the text encoders on your weights", Begun, (409,)),
        Route("GET", "quality", progress, "How far the measurement is, and its numbers", Quality, more={"responses": page}),
    ]
