"""Installing and repairing on request, for the page and for scripts: looked at before, one at a time on a thread, to be cancelled."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from sd3deploy import deps, messages
from sd3deploy.deployment import Deployment
from sd3deploy.deployment.locks import both
from sd3deploy.deps.stopping import Stopped, stoppable
from sd3deploy.encoders.choices import Choice, suitable
from sd3deploy.encoders.swap import is_sd3
from sd3deploy.errors import DependencyError, RestartRequired, Sd3Error, SettingError
from sd3deploy.installed import pins, versions
from sd3deploy.refresh import refresh
from sd3deploy.vendored import canonicalize_name
from sd3deploy.webui.services.background import Background

__all__ = ["Installation", "Installing"]


@dataclass
class Installation:
    """One installation. state: running, done, failed or cancelled. text: the last line of pip. changed: distribution → version.

    error: why it failed. restart: what a restart is needed for, where one is.
    """

    number: int
    started: float = field(default_factory=time.time)
    state: str = "running"
    text: str = ""
    changed: dict[str, str] = field(default_factory=dict)
    error: dict[str, str] | None = None
    restart: dict[str, str] | None = None

    def report(self) -> dict[str, Any]:
        """As JSON-able values. fraction: 0 to 1; None where it can not be told: pip does not say how far it is."""
        return {
            "job": self.number,
            "started": self.started,
            "state": self.state,
            "fraction": 1.0 if self.state == "done" else None,
            "text": self.text,
            "changed": self.changed,
            "error": self.error,
            "restart": self.restart,
        }


# The sentence about a package that is needed → the one about installing as such.
_REFUSALS = {"deps.forbidden": "install.forbidden", "deps.not_allowed": "install.switched-off"}


@lru_cache(1)
def _redactor() -> Callable[[str], str]:
    from sd3deploy.redact import Redactor  # its patterns take a tenth of the time that the extension adds to a start

    return Redactor(paths=False)


class Installing(Background[Installation]):
    """Installations as background work; a cancelled one is undone.

    allow: asked before an encoder that was waiting for its packages is loaded.
    """

    def __init__(self, deployment: Deployment, allow: Callable[[Choice], None] = lambda choice: None) -> None:
        super().__init__()
        self.deployment, self.host, self.events = deployment, deployment.host, deployment.events
        self._allow = allow

    def clean(self, text: str) -> str:
        """Without passwords: the address of a package index may have one in it."""
        return _redactor()(text)

    def allowed(self) -> Sd3Error | None:
        """Why nothing may be installed here, or None: the same answer that every other way in gets, without the names of packages."""
        refusal = self.host.install_options().refusal
        return DependencyError(_REFUSALS[refusal]) if refusal else None

    def plan(self, groups: Iterable[str] | None = None, repair: bool = False) -> deps.Plan:
        """What would be done for the core and those optional groups of pyproject.toml (None: of every encoder that runs here), and for
        broken packages of the host where `repair`. Looks at the disk alone. Raises SettingError for a group that there is not.
        """
        needed = deps.check(deps.requirements(self.groups(groups)))
        broken = deps.check(self._pin(name) for name in self._broken()) if repair else ()
        return deps.plan((*broken, *needed), self.host.install_options(), versions())

    def start(self, groups: Iterable[str] | None = None, repair: bool = False) -> Installation:
        """Begin; where a job runs already, that one. Raises Sd3Error where nothing may be installed, and as `plan` does."""
        chosen = self.groups(groups)
        if refusal := self.allowed():
            raise refusal
        text = messages.text("install.resolving")
        return self._begin(lambda number: Installation(number, text=text), lambda job: self._run(job, chosen, repair))

    # The work

    def _run(self, job: Installation, groups: tuple[str, ...], repair: bool) -> None:
        state = "failed"
        try:
            try:
                with stoppable(self._cancelled.is_set):
                    self._work(job, groups, repair)
                state = "done"
            finally:
                self._refresh(job)  # what was done before a failure is done
            self._tell(job)
        except Stopped as error:
            state, done = "cancelled", self._names(job)
            told = self.events.tell("info", "install.cancelled-after", names=done) if done else self.events.fail(error, "info")
            job.text = told.message
        except Exception as error:
            state, told = "failed", self.events.fail(error, about="install")
            job.error = {"id": told.id, "message": told.message, "remedy": told.remedy}
        finally:
            job.state = state
        if state == "done" and not job.restart:
            self._bring()

    def _work(self, job: Installation, groups: tuple[str, ...], repair: bool) -> None:
        """Mend the host's packages first: nothing works on top of a broken NumPy. What can not be done stops nothing else; the first error
        is raised when all the rest is done, the others are told.
        """

        def progress(line: str) -> None:
            job.text = self.clean(line.strip()) or job.text

        def begin(names: tuple[str, ...]) -> None:
            if names:
                self.events.tell("info", "packages.installing", names=", ".join(names))

        broken = self._broken() if repair else ()
        failures = deps.mend(broken, groups, self.host.install_options(), progress, job.changed, begin)
        errors = [one.error for one in failures if not isinstance(one.error, RestartRequired)]
        for one in failures:
            if isinstance(one.error, RestartRequired):
                self._restart(job, one.error)
        for error in errors[1:]:
            self.events.fail(error, about="install")
        if errors:
            raise errors[0]

    def _refresh(self, job: Installation) -> None:
        """Make what is new visible to this process, while it makes no picture and loads no model. Whoever has cancelled waits for none:
        what needs the packages refreshes them itself.
        """
        if not job.changed:
            return
        job.text = messages.text("verify.waiting")
        with both(self.host.queue(), self.deployment.busy, self._cancelled.is_set) as mine:
            verdict = refresh(job.changed, self._cancelled.is_set) if mine else None
        if verdict is None or self._cancelled.is_set():
            return
        for one in verdict.restart:
            self._restart(job, RestartRequired("restart.needed", name=one.name, reason=one.reason))
        for one in verdict.failed:
            self.events.tell("warning", "refresh.unusable", name=one.name, reason=one.reason)

    def _restart(self, job: Installation, late: RestartRequired) -> None:
        """Say so once: whatever it is for, it is one restart."""
        if job.restart is None:
            told = self.events.fail(late, "warning")
            job.restart = {"id": told.id, "message": told.message, "remedy": told.remedy}

    def _tell(self, job: Installation) -> None:
        if job.restart:
            job.text = job.restart["message"]
        elif job.changed:
            text = messages.text("packages.installed", names=self._names(job))
            job.text = self.events.add("success", "packages.installed", text, "", about="install").message
        else:
            self.events.end(self.events.errors("install", self.events.count))
            job.text = messages.text("install.nothing")

    def _names(self, job: Installation) -> str:
        return ", ".join(f"{name} {version}" for name, version in job.changed.items())

    def _bring(self) -> None:
        """The encoder of the settings, where it could not be loaded before."""
        pipeline = self.host.pipeline()
        try:
            if is_sd3(pipeline) and self.deployment.placed(pipeline) != self.deployment.wanted():
                self.deployment.change(self._allow)
        except Exception:  # told as an event, as every failure of a change is; the packages are there all the same
            pass

    # What it is about

    def groups(self, groups: Iterable[str] | None) -> tuple[str, ...]:
        if groups is None:
            return tuple(dict.fromkeys(group for choice in suitable(self.host.device()) for group in choice.groups))
        known = deps.groups()
        for group in (chosen := tuple(dict.fromkeys(groups))):
            if group not in known:
                raise SettingError("install.unknown-group", value=repr(group)[:60], known=", ".join(known))
        return chosen

    def _broken(self) -> list[str]:
        """The host's packages whose files are damaged, NumPy first."""
        names = sorted(deps.host_packages(), key=lambda name: (name != "numpy", name))
        return [name for name in names if deps.diagnose(name).state is deps.State.BROKEN]

    def _pin(self, name: str) -> deps.Requirement:
        version = pins(self.host.install_options().host_root).get(canonicalize_name(name))
        return deps.Requirement(name, f"=={version}" if version else "", "host")
