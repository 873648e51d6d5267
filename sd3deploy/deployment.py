"""The one job of this extension: bring the loaded SD3 model to the text encoder that the user chose, without a restart.

    setting → packages (install, refresh, prove) → weights → encoder → pipeline → event

The host is reached through `Host` alone; nothing here knows the webui.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from sd3deploy import deps, packages, units
from sd3deploy.device import Device
from sd3deploy.encoders import choices, load, measure, source, swap
from sd3deploy.encoders.choices import HOST_DEFAULT, NONE, Choice
from sd3deploy.errors import RestartRequired, SettingError
from sd3deploy.events import Events
from sd3deploy.memory import exhausted
from sd3deploy.refresh import refresh

__all__ = ["Deployment", "Host", "Wanted"]

_REPORTED = ("bitsandbytes", "accelerate", "sentencepiece", "transformers", "diffusers", "torch", "numpy")


@dataclass(frozen=True)
class Wanted:
    """A text encoder as the settings ask for it: the choice, the kind of source, and the file where the source is one."""

    choice: Choice
    weights: str = "Automatic"
    file: str = ""


class Host(Protocol):
    """What the webui has to offer. Nothing of it may take the host's queue lock except `queue`."""

    def option(self, key: str) -> Any: ...
    def pipeline(self) -> Any: ...
    def model_name(self) -> str | None: ...
    def facts(self) -> source.Facts: ...
    def device(self) -> Device: ...
    def sdnq_config(self) -> Any: ...
    def default_encoder(self) -> Any: ...
    def swapped(self, pipeline: Any) -> None: ...
    def free(self) -> None: ...
    def queue(self) -> AbstractContextManager[Any]: ...
    def queue_is_busy(self) -> bool: ...
    def job(self, title: str, steps: int, about: str) -> AbstractContextManager[Callable[[], None]]: ...
    def install_options(self) -> deps.Options: ...


