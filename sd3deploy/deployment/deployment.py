"""The one job of this extension: bring the loaded SD3 model to the text encoder that the user chose, without a restart.

    setting (wanted) → packages → weights or cache → encoder (making) → pipelines (changing) → event

The host is reached through `Host` alone; nothing here knows the webui.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from sd3deploy import installed, messages, units
from sd3deploy.deployment import locks
from sd3deploy.deployment.changing import Changing
from sd3deploy.deployment.failures import SETTINGS, TRIAL, Failures
from sd3deploy.deployment.host import Host
from sd3deploy.deployment.later import Later
from sd3deploy.deployment.making import Making
from sd3deploy.deployment.newcomers import Newcomers
from sd3deploy.deployment.placed import Placed
from sd3deploy.deployment.undertaking import Progress, Undertaking, Undertakings
from sd3deploy.deployment.wanted import Settings, Wanted
from sd3deploy.deps import Lack, stopping
from sd3deploy.encoders import choices, swap
from sd3deploy.encoders.choices import HOST_DEFAULT, Choice
from sd3deploy.encoders.quantize import Stopped
from sd3deploy.encoders.source import Source
from sd3deploy.events import Event, Events
from sd3deploy.refresh import Verdict

__all__ = ["Deployment"]

_REPORTED = ("bitsandbytes", "accelerate", "sentencepiece", "transformers", "diffusers", "torch", "numpy")


class Deployment:
    """What the webui asks for. It holds no copy of the truth: what is loaded is read off the pipeline, what is wanted off the settings.

    Locks, see locks.py: the host's queue first, then `busy`. Whoever loads a model does so inside `with deployment.busy`.
    """

    def __init__(self, host: Host, events: Events) -> None:
        self.host = host
        self.events = events
        self.busy = locks.Busy()
        self._settings = Settings(host.option, events)
        self._placed = Placed()
        self._under_way = Undertakings(events)
        self._making = Making(host, events, self._placed)
        self._warned: set[str] = set()  # what was said of files that have changed
        self._failures = Failures(events)
        self._stood: Wanted | None = None  # what the settings asked for when that was last brought
        self._given_up: Wanted | None = None  # what they ask for since a change came to nothing: pictures go on with what stood
        self._changing = Changing(host, events, self._making, self._placed)
        self._newcomers = Newcomers(host.queue, self.busy, self._tell_unusable)

    # What is wanted, and what is there

    def wanted(self, choice: object = None) -> Wanted:
        """What the settings ask for; `choice` instead of the stored one. Raises SettingError for a value that means nothing."""
        return self._settings.wanted(choice)

    def placed(self, pipeline: Any) -> Wanted:
        """What is in the pipeline now, read off the pipeline itself."""
        return self._placed.read(pipeline)

    def next(self) -> Wanted:
        """What the next picture is made with that asks for nothing of its own: what has failed is not tried again, and leaves what stood.
        Called with any lock held.
        """
        due, pipeline = self._due(), self.host.pipeline()
        return self.placed(pipeline) if self._failures.has(due, SETTINGS) and swap.is_sd3(pipeline) else due

    def source(self) -> Source:
        """Where the settings take T5's weights from, whichever encoder is chosen. Raises Sd3Error where that is nowhere."""
        return self._making.source(self._settings.wanted(choices.find("bf16")))

    def lack(self, groups: tuple[str, ...]) -> Lack:
        """The packages of those groups that are not there yet, and whether they can be installed. Called with any lock held."""
        return self._making.lack(groups)

    # The ways in

    def change(
        self, allow: Callable[[Choice], None] = lambda choice: None, undo: Callable[[Wanted | None], object] = lambda stood: None
    ) -> None:
        """A setting was changed: install what is missing, wait for the running job and for a model that is being loaded, swap.

        Called with neither lock held; the queue is free while it waits for a load. `cancel` ends it. Raises Sd3Error, Stopped when it was
        cancelled, and what the host's own functions raise; then nothing has changed. Once the encoder is in place it raises nothing. Where
        the settings want another encoder by the time that the locks are held it does nothing: whoever has set that brings it.
        allow: asked before anything is done; raises for a choice that is not to be loaded now. undo: puts the setting back where nothing
        comes of the change, and is given what the settings asked for before, where that is known; called with the locks held that the
        change has, so that no picture reads the setting before. Where the settings keep another source, pictures go on with what was there.
        """
        with self._under_way.begin() as under:
            self._change(allow, under, undo)

    def later(self, allow: Callable[[Choice], None]) -> Later:
        """What is asked when a setting was changed that others follow, and that nobody puts back: it does the same as `change`, on a thread
        of its own, unless such a change brings the same already. What fails, is cancelled or is not allowed is told, and is not tried with
        every image though the settings still want it.
        """

        def asked(under: Undertaking) -> AbstractContextManager[None]:
            self._given_up = None
            return self._coming(under)

        def work(under: Undertaking) -> None:
            wanted = self._settings.wanted_or_default()
            if wanted != self._given_up and not self._under_way.has_change(wanted, under):
                with contextlib.suppress(Exception):  # it was told
                    self._change(allow, under)

        return Later(self._under_way, work, asked)

    def _change(
        self, allow: Callable[[Choice], None], under: Undertaking, undo: Callable[[Wanted | None], object] = lambda stood: None
    ) -> None:
        begun, self._given_up = self._failures.begin(), None
        try:
            with self._undoing(undo), self._coming(under):
                wanted = under.change = self.wanted()
                under.check(wanted.choice)
                choices.require(wanted.choice, self.host.device())
                allow(wanted.choice)
                self._making.install(wanted, under)  # outside the queue: new files disturb no running job
            with (
                self._coming(under),
                locks.both(self.host.queue(), self.busy, under.cancelled, self._waiting(under, wanted)) as mine,
                self._undoing(undo),
            ):
                if not mine:
                    under.check(wanted.choice)
                if self._settings.wanted_or_default() != wanted:
                    return
                pipeline = self.host.pipeline()
                if swap.is_sd3(pipeline) and self.placed(pipeline) != wanted:
                    self._changing.change(pipeline, wanted, under)
                self._stood = wanted
                self._failures.end(begun)
        except Exception as error:
            self._failures.leave(self._tell_failed(error))
            raise
        if pipeline is None and wanted.choice is not HOST_DEFAULT:
            self.events.tell("info", "encoder.later", name=wanted.choice.shown)

    def reconcile(self, choice: object = None, stopped: Callable[[], object] = lambda: None, page: str = "") -> Wanted | None:
        """Bring the loaded model to what is wanted: before a job, and within the load of a model.

        Called by a job of the host, which holds the queue, or inside `with busy` of a load. While another thread loads a model, a job whose
        encoder is there goes on at once; another waits until the model is there, because a picture with another encoder is not the one
        that was asked for; `cancel` and the host's own Stop end that. A failure is told, not raised.
        stopped: called when somebody has cancelled it. page: whose job it is, "" for a request. Returns what is in the pipeline afterwards,
        None when no SD3 model is loaded.
        """
        asker = SETTINGS if choice is None else page
        wanted, placed = self._bring(self._due if choice is None else lambda: self._settings.wanted_or_default(choice), asker, stopped)
        if placed == wanted:
            self._recover(asker, page, wanted)
        return placed

    @contextmanager
    def instead(self, choice: object) -> Iterator[bool]:
        """Another encoder in the loaded model for the time inside, and then the one that is in it now. Gives whether it is there.

        Called by a job of the host, which holds the queue. A failure is told, not raised, and holds nothing up: what the settings want is
        tried again with the next image, where it did not come back.
        """
        before = self.placed(self.host.pipeline())
        wanted, placed = self._bring(lambda: self._settings.wanted_or_default(choice), TRIAL)
        try:
            yield placed == wanted
        finally:
            pipeline = self.host.pipeline()
            if swap.is_sd3(pipeline) and self.placed(pipeline) == placed:  # else another model has come, with what is to be in that
                self._bring(lambda: before, TRIAL)
            self._failures.forget(TRIAL)

    def _bring(
        self, read: Callable[[], Wanted], asker: str, stopped: Callable[[], object] = lambda: None
    ) -> tuple[Wanted, Wanted | None]:
        """Bring the loaded model to what `read` gives, which is asked again where it had to wait. Returns that and what is in the pipeline
        afterwards, None where that is no SD3 model. What has failed before for that asker is left; a failure is told.
        """
        self.host.pipeline()  # a host that has changed so much raises here, before a failure would be told as one of the encoder
        wanted = read()
        if not self._failures.has(wanted, asker):
            try:
                with self._under_way.begin() as under, self._change_of(wanted, under) as pipeline:
                    wanted = read()
                    if swap.is_sd3(pipeline) and self.placed(pipeline) != wanted:
                        self._changing.change(pipeline, wanted, under)
            except Exception as error:
                told = self._tell_failed(error)
                if _was_cancelled(error):
                    stopped()
                else:
                    self._failures.add(wanted, asker, told)
        pipeline = self.host.pipeline()
        if not swap.is_sd3(pipeline):
            return wanted, None
        self._changing.complete(pipeline)
        if pipeline.text_encoder_3 is None and self._failures.has(self._settings.wanted_or_default(), SETTINGS):  # it was loaded without
            self._placed.set_emptied(pipeline, True)
        return wanted, self.placed(pipeline)

    def encoder_for_load(self) -> tuple[bool, Any]:
        """Asked while an SD3 model is being loaded: (whether the choice is ours to make, the encoder or None).

        Called inside `with busy` of that load; takes no lock and raises nothing. A failure is told and leaves the model with its CLIP
        encoders: the host's full-size T5 might not fit, or be a download of gigabytes that nobody asked for. So does whoever cancels it.
        """
        wanted = self._stood = self._settings.wanted_or_default()
        begun, self._given_up = self._failures.load(), None
        if wanted.choice is HOST_DEFAULT:
            self._failures.end(begun)
            return False, None
        encoder, made = None, False
        try:
            name = wanted.choice.name
            with self._under_way.begin() as under, under.doing("encoder.loading", name=name), self.host.job("Load TE", name) as job:
                with under.heeding(job.stopped):
                    encoder, _ = self._making.make(wanted, job.report, under)
                made = True
            self._failures.end(begun)
            self._placed.tell_ready(wanted.choice, encoder, self.events)
        except Exception as error:
            if made:
                self._changing.tell_afterwards(wanted.choice, error)
            else:
                self._stood = None
                self._failures.add(wanted, SETTINGS, self._tell_failed(error))
                self.events.tell("warning", "encoder.without-t5")
        return True, encoder

    @contextmanager
    def cancellable(self) -> Iterator[Callable[[], bool]]:
        """For the time inside `cancel` ends something else of ours, which asks what is given here whether it is to end."""
        with self._under_way.begin() as under:
            yield under.cancelled

    @property
    def loading(self) -> bool:
        """Whether a change or the load of an encoder is under way. Never waits for a lock."""
        return bool(self._under_way)

    @property
    def phase(self) -> str | None:
        """What is being done, as a sentence. Never waits for a lock."""
        latest = self._under_way.latest
        return latest.phase if latest else None

    @property
    def progress(self) -> Progress | None:
        """How far an encoder has been read. Never waits for a lock."""
        return self._under_way.progress

    def cancel(self) -> bool:
        """End what is under way soon, with everything as it was before. Returns at once whether there was anything. Called from any thread,
        with any lock held.
        """
        return self._under_way.cancel()

    def installed(self, distributions: list[str]) -> threading.Thread | None:
        """The host has installed packages by itself; see Newcomers.add."""
        return self._newcomers.add(distributions)

    def status(self) -> dict[str, Any]:
        """The state as JSON-able values; sizes in bytes. Never waits for a lock."""
        pipeline = self.host.pipeline()
        sd3 = swap.is_sd3(pipeline)
        encoder = pipeline.text_encoder_3 if sd3 else None
        measured = self._placed.measure(encoder) if encoder is not None else None
        error = self.events.last_error
        progress = self.progress
        return {
            "model": self.host.model_name() if sd3 else None,
            "encoder": self.placed(pipeline).choice.name if sd3 else None,
            "wanted": self._settings.wanted_or_default().choice.name,
            "next": self.next().choice.name,
            "failed": self._failures.names,
            "left": self._settings.wanted_or_default() == self._given_up,
            "linear4bit": measured.linear4bit if measured else 0,
            "wo_quantized": bool(measured and measured.wo_quantized),
            "quantized_before": self._placed.quantized_before(encoder) or None,
            "emulates": measured is not None and self.host.device().emulates,
            "t5_bytes": measured.bytes if measured else 0,
            "t5_bytes_16bit": measured.bytes_16bit if measured else 0,
            "busy": self.phase,
            "progress": progress.report() if progress else None,
            "encoder_warning": self._changed_on_disk(encoder),
            "last_error": {"id": error.id, "message": error.message, "remedy": error.remedy} if error else None,
            "packages": {name: installed.version(name) for name in _REPORTED},
            "pid": os.getpid(),
        }

    def _changed_on_disk(self, encoder: Any) -> dict[str, str] | None:
        """That a file was changed from which the encoder still reads. Told once, and kept in the status."""
        if (values := self._placed.changed_on_disk(encoder)) is None:
            return None
        id = "encoder.changed-on-disk"
        message, remedy = messages.text(id, **values), messages.remedy(id, **values)
        if message not in self._warned:
            self._warned.add(message)
            self.events.add("warning", id, message, remedy)
        return {"id": id, "message": message, "remedy": remedy}

    def t5_state(self) -> str:
        """How T5 is in the loaded SD3 model, in a few words that are the same in every language: they go into the metadata of pictures."""
        encoder = self.host.pipeline().text_encoder_3
        if encoder is None:
            return "off"
        found = self._placed.measure(encoder)
        narrow = f" with {found.linear4bit} of {found.linears} layers in 4 bit" if found.linear4bit else ""
        before = self._placed.quantized_before(encoder)
        return units.size(found.bytes) + narrow + (f" from {before}" if before else "")

    # Small things

    def _due(self) -> Wanted:
        """What a picture is made with that asks for nothing of its own."""
        wanted, pipeline = self._settings.wanted_or_default(), self.host.pipeline()
        if wanted != self._given_up and not self._failures.has(wanted, SETTINGS):
            return wanted
        return self._stood or (self.placed(pipeline) if swap.is_sd3(pipeline) else wanted)

    @contextmanager
    def _undoing(self, undo: Callable[[Wanted | None], object]) -> Iterator[None]:
        """Where nothing comes of the inside, put the setting back, and leave the source that it may still name to the next change."""
        try:
            yield
        except Exception:
            undo(self._stood)
            if (wanted := self._settings.wanted_or_default()) != self._stood:
                self._given_up = wanted
            raise

    def _coming(self, under: Undertaking) -> AbstractContextManager[None]:
        """For the time inside it is said that the encoder of the settings is loaded, where that is to come."""
        wanted, pipeline = self._settings.wanted_or_default(), self.host.pipeline()
        if not swap.is_sd3(pipeline) or self.placed(pipeline) == wanted:
            return contextlib.nullcontext()
        return under.doing("encoder.loading", told=False, name=wanted.choice.shown)

    def _waiting(self, under: Undertaking, wanted: Wanted) -> Callable[[str], AbstractContextManager[Any]]:
        """What to say while something else goes on: a "job" of the host, the load of a "model", or another change. Nothing, where a change
        brings the same.
        """

        def waiting(what: str) -> AbstractContextManager[Any]:
            if self._under_way.has_change(wanted, under):
                return contextlib.nullcontext()
            id = {"job": "encoder.waiting", "model": "encoder.waiting-model"}[what]
            if what == "job" and self.busy.changing:
                id = "encoder.waiting-change"
            return under.doing(id, waits=True, name=wanted.choice.shown)

        return waiting

    @contextmanager
    def _change_of(self, wanted: Wanted, under: Undertaking) -> Iterator[Any]:
        """The pipeline with `busy` held for the time inside; None, with nothing held, where a model is being loaded and there is nothing to
        do. Raises Stopped.
        """
        if not self.busy.acquire(0):
            pipeline = self.host.pipeline()
            if not swap.is_sd3(pipeline) or (self.placed(pipeline) == wanted and not self.busy.changing):
                yield None
                return
            self._wait(wanted, under)
        try:
            yield self.host.pipeline()
        finally:
            self.busy.release()

    def _wait(self, wanted: Wanted, under: Undertaking) -> None:
        """Take `busy` once no other thread loads a model. The queue is the job's own: it can not be given back meanwhile."""
        name = wanted.choice.name
        waiting = under.doing("encoder.waiting-model", waits=True, name=name)
        with waiting, self.host.job("Load TE", name) as job, under.heeding(job.stopped):
            while not self.busy.acquire(locks.PATIENCE_S):
                under.check(wanted.choice)

    def _tell_unusable(self, verdict: Verdict) -> None:
        for one in verdict.restart:
            self.events.tell("warning", "restart.needed", name=one.name, reason=one.reason)
        for one in verdict.failed:
            self.events.tell("warning", "refresh.unusable", name=one.name, reason=one.reason)

    def _in_use(self) -> str:
        """What is in the model instead of what was wanted, as a sentence; "" where that is nothing, or can not be told."""
        with contextlib.suppress(Exception):
            pipeline = self.host.pipeline()
            if swap.is_sd3(pipeline):
                left, stood = self._given_up, self._stood
                id = "encoder.kept-source" if left and stood and left.choice is stood.choice else "encoder.kept"
                return messages.text(id, name=self.placed(pipeline).choice.shown)
        return ""

    def _recover(self, asker: str, page: str, wanted: Wanted) -> None:
        """What `asker` asks for is there, with no word. A page whose job has no encoder of its own has given up what it had asked for."""
        asks = self._settings.wanted_or_default()
        if asker == SETTINGS and asks != wanted:  # it stands in for what was asked for
            return
        if asker == SETTINGS:
            self._stood = wanted
        self._failures.recover(asker)
        self._failures.recover(page)
        if asks != self._given_up and not self._failures.has(asks, SETTINGS):
            self._failures.settle()

    def _tell_failed(self, error: Exception) -> Event:
        """An error, or that somebody has cancelled it: then with what is in use instead."""
        if not _was_cancelled(error):
            return self.events.fail(error, kept=self._in_use(), about="encoder")
        text = str(error)
        if isinstance(error, Stopped):
            text = messages.joined(text, self._in_use())
        return self.events.add("info", getattr(error, "id", "encoder.cancelled"), text, "")


def _was_cancelled(error: Exception) -> bool:
    return isinstance(error, (Stopped, stopping.Stopped))
