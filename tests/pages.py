"""The pages in both languages, as the tests read them: their headings, links and tables."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from publish import pages
from sd3deploy import messages

__all__ = ["ALL", "LANGUAGES", "ROOT", "Page", "page"]

ROOT = pages.ROOT
LANGUAGES = messages.languages()


@dataclass(frozen=True)
class Page:
    """A page in one language. Cells of its tables are Markdown."""

    name: str
    language: str

    @property
    def path(self) -> Path:
        return pages.page(self.name, self.language)

    @cached_property
    def words(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @property
    def headings(self) -> list[str]:
        return re.findall(r"^(#+ .+)$", self.words, re.MULTILINE)

    @property
    def anchors(self) -> set[str]:
        """What a link can lead to, by GitHub's rule."""
        return {re.sub(r"[^\w\- ]", "", heading.lstrip("# ").lower()).replace(" ", "-") for heading in self.headings}

    @property
    def links(self) -> list[str]:
        return re.findall(r"\]\(([^)]+)\)", self.words) + re.findall(r'(?:src|srcset)="([^"]+)"', self.words)

    @cached_property
    def tables(self) -> list[list[list[str]]]:
        """Tables → rows, the head first → cells."""
        found: list[list[list[str]]] = []
        before = ""
        for line in self.words.splitlines():
            if line.startswith("|"):
                if not before.startswith("|"):
                    found.append([])
                if not line.startswith("|---"):
                    found[-1].append([cell.strip().replace(r"\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
            before = line
        return found

    def table(self, first: str) -> list[list[str]]:
        """The rows without the head of the one in which that stands at the beginning of a row."""
        (found,) = [rows[1:] for rows in self.tables if any(row[0].startswith(first) for row in rows)]
        return found


def page(name: str, language: str) -> Page:
    """One of pages.PAGES; "README", "docs/api" …"""
    return Page(name, language)


ALL = [Page(name, language) for name in pages.PAGES for language in LANGUAGES]
