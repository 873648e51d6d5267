"""What a stored encoder was made of, and how its files were when they were whole."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from sd3deploy import __version__, installed
from sd3deploy.encoders.mapped import stamp

if TYPE_CHECKING:
    from sd3deploy.encoders.recipe import Recipe
    from sd3deploy.encoders.weights import Weights

__all__ = ["FORMAT", "Manifest", "digest", "key", "place", "stamp", "versions"]

FORMAT = 1  # of the folder; another number is another key, so that an old one is never read as a new one
_VERSIONS = ("bitsandbytes", "torch", "transformers", "safetensors")
_SEAL = "seal"


@dataclass(frozen=True)
class Manifest:
    """key: hexadecimal, of everything that the content depends on. choice: its id. source: its name on the screen. place: a hash of where
    the source's files lie, so that a changed source is known as the same one. bytes, sha256, stamp: of model.safetensors. config: the
    sha256 of config.json. made: seconds since the epoch.
    """

    key: str
    choice: str
    compute: str
    source: str
    place: str
    fingerprint: list[Any]
    settings: Mapping[str, Any]
    versions: Mapping[str, str | None]
    bytes: int
    sha256: str
    config: str
    stamp: Mapping[str, int]
    made: float
    format: int = FORMAT

    def dump(self) -> bytes:
        """As JSON, with a seal: a hash of all of it, so that a manifest that was cut or altered is known."""
        content = asdict(self)
        return json.dumps({**content, _SEAL: _seal(content)}, indent=2, ensure_ascii=False).encode()

    @classmethod
    def parse(cls, text: bytes) -> Manifest:
        """Raises ValueError for anything but what `dump` writes."""
        try:
            content = json.loads(text)
            if content.pop(_SEAL) != _seal(content) or content["format"] != FORMAT:
                raise ValueError("the seal is broken")
            return cls(**content)
        except (KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError("not a manifest") from error

    def same_source(self, other: Manifest) -> bool:
        """Whether it is of the same files and for the same use, so that only one of both can be right."""
        return (self.place, self.choice, self.compute) == (other.place, other.choice, other.compute)


def key(fingerprint: object, recipe: Recipe) -> str:
    """Hexadecimal: another one for whatever changes the content."""
    library = installed.version("bitsandbytes") if "bitsandbytes" in recipe.choice.groups else None
    return digest({"format": FORMAT, "fingerprint": fingerprint, "settings": recipe.settings(), "bitsandbytes": library})


def place(weights: Weights) -> str:
    """A hash of where the files lie; the path itself would carry the name of the user."""
    return digest(sorted({str(file.path.absolute() if file.path else f"{weights.name} {file.name}") for file in weights.files}))


def versions() -> dict[str, str | None]:
    """Of what an encoder is made with."""
    return {"sd3deploy": __version__, **{name: installed.version(name) for name in _VERSIONS}}


def digest(value: object) -> str:
    """Hexadecimal, of JSON-able values."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def _seal(content: Mapping[str, Any]) -> str:
    return digest({name: value for name, value in content.items() if name != _SEAL})
