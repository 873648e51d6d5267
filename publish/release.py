"""Make a release: `python3 dev.py release X.Y.Z` writes the version and the changelog, commits, tags, and makes the files to publish.

The files are a zip to unpack into the folder `extensions` of SD.Next, without tests and tools, and an entry for SD.Next's index of
extensions: an object for the array in a file of the folder `lists` of vladmandic/sd-data. Nothing is pushed or uploaded; what is left to do
is printed. It runs no tests: run them before.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

from publish import pages
from publish.pages import ROOT

__all__ = ["CONTENTS", "Refused", "archive", "index_entry", "main", "newer", "notes"]

NAME = "sd-extension-sd3"
# What a user's copy holds: what SD.Next loads, and what the pages link to.
CONTENTS = ("extension.py", "install.py", "preload.py", "pyproject.toml", "style.css", "scripts", "javascript", "sd3deploy", "docs",
            "README.md", "README.zh.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "LICENSE", "bench/RESULTS.md")  # fmt: skip
_VERSION = re.compile(r'^__version__ = "(.+)"$', re.MULTILINE)
_UNRELEASED = "## Unreleased"
_LONGEST = 200  # characters of a description: the index cuts the rest


class Refused(SystemExit):
    """No release is made, nothing was changed; says why and what to do."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="dev.py release", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("version", metavar="X.Y.Z")
    parser.add_argument("--url", help="the address of the repository, for the index (default: that of the remote origin)")
    parser.add_argument("--out", metavar="DIR", type=Path, default=ROOT / "build", help="where the files go (default: build/)")
    args = parser.parse_args()
    tag, init, changelog = f"v{args.version}", ROOT / "sd3deploy" / "__init__.py", ROOT / "CHANGELOG.md"
    if _git("status", "--porcelain"):
        raise Refused("There are changes that are not committed. Commit or stash them first.")
    if pages.stale():
        raise Refused("Tables of the pages are not current. Run `python3 dev.py docs` and commit what it writes.")
    if _git("tag", "--list", tag):
        raise Refused(f"There is a tag {tag} already. Take another version, or delete it: git tag -d {tag}")
    code, log = init.read_text(encoding="utf-8"), changelog.read_text(encoding="utf-8")
    before = _VERSION.findall(code)[0]
    if not newer(args.version, before):
        raise Refused(f"{args.version} is no version after {before}. Give three numbers, such as 1.2.0.")
    new = notes(log)
    entry = index_entry(args.url or _origin())
    init.write_text(_VERSION.sub(f'__version__ = "{args.version}"', code), encoding="utf-8", newline="\n")
    changelog.write_text(log.replace(_UNRELEASED, f"## {args.version}", 1), encoding="utf-8", newline="\n")
    _git("commit", "--quiet", "--message", f"Version {args.version}", str(init), str(changelog))
    _git("tag", "--annotate", "--cleanup=verbatim", "--message", f"{args.version}\n\n{new}", tag)
    made = archive(tag, args.out / f"{NAME}-{args.version}.zip")
    listed = args.out / "extension-index.json"
    listed.write_text(json.dumps([entry], indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{made}  {made.stat().st_size:,} bytes\n{listed}")
    print(f"Left to do: git push --follow-tags, and attach the zip to the release {tag} on GitHub.")
    return 0


def newer(version: str, before: str) -> bool:
    """Whether it is three numbers, and a version after `before`."""
    if not re.fullmatch(r"(0|[1-9]\d*)(\.(0|[1-9]\d*)){2}", version):
        return False
    return [int(number) for number in version.split(".")] > [int(number) for number in re.findall(r"\d+", before)[:3]]


def notes(changelog: str) -> str:
    """What stands below "Unreleased". Raises Refused where that is nothing."""
    before, heading, after = changelog.partition(f"{_UNRELEASED}\n")
    found = re.split(r"^## ", after, maxsplit=1, flags=re.MULTILINE)[0].strip()
    if not heading or not found or "## " in before:
        raise Refused(f"CHANGELOG.md has nothing below “{_UNRELEASED}” at its top. Write there what is new.")
    return found


def archive(commit: str, path: Path) -> Path:
    """Write a zip of what a user needs, as it is in a commit, in one folder with the name of the extension."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _git("archive", "--format=zip", f"--prefix={NAME}/", f"--output={path}", commit, *CONTENTS)
    return path


def index_entry(url: str) -> dict[str, str]:
    """As the index of extensions wants it: everything else it asks GitHub. It finds an entry by its address, without .git at the end."""
    (description,) = re.findall(r'^description = "(.+)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    if not url.startswith("https://github.com/"):
        raise Refused(f"The index needs an address on GitHub, and “{url}” is none. Give it with --url https://github.com/OWNER/NAME")
    return {"url": url.removesuffix(".git"), "name": NAME, "description": description[:_LONGEST]}


def _origin() -> str:
    done = subprocess.run(["git", "remote", "get-url", "origin"], cwd=ROOT, capture_output=True, text=True)
    return re.sub(r"^git@github\.com:", "https://github.com/", done.stdout.strip())


def _git(*words: str) -> str:
    """What git says. Raises Refused with its own words where it fails."""
    done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, encoding="utf-8")
    if done.returncode:
        raise Refused(f"git {words[0]} failed: {done.stderr.strip()}")
    return done.stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
