"""The guards on the running host: each job that comes through it is looked at, changed or refused, and the user is told."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from fastapi import HTTPException
from modules import processing, shared

from sd3deploy import events, guards
from sd3deploy.encoders.swap import is_sd3
from sd3deploy.errors import JobRefused
from sd3deploy.webui.host.adapter import SdNext
from sd3deploy.webui.jobs import facts

__all__ = ["Guarding", "refuse", "refused"]

_FIELDS = ("sampler", "hires_sampler", "steps", "guidance", "prompt_attention")  # what may be changed beside the sizes


class Guarding:
    """A job passes `note`, `guard` and, before each batch, `last_look`; `inner` ends one that is refused. What any of them raises beside
    JobRefused is a bug of ours: whoever calls them for the host shields it (webui/host/feature.py).
    """

    def __init__(self, host: SdNext, told: events.Events) -> None:
        self.host = host
        self.events = told
        self._advised: deque[str] = deque(maxlen=50)  # an advice is no news with the next image

    def note(self, p: Any) -> None:
        """The first look at a job: the size as it was asked for. The host cuts it right after this."""
        if refused(p):  # before, and it comes again with other values
            del p.init
        if (p.width, p.height) != getattr(p, "sd3_made", None):  # else another frame of a job that has been changed
            p.sd3_asked = (p.width, p.height)
        # Later jobs within this one, such as the load of another model, overwrite that; shared.state.api outlives its job on some hosts.
        p.sd3_api = str(shared.state.job).startswith("API")
        p.sd3_said = []
        for name in [name for name in p.extra_generation_params if name.startswith("SD3 ")]:
            del p.extra_generation_params[name]  # the cells of a grid share this
        if is_sd3(self.host.pipeline()):
            p.width, p.height = facts.floorable(p.width), facts.floorable(p.height)

    def guard(self, p: Any) -> None:
        """The second look: the model, the styles and the settings of the job are final, and nothing is allocated yet."""
        pipeline = self.host.pipeline()
        if not is_sd3(pipeline):
            return
        try:
            asked = facts.gather(p, pipeline, self.host.model_name() or "", p.sd3_asked)
            outcome = self._decide(asked, guards.GUARDS, p)
            facts.apply(p, pipeline, outcome.change)
            p.sd3_made = (p.width, p.height)
            _describe(p, asked, outcome.job, outcome.change)
        except JobRefused as error:
            refuse(p, error)

    def last_look(self) -> None:
        """Right before the pipeline is called: other extensions may have set attention processors since. Raises JobRefused."""
        self._attend(self.host.pipeline())

    def attention_set(self, pipeline: Any) -> None:
        """The host has set attention processors, after a load or in a job: mend at once; a refusal is for the next look."""
        if is_sd3(pipeline) and self.modes().get("attention", guards.DEFAULT_MODE) == "fix":
            self._attend(pipeline)

    def inner(self, proceed: Callable[[], Any], p: Any) -> Any:
        """A refused job ends with a message: a request is answered with 422, the page shows it under the gallery."""
        try:
            return proceed()
        except JobRefused as error:
            if getattr(p, "sd3_api", False):
                raise HTTPException(status_code=422, detail=str(error)) from None
            # An error that is raised would be shown as the first one since the start of the server (the host's call_queue).
            return processing.Processed(p, [], infotexts=[], comments=str(error))

    def _attend(self, pipeline: Any) -> None:
        if not is_sd3(pipeline):
            return
        found = facts.attention_facts(pipeline, self.host.model_name() or "")
        if found.misfits:
            facts.apply(None, pipeline, self._decide(found, ("attention",)).change)

    def _decide(self, asked: guards.Job, names: Iterable[str], p: Any = None) -> guards.Outcome:
        """Ask the guards and tell what they say: the only place that shows findings. Raises JobRefused."""
        outcome = guards.check(asked, self.modes() | _overridden(p), names)
        for found, done in outcome.told:
            text = found.told(done)
            if found.severity != "advice" or text not in self._advised:
                severity: events.Severity = "info" if found.severity == "advice" else "error" if done == "refuse" else "warning"
                self.events.add(severity, found.id, text, found.remedy, job=True)
                self._advised.append(text)
            if p is not None:
                p.sd3_said.append(f"{text} {found.remedy}".rstrip())
        outcome.raise_refused()
        return outcome

    def modes(self) -> dict[str, guards.Mode]:
        """Guard → mode, as in the settings; a job may override them with anything."""
        stored = {name: self.host.option(f"sd3_guard_{name}") for name in guards.GUARDS}
        return {name: mode for name, mode in stored.items() if mode in guards.MODES}


def _overridden(p: Any) -> dict[str, guards.Mode]:
    """The modes that the panel has set for this job alone."""
    override = getattr(p, "sd3_override", None)
    return {name: mode for name, mode in override.modes.items() if name in guards.GUARDS} if override else {}


def _describe(p: Any, asked: guards.Job, now: guards.Job, change: Mapping[str, Any]) -> None:
    """Write what was changed into the metadata of the image."""
    changes = {field.replace("_", " "): (getattr(asked, field), change[field]) for field in _FIELDS if field in change}
    if "width" in change and asked.width and asked.height:
        changes["size"] = (f"{asked.width}x{asked.height}", f"{now.width}x{now.height}")
    if "hires_width" in change and asked.hires:
        width, height = asked.hires.size(now.width, now.height)
        changes["hires size"] = (f"{width}x{height}", f"{now.hires_width}x{now.hires_height}")
    for name, (before, after) in changes.items():
        p.extra_generation_params[f"SD3 {name}"] = f"{before} → {after}"


def refuse(p: Any, error: JobRefused) -> None:
    """End a job from within a hook of a script: what such a hook raises is swallowed, and the host calls init next."""

    def init(*_: Any, **__: Any) -> None:
        raise error

    init.refused = True  # type: ignore[attr-defined]
    p.init = init


def refused(p: Any) -> bool:
    """Whether `refuse` was called for this job."""
    return getattr(vars(p).get("init"), "refused", False)
