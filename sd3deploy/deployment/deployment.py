"""The one job of this extension: bring the loaded SD3 model to the text encoder that the user chose, without a restart.

    setting → packages (install, refresh, prove) → weights or cache → encoder → pipeline → event

The host is reached through `Host` alone; nothing here knows the webui.
"""

from __future__ import annotations

import os
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from sd3deploy import deps, messages, packages, units
from sd3deploy.deps import stopping
from sd3deploy.device import Device
from sd3deploy.encoders import choices, handover, load, measure, source, swap
from sd3deploy.encoders.cache import Cache, Entry
from sd3deploy.encoders.choices import HOST_DEFAULT, NONE, Choice
from sd3deploy.encoders.handover import Handover
from sd3deploy.encoders.quantize import Stopped
from sd3deploy.encoders.recipe import Recipe
from sd3deploy.encoders.weights import Weights, open_weights
from sd3deploy.errors import RestartRequired, SettingError
from sd3deploy.events import Events
from sd3deploy.memory import exhausted
from sd3deploy.memory.t5_shape import T5Shape
from sd3deploy.refresh import refresh

__all__ = ["Deployment", "Host", "LoadProgress", "Progress", "Wanted"]

_REPORTED = ("bitsandbytes", "accelerate", "sentencepiece", "transformers", "diffusers", "torch", "numpy")
_PATIENCE_S = 0.2  # how soon a change that waits for the running job looks whether it was cancelled


@dataclass(frozen=True)
class Wanted:
    """A text encoder as the settings ask for it: the choice, the kind of source, and the file where the source is one."""

    choice: Choice
    weights: str = "Automatic"
    file: str = ""


@dataclass(frozen=True)
class Progress:
    """How far an encoder has been read: bytes, and bytes in all."""

    done: int
    total: int

    def report(self) -> dict[str, Any]:
        """As JSON-able values, with the words for it in the language that is spoken now."""
        fraction = min(1.0, self.done / self.total) if self.total > 0 else 0.0
        text = messages.text("encoder.progress", done=units.size(self.done), total=units.size(self.total))
        return {"done": self.done, "total": self.total, "fraction": round(fraction, 3), "text": text}


class LoadProgress(Protocol):
    """What the webui shows while an encoder is loaded, and whether somebody has pressed its own Stop meanwhile."""

    def report(self, done: int, total: int) -> None: ...
    def stopped(self) -> bool: ...


class Host(handover.Host, Protocol):
    """What the webui has to offer. Nothing of it may take the host's queue lock except `queue`."""

    def option(self, key: str) -> Any: ...
    def pipeline(self) -> Any: ...
    def model_name(self) -> str | None: ...
    def facts(self) -> source.Facts: ...
    def device(self) -> Device: ...
    def cache(self) -> Cache | None: ...
    def sdnq_config(self) -> Any: ...
    def default_encoder(self) -> Any: ...
    def queue(self) -> threading.Lock: ...
    def job(self, title: str, about: str) -> AbstractContextManager[LoadProgress]: ...
    def install_options(self) -> deps.Options: ...


@dataclass(frozen=True)
class _Made:
    """What is known about an encoder of ours. took: how long it was loaded and from where, as a sentence. mapped: it lies in a file."""

    wanted: Wanted
    measure: measure.Measure
    took: str
    mapped: bool


