"""A process of its own for what may crash, hang, or must not touch this one: it answers in lines of JSON and can be ended at any time."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from sd3deploy import messages

__all__ = ["Child", "answer", "follow_parent"]

_OURS = Path(__file__).parents[1]
_PARENT = "SD3DEPLOY_PARENT"  # set for a process that ends when its standard input does, that is with the process that started it
_TICK = 0.1  # s
_KEPT = 60_000  # bytes of what it says on stderr


class Child:
    """`with Child(arguments) as child: for value in child.values(tick): …`; leaving the block ends it.

    code: its exit code, None while it runs; below 0 the signal that ended it. said: the end of its stderr.
    """

    def __init__(self, arguments: list[str], environment: Mapping[str, str] | None = None) -> None:
        paths = os.pathsep.join(filter(None, (str(_OURS), os.environ.get("PYTHONPATH"))))
        self._command = [sys.executable, *arguments]
        self._environment = {
            **os.environ,
            "PYTHONPATH": paths,
            "PYTHONIOENCODING": "utf-8",
            "PYTHONFAULTHANDLER": "1",  # a crash in a native library says where
            _PARENT: "1",
            "SD3DEPLOY_LANGUAGE": messages.language(),
            **(environment or {}),
        }

    def __enter__(self) -> Child:
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # no pipe: that could fill up
        self._process = subprocess.Popen(
            self._command, cwd=_OURS, env=self._environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors
        )
        self._lines: queue.Queue[bytes | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                pipe.close()  # type: ignore[union-attr]
        self._errors.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def code(self) -> int | None:
        return self._process.poll()

    @property
    def said(self) -> str:
        end = self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(0, end - _KEPT))
        return self._errors.read().decode("utf-8", "replace")

    def send(self, data: bytes) -> None:
        """To whoever hears it there, see follow_parent; to nobody where it has ended."""
        with contextlib.suppress(OSError):
            self._process.stdin.write(data)  # type: ignore[union-attr]
            self._process.stdin.flush()  # type: ignore[union-attr]

    def values(self, tick: Callable[[], None] = lambda: None) -> Iterator[Any]:
        """What it answers, until it ends. tick: called ten times a second; what it raises ends the wait."""
        while True:
            tick()
            try:
                line = self._lines.get(timeout=_TICK)
            except queue.Empty:
                continue
            if line is None:
                self._process.wait()
                return
            with contextlib.suppress(ValueError):  # not ours: a library that writes past Python
                yield json.loads(line)

    def _read(self) -> None:
        pipe = self._process.stdout
        with contextlib.suppress(OSError, ValueError):  # closed when the block is left
            for line in pipe or ():
                self._lines.put(line)
        self._lines.put(None)


def answer() -> Callable[[Any], None]:
    """In the child: a function that writes one value as one line. Whatever else is printed in this process goes to stderr from now on."""
    sys.stdout.flush()
    ours = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)  # native libraries too
    sys.stdout = sys.stderr

    def write(value: Any) -> None:
        ours.write(json.dumps(value, ensure_ascii=False) + "\n")
        ours.flush()

    return write


def follow_parent(heard: Callable[[bytes], object] = lambda data: None) -> None:
    """In the child: end when the process that started it is gone, so that no memory of the device stays taken. heard: called on another
    thread with what that one sends.
    """

    def wait() -> None:
        with contextlib.suppress(OSError):
            while data := os.read(0, 1024):  # past sys.stdin: a thread that waits in it makes Python's own end a crash
                heard(data)
        os._exit(3)

    if os.environ.pop(_PARENT, None):
        threading.Thread(target=wait, daemon=True).start()
