"""The composition root: builds the services and registers them with the host. Nothing runs at import."""

from __future__ import annotations


def start() -> type | None:
    """Wire everything to the running SD.Next. Returns the script class for it to show, None where it is too old."""
    from modules import script_callbacks, shared

    from sd3deploy import messages

    if not supported():
        shared.log.warning(f"SD3 Deploy: {messages.text('host.unsupported')} {messages.remedy('host.unsupported')}")
        return None

    from sd3deploy.deployment import Deployment
    from sd3deploy.events import Events
    from sd3deploy.webui import api
    from sd3deploy.webui.host import hooks
    from sd3deploy.webui.host.adapter import SdNext
    from sd3deploy.webui.jobs.forecast import Forecast
    from sd3deploy.webui.jobs.guarding import Guarding
    from sd3deploy.webui.jobs.watching import Watching
    from sd3deploy.webui.page import language, panel, settings
    from sd3deploy.webui.services.diagnosing import Diagnosing
    from sd3deploy.webui.services.installing import Installing
    from sd3deploy.webui.services.reporting import Reporting
    from sd3deploy.webui.services.verifying import Verifying

    language.begin()
    host = SdNext()
    deployment = Deployment(host, Events(host.listen))
    diagnosing = Diagnosing(host, deployment.events)
    deployment.events.explain = diagnosing.explain
    guarding = Guarding(host, deployment.events)
    forecast = Forecast(host, deployment)
    watching = Watching(host, forecast, diagnosing)
    verifying = Verifying(host)
    installing = Installing(deployment, forecast.allow)
    reporting = Reporting(deployment, watching, diagnosing, verifying)
    host.watch = watching.loading
    points = hooks.Hooks(deployment, guarding, watching, host)
    for name in points.apply():
        deployment.events.tell("warning", "host.unexpected", name=name)
    panel.allow_in_control()
    script_callbacks.on_ui_settings(lambda: settings.register(deployment, forecast))
    script_callbacks.on_app_started(lambda demo, app: api.register(deployment, guarding, watching, reporting, installing))
    script_callbacks.on_script_unloaded(points.undo)
    return panel.script_class(deployment, guarding, watching, verifying, reporting)


def supported() -> bool:
    """Whether this host has the loaders that the hooks were written for (since 2025-08-20); older ones have a 4-bit T5 of their own."""
    try:
        from pipelines import generic, model_sd3
    except ImportError:
        return False
    return hasattr(generic, "load_text_encoder") and hasattr(model_sd3, "load_sd3")
