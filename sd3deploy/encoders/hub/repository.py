"""Which files of a repository hold the weights, and where each of them is read from."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from sd3deploy import units
from sd3deploy.encoders import stopping
from sd3deploy.encoders.files import File, LocalFile
from sd3deploy.encoders.folder import shard_names, spellings
from sd3deploy.encoders.hub import failure
from sd3deploy.encoders.hub.downloads import downloaded
from sd3deploy.encoders.hub.link import NoRanges
from sd3deploy.encoders.hub.remote import RemoteFile
from sd3deploy.encoders.hub.spec import Spec
from sd3deploy.encoders.hub.waiting import abiding
from sd3deploy.errors import EncoderError

__all__ = ["Repository"]

SPARE = 10**9  # bytes that stay free on the disk where a whole file is kept
_CONFIG = "config.json"
# A lone file, or the index of several; then the variant of 16 bit. What torch has pickled is not read over the network.
_USUAL = tuple(name for variant in ("", "fp16") for name in spellings(variant) if "safetensors" in name)
_FOLDERS = ("", "text_encoder_3/", "text_encoder_2/")  # of a T5 in diffusers' layouts of SD3 and of FLUX.1
_SUFFIXES = (".safetensors", ".sft", ".gguf")
_Found = tuple[tuple[File, ...], Mapping[str, Any] | None]  # the files with the weights, and the configuration
_LONGEST = 1 << 24  # bytes of a JSON file: an index has some 20 KB


class Repository:
    """The weights that `spec` names. caches: folders in which huggingface_hub keeps files: what is in one of them is read from there.
    offline: never ask the network. keep: bring what is read into the first of the folders, and read it there. whole: whether that may be
    done with what a server gives as a whole only; it is refused otherwise.

    What was found stays found: a new object looks anew.
    """

    def __init__(self, spec: Spec, caches: Iterable[str] = (), offline: bool = False, keep: bool = False, whole: bool = True) -> None:
        self.spec = spec
        self._caches, self._offline, self._keep, self._whole = tuple(map(str, caches)), offline, keep, whole
        self._lock = threading.Lock()
        self._found: _Found | None = None

    @property
    def caches(self) -> tuple[str, ...]:
        """The folders in which it looks first."""
        return self._caches

    def on_disk(self) -> Repository:
        """The same without the network: what no cache has is refused (hub.offline)."""
        return Repository(self.spec, self._caches, offline=True)

    def files(self) -> tuple[File, ...]:
        """Those with the weights. Raises EncoderError where they can not be had, and Stopped."""
        return self._resolved()[0]

    def config(self) -> Mapping[str, Any] | None:
        """That of the folder with the weights, as JSON-able values; None for a single file, and for a folder without one."""
        return self._resolved()[1]

    @property
    def remote(self) -> bool:
        """Whether something of it is read over the network; False as long as nobody has asked for the files."""
        return self._found is not None and any(file.path is None for file in self._found[0])

    def _resolved(self) -> _Found:
        with self._lock:
            if self._found is None:
                self._found = self._kept() or (self._asked() if self.spec.folder else self._alone())
            return self._found

    def _kept(self) -> _Found | None:
        """What one of the caches has as a whole, in one snapshot: files of two commits are never mixed."""
        for cache in self._caches:
            chosen = self._choose(lambda path, cache=cache: self._cached(path, self.spec.revision, cache) is not None)
            found = chosen and self._cached(chosen, self.spec.revision, cache)
            if not chosen or not found:
                continue
            snapshot = found.parents[chosen.count("/")]
            paths = self._paths(chosen, LocalFile(found))
            if all((snapshot / path).is_file() for path in paths):
                config = snapshot / _beside(chosen, _CONFIG)
                files = tuple(LocalFile(snapshot / path) for path in paths)
                return files, self._config(LocalFile(config)) if self.spec.folder and config.is_file() else None
        return None

    def _alone(self) -> _Found:
        return (self._file(self.spec.path, self.spec.revision),), None

    def _asked(self) -> _Found:
        """What the repository has now, at the commit that it has now."""
        commit, known = self._names()
        chosen = self._choose(known.__contains__) or self._lone(known)
        paths = self._paths(chosen, self._file(chosen, commit))
        config = _beside(chosen, _CONFIG)
        files = tuple(self._file(path, commit) for path in paths)
        return files, self._config(self._file(config, commit)) if config in known else None

    def _choose(self, there: Callable[[str], bool]) -> str | None:
        """The file that is named, or the first of the usual names that is there."""
        if not self.spec.folder:
            return self.spec.path
        folders = [self.spec.path] if self.spec.path else _FOLDERS
        return next((folder + name for folder in folders for name in _USUAL if there(folder + name)), None)

    def _paths(self, chosen: str, file: File) -> list[str]:
        """The files with the weights: those that it names where it is an index, else itself."""
        if not chosen.endswith(".json"):
            return [chosen]
        index = self._json(file)
        named = index.get("weight_map") if isinstance(index, dict) else None
        if not (isinstance(named, dict) and named and all(isinstance(one, str) for one in named.values())):
            raise EncoderError("hub.no-weights", file=f"{self.spec.repository}:{chosen}")
        return [_beside(chosen, one) for one in shard_names(named, chosen)]

    def _lone(self, known: tuple[str, ...]) -> str:
        """The only file with weights that lies right in the folder."""
        here = [name for name in known if name.startswith(self.spec.path) and "/" not in name[len(self.spec.path) :]]
        found = [name for name in here if name.lower().endswith(_SUFFIXES)]
        if len(found) == 1:
            return found[0]
        if found:
            examples = ", ".join(f"{self.spec.repository}:{name}" for name in found[:20])
            raise EncoderError("hub.several", source=self.spec, names=examples)
        raise EncoderError("hub.no-weights", file=self.spec)

    def _names(self) -> tuple[str, tuple[str, ...]]:
        """The commit, and the paths of all its files."""
        from huggingface_hub import HfApi, constants

        self._require_network(str(self.spec))

        def ask() -> tuple[str | None, tuple[str, ...]]:
            api = HfApi(endpoint=constants.ENDPOINT)
            found = api.model_info(self.spec.repository, revision=self.spec.revision, timeout=10)
            return found.sha, tuple(one.rfilename for one in found.siblings or ())

        try:
            commit, names = abiding(ask)
        except Exception as error:
            raise failure.told(error, constants.ENDPOINT, str(self.spec)) from error
        if not commit:
            raise EncoderError("hub.no-identity", server=failure.shown(constants.ENDPOINT), file=self.spec)
        return commit, names

    def _file(self, path: str, revision: str | None) -> File:
        for cache in self._caches:
            if (found := self._cached(path, revision, cache)) is not None:
                return LocalFile(found)
        self._require_network(f"{self.spec.repository}:{path}")
        try:
            file = RemoteFile.find(self.spec.repository, path, revision)
        except NoRanges as error:
            if not self._whole:
                size = units.size(error.size) if error.size else "?"
                raise EncoderError("hub.whole", file=f"{self.spec.repository}:{path}", size=size) from None
            return self._fetched(path, error.size, revision)
        return self._fetched(path, file.size, revision) if self._keep else file

    def _config(self, file: File) -> Mapping[str, Any] | None:
        config = self._json(file)
        return config if isinstance(config, dict) else None

    def _json(self, file: File) -> Any:
        if file.size > _LONGEST:
            raise EncoderError("source.file-damaged", file=file.name, error=f"{units.size(file.size)}")
        try:
            with file.open() as content:
                data = bytearray(file.size)
                view = memoryview(data)
                while view and (count := content.readinto(view)):  # pyright: ignore[reportAttributeAccessIssue]
                    view = view[count:]
            return json.loads(data)
        except (OSError, ValueError, RecursionError) as error:
            raise EncoderError("source.file-damaged", file=file.name, error=error) from error

    def _cached(self, path: str, revision: str | None, cache: str) -> Path | None:
        return downloaded(self.spec.repository, path, cache, revision)

    def _fetched(self, path: str, size: int | None, revision: str | None) -> LocalFile:
        """A file as a whole, in the first folder of those that keep repositories: as the branch that is asked for, so that it is found
        there again.
        """
        from huggingface_hub import constants, hf_hub_download

        cache = Path(self._caches[0] if self._caches else constants.HF_HUB_CACHE)
        file = f"{self.spec.repository}:{path}"
        asked = stopping.stopped()

        class Quiet:
            """Stands in for a progress bar: it shows nothing, and ends the download on Cancel."""

            def __init__(self, *arguments: Any, **named: Any) -> None:
                self.n = named.get("initial") or 0
                self.total = named.get("total")

            def update(self, count: float | None = 1) -> None:
                if asked():
                    raise stopping.Stopped("encoder.stopped")

            def __getattr__(self, name: str) -> Any:
                return lambda *arguments, **named: None

            def __enter__(self) -> Quiet:
                return self

            def __exit__(self, *_: object) -> None:
                pass

        def bring() -> str:
            cache.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(cache).free
            if size is not None and free < size + SPARE:
                room = {"size": units.size(size), "free": units.size(free), "spare": units.size(SPARE)}
                raise EncoderError("hub.no-room", file=file, folder=cache, **room)
            place = {"revision": self.spec.revision, "cache_dir": cache, "endpoint": constants.ENDPOINT}
            return hf_hub_download(self.spec.repository, path, **place, **_bar(hf_hub_download, Quiet))

        try:
            found = Path(abiding(bring))
        except Exception as error:
            raise failure.told(error, constants.ENDPOINT, file) from error
        if revision != self.spec.revision and found.parents[path.count("/")].name != revision:  # the branch has moved on
            raise EncoderError("hub.changed", file=file)
        return LocalFile(found)

    def _require_network(self, file: str) -> None:
        from huggingface_hub import constants

        if self._offline or constants.HF_HUB_OFFLINE:
            raise EncoderError("hub.offline", file=file)


def _beside(chosen: str, name: str) -> str:
    """The path of a file in the same folder of the repository."""
    return "/".join((*chosen.split("/")[:-1], name))


def _bar(function: Any, bar: type) -> dict[str, Any]:
    """The argument for a progress bar, which huggingface_hub has since 0.34."""
    import inspect

    return {"tqdm_class": bar} if "tqdm_class" in inspect.signature(function).parameters else {}
