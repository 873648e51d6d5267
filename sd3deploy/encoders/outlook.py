"""What a source of weights is, and what an encoder of it will cost, before any of that happens: headers are read, no weights."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from sd3deploy import deps, messages, units
from sd3deploy.device import Device
from sd3deploy.encoders import identity
from sd3deploy.encoders.cache import Cache
from sd3deploy.encoders.cache.writing import SPARE
from sd3deploy.encoders.choices import Choice
from sd3deploy.encoders.hub import Repository, Spec
from sd3deploy.encoders.recipe import Recipe
from sd3deploy.encoders.rounding import quantized_before
from sd3deploy.encoders.source import Facts, Source
from sd3deploy.encoders.weights import Weights, open_weights
from sd3deploy.errors import EncoderError
from sd3deploy.memory.t5_shape import T5Shape

__all__ = ["Outlook", "look"]


@dataclass(frozen=True)
class Outlook:
    """what: a source that is whole, such as “T5-XXL, BF16, 9.5 GB”. cost: what happens when it is chosen, in sentences. In bytes: read from
    this disk, fetched over the network, stored: what of that stays among the host's downloads, kept: written to the cache. cached: an
    encoder of it is in the cache already, and is read from there.
    """

    what: str
    cost: str
    read: int = 0
    fetched: int = 0
    stored: int = 0
    kept: int = 0
    cached: bool = False


def look(found: Source, facts: Facts, choice: Choice, device: Device, cache: Cache | None, ask: bool, keep: bool = False) -> Outlook:
    """Look at a source. choice: what is to be made of it; one that reads no weights costs nothing. ask: whether the network may be asked;
    what is not on this disk is refused otherwise. keep: what is read of a repository will be stored.

    Raises what `open_weights` raises, EncoderError `hub.offline` for what is not on this disk, and `hub.whole` for what a server gives as
    a whole only.
    """
    weights, stored = _open(found, facts, ask, keep)
    remote = sum(weight.stored.size for weight in weights.tensors.values() if weight.stored.file.path is None)
    kind = messages.text("sources.xxl" if weights.tensors["shared.weight"].shape[-1] == identity.WIDTH else "sources.small")
    what = messages.text("sources.what", kind=kind, form=weights.form, size=units.size(weights.size))
    what = messages.joined(what, *map(messages.text, weights.notes))
    if not choice.bytes:  # none, or the host's own
        return Outlook(what, messages.text("sources.unread", name=choice.shown))
    recipe = Recipe(choice, device.compute_dtype)
    cache = cache if choice.quantized else None
    if cache and (entry := cache.entry(weights, recipe)):
        return Outlook(what, messages.text("sources.cached", size=units.size(entry.bytes)), entry.bytes, cached=True)
    kept, words = _kept(weights, choice, device.compute_dtype, cache)
    cost = []
    if weights.size > remote:
        cost.append(messages.text("sources.read", size=units.size(weights.size - remote)))
    if remote and not stored and cache and (done := weights.size_of(cache.finished(weights, recipe))):
        cost.append(messages.text("sources.goes-on", done=units.size(done), total=units.size(weights.size)))
        remote = max(0, remote - done)
    if remote:
        folder = facts.caches[0] if stored and facts.caches else ""
        cost.append(messages.text("sources.downloaded" if stored else "sources.fetched", size=units.size(remote), folder=folder))
        cost += _without_room(folder, remote) if folder else []
    cost += words
    if remote and not stored and not kept:
        cost.append(messages.text("sources.each-time"))
    needed = deps.requirements(tuple(dict.fromkeys((*choice.groups, *weights.groups))))
    if missing := [one.requirement.name for one in deps.check(needed) if one.state is not deps.State.OK]:
        cost.append(messages.text("sources.installs", names=", ".join(missing)))
    if before := quantized_before(weights, recipe):
        cost.append(messages.text("sources.twice", form=before))
    return Outlook(what, messages.joined(*cost), weights.size - remote, remote, remote if stored else 0, kept)


def _open(found: Source, facts: Facts, ask: bool, keep: bool) -> tuple[Weights, bool]:
    """The weights, and whether what is not on this disk will be stored among the host's downloads."""
    offline = facts.offline or not ask
    if found.remote is not None:
        remote = Repository(found.remote.spec, facts.caches, offline, whole=False)
        return open_weights(replace(found, remote=remote)), keep
    if found.file is not None or Path(str(found.place)).is_dir():
        return open_weights(found), False
    try:
        return open_weights(replace(found, arguments={**found.arguments, "local_files_only": True})), False
    except (OSError, EncoderError):  # not here, or not whole
        folder = str(found.arguments.get("subfolder") or "")
        spec = Spec(str(found.place), f"{folder}/" if folder else "")
        return open_weights(Source(found.name, remote=Repository(spec, facts.caches, offline, whole=False))), True


def _shape(weights: Weights) -> T5Shape:
    """From the shapes of the weights, which have passed for a T5."""
    known = identity.config_of({name: weight.shape for name, weight in weights.tensors.items()})
    names = ("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads")
    return T5Shape(**{name: known[name] for name in names}, buckets=known["relative_attention_num_buckets"])


def _kept(weights: Weights, choice: Choice, compute: str, cache: Cache | None) -> tuple[int, list[str]]:
    """Bytes that will be written to the cache, about, and the sentence on that."""
    if cache is None:
        return 0, [messages.text("sources.not-kept")] if choice.quantized else []
    size = _shape(weights).bytes(choice, compute)
    if size > cache.limit:
        return 0, [messages.text("sources.over-limit", size=units.size(size), limit=units.size(cache.limit))]
    if without := _without_room(str(cache.folder), size):
        return 0, without
    return size, [messages.text("sources.kept", size=units.size(size), folder=cache.folder)]


def _without_room(folder: str, size: int) -> list[str]:
    """The sentence for a disk that has no room for as many bytes; none where it has."""
    place = Path(folder).absolute()
    there = next((one for one in (place, *place.parents) if one.exists()), None)
    free = shutil.disk_usage(there).free if there else 0
    if free >= size + SPARE:
        return []
    return [messages.text("sources.no-room", size=units.size(size), folder=folder, free=units.size(free), spare=units.size(SPARE))]
