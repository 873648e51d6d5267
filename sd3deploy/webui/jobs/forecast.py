"""Memory before it is needed: what a picture will take here, whether it fits, what to change; and what is held back because of that."""

from __future__ import annotations

import time
from collections import deque
from pathlib import Path
from typing import Any

from modules import paths

from sd3deploy import messages
from sd3deploy.deployment import Deployment
from sd3deploy.encoders import choices
from sd3deploy.encoders.choices import CHOICES, HOST_DEFAULT, Choice
from sd3deploy.encoders.swap import is_sd3
from sd3deploy.errors import EncoderError, JobRefused
from sd3deploy.guards.number import number
from sd3deploy.memory import verdict
from sd3deploy.memory.capacity import Capacity
from sd3deploy.memory.correction import Corrections
from sd3deploy.memory.estimate import Setup, estimate
from sd3deploy.webui.host.adapter import SdNext
from sd3deploy.webui.jobs import facts
from sd3deploy.webui.jobs.guarding import refuse, refused
from sd3deploy.webui.jobs.memory_setup import free_memory, guided, memory_setup

__all__ = ["DEFAULT_MODE", "MODES", "Forecast"]

MODES = ("off", "warn", "block")
DEFAULT_MODE = "warn"
AGAIN_S = 30  # a second press within this many seconds goes on


