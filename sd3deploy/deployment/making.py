"""Make the encoder that is wanted: packages (install, refresh, prove) → weights or cache → encoder."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sd3deploy import deps, installed, messages, units
from sd3deploy.deployment.host import Host
from sd3deploy.deployment.placed import Made, Placed
from sd3deploy.deployment.speed import Speed
from sd3deploy.deployment.undertaking import Progress, Undertaking
from sd3deploy.deployment.wanted import Wanted
from sd3deploy.deps import stopping
from sd3deploy.device import Device
from sd3deploy.encoders import choices, load, measure, need, source
from sd3deploy.encoders import stopping as encoder_stopping
from sd3deploy.encoders.cache import Cache, Entry
from sd3deploy.encoders.choices import HOST_DEFAULT, NONE, Choice
from sd3deploy.encoders.handover import Handover
from sd3deploy.encoders.quantize import Stopped
from sd3deploy.encoders.weights import Weights, open_weights
from sd3deploy.errors import EncoderError
from sd3deploy.events import Events
from sd3deploy.refresh import refresh

__all__ = ["Making"]


class _Cache(Cache):
    """The cache, which also says what it has stored."""

    def store(self, weights: Weights, *arguments: Any, **named: Any) -> Entry | None:
        entry = super().store(weights, *arguments, **named)
        if entry is not None:
            self.told("cache.written", {"name": choices.find(entry.choice).shown, "size": units.size(entry.bytes), "folder": self.folder})
        return entry


class Making:
    """Makes encoders; what it has made it enters into `placed`."""

    def __init__(self, host: Host, events: Events, placed: Placed) -> None:
        self._host, self._events, self._placed = host, events, placed
        self._proven: set[tuple[str, ...]] = set()
        self._warned: set[str] = set()

    def make(
        self, wanted: Wanted, report: Callable[[int, int], None], under: Undertaking, step: Handover | None = None
    ) -> tuple[Any, source.Source | None]:
        """The encoder that is wanted, and where its weights came from; (None, None) for none. Called with the queue held by the caller or
        by whoever called that, unless a model is being loaded.

        under: is asked whether it was cancelled. step: lets the encoder before it make room. Raises Stopped, and Sd3Error with a remedy.
        """
        if wanted.choice is NONE:
            return None, None
        if wanted.choice is HOST_DEFAULT:
            if step:
                step.before_reading(need.wide)
            encoder = self._host.default_encoder()
            under.check(wanted.choice)  # the webui's loader can not be ended; what it has brought can be left
            return encoder, None
        device = self._host.device()
        choices.require(wanted.choice, device)
        found = self.source(wanted)
        groups = self.install(wanted, under)
        self._prove(wanted.choice, groups, device, under)
        under.check(wanted.choice)
        cache = self._cache()
        if step:
            with encoder_stopping.stoppable(under.cancelled):
                step.before_reading(lambda old: need.while_read(wanted.choice, found, device, cache, old))
        began = time.monotonic()
        read = self._read(wanted.choice, found, device, cache, report, under)
        if step:
            step.before_placing(lambda old: need.placed(wanted.choice, device, old))
        encoder = read.place()
        seconds = f"{time.monotonic() - began:.1f}"
        took = messages.text("encoder.from-cache" if read.cached else "encoder.from-source", seconds=seconds, source=found.name)
        if read.quantized_before:
            took = messages.joined(took, messages.text("encoder.quantized-before", form=read.quantized_before))
        took = messages.joined(took, *map(messages.text, read.notes))
        lies = read.cached and device.torch == "cpu"
        self._placed.add(encoder, Made(wanted, measure.measure(encoder), took, lies, read.mapped, read.quantized_before))
        return encoder, found

    def install(self, wanted: Wanted, under: Undertaking) -> tuple[str, ...]:
        """Put the packages of a choice and of its weights on disk, as far as they are missing. Returns their groups in pyproject.toml.
        Called with any lock held: new files disturb no running job. Raises DependencyError, and stopping.Stopped when it was cancelled.
        """
        groups = self._groups(wanted, under)
        missing = self.lack(groups)
        if not missing.names:
            return groups
        names = ", ".join(missing.installs)
        doing = under.doing("packages.installing", names=names) if names else contextlib.nullcontext()
        with doing, stopping.stoppable(under.cancelled):
            changed = deps.ensure(groups, self._host.install_options())
        if changed:
            self._events.tell("info", "packages.installed", names=", ".join(f"{name} {installed.version(name)}" for name in changed))
        return groups

    def lack(self, groups: tuple[str, ...]) -> deps.Lack:
        """The packages of groups of pyproject.toml that are not there yet. Called with any lock held."""
        return deps.lack(groups, self._host.install_options()) if groups and groups not in self._proven else deps.Lack()

    def _groups(self, wanted: Wanted, under: Undertaking) -> tuple[str, ...]:
        """Those of the choice, and those that its weights need to be read. Raises EncoderError for what can not be: nothing is installed
        for it.
        """
        choice = wanted.choice
        if choice in (NONE, HOST_DEFAULT):
            return choice.groups
        if wanted.weights not in ("Local file", "Repository") and not self._host.facts().model:
            return choice.groups  # it will be the source of whatever model is loaded
        found = self.source(wanted)
        if found.place and not Path(found.place).is_dir():
            return choice.groups  # a repository of which transformers takes the files: none of its forms needs a package
        looking = under.doing("encoder.looking", source=found.name) if found.remote else contextlib.nullcontext()
        try:
            with looking, encoder_stopping.stoppable(under.cancelled):
                weights = open_weights(found)
        except (EncoderError, OSError, Stopped) as error:
            under.check(choice)
            if isinstance(error, OSError):
                raise EncoderError("encoder.unreadable", source=found.name, error=error) from error
            raise
        return tuple(dict.fromkeys((*choice.groups, *weights.groups)))

    def source(self, wanted: Wanted) -> source.Source:
        """Where the weights come from. Raises EncoderError where that is nowhere."""
        return source.find(wanted.weights, self._host.facts(), wanted.file, wanted.repository, wanted.keep)

    def _prove(self, choice: Choice, groups: tuple[str, ...], device: Device, under: Undertaking) -> None:
        """Make the packages of groups visible to this process, and prove on the device that they work. Once a process."""
        if not groups or groups in self._proven:
            return
        names = [requirement.name for requirement in deps.requirements(groups)]
        verdict = refresh(names, under.cancelled)
        under.check(choice)
        verdict.require()
        if "bitsandbytes" in groups:
            deps.prove_bitsandbytes(device.torch)
        self._proven.add(groups)

    def _read(
        self,
        choice: Choice,
        found: source.Source,
        device: Device,
        cache: Cache | None,
        report: Callable[[int, int], None],
        under: Undertaking,
    ) -> load.Read:
        speed = Speed()

        def progress(done: int, total: int) -> None:
            remote = found.remote is not None and found.remote.remote
            under.progress = Progress(done, total, speed.add(done) if remote else 0.0)
            report(done, total)

        try:
            read = load.read(choice, found, device, cache, progress=progress, cancelled=under.cancelled)
        except Stopped as error:
            if error.id == "encoder.cancelled-kept":
                raise
            raise Stopped("encoder.cancelled", name=choice.shown) from None
        finally:
            under.progress = None
        under.check(choice)
        return read

    def _cache(self) -> Cache | None:
        cache = self._host.cache()
        return _Cache(cache.folder, cache.limit, self._tell_of_cache) if cache else None

    def _tell_of_cache(self, id: str, values: Mapping[str, object]) -> None:
        """What the cache has to say; it never says a warning twice."""
        if id == "cache.written":
            self._events.tell("info", id, **values)
        elif (text := messages.text(id, **values)) not in self._warned:
            self._warned.add(text)
            self._events.tell("warning", id, **values)
