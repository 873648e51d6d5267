"""The guards on the running host. They check each job that comes through it, change or refuse it, and report what they did."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from fastapi import HTTPException

from sd3deploy import events, guards, messages
from sd3deploy.encoders.swap import is_sd3
from sd3deploy.errors import JobRefused
from sd3deploy.webui.host.adapter import SdNext
from sd3deploy.webui.host.reach import sdnext
from sd3deploy.webui.jobs import facts
from sd3deploy.webui.jobs.state import JobState, record_request, state_of

__all__ = ["Guarding", "refuse", "refused"]

_FIELDS = ("sampler", "hires_sampler", "steps", "guidance", "prompt_attention")  # what may be changed beside the sizes


class Guarding:
    """The host calls, with its queue held: `note` and `guard` once for each job, `last_look` before each batch, `inner` around the job.
    What any of them raises beside JobRefused is a bug of ours: whoever calls them for the host shields it (webui/host/feature.py).
    """

    def __init__(self, host: SdNext, told: events.Events) -> None:
        self.host = host
        self.events = told
        self._advised: deque[str] = deque(maxlen=50)  # an advice is no news with the next image

    def note(self, p: Any) -> None:
        """Remember the size that a job asks for: Script.before_process calls it, and the host cuts the size right after."""
        if refused(p):  # p is a copy of a job that was refused
            del p.init
        record_request(p)
        # A dictionary of its own: the host's copies of a job share the one of the job, and each has another story.
        p.extra_generation_params = {name: value for name, value in p.extra_generation_params.items() if not name.startswith("SD3 ")}
        if is_sd3(self.host.pipeline()):
            p.width, p.height = facts.floorable(p.width), facts.floorable(p.height)

    def guard(self, p: Any) -> None:
        """Check and change a job whose model, styles and settings are final, with nothing allocated yet: Script.process calls it. A job
        that is refused ends in the host's call of p.init.
        """
        pipeline = self.host.pipeline()
        if not is_sd3(pipeline):
            return
        state = state_of(p)
        try:
            asked = facts.gather(p, pipeline, self.host.model_name() or "", state.requested)
            outcome = self._decide(asked, guards.GUARDS, state)
            facts.apply(p, pipeline, outcome.change, state.undo)
            state.record_size()
            _describe(p, asked, outcome.job, outcome.change)
        except JobRefused as error:
            refuse(state, error)

    def last_look(self) -> None:
        """Check the attention processors right before the pipeline is called: other extensions may have set some. Raises JobRefused."""
        self._attend(self.host.pipeline())

    def attention_set(self, pipeline: Any) -> None:
        """Put right the attention processors that the host has just set, after a load or in a job. What can not be is for `last_look`."""
        if is_sd3(pipeline) and self.modes().get("attention", guards.DEFAULT_MODE) == "fix":
            self._attend(pipeline)

    def inner(self, proceed: Callable[[], Any], p: Any) -> Any:
        """Run the job `p` by `proceed` inside of its state. A job that is refused gives no pictures and the reason as their comment. Raises
        HTTPException 422 instead for a request of the API, unless the job is inside of another one: that has a picture to lose.
        """
        try:
            return proceed()
        except JobRefused as error:
            state = state_of(p)
            if state.api and not state.nested:
                raise HTTPException(status_code=422, detail=str(error)) from None
            state.report(str(error))
            # An error that is raised would be shown as the first one since the start of the server (the host's call_queue).
            return sdnext.processing.Processed(p, [], infotexts=[], comments=str(error))

    def _attend(self, pipeline: Any) -> None:
        if not is_sd3(pipeline):
            return
        found = facts.attention_facts(pipeline, self.host.model_name() or "")
        if found.misfits:
            facts.apply(None, pipeline, self._decide(found, ("attention",)).change)

    def _decide(self, asked: guards.Job, names: Iterable[str], state: JobState | None = None) -> guards.Outcome:
        """Ask the guards and report what they say: the only place that shows findings. Raises JobRefused."""
        outcome = guards.check(asked, self.modes() | _overridden(state), names)
        for found, done in outcome.told:
            text = found.told(done)
            if found.severity != "advice" or text not in self._advised:
                mended = found.severity == "advice" or done == "apply"
                severity: events.Severity = "info" if mended else "error" if done == "refuse" else "warning"
                self.events.add(severity, found.id, text, found.advised(done), job=True, buttons=found.buttons)
                self._advised.append(text)
            if state is not None:
                state.report(messages.joined(text, found.advised(done)))
        outcome.raise_refused()
        return outcome

    def modes(self) -> dict[str, guards.Mode]:
        """Return guard → mode as in the settings, which a request may have set to anything for its job."""
        stored = {name: self.host.option(f"sd3_guard_{name}") for name in guards.GUARDS}
        return {name: mode for name, mode in stored.items() if mode in guards.MODES}


def _overridden(state: JobState | None) -> dict[str, guards.Mode]:
    """Return the modes that the panel has set for this job alone."""
    modes: Mapping[str, Any] = state.override.modes if state and state.override else {}
    return {name: mode for name, mode in modes.items() if name in guards.GUARDS}


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


def refuse(state: JobState, error: JobRefused) -> None:
    """End a job from within a hook of a script: the host swallows what such a hook raises, and calls p.init next."""

    def init(*_: Any, **__: Any) -> None:
        raise error

    init.refused = True  # type: ignore[attr-defined]
    state.p.init = init
    state.undo.callback(vars(state.p).pop, "init", None)


def refused(p: Any) -> bool:
    """Whether `refuse` was called for this job, or for the one that it is a copy of."""
    return getattr(vars(p).get("init"), "refused", False)
