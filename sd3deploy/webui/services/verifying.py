"""The checks, run for the page and for scripts: one after the other on a thread, to be asked about and to be cancelled.

What is quick is looked at in this process, because it is this process that will have to do the work. The real run is done by a process of
its own: the model that the user has loaded stays as it is.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sd3deploy import deps, messages
from sd3deploy.deployment.locks import taken
from sd3deploy.encoders import choices
from sd3deploy.errors import SettingError
from sd3deploy.webui.host.adapter import SdNext
from sd3deploy.webui.host.reach import sdnext
from sd3deploy.webui.services.background import Background

if TYPE_CHECKING:
    from sd3deploy.diagnosis import checks

__all__ = ["Verification", "Verifying"]


@dataclass
class Verification:
    """One run of the checks. encoder: name of the choice that is checked. state: running, done or cancelled. fraction: 0 to 1 of all steps.
    text: what is being done.
    """

    number: int
    encoder: str
    started: float = field(default_factory=time.time)
    state: str = "running"
    fraction: float = 0.0
    text: str = ""
    results: list[checks.Result] = field(default_factory=list)

    def report(self) -> dict[str, Any]:
        """As JSON-able values."""
        return {
            "job": self.number,
            "started": self.started,
            "encoder": self.encoder,
            "state": self.state,
            "fraction": round(self.fraction, 3),
            "text": self.text,
            "healthy": None if self.state == "running" else all(one.state in ("ok", "warning") for one in self.results),
            "results": [one.report() for one in self.results],
        }


class Verifying(Background[Verification]):
    """The checks as background work."""

    def __init__(self, host: SdNext) -> None:
        super().__init__()
        self.host = host

    def start(self, model: str = "", encoder: str = "") -> Verification:
        """Begin; where a job runs already, that one. Raises SettingError for an encoder or a model that there is not."""
        chosen = choices.find(encoder or self.host.option("sd3_text_encoder"))
        context = self._context(model, chosen)
        return self._begin(lambda number: Verification(number, chosen.name), lambda job: self._run(job, context))

    def begin(self, encoder: str = "") -> str:
        """`start`, as a button does it: nothing to say, because the page shows how it goes on."""
        self.start(encoder=encoder)
        return ""

    def _run(self, job: Verification, context: checks.Context) -> None:
        from sd3deploy.diagnosis import checks

        def progress(now: checks.Progress) -> None:
            job.fraction, job.text = (order.index(now.id) + now.fraction) / len(order), messages.joined(now.title, now.text)

        order = [step.id for step in checks.STEPS]

        try:
            for result in checks.run(checks.QUICK, context, progress, self._cancelled.is_set):
                job.results.append(result)
            job.text = messages.text("verify.waiting")
            with taken(self.host.queue(), self._cancelled.is_set):  # no picture is made meanwhile; the steps look at Cancel themselves
                for result in checks.rehearse_in_child(context, progress, self._cancelled.is_set, before=tuple(job.results)):
                    job.results.append(result)
        finally:
            over = "verify.healthy" if all(result.healthy for result in job.results) else "verify.unhealthy"
            stopped = self._cancelled.is_set()
            job.fraction, job.text = 1.0, "" if stopped else messages.text(over)
            job.state = "cancelled" if stopped else "done"

    def _context(self, model: str, chosen: choices.Choice) -> checks.Context:
        from sd3deploy.diagnosis import checks

        place = Path(model or self.host.facts().model or ".")
        if model and not place.exists():
            raise SettingError("verify.no-model", path=model)
        device, options = self.host.device(), self.host.install_options()
        return checks.Context(
            host_root=options.host_root,
            data_dir=Path(sdnext.paths.data_path),
            models=self.host.model_folders(),
            model=place if place.exists() and place != Path(".") else None,
            encoder=chosen.id,
            device=device.torch,
            backend=device.backend,
            groups=chosen.groups if deps.lack(chosen.groups, options).refusal else (),  # else they come when it is chosen
        )
