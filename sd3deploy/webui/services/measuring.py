"""How near each text encoder comes to float32 on the weights that the settings name, measured for the page and for scripts.

It runs in a process of its own, which computes only while the host has nothing to do: pictures and loads go first, and it holds on for as
long as they take. It never has the queue, because it takes minutes to hours. In this process it would share the interpreter with a picture,
leave pieces in the heap, and be learned as what a picture needs. What disturbs is the memory that it keeps while it holds on, 2 GB at most:
it does not begin where they are not free.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sd3deploy import messages
from sd3deploy.deployment import Deployment
from sd3deploy.deployment.locks import in_use, taken
from sd3deploy.encoders.stopping import Stopped
from sd3deploy.errors import EncoderError
from sd3deploy.webui.host.adapter import SdNext
from sd3deploy.webui.services.background import Background

__all__ = ["Measurement", "Measuring"]


@dataclass
class Measurement:
    """One measurement. state: running, done, failed or cancelled. fraction: 0 to 1, with what was kept. text: what is being done.

    done: what was found, as quality.apart gives it. error: why it failed.
    """

    number: int
    started: float = field(default_factory=time.time)
    state: str = "running"
    fraction: float = 0.0
    text: str = ""
    done: dict[str, Any] | None = None
    error: dict[str, str] | None = None

    def report(self) -> dict[str, Any]:
        """As JSON-able values: sizes in bytes, times in seconds. rows: the smallest error first."""
        choices = self.done["report"]["choices"] if self.done else {}
        return {
            "job": self.number,
            "started": self.started,
            "state": self.state,
            "fraction": round(self.fraction, 3),
            "text": self.text,
            "title": self.done["title"] if self.done else "",
            "rows": [{"id": id} | {key: one[key] for key in one if key != "prompts"} for id, one in choices.items()],
            "notes": self.done["omissions"] if self.done else [],
            "error": self.error,
        }


class Measuring(Background[Measurement]):
    """Measurements as background work; what a cancelled one has measured is kept."""

    def __init__(self, host: SdNext, deployment: Deployment) -> None:
        super().__init__()
        self.host, self.deployment, self.events = host, deployment, deployment.events

    def start(self) -> Measurement:
        """Begin; where a job runs already, that one. Raises Sd3Error where there are no weights on this disk, or too little memory."""
        from sd3deploy.quality import apart, measuring, prompts

        if self.job is not None and self.running:
            return self.job
        device, facts = self.host.device(), self.host.facts()
        if not facts.model and self.deployment.wanted("bf16").weights in ("Automatic", "Model"):
            raise EncoderError("source.no-model")
        source = self.deployment.source()
        if source.place == facts.model:
            source = replace(source, name=self.host.model_name() or Path(facts.model).name)
        measuring.opened(source)
        measuring.require_memory(device)
        places = [Path(place) for place in (facts.model, facts.tokenizer) if place]
        order = apart.Order(source, prompts.OWN, places, self.host.kept(), device)
        return self._begin(Measurement, lambda job: self._run(job, order))

    def begin(self) -> str:
        """`start`, as a button does it: the sentence to show."""
        self.start()
        return messages.text("quality.started")

    def _run(self, job: Measurement, order: Any) -> None:
        from sd3deploy.quality import apart

        state = "failed"
        waiting, said = messages.text("verify.waiting"), messages.text("quality.beginning")

        def progress(fraction: float, done: int, all: int, name: str) -> None:
            nonlocal said
            job.fraction, said = fraction, messages.text("quality.running", percent=round(100 * fraction, 1), done=done, all=all, name=name)

        def held() -> bool:
            busy = in_use(self.host.queue()) or self.deployment.loading
            job.text = f"{said}. {waiting}" if busy else said
            return busy

        try:
            job.text = waiting
            with taken(self.host.queue(), self._cancelled.is_set) as mine:  # and given back: the process begins beside no picture
                if not mine:
                    raise Stopped("quality.stopped")
            job.done = apart.in_child(order, progress, self._cancelled.is_set, held)
            state = "done"
            job.text = self._told(job.done["report"]["choices"])
        except Stopped as error:
            state = "cancelled"
            job.text = self.events.fail(error, "info").message
        except Exception as error:
            told = self.events.fail(error, about="quality")
            job.error = {"id": told.id, "message": told.message, "remedy": told.remedy}
            job.text = ""
        finally:
            job.fraction = 1.0 if state == "done" else job.fraction
            job.state = state

    def _told(self, choices: dict[str, Any]) -> str:
        """Say which one is nearest."""
        best = next(iter(choices.values()), None)
        if best is None:
            return self.events.tell("warning", "quality.nothing").message
        error = f"{best['error']['mean']:.4f}"
        text = messages.text("quality.measured", name=best["name"], error=error)
        return self.events.add("success", "quality.measured", text, "", about="quality").message
