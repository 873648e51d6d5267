"""The HTTP endpoints, all behind the host's authentication."""

from __future__ import annotations

import os
import time
from dataclasses import asdict
from typing import Any

from fastapi import HTTPException

from sd3deploy import guards
from sd3deploy.deployment import Deployment
from sd3deploy.errors import SettingError
from sd3deploy.webui import job
from sd3deploy.webui.guarding import Guarding
from sd3deploy.webui.panel import state_line

__all__ = ["register"]


def register(deployment: Deployment, guarding: Guarding) -> None:
    """Add the routes; called when the host's own API is there."""
    from modules import shared

    process = f"{os.getpid()}-{time.time():.0f}"  # a restart by exec keeps the process id

    def status() -> dict[str, Any]:
        """Model, encoder and packages as they are now; `t5_bytes` in bytes, `line` as the panel shows it."""
        now = deployment.status()
        return {**now, "line": state_line(now)}

    def events(since: int = 0, server: str = "") -> dict[str, Any]:
        """What happened after event number `since` of the process `server`, oldest first, and whether something is under way.

        Another process has numbered its events anew: all of them are new to whoever asks with the name of an old one.
        """
        found = deployment.events.since(since if server in ("", process) else 0)
        return {"server": process, "now": time.time(), "events": [asdict(event) for event in found], "busy": deployment.phase}

    def check(
        width: str | None = None,
        height: str | None = None,
        model: str = "",
        encoder: str = "",
        sampler: str = "Default",
        steps: str = "20",
        guidance: str = "6",
        hires: str | None = None,
        prompt: str = "",
        negative_prompt: str = "",
        prompt_attention: str = "",
    ) -> dict[str, Any]:
        """Whether a job would run, with the loaded model or with the published one that is named: findings, and width, height (px)
        and sampler after the changes; `code` 0 runs as asked, 1 changed, 2 refused. Sizes, steps and guidance may be anything.
        """
        words = {"width": width, "height": height, "hires": hires, "encoder": encoder, "sampler": sampler, "steps": steps,
                 "guidance": guidance, "prompt_attention": prompt_attention}  # fmt: skip
        host = deployment.host
        try:
            asked = job.question(host.pipeline(), host.model_name() or "", model, prompt, negative_prompt, **words)
        except SettingError as error:
            raise HTTPException(status_code=422, detail=str(error)) from error
        return guards.check(asked, guarding.modes()).report()

    shared.api.add_api_route("/sdapi/v1/sd3/check", check, methods=["GET"], tags=["SD3 Deploy"])
    shared.api.add_api_route("/sdapi/v1/sd3/status", status, methods=["GET"], tags=["SD3 Deploy"])
    shared.api.add_api_route("/sdapi/v1/sd3/events", events, methods=["GET"], tags=["SD3 Deploy"])
    quiet()


def quiet() -> None:
    """Keep the polled route out of the host's request log."""
    try:
        from modules.api import validate
    except ImportError:  # hosts before 2026-03 do not log by cost
        return
    costs = getattr(validate, "log_cost", None)
    if isinstance(costs, dict):
        costs["/sdapi/v1/sd3/events"] = -1