class Deployment:
    """Holds no copy of the truth: what is loaded is read off the pipeline, what is wanted off the settings.

    Locks: the host's queue first, then `busy`. Whoever loads a model holds `busy`, so that a change of the settings waits
    for it; `busy` is re-entrant because loading a model asks for its encoder on the way.
    """

    def __init__(self, host: Host, events: Events) -> None:
        self.host = host
        self.events = events
        self.busy = threading.RLock()
        self.phase: str | None = None
        self._made: weakref.WeakKeyDictionary[Any, tuple[Wanted, measure.Measure]] = weakref.WeakKeyDictionary()
        self._emptied: weakref.WeakSet[Any] = weakref.WeakSet()  # transformers whose pipeline we left without T5
        self._proven: set[tuple[str, ...]] = set()
        self._failed: Wanted | None = None  # not tried again with every image: only a change or another load does that
        self._complained: set[str] = set()

    # What is wanted, and what is there

    def wanted(self, choice: object = None) -> Wanted:
        """What the settings ask for; `choice` instead of the stored one. Raises SettingError for a value that means nothing."""
        found = choices.find(self.host.option("sd3_text_encoder") if choice is None else choice)
        if found in (HOST_DEFAULT, NONE):
            return Wanted(found)
        kind = self._kind()
        return Wanted(found, kind, str(self.host.option("sd3_weights_file") or "") if kind == "Local file" else "")

    def placed(self, pipeline: Any) -> Wanted:
        """What is in the pipeline now, read off the pipeline itself."""
        encoder = pipeline.text_encoder_3
        if encoder is None:
            return Wanted(NONE if getattr(pipeline, "transformer", None) in self._emptied else HOST_DEFAULT)
        return self._made[encoder][0] if encoder in self._made else Wanted(HOST_DEFAULT)

    # The ways in

    def change(self, allow: Callable[[Choice], None] = lambda choice: None) -> None:
        """A setting was changed: install what is missing, wait for the running job, swap. Raises Sd3Error; then nothing has changed.

        allow: asked before anything is done; raises for a choice that is not to be loaded now.
        """
        self._failed = None
        try:
            wanted = self.wanted()
            choices.require(wanted.choice, self.host.device())
            allow(wanted.choice)
            self._install(wanted.choice)  # outside the queue: new files disturb no running job
            if self.host.queue_is_busy():
                self.events.tell("info", "encoder.waiting", name=wanted.choice.name)
            with self.host.queue():
                self._bring(wanted)
        except Exception as error:
            self.events.fail(error)
            raise
        if self.host.pipeline() is None and wanted.choice is not HOST_DEFAULT:
            self.events.tell("info", "encoder.later", name=wanted.choice.name)

    def reconcile(self, choice: object = None) -> Wanted | None:
        """Bring the loaded model to what is wanted; the caller holds the host's queue. A failure is told, not raised.

        Returns what is in the pipeline afterwards, None when no SD3 model is loaded.
        """
        wanted = self._wanted_or_default(choice)
        if wanted != self._failed:
            try:
                self._bring(wanted)
            except Exception as error:
                self._failed = wanted
                self.events.fail(error)
        pipeline = self.host.pipeline()
        return self.placed(pipeline) if swap.is_sd3(pipeline) else None

    def encoder_for_load(self) -> tuple[bool, Any]:
        """Asked while an SD3 model is being loaded: (whether the choice is ours to make, the encoder or None).

        A failure is told and leaves the model with its CLIP encoders: the host's full-size T5 might not fit, or be a download
        of gigabytes that nobody asked for.
        """
        wanted = self._wanted_or_default()
        self._failed = None
        if wanted.choice is HOST_DEFAULT:
            return False, None
        try:
            with self._phase("encoder.loading", name=wanted.choice.name):
                encoder, _ = self._make(wanted)
            self._tell_ready(wanted.choice, encoder)
            return True, encoder
        except Exception as error:
            self._failed = wanted
            self.events.fail(error)
            self.events.tell("warning", "encoder.without-t5")
            return True, None

    def installed(self, distributions: list[str]) -> None:
        """The host installed packages by itself: make them usable, and say so only where a restart is needed after all."""
        if not distributions:
            return
        verdict = refresh(distributions)
        for restart in verdict.restart:
            self.events.tell("warning", "restart.needed", name=restart.name, reason=restart.reason)

    def status(self) -> dict[str, Any]:
        """The state as JSON-able values; sizes in bytes. Never waits for a lock."""
        pipeline = self.host.pipeline()
        sd3 = swap.is_sd3(pipeline)
        encoder = pipeline.text_encoder_3 if sd3 else None
        measured = self._measured(encoder) if encoder is not None else None
        error = self.events.last_error
        return {
            "model": self.host.model_name() if sd3 else None,
            "encoder": self.placed(pipeline).choice.name if sd3 else None,
            "wanted": self._wanted_or_default().choice.name,
            "linear4bit": measured.linear4bit if measured else 0,
            "wo_quantized": bool(measured and measured.wo_quantized),
            "t5_bytes": measured.bytes if measured else 0,
            "t5_bytes_16bit": measured.bytes_16bit if measured else 0,
            "busy": self.phase,
            "last_error": {"id": error.id, "message": error.message, "remedy": error.remedy} if error else None,
            "packages": {name: packages.version(name) for name in _REPORTED},
            "pid": os.getpid(),
        }

    def t5_state(self) -> str:
        """How T5 is in the loaded SD3 model, in a few words that are the same in every language: they go into the metadata of pictures."""
        encoder = self.host.pipeline().text_encoder_3
        if encoder is None:
            return "off"
        found = self._measured(encoder)
        narrow = f" with {found.linear4bit} of {found.linears} layers in 4 bit" if found.linear4bit else ""
        return units.size(found.bytes) + narrow

    # The steps

    def _bring(self, wanted: Wanted) -> None:
        with self.busy:
            pipeline = self.host.pipeline()
            if not swap.is_sd3(pipeline) or self.placed(pipeline) == wanted:
                return
            with self._phase("encoder.loading", name=wanted.choice.name), self.host.job("Load TE", 2, wanted.choice.name) as step:
                encoder, found = self._make(wanted)
                step()
                tokenizer = swap.tokenizer(pipeline, self.host.facts().model, found) if encoder is not None and found else None
                self._swap(pipeline, wanted.choice, encoder, tokenizer)
                if wanted.choice is NONE:
                    self._emptied.add(pipeline.transformer)
                else:
                    self._emptied.discard(pipeline.transformer)
                step()
                self.host.free()  # only here nobody holds the old encoder any more
            self._tell_ready(wanted.choice, encoder)

    def _swap(self, pipeline: Any, choice: Choice, encoder: Any, tokenizer: Any) -> None:
        """Put the new encoder in place; when the host can not take it, the old one comes back."""
        old = pipeline.text_encoder_3
        try:
            swap.replace(pipeline, encoder, tokenizer)
            self.host.swapped(pipeline)
        except Exception as error:
            swap.replace(pipeline, old)
            self.host.swapped(pipeline)
            if exhausted.read(error):
                raise load.too_large(choice) from error
            raise

    def _make(self, wanted: Wanted) -> tuple[Any, source.Source | None]:
        """The encoder that is wanted, and where its weights came from."""
        if wanted.choice is NONE:
            return None, None
        if wanted.choice is HOST_DEFAULT:
            return self.host.default_encoder(), None
        device = self.host.device()
        choices.require(wanted.choice, device)
        found = source.find(wanted.weights, self.host.facts(), wanted.file)
        self._install(wanted.choice)
        self._prove(wanted.choice, device)
        encoder = load.load(wanted.choice, found, device, self.host.sdnq_config)
        self._made[encoder] = (wanted, measure.measure(encoder))
        return encoder, found

    def _install(self, choice: Choice) -> None:
        """Put the packages of a choice on disk, as far as they are missing."""
        if not choice.groups or choice.groups in self._proven:
            return
        statuses = deps.check(deps.requirements(choice.groups))
        missing = [status.requirement.name for status in statuses if status.state is not deps.State.OK]
        if not missing:
            return
        names = ", ".join(missing)
        with self._phase("packages.installing", names=names):
            changed = deps.ensure(choice.groups, self.host.install_options())
        if changed:
            self.events.tell("info", "packages.installed", names=", ".join(f"{name} {packages.version(name)}" for name in changed))

    def _prove(self, choice: Choice, device: Device) -> None:
        """Make the packages of a choice visible to this process, and prove on the device that they work. Once a process."""
        if not choice.groups or choice.groups in self._proven:
            return
        names = [requirement.name for requirement in deps.requirements(choice.groups)]
        verdict = refresh(names)
        if not verdict.ok:
            first = verdict.restart[0]
            raise RestartRequired("restart.needed", name=first.name, reason=first.reason)
        if "bitsandbytes" in choice.groups:
            deps.prove_bitsandbytes(device.torch)
        self._proven.add(choice.groups)

    # Small things

    @contextmanager
    def _phase(self, id: str, **values: object) -> Iterator[None]:
        outer = self.phase
        self.phase = self.events.tell("info", id, **values).message
        try:
            yield
        finally:
            self.phase = outer

    def _wanted_or_default(self, choice: object = None) -> Wanted:
        """As `wanted`, but a value that means nothing is complained about once; what is stored, then the default, answer it."""
        for candidate in (choice, None, HOST_DEFAULT):
            try:
                return self.wanted(candidate)
            except SettingError as error:
                self._complain(error)
        raise AssertionError("the default is a choice")

    def _kind(self) -> str:
        try:
            return source.kind_of(self.host.option("sd3_weights"))
        except SettingError as error:
            self._complain(error)
            return source.KINDS[0]

    def _complain(self, error: SettingError) -> None:
        """Say it once for each value."""
        if str(error) not in self._complained:
            self._complained.add(str(error))
            self.events.fail(error, "warning")

    def _measured(self, encoder: Any) -> measure.Measure:
        return self._made[encoder][1] if encoder in self._made else measure.measure(encoder)

    def _tell_ready(self, choice: Choice, encoder: Any) -> None:
        if encoder is None:
            self.events.tell("success", "encoder.none-ready")
            return
        measured = self._measured(encoder)
        sizes = {"size": units.size(measured.bytes), "full": units.size(measured.bytes_16bit)}
        if measured.bytes < measured.bytes_16bit * 0.95:
            self.events.tell("success", "encoder.ready-smaller", name=choice.name, **sizes)
        else:
            self.events.tell("success", "encoder.ready", name=choice.name, **sizes)
