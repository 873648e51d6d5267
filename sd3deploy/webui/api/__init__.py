"""The HTTP endpoints, all behind the host's authentication.

    Question (query or body) → handler → answer of models        an error of ours → Problem, with its remedy

A new endpoint is a function in the file of its noun and a Route in its list; the host's page of docs shows the rest.
"""

from __future__ import annotations

from sd3deploy.deployment import Deployment
from sd3deploy.webui.api import check, events, install, memory, report, status, verify
from sd3deploy.webui.api.route import PREFIX, add
from sd3deploy.webui.api.services import Services
from sd3deploy.webui.jobs.guarding import Guarding
from sd3deploy.webui.jobs.watching import Watching
from sd3deploy.webui.services.installing import Installing
from sd3deploy.webui.services.reporting import Reporting

__all__ = ["register"]

_POLLED = ("check", "events", "install", "memory", "status", "verify")


def register(deployment: Deployment, guarding: Guarding, watching: Watching, reporting: Reporting, installing: Installing) -> None:
    """Add the routes; called when the host's own API is there."""
    services = Services(deployment, guarding, watching, reporting, installing)
    for noun in (status, events, check, memory, install, verify, report):
        for route in noun.routes(services):
            add(route)
    quiet()


def quiet() -> None:
    """Keep the polled routes out of the host's request log."""
    try:
        from modules.api import validate
    except ImportError:  # hosts before 2026-03 do not log by cost
        return
    costs = getattr(validate, "log_cost", None)
    if isinstance(costs, dict):
        costs |= dict.fromkeys((f"{PREFIX}/{polled}" for polled in _POLLED), -1)