class _Cache(Cache):
    """The cache, which also says what it has stored."""

    def store(self, weights: Weights, *arguments: Any, **named: Any) -> Entry | None:
        entry = super().store(weights, *arguments, **named)
        if entry is not None:
            self.told("cache.written", {"name": choices.find(entry.choice).name, "size": units.size(entry.bytes), "folder": self.folder})
        return entry


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
        self.progress: Progress | None = None
        self._made: weakref.WeakKeyDictionary[Any, _Made] = weakref.WeakKeyDictionary()
        self._emptied: weakref.WeakSet[Any] = weakref.WeakSet()  # transformers whose pipeline we left without T5
        self._proven: set[tuple[str, ...]] = set()
        self._failed: Wanted | None = None  # not tried again with every image: only a change or another load does that
        self._complained: set[str] = set()
        self._endings: list[threading.Event] = []  # one of each change or load that is under way: set, it ends

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
        return self._made[encoder].wanted if encoder in self._made else Wanted(HOST_DEFAULT)

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
            with self._ending() as cancelled:
                self._install(wanted.choice, cancelled)  # outside the queue: new files disturb no running job
                with self._turn(wanted.choice, cancelled):
                    self._bring(wanted, cancelled)
        except Exception as error:
            self._tell_failed(error)
            raise
        if self.host.pipeline() is None and wanted.choice is not HOST_DEFAULT:
            self.events.tell("info", "encoder.later", name=wanted.choice.name)

    def reconcile(self, choice: object = None, stopped: Callable[[], object] = lambda: None) -> Wanted | None:
        """Bring the loaded model to what is wanted; the caller holds the host's queue. A failure is told, not raised.

        stopped: called when somebody has cancelled it. Returns what is in the pipeline afterwards, None when no SD3 model is loaded.
        """
        self.host.pipeline()  # a host that has changed so much raises here, before a failure would be told as one of the encoder
        wanted = self._wanted_or_default(choice)
        if wanted != self._failed:
            try:
                with self._ending() as cancelled:
                    self._bring(wanted, cancelled)
            except Exception as error:
                if _was_cancelled(error):
                    stopped()
                else:
                    self._failed = wanted
                self._tell_failed(error)
        pipeline = self.host.pipeline()
        if not swap.is_sd3(pipeline):
            return None
        if wanted == self._failed and pipeline.text_encoder_3 is None:  # it was loaded without, because of that
            self._emptied.add(pipeline.transformer)
        return self.placed(pipeline)

    def encoder_for_load(self) -> tuple[bool, Any]:
        """Asked while an SD3 model is being loaded: (whether the choice is ours to make, the encoder or None).

        A failure is told and leaves the model with its CLIP encoders: the host's full-size T5 might not fit, or be a download
        of gigabytes that nobody asked for. So does whoever cancels it.
        """
        wanted = self._wanted_or_default()
        self._failed = None
        if wanted.choice is HOST_DEFAULT:
            return False, None
        try:
            name = wanted.choice.name
            with self._ending() as cancelled, self._phase("encoder.loading", name=name), self.host.job("Load TE", name) as job:
                encoder, _ = self._make(wanted, job.report, lambda: cancelled() or job.stopped())
            self._tell_ready(wanted.choice, encoder)
            return True, encoder
        except Exception as error:
            self._failed = wanted
            self._tell_failed(error)
            self.events.tell("warning", "encoder.without-t5")
            return True, None

    @property
    def loading(self) -> bool:
        """Whether a change or the load of an encoder is under way."""
        return bool(self._endings)

    def cancel(self) -> bool:
        """End what is under way soon, with everything as it was before. Whether there was anything."""
        running = list(self._endings)
        for one in running:
            one.set()
        return bool(running)

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
        progress = self.progress
        return {
            "model": self.host.model_name() if sd3 else None,
            "encoder": self.placed(pipeline).choice.name if sd3 else None,
            "wanted": self._wanted_or_default().choice.name,
            "linear4bit": measured.linear4bit if measured else 0,
            "wo_quantized": bool(measured and measured.wo_quantized),
            "t5_bytes": measured.bytes if measured else 0,
            "t5_bytes_16bit": measured.bytes_16bit if measured else 0,
            "busy": self.phase,
            "progress": progress.report() if progress else None,
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

    def _bring(self, wanted: Wanted, cancelled: Callable[[], bool]) -> None:
        with self.busy:
            pipeline = self.host.pipeline()
            if not swap.is_sd3(pipeline) or self.placed(pipeline) == wanted:
                return
            before = self.placed(pipeline)
            with self._phase("encoder.loading", name=wanted.choice.name), self.host.job("Load TE", wanted.choice.name) as job:
                step = Handover(
                    pipeline,
                    self.host,
                    again=lambda: self._make(before, job.report)[0],
                    mapped=self._is_mapped(pipeline.text_encoder_3),
                    gone=lambda: self._emptied.add(pipeline.transformer),
                )
                try:
                    self._replace(pipeline, wanted, job.report, lambda: cancelled() or job.stopped(), step)
                except Exception as error:
                    _forget_tensors(error)
                    self._back(step, pipeline, before)
                    raise
                self.host.free()  # only here nobody holds the old encoder any more
            self._tell_ready(wanted.choice, pipeline.text_encoder_3)

    def _replace(
        self, pipeline: Any, wanted: Wanted, report: Callable[[int, int], None], cancelled: Callable[[], bool], step: Handover
    ) -> None:
        """Make the encoder that is wanted and put it into the pipeline."""
        try:
            encoder, found = self._make(wanted, report, cancelled, step)
            tokenizer = swap.tokenizer(pipeline, self.host.facts().model, found) if encoder is not None and found else None
            step.put(encoder, tokenizer)
        except Exception as error:
            if exhausted.read_exhausted(error):
                raise load.too_large(wanted.choice) from error
            raise
        if wanted.choice is NONE:
            self._emptied.add(pipeline.transformer)
        else:
            self._emptied.discard(pipeline.transformer)

    def _back(self, step: Handover, pipeline: Any, before: Wanted) -> None:
        """Nothing came of the next encoder: the one before it comes back, or, where even that fails, the two CLIP encoders remain."""
        try:
            step.back()
            if pipeline.text_encoder_3 is not None:
                self._emptied.discard(pipeline.transformer)
        except Exception as error:
            self._failed = before
            self.events.fail(error)
            self.events.tell("warning", "encoder.gone", name=before.choice.name)

    def _make(
        self,
        wanted: Wanted,
        report: Callable[[int, int], None],
        cancelled: Callable[[], bool] = lambda: False,
        step: Handover | None = None,
    ) -> tuple[Any, source.Source | None]:
        """The encoder that is wanted, and where its weights came from."""
        if wanted.choice is NONE:
            return None, None
        if wanted.choice is HOST_DEFAULT:
            if step:
                step.before_reading(lambda old: _shape(old).bytes(choices.find("bf16")))
            return self.host.default_encoder(), None
        device = self.host.device()
        choices.require(wanted.choice, device)
        found = source.find(wanted.weights, self.host.facts(), wanted.file)
        self._install(wanted.choice, cancelled)
        self._prove(wanted.choice, device)
        _check(wanted.choice, cancelled)
        cache = self._cache()
        if step:
            step.before_reading(lambda old: _need(wanted.choice, found, device, cache, old))

        def progress(done: int, total: int) -> None:
            self.progress = Progress(done, total)
            report(done, total)

        began = time.monotonic()
        try:
            read = load.read(wanted.choice, found, device, self.host.sdnq_config, cache, progress=progress, cancelled=cancelled)
            _check(wanted.choice, cancelled)
        except Stopped:
            raise Stopped("encoder.cancelled", name=wanted.choice.name) from None
        finally:
            self.progress = None
        if step:
            step.before_placing(lambda old: _shape(old).bytes(wanted.choice, device.compute_dtype))
        encoder = read.place()
        seconds = f"{time.monotonic() - began:.1f}"
        took = messages.text("encoder.from-cache" if read.cached else "encoder.from-source", seconds=seconds, source=found.name)
        self._made[encoder] = _Made(wanted, measure.measure(encoder), took, read.cached and device.torch == "cpu")
        return encoder, found

    def _install(self, choice: Choice, cancelled: Callable[[], bool]) -> None:
        """Put the packages of a choice on disk, as far as they are missing."""
        if not choice.groups or choice.groups in self._proven:
            return
        statuses = deps.check(deps.requirements(choice.groups))
        missing = [status.requirement.name for status in statuses if status.state is not deps.State.OK]
        if not missing:
            return
        names = ", ".join(missing)
        with self._phase("packages.installing", names=names), stopping.stoppable(cancelled):
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

    def _cache(self) -> Cache | None:
        cache = self.host.cache()
        return _Cache(cache.folder, cache.limit, self._tell_of_cache) if cache else None

    # Small things

    @contextmanager
    def _phase(self, id: str, **values: object) -> Iterator[None]:
        outer = self.phase
        self.phase = self.events.tell("info", id, **values).message
        try:
            yield
        finally:
            self.phase = outer

    @contextmanager
    def _ending(self) -> Iterator[Callable[[], bool]]:
        """Inside, what is given says whether somebody wants it to end."""
        asked = threading.Event()
        self._endings.append(asked)
        try:
            yield asked.is_set
        finally:
            self._endings.remove(asked)

    @contextmanager
    def _turn(self, choice: Choice, cancelled: Callable[[], bool]) -> Iterator[None]:
        """The host's queue. Whoever cancels does not wait for the running job."""
        queue = self.host.queue()
        _check(choice, cancelled)
        if not queue.acquire(blocking=False):
            with self._phase("encoder.waiting", name=choice.name):
                while not queue.acquire(timeout=_PATIENCE_S):
                    _check(choice, cancelled)
        try:
            yield
        finally:
            queue.release()

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
        return self._made[encoder].measure if encoder in self._made else measure.measure(encoder)

    def _is_mapped(self, encoder: Any) -> bool:
        return encoder is not None and encoder in self._made and self._made[encoder].mapped

    def _tell_ready(self, choice: Choice, encoder: Any) -> None:
        if encoder is None:
            self.events.tell("success", "encoder.none-ready")
            return
        measured = self._measured(encoder)
        smaller = measured.bytes < measured.bytes_16bit * 0.95
        id = "encoder.ready-smaller" if smaller else "encoder.ready"
        text = messages.text(id, name=choice.name, size=units.size(measured.bytes), full=units.size(measured.bytes_16bit))
        took = self._made[encoder].took if encoder in self._made else ""
        self.events.add("success", id, f"{text} {took}".rstrip(), "")

    def _tell_of_cache(self, id: str, values: Mapping[str, object]) -> None:
        """What the cache has to say; it never says a warning twice."""
        if id == "cache.written":
            self.events.tell("info", id, **values)
        elif (text := messages.text(id, **values)) not in self._complained:
            self._complained.add(text)
            self.events.tell("warning", id, **values)

    def _tell_failed(self, error: Exception) -> None:
        """An error, or that somebody has cancelled it: then with what is in use instead."""
        if not _was_cancelled(error):
            self.events.fail(error)
            return
        pipeline = self.host.pipeline()
        text = str(error)
        if isinstance(error, Stopped) and swap.is_sd3(pipeline):
            text += " " + messages.text("encoder.kept", name=self.placed(pipeline).choice.name)
        self.events.add("info", getattr(error, "id", "encoder.cancelled"), text, "")


def _need(choice: Choice, found: source.Source, device: Device, cache: Cache | None, old: Any) -> int:
    """Bytes of RAM that a choice takes while it is read, for the shapes of the old encoder. What is computed on the CPU right where it lies
    in a file takes none.
    """
    if device.torch == "cpu" and choice.stored != "sdnq":
        weights = open_weights(found)
        if choice.stored == "wide" and device.bf16 and all(one.dtype == "BF16" for one in weights.tensors.values()):
            return 0
        if cache and choice.quantized and cache.find(weights, Recipe(choice, device.compute_dtype)):
            return 0
    return _shape(old).bytes(choice, device.compute_dtype)


def _shape(encoder: Any) -> T5Shape:
    known = encoder.config
    names = ("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads")
    buckets, gated = known.relative_attention_num_buckets, known.is_gated_act
    return T5Shape(**{name: getattr(known, name) for name in names}, buckets=buckets, gated=gated)


def _check(choice: Choice, cancelled: Callable[[], bool]) -> None:
    if cancelled():
        raise Stopped("encoder.cancelled", name=choice.name)


def _was_cancelled(error: Exception) -> bool:
    return isinstance(error, (Stopped, stopping.Stopped))


def _forget_tensors(error: BaseException | None) -> None:
    """Let go of what the frames of an error hold: the encoder that has failed takes the memory that the one before it needs."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
