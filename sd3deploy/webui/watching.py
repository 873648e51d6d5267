"""Memory on the running host: each job is judged before it runs and watched while it runs; what ran out is explained, and freed."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from fastapi import HTTPException
from modules import errors, paths, shared

from sd3deploy import messages, units
from sd3deploy.deployment import Deployment
from sd3deploy.encoders import choices
from sd3deploy.encoders.choices import CHOICES, HOST_DEFAULT, Choice
from sd3deploy.encoders.swap import is_sd3
from sd3deploy.errors import EncoderError, JobRefused
from sd3deploy.guards.number import number
from sd3deploy.memory import exhausted, monitor, phases, plot, verdict
from sd3deploy.memory.capacity import Capacity
from sd3deploy.memory.correction import Corrections, measured
from sd3deploy.memory.estimate import Estimate, Need, Setup, estimate
from sd3deploy.webui import job, offload
from sd3deploy.webui.guarding import refuse, refused
from sd3deploy.webui.host import SdNext
from sd3deploy.webui.setup import guided, room, setup

__all__ = ["DEFAULT_MODE", "MODES", "Watching"]

MODES = ("off", "warn", "block")
DEFAULT_MODE = "warn"
AGAIN_S = 30  # a second press within this many seconds goes on


class Watching:
    """A job passes `check` before it runs, and `run` while it runs; `inner` surrounds both and has the last word."""

    def __init__(self, host: SdNext, deployment: Deployment) -> None:
        self.host, self.deployment, self.events = host, deployment, deployment.events
        self.monitor = monitor.Monitor()
        self.corrections = Corrections(Path(paths.data_path) / "data" / "sd3-deploy-memory.json")
        self._warned: dict[Any, float] = {}  # what was held back → until when a second press goes on
        self._advised: deque[str] = deque(maxlen=50)
        self._foreseen: Setup | None = None  # of the model that is being loaded
        self._noted: tuple[exhausted.Exhausted, str] | None = None  # what ran out in the job that runs now, and in which phase

    # What is known

    def setup(self, model: str = "", **given: Any) -> Setup | None:
        """As webui.setup, for the encoder that is in the loaded model unless `given` has another one."""
        pipeline = self.host.pipeline()
        placed = self.deployment.placed(pipeline).choice if is_sd3(pipeline) else None
        if placed is None and not given.get("encoder"):
            given["encoder"] = choices.find(self.deployment.status()["wanted"])
        return setup(self.host, placed, self.corrections.of(self.host.device().name), model, **given)

    def suitable(self) -> list[Choice]:
        """The choices that this device can run."""
        return [choice for choice in CHOICES if not choices.unsuitable(choice, self.host.device())]

    def report(self, asked: Setup | None) -> dict[str, Any]:
        """Everything about memory as JSON-able values, in bytes. asked: the setup that is asked about, None where there is no SD3 model."""
        there = room(self.host)
        report: dict[str, Any] = {
            "capacity": vars(there) | {},
            "mode": self.mode(),
            "corrections": self.corrections.of(self.host.device().name),
            "runs": [run.summary() for run in self.monitor.runs],
        }
        if asked is None:
            return report | {"verdict": None, "line": messages.text("memory.no-sd3")}
        found = estimate(asked)
        judged = verdict.judge(found, there)
        peaks = {phase: need.ram if asked.kind == "cpu" else need.gpu for phase, need in found.phases.items()}
        change = verdict.cheapest(asked, there, self.suitable()) if judged.answer == "no" else None
        advice = verdict.recommend(asked, there, self.suitable())
        return report | {
            "model": asked.weights.name,
            "encoder": asked.encoder.name,
            "width": asked.width,
            "height": asked.height,
            "batch": asked.batch,
            "offload": asked.offload,
            "tiling": asked.tiling,
            "parts": dict(found.parts),
            "total": found.total,
            "phases": {phase: vars(need) | {} for phase, need in found.phases.items()},
            "verdict": vars(judged) | {"missing": judged.missing},
            "line": judged.sentence,
            "change": {"fields": dict(change.fields), "sentence": change.sentence} if change else None,
            "recommendation": advice.choice.name if advice.choice else None,
            "advice": _advice(advice),
            "choices": {
                choice.id: vars(one) | {"sentence": one.sentence, "short": _short(one, choice is advice.choice)}
                for choice, one in advice.considered
            },
            "table": [
                *([messages.text(f"memory.part.{name}"), size] for name, size in found.parts.items()),
                [messages.text("memory.total"), found.total],
                *([messages.text("memory.at-most", phase=messages.text(f"memory.phase.{phase}")), need] for phase, need in peaks.items()),
            ],
        }

    def mode(self) -> str:
        """As in the settings; a job may override it with anything."""
        stored = self.host.option("sd3_memory")
        return stored if stored in MODES else DEFAULT_MODE

    # Before

    def check(self, p: Any) -> None:
        """The last look before a job: its size, its encoder and its settings are final. Refuses it as the guards do."""
        p.sd3_setup = None
        if refused(p) or not is_sd3(self.host.pipeline()):
            return
        try:
            p.sd3_setup = self.setup(**_job(p))
            if p.sd3_setup is not None and self.mode() != "off":
                self._judge(p, p.sd3_setup)
        except JobRefused as error:
            refuse(p, error)
        except Exception as error:  # a bug of ours must not cost the user an image
            self.events.fail(error)

    def _judge(self, p: Any, asked: Setup) -> None:
        there = room(self.host)
        judged = verdict.judge(estimate(asked), there)
        if judged.answer == "tight" and judged.sentence not in self._advised:
            self._advised.append(judged.sentence)
            self.events.add("info", "memory.verdict.tight", judged.sentence, "", job=True)
        if judged.answer != "no":
            return
        message, remedy = judged.sentence, self._remedy(asked, there)
        if there.spills:
            message += " " + messages.text("memory.spills")
        if self.mode() == "block":
            self._refuse(message, remedy)
        by_hand = not getattr(p, "sd3_api", False) and not getattr(p, "xyz", False)
        if by_hand and not self._again((asked.width, asked.height, asked.batch, asked.encoder, asked.offload, asked.tiling)):
            self._refuse(message, f"{remedy} {messages.text('memory.again', seconds=AGAIN_S)}".strip())
        self.events.add("warning", "memory.verdict.no", message, remedy, job=True)
        p.sd3_said.append(f"{message} {remedy}".rstrip())

    def allow(self, choice: Choice) -> None:
        """Before another encoder is loaded because a setting was changed. Raises EncoderError when it will not fit; the same again within
        half a minute goes on, unless the mode is block.
        """
        if self.mode() == "off" or choice is HOST_DEFAULT:
            return
        asked = self.setup(encoder=choice)
        if asked is None or not is_sd3(self.host.pipeline()):
            return
        there = room(self.host)
        judged = verdict.judge(estimate(asked), there)
        if judged.answer != "no" or (self.mode() == "warn" and self._again(choice)):
            return
        again = messages.text("memory.again-setting", seconds=AGAIN_S) if self.mode() == "warn" else ""
        better = verdict.recommend(asked, there, self.suitable()).choice
        remedy = messages.text("memory.instead", name=better.name) if better else self._remedy(asked, there)
        raise EncoderError("memory.encoder", name=choice.name, verdict=judged.sentence, remedy=f"{remedy} {again}".strip())

    def _again(self, key: object) -> bool:
        """Whether the same was held back less than half a minute ago."""
        now = time.monotonic()
        goes_on = self._warned.get(key, 0) > now
        self._warned = {} if goes_on else {key: now + AGAIN_S}
        return goes_on

    def _remedy(self, asked: Setup, there: Capacity) -> str:
        change = verdict.cheapest(asked, there, self.suitable())
        return change.sentence if change else messages.text("memory.nothing")

    def _refuse(self, message: str, remedy: str) -> None:
        self.events.add("error", "memory.verdict.no", f"{message} {messages.text('guard.refuse')}", remedy, job=True)
        raise JobRefused("memory.verdict.no", f"{message} {messages.text('guard.refuse')}", remedy)

    # While it runs

    @contextmanager
    def loading(self, title: str) -> Iterator[None]:
        """Watch the load of a model or of an encoder; one inside of the other is one."""
        self._prepare()
        outermost = self.monitor.running is None
        if outermost:
            self._noted = self._foreseen = None
        with self.monitor.run("load", title) as run:
            yield
        if outermost and self._noted and self._foreseen:
            run.outcome = "out of memory"
            self._explain(None, self._foreseen)
            self.host.free()

    def foresee(self, place: str) -> None:
        """An SD3 model is about to be loaded: say so when a picture with it will not fit. place: its folder or file; of a repository that
        is not here yet nothing is known.
        """
        try:
            if self.mode() == "off" or not Path(place).exists():
                return
            self._foreseen = asked = self.setup(place, encoder=choices.find(self.deployment.status()["wanted"]))
            there = room(self.host)
            judged = verdict.judge(estimate(asked), there) if asked else None
            if asked and judged and judged.answer == "no":
                text = messages.text("memory.model", model=Path(place).stem, verdict=judged.sentence)
                self.events.add("warning", "memory.model", text, self._remedy(asked, there))
        except Exception as error:  # a bug of ours must not cost the user a model
            self.events.fail(error, "warning")

    def run(self, original: Callable[[Any], Any], p: Any) -> Any:
        """Watch one batch of a job, explain what ran out, and, where the user wants that, try once more with the cheapest change."""
        pipeline = self.host.pipeline()
        asked: Setup | None = getattr(p, "sd3_setup", None)
        if not is_sd3(pipeline) or asked is None:
            return original(p)
        result, tried = self._watched(original, p, asked), False
        while self._noted and _is_empty(result):
            change = self._exhausted(p, asked)
            if tried or change is None or not self.host.option("sd3_memory_retry"):
                return result
            tried = True
            with self.host.changed(change.fields, self.deployment.reconcile) as possible:
                if not possible:
                    return result
                self.events.add("warning", "memory.retry", messages.text("memory.retry", change=change.sentence), "", job=True)
                p.sd3_said.append(messages.text("memory.retry", change=change.sentence))
                asked, p.sd3_exhausted = change.setup, None
                result = self._watched(original, p, asked)
        return result

    def _watched(self, original: Callable[[Any], Any], p: Any, asked: Setup) -> Any:
        self._prepare()
        self._noted = None
        found = estimate(asked)
        pipeline, there = self.host.pipeline(), room(self.host)
        with self.monitor.run("job", _title(asked)) as run, phases.watched(pipeline, self.monitor.mark, self.note):
            run.facts |= _expected(found, there)
            try:
                result = original(p)
            except Exception as error:
                self.note(error)
                if not self._noted:
                    raise
                errors.display(error, "Processing")  # as the host does with an error of the pipeline that it catches itself
                shared.state.interrupted = True
                result = []
            if self._noted and _is_empty(result):
                run.outcome = "out of memory"
            elif _is_empty(result):
                run.outcome = "no picture"
        if run.outcome == "done":
            self.corrections.learn(self.host.device().name, measured(run, found))
        if there.spills and max((reading.reserved for reading in run.readings), default=0) > there.usable:
            run.facts["spilled"] = True
            self.events.tell("warning", "memory.spilled")
        return result

    def note(self, error: BaseException, phase: str = "") -> None:
        """An error that the host or a module has met. Only its text is kept: its frames hold the tensors that did not fit."""
        found = exhausted.read(error)
        running = self.monitor.running
        if found and running and not self._noted:
            self._noted = found, phase or (running.marks[-1][1] if running.marks else running.kind)

    def _exhausted(self, p: Any, asked: Setup) -> verdict.Change | None:
        """Tell what ran out, free it, and bring the parts of the model back to where they belong. Returns the change to make."""
        change = self._explain(p, asked)
        self.host.free()
        offload.restore(self.host.pipeline(), shared.opts.diffusers_offload_mode)
        return change

    def _explain(self, p: Any, asked: Setup | None) -> verdict.Change | None:
        assert self._noted is not None
        found, phase = self._noted
        missing = messages.text("memory.missing", size=units.size(found.missing)) if found.missing else ""
        change, said = None, ""
        if asked is not None:
            before, there = estimate(asked), room(self.host)
            need = before.phases.get(phase) or before.phases["encode"]  # the encoders are moved before the first of them runs
            on_cpu = asked.kind == "cpu" or found.host
            said = messages.text(
                "memory.said", need=units.size(need.ram if on_cpu else need.gpu), usable=units.size(_usable(there, on_cpu))
            )
            change = verdict.cheapest(asked, _as_seen(there, need, found, on_cpu), self.suitable())
        where = messages.text(f"memory.phase.{phase}")
        text = " ".join(filter(None, [messages.text("memory.exhausted", phase=where), missing, said]))
        remedy = change.sentence if change else messages.text("memory.nothing")
        self.events.add("error", "memory.exhausted", text, remedy, job=True)
        if p is not None:
            p.sd3_exhausted = f"{text} {remedy}"
        return change

    # After

    def inner(self, original: Callable[[Any], Any], p: Any) -> Any:
        """A job that ran out of memory ends with a message: a request is answered with 507, the page shows it under the gallery."""
        p.sd3_exhausted = None
        result = original(p)
        text = p.sd3_exhausted
        if not text or getattr(result, "images", None):
            return result
        if getattr(p, "sd3_api", False):
            raise HTTPException(status_code=507, detail=text)
        if result is not None:
            result.comments = "\n".join(filter(None, [result.comments, text]))
        return result

    # What a click does

    def apply(self, width: int = 1024, height: int = 1024) -> str:
        """Take the recommended text encoder; where none fits, make the change that lets the model run. Returns what was done, as a
        sentence. Raises Sd3Error when it could not be.
        """
        asked = self.setup(width=width, height=height)
        if asked is None:
            return messages.text("memory.no-sd3")
        advice = verdict.recommend(asked, room(self.host), self.suitable())
        fields = {"encoder": advice.choice.name} if advice.choice else dict(advice.change.fields) if advice.change else {}
        if fields.get("encoder") == self.deployment.wanted().choice.name:
            return messages.text("memory.applied-already", name=fields["encoder"])
        if not self.host.apply(fields):
            return messages.text("memory.nothing") if not advice.change else advice.change.sentence
        return messages.text("memory.applied", change=verdict.Change(fields, asked).sentence)

    def forget(self) -> str:
        """Drop what runs have shown about this machine. Returns a sentence."""
        self.corrections.forget()
        return messages.text("panel.memory.forgotten")

    def figure(self) -> Any:
        """The last run as a plot."""
        run = self.monitor.last
        return plot.figure(run, run.facts.get("usable", 0) if run and run.facts.get("on_device") else 0)

    def _prepare(self) -> None:
        if self.monitor.read is None:
            self.monitor.read = monitor.reader(self.host.device())


def _job(p: Any) -> dict[str, Any]:
    """The fields of a setup that a job brings."""
    width, height = job.largest(p)
    return {"width": width, "height": height, "batch": max(1, int(number(p.batch_size) or 1)), "guided": guided(p.cfg_scale)}


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


def _short(one: verdict.Verdict, recommended: bool) -> str:
    """For the choice's row in the settings."""
    return messages.text("memory.short.recommended", short=one.short) if recommended else one.short


def _advice(advice: verdict.Advice) -> str:
    """Which T5 to take here, as a sentence."""
    if advice.choice:
        return messages.text("memory.recommended", name=advice.choice.name)
    return advice.change.sentence if advice.change else messages.text("memory.nothing")


def _usable(there: Capacity, on_cpu: bool) -> int:
    return there.ram_usable if on_cpu else there.usable


def _as_seen(there: Capacity, need: Need, found: exhausted.Exhausted, on_cpu: bool) -> Capacity:
    """What there is, as the error has shown it: less than the phase was estimated to need, by what was missing; by a twentieth where the
    error does not say, by half at most, because then the estimate was wrong rather than the limit.
    """
    wanted = need.ram if on_cpu else need.gpu
    most = wanted - min(max(found.missing or 0, wanted // 20), wanted // 2)
    return replace(there, ram_usable=min(there.ram_usable, most)) if on_cpu else replace(there, usable=min(there.usable, most))


def _is_empty(result: Any) -> bool:
    return result is None or len(result) == 0
