"""Whether a job would run."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any, Literal

from fastapi import Body, Query
from pydantic import Field

from sd3deploy import guards
from sd3deploy.encoders import choices
from sd3deploy.guards.number import number
from sd3deploy.hints import hints
from sd3deploy.memory import verdict
from sd3deploy.memory.estimate import Setup, estimate
from sd3deploy.webui.api.models import Check
from sd3deploy.webui.api.question import Nothing, Question
from sd3deploy.webui.api.route import Route
from sd3deploy.webui.api.services import Services
from sd3deploy.webui.jobs import facts
from sd3deploy.webui.jobs.memory_setup import free_memory, guided

__all__ = ["Asked", "routes"]

_MOST = 1_000_000  # px, and pictures at a time: beyond it nothing fits anyway, and the arithmetic stays within what a float holds


class Asked(Question):
    """A job, in words: what is no number is answered, not rejected."""

    width: str | None = Field(None, description="px; anything.", examples=["1000"])
    height: str | None = Field(None, description="px; anything.", examples=["1000"])
    batch: str | None = Field(None, description="Pictures at a time; anything.", examples=["1"])
    model: str = Field("", description="A published model; empty: the loaded one.", examples=["", "sd3.5-large"])
    encoder: str = Field("", description="Name or id of a text encoder; empty: the one that is loaded.", examples=["", "T5 FP4"])
    sampler: str = Field("Default", description="As the host names it.", examples=["Default", "DDIM"])
    steps: str = Field("20", description="Anything.", examples=["28"])
    guidance: str = Field("6", description="Anything.", examples=["7.0"])
    hires: str | None = Field(None, description="Factor of a second pass; anything.", examples=["1.5"])
    prompt: str = Field("", description="Its tokens are counted with the tokenizers of the loaded model.", examples=["a cat"])
    negative_prompt: str = Field("", description="The same.", examples=["blurry"])
    prompt_attention: str = Field(
        "", description="The host's prompt parser; empty: the one of the settings.", examples=["", "native", "fixed"]
    )
    size_guard: guards.Mode | None = Field(None, description="Instead of that of the settings.", examples=["fix"])
    sampler_guard: guards.Mode | None = Field(None, description="Instead of that of the settings.", examples=["fix"])
    vram_check: Literal["off", "warn", "ask", "block"] | None = Field(
        None, description="Instead of that of the settings.", examples=["warn"]
    )


def routes(services: Services) -> list[Route]:
    """GET check, POST check."""
    forecast = services.forecast
    host = forecast.host

    def check(query: Annotated[Asked, Query()]) -> dict[str, Any]:
        """Whether a job would run with the loaded model, or with the published one that is named, and what would be changed: as the guards
        are set now. With the memory that it needs, and with a few words to stand beside each control. Nothing is changed or loaded.
        Quick: ask with each key that is pressed.
        """
        words = {name: getattr(query, name) for name in ("width", "height", "hires", "encoder", "sampler", "steps", "guidance")}
        asked = facts.question(
            host.pipeline(),
            host.model_name() or "",
            query.model,
            query.prompt,
            query.negative_prompt,
            prompt_attention=query.prompt_attention,
            **words,
        )
        modes = services.guarding.modes()
        modes |= {"size": query.size_guard} if query.size_guard else {}
        modes |= {"sampling": query.sampler_guard} if query.sampler_guard else {}
        outcome = guards.check(asked, modes)
        setup = None if outcome.refused or (query.vram_check or forecast.mode()) == "off" else memory(outcome.job, query)
        capacity = free_memory(host)
        judged = verdict.judge(estimate(setup), capacity) if setup else None
        change = verdict.cheapest(setup, capacity, forecast.suitable()) if setup and judged and judged.answer == "no" else None
        found = {"answer": judged.answer, "need": judged.need, "usable": judged.usable, "line": judged.sentence} if judged else None
        lacking = forecast.lacking(choices.find(query.encoder)) if query.encoder and not query.model else None
        return outcome.report() | {"hints": [asdict(hint) for hint in hints(asked, outcome, judged, change, lacking)], "memory": found}

    def check_posted(asked: Annotated[Asked, Body()], query: Annotated[Nothing, Query()]) -> dict[str, Any]:
        """The same with the job in the body: a prompt may be longer than an address can be, and is in no log of addresses."""
        return check(asked)

    def memory(made: guards.Job, query: Asked) -> Setup | None:
        """For the larger one of its passes."""
        width, height = (_within(side) or default for side, default in zip((made.width, made.height), made.default, strict=True))
        passes = [(width, height)]
        if made.hires:
            passes.append((made.hires_width, made.hires_height) if made.hires_width else made.hires.size(width, height))
        width, height = max(passes, key=lambda sides: sides[0] * sides[1])
        given: dict[str, Any] = {"width": _within(width), "height": _within(height), "batch": max(1, _within(query.batch))}
        if query.encoder:
            given["encoder"] = choices.find(query.encoder)
        return forecast.setup(query.model, **given, guided=guided(made.guidance))

    return [
        Route("GET", "check", check, "Whether a job would run, and as what", Check),
        Route("POST", "check", check_posted, "Whether a job would run, and as what", Check),
    ]


def _within(value: object) -> int:
    return int(min(_MOST, max(0.0, number(value) or 0.0)))
