"""The HTTP endpoints, all behind the host's authentication."""

from __future__ import annotations

import os
import time
from dataclasses import asdict
from typing import Any, Literal

from fastapi import HTTPException
from fastapi.responses import PlainTextResponse
from pydantic import BaseModel

from sd3deploy import guards
from sd3deploy.deployment import Deployment
from sd3deploy.encoders import choices
from sd3deploy.errors import Sd3Error, SettingError
from sd3deploy.memory.estimate import OFFLOADS
from sd3deploy.webui import job
from sd3deploy.webui.guarding import Guarding
from sd3deploy.webui.panel import state_line
from sd3deploy.webui.reporting import Reporting
from sd3deploy.webui.setup import guided
from sd3deploy.webui.watching import Watching

__all__ = ["Asked", "register"]


class Asked(BaseModel):
    """What to check: a folder or file with an SD3 model ("": the one of the settings, else a tiny one), and with which text encoder
    ("": the one of the settings).
    """

    model: str = ""
    encoder: str = ""


def register(deployment: Deployment, guarding: Guarding, watching: Watching, reporting: Reporting) -> None:
    """Add the routes; called when the host's own API is there."""
    from modules import shared

    forecast, diagnosing, verifying = watching.forecast, watching.diagnosing, reporting.verifying
    process = f"{os.getpid()}-{time.time():.0f}"  # a restart by exec keeps the process id

    def status() -> dict[str, Any]:
        """Model, encoder and packages as they are now; `t5_bytes` in bytes, `line` as the panel shows it, and what has failed lately."""
        now = deployment.status()
        return {**now, "line": state_line(now), "findings": [found.report() for found in list(diagnosing.findings)]}

    def events(since: int = 0, server: str = "") -> dict[str, Any]:
        """What happened after event number `since` of the process `server`, oldest first, whether something is under way, the number of
        the last load or job, and whether checks are running.

        Another process has numbered its events anew: all of them are new to whoever asks with the name of an old one.
        """
        found = deployment.events.since(since if server in ("", process) else 0)
        return {"server": process, "now": time.time(), "events": [asdict(event) for event in found], "busy": deployment.phase,
                "run": watching.monitor.last.number if watching.monitor.last else 0, "verifying": verifying.running}  # fmt: skip

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

    def memory(
        width: int = 1024,
        height: int = 1024,
        batch: int = 1,
        guidance: float = 6.0,
        model: str = "",
        encoder: str = "",
        offload: str = "",
        tiling: bool | None = None,
    ) -> dict[str, Any]:
        """What a picture of width × height px would need with the loaded model, or with the published one or the path that is named; what
        there is, whether it fits, what would make it fit, which T5 to take; and the last runs. All in bytes.
        """
        given: dict[str, Any] = {"width": width, "height": height, "batch": batch, "guided": guided(guidance)}
        given |= {name: 1024 for name in ("width", "height") if given[name] <= 0} | ({"batch": 1} if batch <= 0 else {})
        try:
            if offload and offload not in OFFLOADS:
                raise SettingError("memory.offload-unknown", value=repr(offload)[:60], known=", ".join(OFFLOADS))
            given |= {"encoder": choices.find(encoder)} if encoder else {}
            given |= {"offload": offload} if offload else {}
            given |= {"tiling": tiling} if tiling is not None else {}
            report = forecast.report(forecast.setup(model, **given))
        except SettingError as error:
            raise HTTPException(status_code=422, detail=str(error)) from error
        return report | {"runs": [run.summary() for run in list(watching.monitor.runs)]}

    def runs() -> list[dict[str, Any]]:
        """The last twenty loads and jobs with all their readings: seconds and bytes."""
        return [run.report() for run in list(watching.monitor.runs)]

    def apply() -> dict[str, Any]:
        """Take the recommended text encoder, or the change that lets the model run."""
        try:
            return {"done": forecast.apply()}
        except Sd3Error as error:
            raise HTTPException(status_code=422, detail=str(error)) from error

    def forget() -> dict[str, Any]:
        """Drop what runs have shown about this machine: the estimates are as published again."""
        return {"done": forecast.forget()}

    def report(format: Literal["json", "text", "markdown"] = "json") -> Any:
        """Everything about this server that somebody needs who is to help: findings, checks, packages, settings, memory, the last runs and
        events; without tokens, passwords, user names and addresses.
        """
        found = reporting.report()
        if format == "json":
            return found.data()
        return PlainTextResponse(found.text() if format == "text" else found.markdown())

    def verify(asked: Asked | None = None) -> dict[str, Any]:
        """Begin the checks: environment, packages, device, files of the model, and a real run of a process of its own, which leaves the
        loaded model alone. One at a time: where they run already, those.
        """
        try:
            job = verifying.start(asked.model, asked.encoder) if asked else verifying.start()
        except SettingError as error:
            raise HTTPException(status_code=422, detail=str(error)) from error
        return {"job": job.number}

    def checks() -> dict[str, Any]:
        """The last run of the checks: its state (none, running, done, cancelled), how far it is (0 to 1), and the results so far."""
        return verifying.job.report() if verifying.job else {"job": 0, "state": "none", "fraction": 0.0, "text": "", "results": []}

    def cancel() -> dict[str, Any]:
        """End the running checks."""
        return {"cancelled": verifying.cancel()}

    shared.api.add_api_route("/sdapi/v1/sd3/report", report, methods=["GET"], tags=["SD3 Deploy"], response_model=None)
    shared.api.add_api_route("/sdapi/v1/sd3/verify", verify, methods=["POST"], tags=["SD3 Deploy"])
    shared.api.add_api_route("/sdapi/v1/sd3/verify", checks, methods=["GET"], tags=["SD3 Deploy"])
    shared.api.add_api_route("/sdapi/v1/sd3/cancel", cancel, methods=["POST"], tags=["SD3 Deploy"])
    shared.api.add_api_route("/sdapi/v1/sd3/memory", memory, methods=["GET"], tags=["SD3 Deploy"])
    shared.api.add_api_route("/sdapi/v1/sd3/memory/runs", runs, methods=["GET"], tags=["SD3 Deploy"])
    shared.api.add_api_route("/sdapi/v1/sd3/memory/apply", apply, methods=["POST"], tags=["SD3 Deploy"])
    shared.api.add_api_route("/sdapi/v1/sd3/memory/corrections", forget, methods=["DELETE"], tags=["SD3 Deploy"])
    shared.api.add_api_route("/sdapi/v1/sd3/check", check, methods=["GET"], tags=["SD3 Deploy"])
    shared.api.add_api_route("/sdapi/v1/sd3/status", status, methods=["GET"], tags=["SD3 Deploy"])
    shared.api.add_api_route("/sdapi/v1/sd3/events", events, methods=["GET"], tags=["SD3 Deploy"])
    quiet()


def quiet() -> None:
    """Keep the polled routes out of the host's request log."""
    try:
        from modules.api import validate
    except ImportError:  # hosts before 2026-03 do not log by cost
        return
    costs = getattr(validate, "log_cost", None)
    if isinstance(costs, dict):
        costs |= dict.fromkeys((f"/sdapi/v1/sd3/{polled}" for polled in ("events", "memory", "status", "verify")), -1)
