"""Memory while it is used: loads and jobs are watched, what runs out is explained and freed, and what a run has shown is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from fastapi import HTTPException
from modules import errors, shared

from sd3deploy import messages, units
from sd3deploy.encoders.swap import is_sd3
from sd3deploy.memory import exhausted, monitor, phases, plot, verdict
from sd3deploy.memory.capacity import Capacity
from sd3deploy.memory.correction import measured_factors
from sd3deploy.memory.estimate import Estimate, Setup, estimate
from sd3deploy.webui.host import offload
from sd3deploy.webui.host.adapter import SdNext
from sd3deploy.webui.jobs.forecast import Forecast
from sd3deploy.webui.jobs.memory_setup import free_memory
from sd3deploy.webui.services.diagnosing import Diagnosing

__all__ = ["Watching"]


class Watching:
    """`loading` surrounds the load of a model or an encoder, `run` each batch of a job, `inner` the whole of it: it has the last word."""

    def __init__(self, host: SdNext, forecast: Forecast, diagnosing: Diagnosing) -> None:
        self.host, self.forecast, self.diagnosing, self.events = host, forecast, diagnosing, forecast.events
        self.monitor = monitor.Monitor()
        self._sd3 = False  # an SD3 model is being loaded
        self._foreseen: Setup | None = None  # what it will need, where that can be told
        self._noted: tuple[exhausted.Exhausted, str] | None = None  # what ran out in what runs now, and in which phase

    @contextmanager
    def loading(self, title: str) -> Iterator[None]:
        """Watch the load of a model or of an encoder; one inside of the other is one."""
        self._prepare()
        outermost = self.monitor.running is None
        if outermost:
            self._noted, self._foreseen, self._sd3 = None, None, False
        with self.diagnosing.watch(), self.monitor.run("load", title) as run:
            yield
        if not outermost or not self._sd3:
            return
        if self._noted and self._foreseen:
            run.outcome = "out of memory"
            self._explain(None, self._foreseen)
            self.host.free()
        elif not is_sd3(self.host.pipeline()):
            run.outcome = "failed"
            self.diagnosing.tell(job=False)

    def foresee(self, place: str) -> None:
        """An SD3 model is about to be loaded: its folder, file or repository."""
        self._sd3, self._foreseen = True, self.forecast.foresee(place)

    def run(self, proceed: Callable[[], Any], p: Any, again: Callable[[], Any]) -> Any:
        """Watch one batch of a job, explain what ran out, and, where the user wants that, try once more with the cheapest change.

        proceed: runs the host's function, once. again: runs it although it ran before.
        """
        pipeline = self.host.pipeline()
        asked: Setup | None = getattr(p, "sd3_setup", None)
        if not is_sd3(pipeline) or asked is None:
            return proceed()
        result, tried = self._watched(proceed, p, asked), False
        while self._noted and _is_empty(result):
            change = self._exhausted(p, asked)
            if tried or change is None or not self.host.option("sd3_memory_retry"):
                return result
            tried = True
            with self.host.changed(change.fields, self.forecast.deployment.reconcile) as possible:
                if not possible:
                    return result
                text = messages.text("memory.retry", steps=change.steps)
                self.events.add("warning", "memory.retry", text, "", job=True)
                p.sd3_said.append(text)
                asked, p.sd3_exhausted = change.setup, None
                result = self._watched(again, p, asked)
        return result

    def _watched(self, proceed: Callable[[], Any], p: Any, asked: Setup) -> Any:
        self._prepare()
        self._noted = None
        found = estimate(asked)
        pipeline, there = self.host.pipeline(), free_memory(self.host)
        watched = phases.watched(pipeline, self.monitor.mark, self.note)
        with self.diagnosing.watch(), self.monitor.run("job", _title(asked)) as run, watched:
            run.facts |= _expected(found, there)
            try:
                result = proceed()
            except Exception as error:
                self.note(error)
                if not self._noted:
                    self.diagnosing.tell(job=True)
                    raise
                errors.display(error, "Processing")  # as the host does with an error of the pipeline that it catches itself
                shared.state.interrupted = True
                result = []
            if self._noted and _is_empty(result):
                run.outcome = "out of memory"
            elif _is_empty(result):
                run.outcome = "no picture"
                self.diagnosing.tell(job=True)
        if run.outcome == "done":
            self.forecast.corrections.learn(self.host.device().name, measured_factors(run, found))
        if there.spills and max((reading.reserved for reading in run.readings), default=0) > there.usable:
            run.facts["spilled"] = True
            self.events.tell("warning", "memory.spilled")
        return result

    def note(self, error: BaseException, phase: str = "") -> None:
        """An error that the host or a module has met. Only its text is kept: its frames hold the tensors that did not fit."""
        found = exhausted.read_exhausted(error)
        running = self.monitor.running
        if not found:
            self.diagnosing.note(error)
        elif running and not self._noted:
            self._noted = found, phase or (running.marks[-1][1] if running.marks else running.kind)

    def _exhausted(self, p: Any, asked: Setup) -> verdict.Change | None:
        """Tell what ran out, free it, and bring the parts of the model back to where they belong. Returns the change to make."""
        change = self._explain(p, asked)
        self.host.free()
        offload.restore(self.host.pipeline(), shared.opts.diffusers_offload_mode)
        return change

    def _explain(self, p: Any, asked: Setup) -> verdict.Change | None:
        assert self._noted is not None
        found, phase = self._noted
        before, there = estimate(asked), free_memory(self.host)
        need = before.phases.get(phase) or before.phases["encode"]  # the encoders are moved before the first of them runs
        on_cpu = asked.kind == "cpu" or found.host
        wanted = need.ram if on_cpu else need.gpu
        change = verdict.cheapest(asked, _as_seen(there, wanted, found, on_cpu), self.forecast.suitable())
        where = messages.text(f"memory.phase.{phase}")
        missing = messages.text("memory.missing", size=units.size(found.missing)) if found.missing else ""
        said = messages.text("memory.said", need=units.size(wanted), usable=units.size(_usable(there, on_cpu)))
        text = " ".join(filter(None, [messages.text("memory.exhausted", phase=where), missing, said]))
        remedy = change.sentence if change else messages.text("memory.nothing")
        self.events.add("error", "memory.exhausted", text, remedy, job=True)
        if p is not None:
            p.sd3_exhausted = f"{text} {remedy}"
        return change

    def inner(self, proceed: Callable[[], Any], p: Any) -> Any:
        """A job that ran out of memory ends with a message: a request is answered with 507, the page shows it under the gallery."""
        p.sd3_exhausted = None
        with self.diagnosing.watch():
            try:
                result = proceed()
            except HTTPException:  # an answer that has been put into words already
                raise
            except Exception as error:
                if is_sd3(self.host.pipeline()):
                    self.diagnosing.note(error)
                    self.diagnosing.tell(job=True)
                raise
        text = p.sd3_exhausted
        if not text or getattr(result, "images", None):
            return result
        if getattr(p, "sd3_api", False):
            raise HTTPException(status_code=507, detail=text)
        if result is not None:
            result.comments = "\n".join(filter(None, [result.comments, text]))
        return result

    def figure(self) -> Any:
        """The last run as a plot."""
        run = self.monitor.last
        return plot.figure(run, run.facts.get("usable", 0) if run and run.facts.get("on_device") else 0)

    def _prepare(self) -> None:
        if self.monitor.read is None:
            self.monitor.read = monitor.reader(self.host.device())


def _title(asked: Setup) -> str:
    count = f" × {asked.batch}" if asked.batch > 1 else ""
    return f"{asked.weights.name}, {asked.encoder.name}, {asked.width}×{asked.height}{count}"


def _expected(found: Estimate, there: Capacity) -> dict[str, Any]:
    """The estimate of a run, for its picture and for whoever compares."""
    on_cpu = found.setup.kind == "cpu"
    return {
        "expected": {phase: need.ram if on_cpu else need.gpu for phase, need in found.phases.items()},
        "weights": found.total,
        "usable": _usable(there, on_cpu),
        "on_device": not on_cpu,
        "verdict": verdict.judge(found, there).answer,
    }


def _usable(there: Capacity, on_cpu: bool) -> int:
    return there.ram_usable if on_cpu else there.usable


def _as_seen(there: Capacity, wanted: int, found: exhausted.Exhausted, on_cpu: bool) -> Capacity:
    """What there is, as the error has shown it: less than the `wanted` bytes of the estimate, by what was missing; by a twentieth where
    the error does not say, by half at most, because then the estimate was wrong rather than the limit.
    """
    most = wanted - min(max(found.missing or 0, wanted // 20), wanted // 2)
    return replace(there, ram_usable=min(there.ram_usable, most)) if on_cpu else replace(there, usable=min(there.usable, most))


def _is_empty(result: Any) -> bool:
    return result is None or len(result) == 0
