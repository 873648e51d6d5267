"""The HTTP endpoints, all behind the host's authentication.

    Question (query or body) → handler → answer of models        an error of ours → Problem, with its remedy

A new endpoint is a function in the file of its noun and a Route in its list; the host's page of docs shows the rest.
"""

from __future__ import annotations

from sd3deploy.deployment import Deployment
from sd3deploy.webui.api import check, events, install, memory, quality, report, sources, status, verify
from sd3deploy.webui.api.route import PREFIX, add
from sd3deploy.webui.api.services import Services
from sd3deploy.webui.host.feature import Features
from sd3deploy.webui.host.reach import sdnext
from sd3deploy.webui.jobs.guarding import Guarding
from sd3deploy.webui.jobs.watching import Watching
from sd3deploy.webui.services.installing import Installing
from sd3deploy.webui.services.measuring import Measuring
from sd3deploy.webui.services.reporting import Reporting

__all__ = ["register"]

_POLLED = ("check", "events", "install", "memory", "quality", "sources", "status", "verify")


def register(
    deployment: Deployment,
    guarding: Guarding,
    watching: Watching,
    reporting: Reporting,
    installing: Installing,
    measuring: Measuring,
    features: Features,
) -> None:
    """Add the routes; called when the host's own API is there. A route that can not be added is told and left out; where none of them can
    be, the error of the first one is raised.
    """
    services = Services(deployment, guarding, watching, reporting, installing, measuring)
    nouns = (status, sources, events, check, memory, install, verify, quality, report)
    routes = [route for noun in nouns for route in noun.routes(services)]
    failed: dict[str, Exception] = {}
    for route in routes:
        try:
            add(route)
        except Exception as error:
            failed[route.path] = error
    if failed and len(failed) == len({route.path for route in routes}):
        raise next(iter(failed.values()))
    for path, error in failed.items():
        features.get("route", path=f"{PREFIX}/{path}").fail(error)
    features.shield("quiet", quiet)()


def quiet() -> None:
    """Keep the polled routes out of the host's request log."""
    polled, known = [f"{PREFIX}/{path}" for path in _POLLED], sdnext.validate.log_cost
    if isinstance(known, list):  # before 2026-03: how the paths begin that are not in it
        known.extend(path for path in polled if path not in known)
    else:
        known.update(dict.fromkeys(polled, -1))
