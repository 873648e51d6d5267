"""What a user writes to name weights in a repository."""

from __future__ import annotations

import re
from dataclasses import dataclass

from sd3deploy.errors import EncoderError
from sd3deploy.lazy import lazy

__all__ = ["DEFAULT", "Spec"]

DEFAULT = "comfyanonymous/flux_text_encoders:t5xxl_fp16.safetensors"  # open to everybody, 9.8 GB, FP16
_PART = r"[A-Za-z0-9](?:[\w.-]{0,94}[A-Za-z0-9_])?"  # huggingface_hub's utils/_validators.py: at most 96 characters, no end in - or .
_STEP = r"\w[\w.-]*"  # between the slashes of a revision: it is the name of a file in huggingface_hub's folders
_SPEC = lazy(rf"({_PART}/{_PART})(?:@({_STEP}(?:/{_STEP})*))?(?::(.*))?", re.ASCII)
_ADDRESS = lazy(r"https?://[^/]+/([^/]+/[^/]+)(?:/(?:blob|resolve|tree)/([^/]+)(?:/(.*?))?)?(?:\?.*)?/?")


@dataclass(frozen=True)
class Spec:
    """repository: owner/name. path: of a file in it, or of a folder, with a slash at its end; "" for the repository as a whole.
    revision: a branch, a tag or a commit; None for the main one.
    """

    repository: str
    path: str = ""
    revision: str | None = None

    @classmethod
    def parse(cls, text: object) -> Spec:
        """From `owner/name`, `owner/name:path`, `owner/name@revision:path`, or the address of a page of the hub. Raises EncoderError."""
        words = text.strip().strip("\"'") if isinstance(text, str) else ""
        if not words:
            raise EncoderError("hub.unset", example=DEFAULT)
        if page := _ADDRESS.fullmatch(words):
            tree = "/tree/" in words
            words = page[1] + (f"@{page[2]}" if page[2] and page[2] != "main" else "") + (f":{page[3]}" if page[3] else "")
            words += "/" if tree and page[3] and not words.endswith("/") else ""
        found = _SPEC.fullmatch(words)
        path = (found[3] or "").strip().lstrip("/") if found else ""
        out = ".." in path.split("/") or "\\" in path or ":" in path  # of the repository: by a drive too
        if not found or out or not path.isprintable() or "--" in found[1] or ".." in found[1]:
            from sd3deploy.redact import Redactor

            value = "“" + Redactor(paths=False)(str(text)[:1000])[:100] + "”"  # a token that was pasted into the wrong field
            raise EncoderError("hub.spec", value=value, example=DEFAULT)
        return cls(found[1], path, found[2])

    @property
    def folder(self) -> bool:
        """Whether a folder is meant, or the repository as a whole."""
        return not self.path or self.path.endswith("/")

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return f"{self.repository}{revision}" + (f":{self.path}" if self.path else "")