class Forecast:
    """Asked before a model or an encoder is loaded, before each job, and by the page as the job is being described."""

    def __init__(self, host: SdNext, deployment: Deployment) -> None:
        self.host, self.deployment, self.events = host, deployment, deployment.events
        self.corrections = Corrections(Path(paths.data_path) / "data" / "sd3-deploy-memory.json")
        self._warned: dict[Any, float] = {}  # what was held back → until when a second press goes on
        self._advised: deque[str] = deque(maxlen=50)

    def setup(self, model: str = "", **given: Any) -> Setup | None:
        """As webui.setup, for the encoder that is in the loaded model unless `given` has another one."""
        pipeline = self.host.pipeline()
        placed = self.deployment.placed(pipeline).choice if is_sd3(pipeline) else None
        if placed is None and not given.get("encoder"):
            given["encoder"] = choices.find(self.deployment.status()["wanted"])
        return memory_setup(self.host, placed, self.corrections.of(self.host.device().name), model, **given)

    def suitable(self) -> list[Choice]:
        """The choices that this device can run."""
        return [choice for choice in CHOICES if not choices.unsuitable(choice, self.host.device())]

    def report(self, asked: Setup | None) -> dict[str, Any]:
        """Everything about memory as JSON-able values, in bytes. asked: the setup that is asked about, None where there is no SD3 model."""
        there = free_memory(self.host)
        report: dict[str, Any] = {
            "capacity": vars(there) | {},
            "mode": self.mode(),
            "corrections": self.corrections.of(self.host.device().name),
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
            "verdict": vars(judged) | {"missing": judged.missing, "short": judged.short},
            "line": judged.sentence,
            "change": {"fields": dict(change.fields), "sentence": change.sentence} if change else None,
            "recommendation": advice.choice.name if advice.choice else None,
            "advice": _advice(advice),
            "choices": {
                choice.id: vars(one)
                | {
                    "name": choice.name,
                    "sentence": one.sentence,
                    "short": _short(one, choice is advice.choice),
                    "recommended": choice is advice.choice,
                }
                for choice, one in advice.considered
            },
            "table": [
                *([messages.text(f"memory.part.{name}"), size] for name, size in found.parts.items()),
                [messages.text("memory.total"), found.total],
                *([messages.text("memory.at-most", phase=messages.text(f"memory.phase.{phase}")), need] for phase, need in peaks.items()),
            ],
        }

    def mode(self, p: Any = None) -> str:
        """As in the settings, which a job may override with anything; else as the panel has it for the job `p`."""
        if (override := getattr(p, "sd3_override", None)) and "memory" in override.modes:
            return override.modes["memory"]
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
            if p.sd3_setup is not None and self.mode(p) != "off":
                self._judge(p, p.sd3_setup)
        except JobRefused as error:
            refuse(p, error)

    def _judge(self, p: Any, asked: Setup) -> None:
        there = free_memory(self.host)
        judged = verdict.judge(estimate(asked), there)
        if judged.answer == "tight" and judged.sentence not in self._advised:
            self._advised.append(judged.sentence)
            self.events.add("info", "memory.verdict.tight", judged.sentence, "", job=True)
        if judged.answer != "no":
            return
        message, remedy = judged.sentence, self.remedy(asked, there)
        if there.spills:
            message += " " + messages.text("memory.spills")
        if self.mode(p) == "block":
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
        there = free_memory(self.host)
        judged = verdict.judge(estimate(asked), there)
        if judged.answer != "no" or (self.mode() == "warn" and self._again(choice)):
            return
        again = messages.text("memory.again-setting", seconds=AGAIN_S) if self.mode() == "warn" else ""
        better = verdict.recommend(asked, there, self.suitable()).choice
        remedy = messages.text("memory.instead", name=better.name) if better else self.remedy(asked, there)
        raise EncoderError("memory.encoder", name=choice.name, verdict=judged.sentence, remedy=f"{remedy} {again}".strip())

    def _again(self, key: object) -> bool:
        """Whether the same was held back less than half a minute ago."""
        now = time.monotonic()
        goes_on = self._warned.get(key, 0) > now
        self._warned = {} if goes_on else {key: now + AGAIN_S}
        return goes_on

    def remedy(self, asked: Setup, there: Capacity) -> str:
        """The cheapest change that makes it fit, as an instruction."""
        change = verdict.cheapest(asked, there, self.suitable())
        return change.sentence if change else messages.text("memory.nothing")

    def _refuse(self, message: str, remedy: str) -> None:
        self.events.add("error", "memory.verdict.no", f"{message} {messages.text('guard.refuse')}", remedy, job=True)
        raise JobRefused("memory.verdict.no", f"{message} {messages.text('guard.refuse')}", remedy)

    def foresee(self, place: str) -> Setup | None:
        """An SD3 model is about to be loaded: say so when a picture with it will not fit. Returns what it was judged by. place: its folder
        or file; of a repository that is not here yet nothing is known.
        """
        if self.mode() == "off" or not Path(place).exists():
            return None
        asked = self.setup(place, encoder=choices.find(self.deployment.status()["wanted"]))
        there = free_memory(self.host)
        judged = verdict.judge(estimate(asked), there) if asked else None
        if asked and judged and judged.answer == "no":
            text = messages.text("memory.model", model=Path(place).stem, verdict=judged.sentence)
            self.events.add("warning", "memory.model", text, self.remedy(asked, there))
        return asked

    # What a click does

    def apply(self, width: int = 1024, height: int = 1024) -> str:
        """Take the recommended text encoder; where none fits, make the change that lets the model run. Returns what was done, as a
        sentence. Raises Sd3Error when it could not be.
        """
        asked = self.setup(width=width, height=height)
        if asked is None:
            return messages.text("memory.no-sd3")
        advice = verdict.recommend(asked, free_memory(self.host), self.suitable())
        fields = {"encoder": advice.choice.name} if advice.choice else dict(advice.change.fields) if advice.change else {}
        if fields.get("encoder") == self.deployment.wanted().choice.name:
            return messages.text("memory.applied-already", name=fields["encoder"])
        with self.deployment.cancellable() as cancelled:
            done = self.host.apply(fields, cancelled)
        if not done:
            return messages.text("memory.nothing") if not advice.change else advice.change.sentence
        return messages.text("memory.applied", steps=verdict.Change(fields, asked).steps)

    def forget(self) -> str:
        """Drop what runs have shown about this machine. Returns a sentence."""
        self.corrections.forget()
        return messages.text("panel.memory.forgotten")


def _job(p: Any) -> dict[str, Any]:
    """The fields of a setup that a job brings."""
    width, height = facts.largest(p)
    return {"width": width, "height": height, "batch": max(1, int(number(p.batch_size) or 1)), "guided": guided(p.cfg_scale)}


def _short(one: verdict.Verdict, recommended: bool) -> str:
    """For the choice's row in the settings."""
    return messages.text("memory.short.recommended", short=one.short) if recommended else one.short


def _advice(advice: verdict.Advice) -> str:
    """Which T5 to take here, as a sentence."""
    if advice.choice:
        return messages.text("memory.recommended", name=advice.choice.name)
    return advice.change.sentence if advice.change else messages.text("memory.nothing")
