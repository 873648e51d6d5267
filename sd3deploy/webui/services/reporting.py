"""Everything about this server in one report, and the support bundle that somebody has looked at before it is written."""

from __future__ import annotations

import platform
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from sd3deploy.deployment import Deployment
from sd3deploy.diagnosis import installed
from sd3deploy.errors import SettingError
from sd3deploy.inside import commit
from sd3deploy.webui.host.adapter import log
from sd3deploy.webui.host.reach import sdnext, state
from sd3deploy.webui.jobs.watching import Watching
from sd3deploy.webui.services.diagnosing import Diagnosing
from sd3deploy.webui.services.verifying import Verifying

if TYPE_CHECKING:
    from sd3deploy.bundle import Bundle
    from sd3deploy.redact import Redactor
    from sd3deploy.report import Report

__all__ = ["Reporting"]


class Reporting:
    """`report` is made anew each time; `show` keeps the bundle that `save` writes. What both are made with is imported when somebody asks
    for them: it would be a tenth of the time that the extension adds to a start.
    """

    def __init__(self, deployment: Deployment, watching: Watching, diagnosing: Diagnosing, verifying: Verifying) -> None:
        self.deployment, self.watching, self.diagnosing, self.verifying = deployment, watching, diagnosing, verifying
        self.host = verifying.host
        self._shown: Bundle | None = None

    def report(self) -> Report:
        """What is known now. The packages are read off the disk: 0.1 to 0.2 s."""
        from sd3deploy.report import Report

        host = self.host
        options = host.install_options()
        found = installed.read_installed(options.host_root, host.device().backend)
        status = self.deployment.status()
        job = self.verifying.job
        forecast = self.watching.forecast
        return Report(
            generated=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            host={"root": str(options.host_root), "commit": commit(options.host_root) if options.host_root else ""},
            python={"version": found.python, "platform": platform.platform(), "executable": found.executable},
            device=asdict(host.device()),
            packages=dict(found.versions),
            settings=host.settings(),
            model={name: status[name] for name in ("model", "encoder", "wanted", "t5_bytes")},
            findings=[one.report() for one in list(self.diagnosing.findings)],
            checks=[one.report() for one in job.results] if job else [],
            memory=forecast.report(forecast.setup())["capacity"],
            runs=[run.summary() for run in list(self.watching.monitor.runs)],
            events=[asdict(event) for event in self.deployment.events.since(0)],
            contract=state.data(),
            redactor=self._redactor(),
        )

    def show(self) -> str:
        """What would be written into a support bundle."""
        from sd3deploy.bundle import Bundle

        runs = [run.report() for run in list(self.watching.monitor.runs)]
        self._shown = Bundle.make(self.report(), self._log(), runs=runs)
        return self._shown.preview()

    def save(self) -> Path:
        """Write what was shown, into the host's data folder. Raises SettingError where nothing was, BundleError where it can not be."""
        if self._shown is None:
            raise SettingError("bundle.unseen")
        name = f"sd3-deploy-bundle-{datetime.now().strftime('%Y%m%d-%H%M%S')}.zip"
        return self._shown.write(Path(sdnext.paths.data_path) / name)

    def _redactor(self) -> Redactor:
        from sd3deploy.redact import Redactor

        return Redactor.of_this_machine({Path(sdnext.paths.data_path), *filter(None, [self.host.install_options().host_root])})

    def _log(self) -> Path | None:
        """The file that the host writes to: whatever it was told to."""
        files = [getattr(handler, "baseFilename", "") for handler in log.handlers]
        return next((Path(file) for file in files if file), None)
