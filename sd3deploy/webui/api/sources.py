"""What each source of T5's weights is, and what it costs, before it is chosen."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Query, Request
from pydantic import Field

from sd3deploy import messages
from sd3deploy.deployment.offers import Offer, offers
from sd3deploy.deployment.wanted import Wanted
from sd3deploy.encoders import choices, source
from sd3deploy.errors import EncoderError
from sd3deploy.origin import is_local
from sd3deploy.webui.api.models import Source
from sd3deploy.webui.api.question import Nothing, Question
from sd3deploy.webui.api.route import Route
from sd3deploy.webui.api.services import Services

__all__ = ["Asked", "routes"]


class Asked(Question):
    """The settings as they would be; what is not there is as it is set."""

    encoder: str | None = Field(None, description="Name or id of a text encoder.", examples=["T5 FP4"])
    weights: str | None = Field(None, description="Kind of source.", examples=["Local file"])
    file: str | None = Field(None, description="For the kind “Local file”.", examples=["/models/t5xxl_fp16.safetensors"])
    repository: str | None = Field(None, description="For the kinds “Repository” and “Automatic”.", examples=["owner/name:file"])
    ask: bool = Field(True, description="Whether the network is asked for the chosen source, and waited for.", examples=[True])
    keep: bool | None = Field(None, description="Whether what is read of a repository is stored.", examples=[False])


def routes(services: Services) -> list[Route]:
    """POST sources."""
    host = services.deployment.host

    def sources(asked: Asked, query: Annotated[Nothing, Query()], request: Request) -> list[dict[str, Any]]:
        """What each source of T5's weights is: its form and size, whether it is whole, and what would be read, fetched, stored and kept for
        the text encoder. Headers are read and no weights; the network is asked for the chosen source alone. Nothing is changed.
        """

        def set_as(value: Any, key: str) -> Any:
            return host.option(key) if value is None else value

        stored = str(host.option("sd3_weights_file") or "")
        local = is_local(request.client.host if request.client else None, request.headers)
        hidden = asked.file not in (None, stored) and not local  # another machine is not told what files there are
        wanted = Wanted(
            choices.find(set_as(asked.encoder, "sd3_text_encoder")),
            source.kind_of(set_as(asked.weights, "sd3_weights")),
            stored if hidden or asked.file is None else asked.file,
            str(set_as(asked.repository, "sd3_weights_repository") or ""),
            set_as(asked.keep, "sd3_weights_keep") is True,
        )
        return [_row(_hide(offer) if hidden and offer.kind == "Local file" else offer) for offer in offers(host, wanted, asked.ask)]

    return [Route("POST", "sources", sources, "What each source of T5's weights is, and what it costs", list[Source])]


def _row(offer: Offer) -> dict[str, Any]:
    found, problem = offer.outlook, offer.problem
    row: dict[str, Any] = {"kind": offer.kind, "chosen": offer.chosen, "name": offer.name, "complete": found is not None}
    if problem is not None:
        row |= {"text": problem.message, "remedy": problem.remedy, "id": problem.id}
    elif found is None:
        row |= {"text": messages.text("sources.unasked" if offer.name else "sources.unnamed"), "pending": offer.chosen}
    else:
        row |= {"text": found.what, "cost": found.cost, "cached": found.cached}
        row |= {"read": found.read, "fetched": found.fetched, "stored": found.stored, "kept": found.kept}
    return row


def _hide(offer: Offer) -> Offer:
    return Offer(offer.kind, offer.chosen, problem=EncoderError("source.file-elsewhere"))
