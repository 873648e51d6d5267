"""Change the encoder of the loaded model: make the next one, put it into every pipeline of the model, and let go of the old one."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable
from typing import Any

from sd3deploy.deployment.host import Host
from sd3deploy.deployment.making import Making
from sd3deploy.deployment.placed import Placed
from sd3deploy.deployment.undertaking import Undertaking
from sd3deploy.deployment.wanted import Wanted
from sd3deploy.encoders import load, swap, tokenizer
from sd3deploy.encoders import stopping as encoder_stopping
from sd3deploy.encoders.choices import NONE, Choice
from sd3deploy.encoders.handover import Handover, forget_tensors
from sd3deploy.encoders.mode import ordinary
from sd3deploy.encoders.source import Source
from sd3deploy.encoders.stopping import Stopped
from sd3deploy.events import Events
from sd3deploy.memory import exhausted

__all__ = ["Changing"]


class Changing:
    """Changes encoders."""

    def __init__(self, host: Host, events: Events, making: Making, placed: Placed) -> None:
        self._host, self._events, self._making, self._placed = host, events, making, placed
        self._told: set[str] = set()
        self._complete: weakref.WeakSet[Any] = weakref.WeakSet()  # encoders to which a tokenizer was looked for

    def change(self, pipeline: Any, wanted: Wanted, under: Undertaking) -> None:
        """Bring `pipeline`, and whatever shares its parts, from what is in it to what is wanted.

        Called with `Busy` held and the queue held or within the load of the model. Raises Stopped when it was cancelled, Sd3Error with a
        remedy, and what the host's own functions raise; then what was there before is there again. Once the next encoder is in place
        nothing is raised: what fails then is told.
        """
        stands = False
        self._host.require_swap()
        before = self._placed.read(pipeline)
        try:
            name = wanted.choice.shown
            with ordinary(), under.doing("encoder.loading", name=name), self._host.job("Load TE", name) as job, under.heeding(job.stopped):

                def again() -> Any:
                    under.insist()
                    return self._making.make(before, job.report, under)[0]

                step = Handover(
                    pipeline,
                    self._host,
                    again,
                    mapped=self._placed.is_mapped(pipeline.text_encoder_3),
                    gone=lambda: self._placed.set_emptied(pipeline, True),
                    failed=lambda error: self.tell_afterwards(wanted.choice, error),
                )
                try:
                    self._replace(pipeline, wanted, job.report, under, step)
                except Exception as error:
                    forget_tensors(error)
                    self._back(step, pipeline, before)
                    raise
                stands = True
                self._placed.set_emptied(pipeline, wanted.choice is NONE)
                if kept := step.settle():  # only here none of our own calls holds the old one any more
                    self._tell_kept(before.choice, kept)
            self._placed.tell_ready(wanted.choice, pipeline.text_encoder_3, self._events)
        except Exception as error:
            if not stands:
                raise
            self.tell_afterwards(wanted.choice, error)

    def complete(self, pipeline: Any) -> None:
        """Give T5's tokenizer to a pipeline that has T5 and no usable one, as the model is loaded around an encoder of ours. Called as
        `change`, looks once for each encoder. Raises nothing: that there is none is told.
        """
        try:
            encoder = swap.plain(pipeline.text_encoder_3)
            if encoder is None or encoder in self._complete:
                return
            self._complete.add(encoder)
            if tokenizer.usable(getattr(pipeline, "tokenizer_3", None), encoder.config.vocab_size):
                return
            wanted = self._placed.read(pipeline)
            found = self._tokenizer(pipeline, encoder, self._making.source(wanted) if wanted.choice.bytes else None)
            swap.give_tokenizer(pipeline, found)
        except Exception as error:
            self._events.fail(error, about="encoder")

    def tell_afterwards(self, choice: Choice, error: Exception) -> None:
        """Say that a step has failed on which the encoder does not depend."""
        self._events.tell("warning", "encoder.afterwards", name=choice.shown, error=f"{type(error).__name__}: {error}")

    def _replace(
        self, pipeline: Any, wanted: Wanted, report: Callable[[int, int], None], under: Undertaking, step: Handover
    ) -> None:
        """Make the encoder that is wanted and put it into the pipelines."""
        try:
            encoder, found = self._making.make(wanted, report, under, step)
            fits = None
            if encoder is not None:
                with contextlib.suppress(Stopped), encoder_stopping.stoppable(under.cancelled):
                    fits = self._tokenizer(pipeline, encoder, found)
            under.check(wanted.choice)
            step.put(encoder, fits)
        except Exception as error:
            if exhausted.read_exhausted(error):
                raise load.too_large(wanted.choice) from error
            raise

    def _tokenizer(self, pipeline: Any, encoder: Any, weights: Source | None) -> Any:
        return tokenizer.find(getattr(pipeline, "tokenizer_3", None), encoder, self._host.facts(), weights)

    def _back(self, step: Handover, pipeline: Any, before: Wanted) -> None:
        """Nothing came of the next encoder: the one before it comes back, or, where even that fails, the two CLIP encoders remain."""
        try:
            step.back()
            if pipeline.text_encoder_3 is not None:
                self._placed.set_emptied(pipeline, False)
        except Exception as error:
            self._events.fail(error, about="encoder")
            self._events.tell("warning", "encoder.gone", name=before.choice.shown)

    def _tell_kept(self, choice: Choice, kept: list[str]) -> None:
        """Say it once for each kind of object."""
        if (by := ", ".join(kept)) not in self._told:
            self._told.add(by)
            self._events.tell("warning", "encoder.kept-alive", name=choice.shown, by=by)
