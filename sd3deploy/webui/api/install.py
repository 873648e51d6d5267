"""Installing what is missing and repairing what is broken; and ending what runs, loads of an encoder too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from fastapi import Body, Query
from pydantic import Field

from sd3deploy import deps
from sd3deploy.webui.api.models import Begun, Cancelled, Installation, InstallPlan
from sd3deploy.webui.api.question import Nothing, Question
from sd3deploy.webui.api.route import Forbidden, Route
from sd3deploy.webui.api.services import Services

__all__ = ["Asked", "routes"]


class Asked(Question):
    """What to install."""

    dry_run: bool = Field(False, description="Only say what would be done.", examples=[True])
    groups: list[str] | None = Field(
        None, description="Groups of packages; nothing: those of every text encoder that runs here.", examples=[["bitsandbytes"]]
    )
    repair: bool = Field(False, description="Whether broken packages of the host are put back too, NumPy first.", examples=[True])


def routes(services: Services) -> list[Route]:
    """POST install, GET install, POST cancel."""
    verifying, installing = services.verifying, services.installing

    def install(query: Annotated[Nothing, Query()], asked: Asked | None = None) -> dict[str, Any]:
        """Install what text encoders need that run here; packages of the host are not moved. With `dry_run` nothing is done,
        and the answer is the plan; else the work begins, and the answer is its number: GET install says how far it is. One at a time:
        where one runs already, that one. When it is done the packages can be used at once, without a restart.
        """
        dry_run, groups, repair = (asked.dry_run, asked.groups, asked.repair) if asked else (False, None, False)
        if dry_run:
            chosen = installing.groups(groups)
            refusal = installing.allowed()
            said = {"id": refusal.id, "message": refusal.message, "remedy": refusal.remedy} if refusal else None
            return _plan(installing.plan(chosen, repair), installing.clean) | {"groups": list(chosen), "refusal": said}
        if refusal := installing.allowed():
            raise Forbidden.of(refusal)
        return {"job": installing.start(groups, repair).number}

    def progress(query: Annotated[Nothing, Query()]) -> dict[str, Any]:
        """The last installation: its state, the last line of the installer, and what has changed."""
        nothing = {"job": 0, "state": "none", "fraction": None, "text": "", "changed": {}, "error": None, "restart": None}
        return installing.job.report() if installing.job else nothing

    def cancel(query: Annotated[Nothing, Query()], asked: Annotated[Nothing, Body()]) -> dict[str, Any]:
        """End running checks, a running installation or measurement, and the load of a text encoder. What an installation has begun is
        undone: the packages are as they were. A change of the encoder leaves everything as it was, the setting too; a model that is being
        loaded gets no T5, and a picture that waits for its encoder is not made. What has been measured so far is kept.
        """
        works = (("verify", verifying), ("install", installing), ("quality", services.measuring), ("encoder", services.deployment))
        jobs = [name for name, work in works if work.cancel()]
        return {"cancelled": bool(jobs), "jobs": jobs}

    return [
        Route("POST", "install", install, "Install what is missing, repair what is broken", InstallPlan | Begun, (409,)),
        Route("GET", "install", progress, "How far the installation is", Installation),
        Route("POST", "cancel", cancel, "End checks, installations, measurements and loads", Cancelled),
    ]


def _plan(plan: deps.Plan, clean: Callable[[str], str]) -> dict[str, Any]:
    return {
        "changes": [
            {"name": one.name, "before": one.before, "wanted": one.specifier, "replace": one.replace, "download": one.download}
            for one in plan.changes
        ],
        "sweep": list(plan.sweep),
        "stale": [one.name for one in plan.stale],
        "command": [clean(word) for word in plan.command],
        "text": clean(plan.describe()),
        "download": plan.download,
        "unpacked": plan.unpacked,
        "empty": plan.empty,
    }
