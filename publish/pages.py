"""The pages of this project in both languages, and the tables in them that are data: `python3 dev.py docs` writes those anew.

A table is filled in between two comments of a page, `<!-- generated: NAME -->` and `<!-- end -->`. All else is written by hand.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path

from publish import encoders, messages
from sd3deploy import messages as sentences

__all__ = ["BLOCKS", "PAGES", "ROOT", "filled", "main", "page", "stale"]

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("README", *(f"docs/{name}" for name in ("api", "architecture", "contributing", "diagnosis", "doctor", "encoders", "files",
                                                 "hosts", "memory", "messages", "settings")))  # fmt: skip
# Name in the comment → the lines of Markdown in a language.
BLOCKS: dict[str, Callable[[str], str]] = {
    "encoders": encoders.brief,
    "encoder-numbers": encoders.numbers,
    "forms": encoders.forms,
    "gpus": encoders.gpus,
    "loading": encoders.loading,
    "messages": messages.tables,
}
_BLOCK = re.compile(r"^(<!-- generated: ([\w-]+) -->\n).*?^(<!-- end -->)$", re.DOTALL | re.MULTILINE)


def page(name: str, language: str) -> Path:
    """The file of a page of PAGES; English is the language that its name does not tell."""
    return ROOT / f"{name}{'' if language == 'en' else f'.{language}'}.md"


def filled(text: str, language: str) -> str:
    """The text of a page with its tables as they should be now. Raises KeyError for a table that nobody makes."""
    with sentences.speaking(language):
        return _BLOCK.sub(lambda found: f"{found[1]}{BLOCKS[found[2]](language)}\n{found[3]}", text)


def stale() -> list[tuple[Path, str]]:
    """The pages whose tables are not those of the data, with their text as it should be."""
    found = []
    for path, language in ((page(name, language), language) for name in PAGES for language in sentences.languages()):
        before = path.read_text(encoding="utf-8")
        if (after := filled(before, language)) != before:
            found.append((path, after))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="dev.py docs", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 where a table is not current")
    args = parser.parse_args()
    pages = stale()
    for path, text in pages:
        print(f"{path.relative_to(ROOT)} {'is not current' if args.check else 'written'}")
        if not args.check:
            path.write_text(text, encoding="utf-8", newline="\n")
    if not pages:
        print("All tables are current.")
    return int(args.check and bool(pages))


if __name__ == "__main__":
    sys.exit(main())
