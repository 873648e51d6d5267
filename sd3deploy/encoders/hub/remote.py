"""A file of a repository that is read over the network."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, cast

from sd3deploy.encoders.hub.link import Link
from sd3deploy.encoders.hub.pages import Pages
from sd3deploy.encoders.hub.reader import Reader
from sd3deploy.encoders.hub.waiting import abiding

__all__ = ["RemoteFile"]


@dataclass(frozen=True)
class RemoteFile:
    """Read by ranges; nothing of it comes to the disk. file: its path in the repository. etag: changes with its content; commit: stands in
    for it where the server gives none. size: bytes.
    """

    repository: str
    file: str
    etag: str | None
    commit: str | None
    size: int
    link: Link = field(compare=False, repr=False)
    pages: Pages = field(compare=False, repr=False)

    @classmethod
    def find(cls, repository: str, path: str, revision: str | None = None) -> RemoteFile:
        """Ask the hub for it. Raises EncoderError where it can not be had, NoRanges where it can not be read in parts."""
        link = Link(repository, path, revision)
        place = abiding(link.place)
        file = cls(repository, path, place.etag, place.commit, place.size, link, Pages(link, place.size))
        with file.open() as content:
            content.read(1)  # whether the server knows ranges
        return file

    @property
    def name(self) -> str:
        return self.file.rpartition("/")[2]

    @property
    def path(self) -> Path | None:
        return None

    def open(self) -> BinaryIO:
        return cast(BinaryIO, Reader(self.link, self.pages, self.size, self.name))

    def fingerprint(self) -> dict[str, Any]:
        """The commit changes with each edit of a description: it is among it only where nothing tells the content itself."""
        content = {"etag": self.etag} if self.etag else {"commit": self.commit}
        return {"repository": self.repository, "file": self.file, "size": self.size, **content}
