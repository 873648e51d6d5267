"""Where the weights of T5 come from: the model's own folder, a shared repository, a local file or folder, or a repository read over the
network.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.request import url2pathname

from sd3deploy import messages
from sd3deploy.encoders.hub import Repository, Spec, downloaded
from sd3deploy.encoders.weights import has_t5, require_t5
from sd3deploy.errors import EncoderError, Sd3Error, SettingError
from sd3deploy.lazy import lazy

__all__ = ["KINDS", "Facts", "Source", "find", "kind_of", "offline", "shown", "understood"]

KINDS = ("Automatic", "Model", "Shared repository", "Local file", "Repository")
_SUBFOLDER = "text_encoder_3"
_ADDRESS = "file://"
_REPOSITORY = lazy(r"[\w.-]+/[\w.-]+(?:@[\w.-]+)?:\S+|https?://\S+", re.ASCII)  # owner/name:file, or the address of a page


@dataclass(frozen=True)
class Facts:
    """What the host knows about places.

    model: the loaded model as a folder, a .safetensors file or a repository id. shared: the host's shared T5 repository and
    the arguments to read it with, or None when the host's setting is off. caches: the folders in which the host keeps
    repositories; what none of them holds is downloaded into the first. offline: never ask the network. tokenizer: a model folder that
    the host ships with T5's tokenizer in it; "" where it has none.
    """

    model: str
    shared: tuple[str, Mapping[str, Any]] | None = None
    caches: tuple[str, ...] = ()
    offline: bool = False
    tokenizer: str = ""


@dataclass(frozen=True)
class Source:
    """Where to read from. `file` is set for a single file, `remote` for a repository that is read without a copy, `place` and
    `arguments`, as of `from_pretrained`, for a folder or repository otherwise.
    """

    name: str
    place: str | None = None
    file: Path | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    remote: Repository | None = None

    def on_disk(self) -> Source:
        """The same without the network: whoever opens it gets what lies on this disk, or an error."""
        if self.remote is not None:
            return replace(self, remote=self.remote.on_disk())
        return replace(self, arguments={**self.arguments, "local_files_only": True}) if self.place else self


def shown(kind: str) -> str:
    """What the screen calls a kind, in the language that is spoken. The settings and the API store `kind` itself."""
    return messages.text(f"source.kind.{kind.lower().replace(' ', '-')}")


def kind_of(value: object) -> str:
    """The kind that a stored setting means, or that a screen shows so in any language. Raises SettingError where it means none."""
    for language in messages.languages():
        with messages.speaking(language):
            for kind in KINDS:
                if isinstance(value, str) and value.strip().lower() in (kind.lower(), shown(kind).lower()):
                    return kind
    raise SettingError("setting.weights-unknown", value=repr(value)[:60], known=", ".join(KINDS))


def find(kind: str, facts: Facts, file: str = "", repository: str = "", keep: bool = False) -> Source:
    """The source that a setting leads to, checked as far as that needs no network.

    Automatic is the model's own T5 when it is on this disk, else the host's shared repository when that setting is on, else
    `repository`, and where none is named the model's repository. keep: what is read of `repository` is stored among the host's own.
    Raises EncoderError that says what is missing and where to get it, and nothing else whatever the words are.
    """
    with understood({"Local file": file, "Repository": repository}.get(kind) or facts.model):
        return _find(kind, facts, file, repository, keep)


@contextmanager
def understood(words: object) -> Iterator[None]:
    """Whatever goes wrong inside with what somebody has typed, as an EncoderError."""
    try:
        yield
    except Sd3Error:
        raise
    except Exception as error:
        raise EncoderError("source.unusable", source=str(words)[:200], error=f"{type(error).__name__}: {error}"[:200]) from error


def _find(kind: str, facts: Facts, file: str, repository: str, keep: bool) -> Source:
    if kind == "Repository":
        return _repository(repository, facts, keep)
    if kind == "Local file":
        return _local_file(file)
    if kind == "Shared repository":
        if facts.shared is None:
            raise EncoderError("source.shared-off")
        return _shared(facts)
    instead = repository.strip() if kind == "Automatic" and facts.shared is None and not offline(facts) else ""
    if facts.model.endswith(".safetensors"):
        if instead and not has_t5(Path(facts.model)):
            return _repository(instead, facts, keep)
        return _inside(Path(facts.model)) if kind == "Model" or facts.shared is None or has_t5(Path(facts.model)) else _shared(facts)
    folder = Path(facts.model)
    if folder.is_dir():
        if (folder / _SUBFOLDER / "config.json").is_file():
            return Source(messages.text("source.model"), str(folder), arguments={"subfolder": _SUBFOLDER})
        if kind == "Automatic" and facts.shared:
            return _shared(facts)
        if instead:
            return _repository(instead, facts, keep)
        raise EncoderError("source.model-has-none", model=folder.name)
    if kind == "Automatic" and facts.shared and _cache_of(facts, facts.model, _SUBFOLDER) is None:
        return _shared(facts)
    if instead and _cache_of(facts, facts.model, _SUBFOLDER) is None:
        return _repository(instead, facts, keep)
    return Source(messages.text("source.model"), facts.model, arguments=_hub(facts, facts.model, {"subfolder": _SUBFOLDER}))


def offline(facts: Facts) -> bool:
    """Whether the network is not to be asked, by the host's setting or by huggingface_hub's."""
    from huggingface_hub import constants

    return facts.offline or constants.HF_HUB_OFFLINE


def _repository(text: str, facts: Facts, keep: bool) -> Source:
    spec = Spec.parse(text)
    return Source(str(spec), remote=Repository(spec, facts.caches, facts.offline, keep))


def _shared(facts: Facts) -> Source:
    assert facts.shared is not None
    repository, arguments = facts.shared
    return Source(repository, repository, arguments=_hub(facts, repository, arguments))


def _hub(facts: Facts, repository: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    cache = _cache_of(facts, repository, arguments.get("subfolder")) or next(iter(facts.caches), None)
    return {**arguments, "cache_dir": cache, "local_files_only": facts.offline}


def _cache_of(facts: Facts, repository: str, subfolder: str | None) -> str | None:
    """The cache folder that holds this part of a repository already."""
    file = f"{subfolder}/config.json" if subfolder else "config.json"
    return next((cache for cache in facts.caches if downloaded(repository, file, cache)), None)


def _local_file(name: str) -> Source:
    if not isinstance(name, str) or not name.strip():
        raise EncoderError("source.file-unset")
    words = name.strip().strip("\"'“”‘’„")
    file = Path(os.path.expanduser(_path_of(words) if words.lower().startswith(_ADDRESS) else words))
    if "\0" in name or not (os.path.isfile(file) or os.path.isdir(file)):
        if "\0" not in name and os.path.islink(file):
            raise EncoderError("source.file-link", file=file)
        if _REPOSITORY.fullmatch(words):
            raise EncoderError("source.file-repository", name=words)
        raise EncoderError("source.file-missing", file=file if "\0" in name else os.path.abspath(file))
    if file.is_dir():
        return Source(file.name or str(file.absolute()), str(file))
    return _inside(file)


def _path_of(address: str) -> str:
    """That of file:///path. Raises EncoderError for one that names a machine first."""
    machine, slash, path = address[len(_ADDRESS) :].partition("/")
    if not (machine or path):
        raise EncoderError("source.file-unset")
    if machine.lower() not in ("", "localhost"):
        raise EncoderError("source.file-address", address=address, meant=f"{_ADDRESS}/{machine}{slash}{path}")
    return url2pathname(f"/{path}")


def _inside(file: Path) -> Source:
    require_t5(file)
    return Source(file.name, file=file)
