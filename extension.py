"""The composition root: builds the services and registers them with the host. Nothing runs at import."""

from __future__ import annotations


def start() -> type:
    """Wire everything to the running SD.Next and return the script class for it to show."""
    from modules import script_callbacks

    from sd3deploy.deployment import Deployment
    from sd3deploy.events import Events
    from sd3deploy.webui import api, hooks, panel, settings
    from sd3deploy.webui.host import SdNext

    host = SdNext()
    deployment = Deployment(host, Events(host.listen))
    panel.allow_in_control()
    script_callbacks.on_ui_settings(lambda: settings.register(deployment))
    script_callbacks.on_app_started(lambda demo, app: api.register(deployment))
    if host.supported():
        points = hooks.Hooks(deployment, host)
        for name in points.apply():
            deployment.events.tell("warning", "host.unexpected", name=name)
        script_callbacks.on_script_unloaded(points.undo)
    else:
        deployment.events.tell("warning", "host.unsupported")
    return panel.script_class(deployment)
