"""Memory while it is used. The watch marks the phases of loads and jobs, explains and frees what ran out, and learns from readings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from fastapi import HTTPException

from sd3deploy import button, messages, units
from sd3deploy.encoders.swap import is_sd3
from sd3deploy.memory import exhausted, monitor, phases, verdict
from sd3deploy.memory.capacity import Capacity
from sd3deploy.memory.correction import measured_factors
from sd3deploy.memory.estimate import Estimate, Setup, estimate
from sd3deploy.webui.host import offload
from sd3deploy.webui.host.adapter import SdNext
from sd3deploy.webui.host.reach import sdnext
from sd3deploy.webui.jobs.forecast import Forecast
from sd3deploy.webui.jobs.memory_setup import free_memory
from sd3deploy.webui.jobs.metadata import record_encoder
from sd3deploy.webui.jobs.state import JobState, opened, state_of
from sd3deploy.webui.services.diagnosing import Diagnosing

__all__ = ["Watching"]

_Noted = tuple[exhausted.Exhausted, str]  # what ran out, and in which phase


class Watching:
    """The hooks call it around what the host does: `loading` around the load of a model or an encoder, `inner` around a job, `run` around
    each batch of it. Jobs hold the host's queue; loads hold it or not.
    """

    def __init__(self, host: SdNext, forecast: Forecast, diagnosing: Diagnosing) -> None:
        self.host, self.forecast, self.diagnosing, self.events = host, forecast, diagnosing, forecast.events
        self.monitor = monitor.Monitor()
        self._sd3 = False  # an SD3 model is being loaded
        self._foreseen: Setup | None = None  # what it will need, where that can be told
        self._noted: _Noted | None = None  # what ran out in what runs now

    @contextmanager
    def loading(self, title: str) -> Iterator[None]:
        """Watch the load of a model or of an encoder. A load inside of another one, or of a job, belongs to that."""
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
            self._explain(self._noted, self._foreseen)
            self.host.free()
        elif not is_sd3(self.host.pipeline()):
            run.outcome = "failed"
            self.diagnosing.tell(job=False)

    def foresee(self, place: str) -> None:
        """Remember that an SD3 model is about to be loaded from `place`, its folder, file or repository, and what it will need."""
        self._sd3 = True
        self._foreseen = self.forecast.foresee(place)

    def run(self, proceed: Callable[[], Any], p: Any, again: Callable[[], Any]) -> Any:
        """Watch one batch of the job `p`, explain what ran out, and, where the user wants that, try once more with the cheapest change.

        It judges and learns by what stands in this very `p`: a detailer is a copy of the job that it belongs to, with another size.
        proceed, again: call the host's process_diffusers for the first and for the second time; what they raise passes through.
        """
        setup = self.forecast.setup_of(p) if is_sd3(self.host.pipeline()) else None
        if setup is None:
            return proceed()
        state, deployment = state_of(p), self.forecast.deployment
        record_encoder(p, deployment)  # the batch before this one may have been made with another
        result, noted = self._watched(proceed, setup)
        tried = False
        while noted and _is_empty(result):
            change = self._exhausted(noted, setup, state)
            if tried or change is None or not self.host.option("sd3_memory_retry"):
                return result
            tried = True
            with self.host.changed(change.fields, deployment.instead) as possible:
                if not possible:
                    return result
                text = messages.text("memory.retry", steps=change.steps)
                self.events.add("warning", "memory.retry", text, "", job=True)
                state.report(text)
                setup, state.exhausted = change.setup, ""
                p.extra_generation_params = dict(p.extra_generation_params)  # the job that this one is a copy of has its own picture
                record_encoder(p, deployment)
                result, noted = self._watched(again, setup)
        return result

    def _watched(self, proceed: Callable[[], Any], setup: Setup) -> tuple[Any, _Noted | None]:
        """Call `proceed` and return its result with what ran out meanwhile. Readings within another job's batch are that one's too: then
        neither of them teaches anything.
        """
        self._prepare()
        before, self._noted = self._noted, None
        try:
            return self._monitored(proceed, setup), self._noted
        finally:
            self._noted = before

    def _monitored(self, proceed: Callable[[], Any], setup: Setup) -> Any:
        found, outermost = estimate(setup), self.monitor.running is None
        pipeline, capacity = self.host.pipeline(), free_memory(self.host)
        watched = phases.watched(pipeline, self.monitor.mark, self.note)
        with self.diagnosing.watch(), self.monitor.run("job", _title(setup)) as run, watched:
            run.facts |= _expected(found, capacity) if outermost else {"nested": True}
            try:
                result = proceed()
            except Exception as error:
                self.note(error)
                if not self._noted:
                    self.diagnosing.tell(job=True)
                    raise
                sdnext.errors.display(error, "Processing")  # as the host does with an error of the pipeline that it catches itself
                sdnext.shared.state.interrupted = True
                result = []
            failed = _is_empty(result)
            if failed and outermost:
                run.outcome = "out of memory" if self._noted else "no picture"
            if failed and not self._noted:
                self.diagnosing.tell(job=True)
        if not outermost:
            return result
        if run.outcome == "done" and "nested" not in run.facts:
            self.forecast.corrections.learn(self.host.device().name, measured_factors(run, found))
        if capacity.spills and max((reading.reserved for reading in run.readings), default=0) > capacity.usable:
            run.facts["spilled"] = True
            self.events.tell("warning", "memory.spilled")
        return result

    def note(self, error: BaseException, phase: str = "") -> None:
        """Remember an error that the host or a module has met: its text alone, because its frames hold the tensors that did not fit."""
        found = exhausted.read_exhausted(error)
        running = self.monitor.running
        if not found:
            self.diagnosing.note(error)
        elif running and not self._noted:
            self._noted = found, phase or (running.marks[-1][1] if running.marks else running.kind)

    def _exhausted(self, noted: _Noted, setup: Setup, state: JobState) -> verdict.Change | None:
        """Report what ran out, free it, and bring the parts of the model back to where they belong. Returns the change to make."""
        state.exhausted, change = self._explain(noted, setup)
        self.host.free()
        offload.restore(self.host.pipeline(), sdnext.shared.opts.diffusers_offload_mode)
        return change

    def _explain(self, noted: _Noted, setup: Setup) -> tuple[str, verdict.Change | None]:
        found, phase = noted
        before, capacity = estimate(setup), free_memory(self.host)
        need = before.phases.get(phase) or before.phases["encode"]  # the encoders are moved before the first of them runs
        on_cpu = setup.kind == "cpu" or found.host
        wanted = need.ram if on_cpu else need.gpu
        change = verdict.cheapest(setup, _as_seen(capacity, wanted, found, on_cpu), self.forecast.suitable())
        where = messages.text(f"memory.phase.{phase}")
        missing = messages.text("memory.missing", size=units.size(found.missing)) if found.missing else ""
        usable = _usable(capacity, on_cpu)
        said = messages.text("memory.said", need=units.size(wanted, usable), usable=units.size(usable, wanted))
        text = messages.joined(messages.text("memory.exhausted", phase=where), missing, said)
        remedy = change.sentence if change else messages.text("memory.nothing")
        buttons = button.change(change.fields, change.steps) if change else ()
        self.events.add("error", "memory.exhausted", text, remedy, job=True, buttons=buttons)
        return messages.joined(text, remedy), change

    def inner(self, proceed: Callable[[], Any], p: Any) -> Any:
        """Run the job `p` by `proceed`, which calls the host's process_images_inner, with a fresh state. What is to be said of the job goes
        into the comments of its result, which the page shows under the gallery. Raises HTTPException 507 where a request of the API has no
        picture because memory ran out; not for a job inside of another one, which has a picture to lose.
        """
        with opened(p) as state, self.diagnosing.watch():
            try:
                result = proceed()
            except HTTPException:  # an answer that has been put into words already
                raise
            except Exception as error:
                if is_sd3(self.host.pipeline()):
                    self.diagnosing.note(error)
                    self.diagnosing.tell(job=True)
                raise
            if state.exhausted and state.api and not state.nested and not getattr(result, "images", None):
                raise HTTPException(status_code=507, detail=state.exhausted)
            state.report(state.exhausted)
            if hasattr(result, "comments"):
                result.comments = "\n".join(dict.fromkeys(filter(None, [result.comments, *state.messages])))
            return result

    def _prepare(self) -> None:
        if self.monitor.read is None:
            self.monitor.read = monitor.reader(self.host.device())


def _title(setup: Setup) -> str:
    count = f" × {setup.batch}" if setup.batch > 1 else ""
    return f"{setup.weights.name}, {setup.encoder.name}, {setup.width}×{setup.height}{count}"


def _expected(found: Estimate, capacity: Capacity) -> dict[str, Any]:
    """The estimate of a run, for whoever compares."""
    on_cpu = found.setup.kind == "cpu"
    return {
        "expected": {phase: need.ram if on_cpu else need.gpu for phase, need in found.phases.items()},
        "weights": found.total,
        "usable": _usable(capacity, on_cpu),
        "on_device": not on_cpu,
        "verdict": verdict.judge(found, capacity).answer,
    }


def _usable(capacity: Capacity, on_cpu: bool) -> int:
    return capacity.ram_usable if on_cpu else capacity.usable


def _as_seen(capacity: Capacity, wanted: int, found: exhausted.Exhausted, on_cpu: bool) -> Capacity:
    """Return the capacity as the error has shown it: less than the `wanted` bytes of the estimate by what was missing; by a twentieth
    where the error does not say, by half at most, because then the estimate was wrong rather than the limit.
    """
    most = wanted - min(max(found.missing or 0, wanted // 20), wanted // 2)
    return replace(capacity, ram_usable=min(capacity.ram_usable, most)) if on_cpu else replace(capacity, usable=min(capacity.usable, most))


def _is_empty(result: Any) -> bool:
    """Return whether there is no picture. What has no length, such as the bytes that some pipelines give, is one."""
    return result is None or (hasattr(result, "__len__") and len(result) == 0)
