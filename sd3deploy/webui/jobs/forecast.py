"""Memory before it is needed. The forecast says what a picture will take here, whether it fits and what to change, and holds back what
a user wants to be asked about.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

from sd3deploy import button, messages
from sd3deploy.deployment import Deployment
from sd3deploy.deps import Lack
from sd3deploy.encoders import choices
from sd3deploy.encoders.choices import HOST_DEFAULT, Choice
from sd3deploy.encoders.swap import is_sd3
from sd3deploy.errors import EncoderError, JobRefused, Sd3Error, SettingError
from sd3deploy.guards.number import number
from sd3deploy.hints import Lacking
from sd3deploy.memory import verdict
from sd3deploy.memory.bars import Bar, bars
from sd3deploy.memory.correction import Corrections
from sd3deploy.memory.errors import Errors
from sd3deploy.memory.estimate import Setup, estimate
from sd3deploy.quality.kept import errors_of
from sd3deploy.webui.host.adapter import SdNext
from sd3deploy.webui.host.reach import sdnext
from sd3deploy.webui.jobs import facts
from sd3deploy.webui.jobs.guarding import refuse, refused
from sd3deploy.webui.jobs.memory_setup import free_memory, guided, memory_setup
from sd3deploy.webui.jobs.state import JobState, Press, state_of

__all__ = ["DEFAULT_MODE", "MODES", "Forecast"]

MODES = ("off", "warn", "ask", "block")  # of what will not fit: say nothing; say it; hold it back once for each press; refuse it
DEFAULT_MODE = "warn"  # the estimates are too young on GPUs for a default that costs pictures
AGAIN_S = 30  # a second press within this many seconds of the end of the first one goes on


class Forecast:
    """The host's hooks ask it before a model is loaded and before each job, the settings before an encoder is loaded, and the page asks
    as a job is being described.
    """

    def __init__(self, host: SdNext, deployment: Deployment) -> None:
        self.host, self.deployment, self.events = host, deployment, deployment.events
        self.corrections = Corrections(Path(sdnext.paths.data_path) / "data" / "sd3-deploy-memory.json")
        self._held: dict[str, Press] = {}  # page → the latest press of it of which something was held back
        self._refused: tuple[Choice, float] | None = None  # the encoder that was held back, and until when choosing it again goes on
        self._advised: deque[str] = deque(maxlen=50)

    def setup(self, model: str = "", **given: Any) -> Setup | None:
        """Return what `memory_setup` does, for the encoder that is in the loaded model unless `given` has another one."""
        placed = self._placed()
        if placed is None and not given.get("encoder"):
            given["encoder"] = choices.find(self.deployment.status()["wanted"])
        given.setdefault("errors", self._errors())
        return memory_setup(self.host, placed, self.corrections.of(self.host.device().name), model, **given)

    def _placed(self) -> Choice | None:
        """The choice that is in the loaded model."""
        pipeline = self.host.pipeline()
        return self.deployment.placed(pipeline).choice if is_sd3(pipeline) else None

    def _errors(self) -> Errors:
        """What was measured on the weights that the settings mean."""
        try:
            return errors_of(self.host.kept(), self.deployment.source())
        except (Sd3Error, OSError):  # whoever loads them says what is wrong
            return Errors()

    def setup_of(self, p: Any) -> Setup | None:
        """Return the setup of a job whose size, encoder and settings are final, by what stands in `p` now."""
        width, height = facts.largest(p)
        return self.setup(width=width, height=height, batch=max(1, int(number(p.batch_size) or 1)), guided=guided(p.cfg_scale))

    def suitable(self) -> list[Choice]:
        """Return the choices that this device can run, and whose packages are there or can be installed."""
        return [choice for choice, missing in self._lacks().items() if not missing.refusal]

    def _lacks(self) -> dict[Choice, Lack]:
        """Choice that this device can run → its packages that are not there; those of a group are looked for once."""
        able = choices.suitable(self.host.device())
        found = {groups: self.deployment.lack(groups) for groups in {choice.groups for choice in able}}
        return {choice: found[choice.groups] for choice in able}

    def lacking(self, encoder: Choice) -> Lacking | None:
        """Return why the encoder of the next picture of a loaded model can not be had; None where it can, or is there."""
        placed = self._placed()
        refusal = "" if placed in (None, encoder) else self.deployment.lack(encoder.groups).refusal
        if not placed or not refusal:
            return None
        return Lacking(encoder.shown, messages.text("lack.line", name=encoder.shown, lacked=refusal), placed.shown)

    def report(self, setup: Setup | None) -> dict[str, Any]:
        """Return all about memory as JSON-able values, in bytes. setup: None where there is no SD3 model."""
        capacity = free_memory(self.host)
        report: dict[str, Any] = {
            "capacity": vars(capacity) | {},
            "mode": self.mode(),
            "corrections": self.corrections.of(self.host.device().name),
        }
        if setup is None:
            return report | {"verdict": None, "line": messages.text("memory.no-sd3")}
        found = estimate(setup)
        judged = verdict.judge(found, capacity)
        peaks = {phase: need.ram if setup.kind == "cpu" else need.gpu for phase, need in found.phases.items()}
        lacks = self._lacks()
        able = [choice for choice, missing in lacks.items() if not missing.refusal]
        advice = verdict.recommend(setup, capacity, able)
        lacked = "" if setup.encoder is self._placed() else lacks.get(setup.encoder, Lack()).refusal  # fits or not, it can not be had
        change = verdict.cheapest(setup, capacity, able) if judged.answer == "no" and not lacked else None
        return report | {
            "model": setup.weights.name,
            "encoder": setup.encoder.name,
            "width": setup.width,
            "height": setup.height,
            "batch": setup.batch,
            "offload": setup.offload,
            "tiling": setup.tiling,
            "parts": dict(found.parts),
            "total": found.total,
            "phases": {phase: vars(need) | {} for phase, need in found.phases.items()},
            "verdict": vars(judged) | {"missing": judged.missing, "short": lacked or judged.short} | ({"answer": "no"} if lacked else {}),
            "line": messages.text("lack.line", name=setup.encoder.shown, lacked=lacked) if lacked else judged.sentence,
            "change": {"fields": dict(change.fields), "sentence": change.sentence} if change else None,
            "recommendation": advice.choice.name if advice.choice else None,
            "advice": messages.joined(advice.sentence, advice.basis if advice.choice else ""),
            "why": advice.sentence,
            "bars": [] if lacked else [_bar(bar) for bar in bars(found, capacity)],  # green ones would say that it runs
            "choices": {
                **{choice.id: _row(choice, one, lacks[choice], choice is advice.choice) for choice, one in advice.considered},
                **{choice.id: _row(choice, verdict.Verdict("no"), missing) for choice, missing in lacks.items() if missing.refusal},
            },
            "table": [
                *([messages.text(f"memory.part.{name}"), size] for name, size in found.parts.items() if size),
                [messages.text("memory.total"), found.total],
                *([messages.text("memory.at-most", phase=messages.text(f"memory.phase.{phase}")), need] for phase, need in peaks.items()),
            ],
        }

    def mode(self, state: JobState | None = None) -> str:
        """Return the mode that the panel has for a job, else the one of the settings, which a request may have set to anything."""
        if state and state.override and "memory" in state.override.modes:
            return state.override.modes["memory"]
        stored = self.host.option("sd3_memory")
        return stored if stored in MODES else DEFAULT_MODE

    # Before

    def check(self, p: Any) -> None:
        """Judge a job whose size, encoder and settings are final: Script.process calls it after the guards. Refuses it as they do."""
        state = state_of(p)
        if refused(p) or not is_sd3(self.host.pipeline()) or self.mode(state) == "off":
            return
        try:
            if setup := self.setup_of(p):
                self._judge(state, setup)
        except JobRefused as error:
            refuse(state, error)

    def _judge(self, state: JobState, setup: Setup) -> None:
        capacity = free_memory(self.host)
        judged = verdict.judge(estimate(setup), capacity)
        if judged.answer == "tight" and judged.sentence not in self._advised:
            self._advised.append(judged.sentence)
            self.events.add("info", "memory.verdict.tight", judged.sentence, "", job=True)
        if judged.answer != "no":
            return
        change = verdict.cheapest(setup, capacity, self.suitable())
        message, remedy = judged.sentence, _remedy(change)
        buttons = button.change(change.fields, change.steps) if change else ()
        if capacity.spills:
            message = messages.joined(message, messages.text("memory.spills"))
        mode, kind = self.mode(state), (setup.width, setup.height, setup.batch, setup.encoder, setup.offload, setup.tiling)
        holds_back = mode == "ask" and self._holds_back(state.press, kind)
        refuses = holds_back or mode == "block"
        if refuses:
            message = messages.joined(message, messages.text("guard.refuse"))
        if holds_back:
            remedy = messages.joined(remedy, messages.text("memory.again", seconds=AGAIN_S))
            buttons = (*button.generate(AGAIN_S), *buttons)
        if kind not in state.press.reported:  # a folder or a video has many pictures of one kind
            state.press.reported.add(kind)
            self.events.add("error" if refuses else "warning", "memory.verdict.no", message, remedy, job=True, buttons=buttons)
        if refuses:
            raise JobRefused("memory.verdict.no", message, remedy)
        state.report(messages.joined(message, remedy))

    def _holds_back(self, press: Press, kind: Hashable) -> bool:
        """Return whether a picture waits for a second press. Nothing waits that nobody has pressed for; and a press within AGAIN_S of the
        end of one that was held back, on the same page, which begins with a kind of picture that was held back, makes all that is in it.
        """
        if not press.by_hand or press.confirmed:
            return False
        self._held = {page: one for page, one in self._held.items() if one is press or press.began - one.ended < AGAIN_S}
        before = self._held.get(press.page)
        if before and before is not press and kind in before.held:
            press.confirmed = True
            del self._held[press.page]
            return False
        press.held.add(kind)
        self._held[press.page] = press
        return True

    def allow(self, choice: Choice) -> None:
        """Judge an encoder that is to be loaded because a setting was changed, whoever changed it; called without the host's queue. Raises
        EncoderError where it will not fit and the mode is block, or ask and it is not chosen for the second time within AGAIN_S.
        """
        mode = self.mode()
        if mode == "off" or choice is HOST_DEFAULT:
            return
        setup = self.setup(encoder=choice)
        if setup is None or not is_sd3(self.host.pipeline()):
            return
        capacity = free_memory(self.host)
        judged = verdict.judge(estimate(setup), capacity)
        if judged.answer != "no":
            return
        before, self._refused = self._refused, None
        goes_on = mode == "warn" or (mode == "ask" and before is not None and before[0] is choice and time.monotonic() < before[1])
        better = verdict.recommend(setup, capacity, self.suitable()).choice
        change = verdict.Change({"encoder": better.name}, setup) if better else verdict.cheapest(setup, capacity, self.suitable())
        remedy = messages.text("memory.instead", name=better.shown) if better else _remedy(change)
        if not goes_on and mode == "ask":
            self._refused = choice, time.monotonic() + AGAIN_S
            remedy = messages.joined(remedy, messages.text("memory.again-setting", seconds=AGAIN_S))
        error = EncoderError("memory.encoder", name=choice.shown, verdict=judged.sentence, remedy=remedy)
        error.buttons = button.change(change.fields, change.steps) if change else ()
        if not goes_on:
            raise error
        if mode == "warn":  # whoever has confirmed it has been told
            self.events.fail(error, "warning")

    def foresee(self, place: str) -> Setup | None:
        """Warn where no picture will fit with the SD3 model that is about to be loaded from `place`, a folder or a file. Returns what it
        was judged by; None for a repository that is not on this machine yet: nothing is known of it.
        """
        if self.mode() == "off" or not Path(place).exists():
            return None
        try:
            setup = self.setup(place, encoder=choices.find(self.deployment.status()["wanted"]))
        except SettingError:  # not a whole model: its load says so, and why
            return None
        capacity = free_memory(self.host)
        judged = verdict.judge(estimate(setup), capacity) if setup else None
        if setup and judged and judged.answer == "no":
            text = messages.text("memory.model", model=Path(place).stem, verdict=judged.sentence)
            change = verdict.cheapest(setup, capacity, self.suitable())
            buttons = button.change(change.fields, change.steps) if change else ()
            self.events.add("warning", "memory.model", text, _remedy(change), buttons=buttons)
        return setup

    # What a click does

    def apply(self, fields: Mapping[str, Any] | None = None, **job: Any) -> str:
        """Take the recommended text encoder; where none fits, make the change that lets the model run. fields: make this change instead.
        job: width, height, batch and guided of the pictures that are meant. Returns what was done, as a sentence. Raises Sd3Error when it
        could not be.
        """
        setup = self.setup(**job)
        if setup is None:
            return messages.text("memory.no-sd3")
        advice = verdict.recommend(setup, free_memory(self.host), self.suitable())
        if not fields:
            fields = {"encoder": advice.choice.name} if advice.choice else dict(advice.change.fields) if advice.change else {}
        if fields.get("encoder") == self.deployment.wanted().choice.name:
            return messages.text("memory.applied-already", name=choices.find(fields["encoder"]).shown)
        with self.deployment.cancellable() as cancelled:
            done = self.host.apply(fields, cancelled)
        if not done:
            return messages.text("memory.nothing") if not advice.change else advice.change.sentence
        return messages.text("memory.applied", steps=verdict.Change(fields, setup).steps)

    def forget(self) -> str:
        """Drop what runs have shown about this machine. Returns a sentence."""
        self.corrections.forget()
        return messages.text("panel.memory.forgotten")


def _remedy(change: verdict.Change | None) -> str:
    """The cheapest change that makes it fit, as an instruction."""
    return change.sentence if change else messages.text("memory.nothing")


def _row(choice: Choice, one: verdict.Verdict, missing: Lack, recommended: bool = False) -> dict[str, Any]:
    """A choice in a list: its verdict, and what it lacks. What can not be had is not asked whether it fits."""
    said = {"sentence": one.sentence, "short": messages.text("memory.short.recommended", short=one.short) if recommended else one.short}
    if missing.refusal:
        said = dict.fromkeys(said, missing.refusal)
    elif missing.installs:
        said["short"] = messages.text("memory.short.installs", short=said["short"], names=", ".join(missing.installs))
    return vars(one) | said | {"name": choice.name, "recommended": recommended}


def _bar(bar: Bar) -> dict[str, Any]:
    one = bar.verdict
    return {
        "phase": one.phase,
        "name": messages.text(f"memory.phase.{one.phase}"),
        "where": one.where,
        "place": messages.text(f"memory.where.{one.where}"),
        "need": one.need,
        "usable": one.usable,
        "answer": one.answer,
        "short": one.short,
        "sentence": bar.sentence,
        "segments": [{"part": name, "name": messages.text(f"memory.part.{name}"), "bytes": size} for name, size in bar.segments.items()],
    }
