"""The composition root: builds the services and registers them with the host. Nothing runs at import.

    contract checked → services → script, callbacks, gate of Control → patches      what fails on the way takes all of it out again
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any


def start(folder: Path) -> type | None:
    """Wire everything to the running SD.Next. Returns the script class for it to show; where this SD.Next is too old or differs too
    much, or where the extension runs already out of another folder, one whose panel says so, or None where that can not be shown either.
    Raises nothing. folder: of this extension, as the host names it.
    """
    from sd3deploy import webui
    from sd3deploy.webui import notice

    extension: Extension | None = None
    try:
        if webui.folder not in (None, folder) and webui.folder.is_dir():
            return notice.leave("host.twice", folder=folder, used=webui.folder)
        webui.folder = folder
        from sd3deploy.webui.host import reach

        reach.check_start()
        missing = reach.missing()
        if missing or reach.too_old():
            keep()
            return notice.leave("host.unsupported") if reach.too_old() else notice.leave("host.failed", error=missing)
        extension = Extension()
        return extension.register()
    except Exception as error:
        if extension is not None:
            extension.end()
        log_traceback(error)
        return notice.leave("host.failed", error=f"{type(error).__name__}: {error}")


def keep() -> None:
    """Keep what was found of the host for `doctor`. Raises nothing: a folder that can not be written to costs no start."""
    with contextlib.suppress(Exception):
        from sd3deploy import host_record, inside
        from sd3deploy.webui.host.reach import sdnext, state

        commit = inside.commit(Path(sdnext.paths.script_path))
        host_record.write(Path(sdnext.paths.data_path), {"commit": commit, **state.data()})


def log_traceback(error: BaseException) -> None:
    """Into the host's log file, for a report; a user reads the one sentence."""
    import logging

    logging.getLogger("sd").debug("SD3 Deploy", exc_info=error)


class Extension:
    """Everything that was built and put into the host. `end` takes all of it out again, at any time after."""

    def __init__(self) -> None:
        from sd3deploy.deployment import Deployment
        from sd3deploy.events import Events
        from sd3deploy.webui.host import hooks
        from sd3deploy.webui.host.adapter import SdNext
        from sd3deploy.webui.host.feature import Features
        from sd3deploy.webui.jobs.forecast import Forecast
        from sd3deploy.webui.jobs.guarding import Guarding
        from sd3deploy.webui.jobs.watching import Watching
        from sd3deploy.webui.page import language, panel
        from sd3deploy.webui.services.diagnosing import Diagnosing
        from sd3deploy.webui.services.installing import Installing
        from sd3deploy.webui.services.measuring import Measuring
        from sd3deploy.webui.services.reporting import Reporting
        from sd3deploy.webui.services.verifying import Verifying

        language.begin()
        host = SdNext()
        self.deployment = Deployment(host, Events(host.listen))
        self.events = self.deployment.events
        diagnosing = Diagnosing(host, self.events)
        self.events.explain = diagnosing.explain
        self.guarding = Guarding(host, self.events)
        self.forecast = Forecast(host, self.deployment)
        self.watching = Watching(host, self.forecast, diagnosing)
        verifying = Verifying(host)
        self.installing = Installing(self.deployment, self.forecast.allow)
        self.measuring = Measuring(host, self.deployment)
        self.reporting = Reporting(self.deployment, self.watching, diagnosing, verifying)
        host.watch = self.watching.loading
        self.features = Features(self.events, self._leave)
        self.points = hooks.Hooks(self.deployment, self.guarding, self.watching, host, self.features)
        self.features.keep = self.points.keep
        services = (self.deployment, self.guarding, self.watching, verifying, self.measuring, self.reporting)
        self.script = panel.script_class(*services, self.features)
        self._callbacks: list[Callable[..., Any]] = []

    def register(self) -> type:
        """Put it into the host, the patches last: a model may be loaded right after. Returns the script class. Raises what the host raises
        where it has no place for the settings or the API; every other part fails alone.
        """
        from sd3deploy.webui.host import reach
        from sd3deploy.webui.host.reach import sdnext
        from sd3deploy.webui.page import panel

        features = self.features
        reach.state.listen = self._changed
        self._call(sdnext.script_callbacks.on_ui_settings, self._settings)
        self._call(sdnext.script_callbacks.on_app_started, self._api)
        unload = features.shield("unload", self.points.undo)
        features.shield("unload", lambda: self._call(sdnext.script_callbacks.on_script_unloaded, unload))()
        features.shield("control", panel.allow_in_control)()
        self.points.apply()
        reach.state.announce()
        return self.script

    def end(self) -> None:
        """Take everything out of the host; a panel that it has built already does nothing from now on. Called while the host loads scripts,
        by nobody while it goes through its callbacks. Raises nothing.
        """
        self._stop()
        with contextlib.suppress(Exception):  # a host that can not forget callbacks calls some that do nothing
            from sd3deploy.webui.host.reach import sdnext

            for callback in self._callbacks:
                sdnext.script_callbacks.remove_callbacks_for_function(callback)

    def _stop(self) -> None:
        from sd3deploy.webui.page import panel

        self.features.ended = True
        for undo in (self.points.undo, panel.leave_control):
            try:
                undo()
            except Exception as error:
                log_traceback(error)

    def _call(self, register: Callable[[Callable[..., Any]], object], callback: Callable[..., Any]) -> None:
        register(callback)
        self._callbacks.append(callback)

    def _settings(self) -> None:
        """Called by the host when it builds the settings page, after the panels."""
        from sd3deploy.webui import notice
        from sd3deploy.webui.page import settings

        self._essential(lambda: settings.register(self.deployment, self.forecast, self.features))
        if self.features.notice:
            notice.section(self.features.notice)

    def _api(self, demo: Any = None, app: Any = None, *_: Any, **__: Any) -> None:
        """Called by the host when its own API is there, and the page."""
        from sd3deploy.webui import api
        from sd3deploy.webui.host import reach

        if not self.features.ended:
            reach.check_page(demo, app, self.features.get("panel").active)
            keep()
        services = (self.deployment, self.guarding, self.watching, self.reporting, self.installing, self.measuring)
        self._essential(lambda: api.register(*services, self.features))

    def _changed(self, found: dict[Any, str]) -> Any:
        """Something of the host is not as it should be: see Features.changed."""
        told = self.features.changed(found)
        keep()
        return told

    def _essential(self, work: Callable[[], object]) -> None:
        """Without it there is no extension: where it fails, nothing of it remains but a sentence in the log and in the panels."""
        if self.features.ended:
            return
        try:
            work()
        except Exception as error:
            self._leave(error)

    def _leave(self, error: Exception) -> None:
        """Nothing of it remains but a sentence in the log and in the panels, once. Raises nothing."""
        from sd3deploy.webui import notice

        if self.features.ended:
            return
        self._stop()
        log_traceback(error)
        values = {"error": f"{type(error).__name__}: {error}"}
        self.features.notice = notice.sentence("host.failed", **values)
        self.events.tell("error", "host.failed", **values)
