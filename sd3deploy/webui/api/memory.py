"""What a picture needs of the memory, what runs have shown, and the recommendation."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Body, Query, Request
from pydantic import Field

from sd3deploy.encoders import choices
from sd3deploy.errors import SettingError
from sd3deploy.memory.estimate import OFFLOADS
from sd3deploy.memory.sizes import MODELS, unknown
from sd3deploy.webui.api.models import Done, Memory, Run
from sd3deploy.webui.api.question import Nothing, Question
from sd3deploy.webui.api.route import Route
from sd3deploy.webui.api.services import Services
from sd3deploy.webui.jobs.memory_setup import guided

__all__ = ["Asked", "routes"]

_MOST = 1_000_000


class Asked(Question):
    """A picture."""

    width: int = Field(1024, le=_MOST, description="px; below 1: 1024.", examples=[1024])
    height: int = Field(1024, le=_MOST, description="px; below 1: 1024.", examples=[1024])
    batch: int = Field(1, le=_MOST, description="Pictures at a time; below 1: 1.", examples=[1])
    guidance: float = Field(6.0, description="Above 1 the batch is doubled.", examples=[7.0])
    model: str = Field(
        "",
        description="A published model, one by SD.Next's name of it, or a folder or file below its folders; empty: the loaded one.",
        examples=["", "sd3.5-large"],
    )
    encoder: str = Field("", description="Name or id of a text encoder; empty: the one that is loaded.", examples=["", "T5 FP4"])
    offload: str = Field("", description=f"One of {', '.join(OFFLOADS)}; empty: as in the settings.", examples=["", "balanced"])
    tiling: bool | None = Field(None, description="Whether the VAE decodes in tiles; nothing: as in the settings.", examples=[False])


class Applied(Question):
    """Pictures, as the page has them, and a change. Where the change is not named it is the recommendation for such pictures."""

    width: int = Field(1024, le=_MOST, description="px; below 1: 1024.", examples=[1024])
    height: int = Field(1024, le=_MOST, description="px; below 1: 1024.", examples=[1024])
    batch: int = Field(1, le=_MOST, description="Pictures at a time; below 1: 1.", examples=[1])
    guidance: float = Field(6.0, description="Above 1 the batch is doubled.", examples=[7.0])
    encoder: str = Field("", description="Name or id of a text encoder to take.", examples=["", "T5 FP4"])
    offload: str = Field("", description=f"The offload mode to set, one of {', '.join(OFFLOADS)}.", examples=["", "balanced"])
    tiling: bool = Field(False, description="Whether to switch on VAE tiling.", examples=[False])


def routes(services: Services) -> list[Route]:
    """GET memory, GET memory/runs, POST memory/apply, DELETE memory/corrections."""
    forecast, monitor = services.forecast, services.watching.monitor

    def memory(request: Request, query: Annotated[Asked, Query()]) -> dict[str, Any]:
        """What a picture would need with the loaded model, or with the one that is named; what there is, whether it fits, what would
        make it fit, which T5 to take; and the last runs. All in bytes.
        """
        given = _picture(query)
        given |= {"encoder": choices.find(query.encoder)} if query.encoder else {}
        given |= {"offload": query.offload} if query.offload else {}
        given |= {"tiling": query.tiling} if query.tiling is not None else {}
        model = query.model
        if model and model.strip().lower() not in MODELS and model != forecast.host.model_name():
            place = services.find_model(model, request)
            if place is None:
                raise unknown(model)
            model = str(place)
        return forecast.report(forecast.setup(model, **given)) | {"runs": [run.summary() for run in list(monitor.runs)]}

    def runs(query: Annotated[Nothing, Query()]) -> list[dict[str, Any]]:
        """The last twenty loads and jobs with all their readings: seconds and bytes."""
        return [run.report() for run in list(monitor.runs)]

    def apply(query: Annotated[Nothing, Query()], asked: Annotated[Applied, Body()]) -> dict[str, Any]:
        """Make the change that is named; else take the text encoder that is recommended for such pictures, or the change that lets the
        model run at all. As setting it would do.
        """
        job = _picture(asked)
        fields = {"encoder": choices.find(asked.encoder).name} if asked.encoder else {}
        fields |= {"offload": asked.offload} if asked.offload else {}
        fields |= {"tiling": True} if asked.tiling else {}
        with services.changing():
            return {"done": forecast.apply(fields, **job)}

    def forget(query: Annotated[Nothing, Query()]) -> dict[str, Any]:
        """Drop what runs have shown about this machine: the estimates are as published again."""
        return {"done": forecast.forget()}

    return [
        Route("GET", "memory", memory, "What a picture needs, what there is, and what fits", Memory),
        Route("GET", "memory/runs", runs, "The memory of the last loads and jobs, reading by reading", list[Run]),
        Route("POST", "memory/apply", apply, "Take the recommendation", Done, (409,)),
        Route("DELETE", "memory/corrections", forget, "Forget what runs have shown", Done),
    ]


def _picture(asked: Asked | Applied) -> dict[str, Any]:
    """The pictures that are asked about, as Forecast.setup takes them. Raises SettingError for an offload mode that there is not."""
    if asked.offload and asked.offload not in OFFLOADS:
        raise SettingError("memory.offload-unknown", value=repr(asked.offload)[:60], known=", ".join(OFFLOADS))
    width, height = (side if side > 0 else 1024 for side in (asked.width, asked.height))
    return {"width": width, "height": height, "batch": max(1, asked.batch), "guided": guided(asked.guidance)}
