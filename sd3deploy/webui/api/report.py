"""The report to paste."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import Query
from fastapi.responses import PlainTextResponse
from pydantic import Field

from sd3deploy.webui.api.models import Report
from sd3deploy.webui.api.question import Question
from sd3deploy.webui.api.route import Route
from sd3deploy.webui.api.services import Services

__all__ = ["Shape", "routes"]


class Shape(Question):
    """How the report is written."""

    format: Literal["json", "text", "markdown"] = Field(
        "json", description="text for a terminal, markdown for an issue.", examples=["markdown"]
    )


def routes(services: Services) -> list[Route]:
    """GET report."""

    def report(query: Annotated[Shape, Query()]) -> Any:
        """Everything about this server that somebody needs who is to help: findings, checks, packages, settings, memory, the last runs and
        events; without tokens, passwords, user names and addresses.
        """
        found = services.reporting.report()
        if query.format == "json":
            return found.data()
        return PlainTextResponse(found.text() if query.format == "text" else found.markdown())

    plain = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}, "description": "The report."}}
    return [Route("GET", "report", report, "The report for whoever is to help", Report, more={"responses": plain})]
