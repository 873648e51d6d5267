"""Repositories of git on this machine, at an address that SD.Next accepts: a folder is none."""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from demo import server
from tests.waiting import until

__all__ = ["made", "served", "work_tree"]


def git(folder: Path, *words: str) -> str:
    """Raises CalledProcessError where git fails."""
    who = ("-c", "user.name=tests", "-c", "user.email=tests@example.org", "-c", "safe.directory=*")
    return subprocess.run(["git", *who, *words], cwd=folder, check=True, capture_output=True, text=True).stdout


def made(folder: Path, files: Mapping[str, str] | None = None, *, source: Path | None = None) -> Path:
    """A repository with one commit: of `files` (path → text), or of what git knows, and would know, in `source`."""
    folder.mkdir(parents=True)
    for name, text in (files or {}).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    if source:
        for name in git(source, "ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0"):
            if name and (source / name).is_file():  # one that has just been deleted is still known
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source / name, folder / name)
    git(folder, "init", "--quiet", "--initial-branch=main")
    git(folder, "add", "--force", ".")
    git(folder, "commit", "--quiet", "--message=One")
    for key in ("uploadpack.allowFilter", "uploadpack.allowAnySHA1InWant"):  # as the large sites have it: SD.Next clones without blobs
        git(folder, "config", key, "true")
    return folder


def work_tree(folder: Path) -> Path:
    """This extension, as it lies here."""
    return made(folder, source=server.ROOT)


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve the repositories in `folder`. Yields the address to which their names are appended."""
    if shutil.which("git") is None or not (Path(git(folder, "--exec-path").strip()) / "git-daemon").exists():
        pytest.skip("no git-daemon: install the package git of the operating system")
    port = server.free_port()
    words = ["git", "daemon", "--export-all", "--reuseaddr", f"--base-path={folder}", "--listen=127.0.0.1", f"--port={port}", str(folder)]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        assert until(lambda: answers(port)), "git daemon does not listen"
        yield f"git://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()
