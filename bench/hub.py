"""Hub: T5 FP4 right from a hub server limited to 50 MB/s, beside the time that its bytes alone take, and what is written to disk.

Full shapes write 9.5 GB of random weights to a temporary folder and read them at that speed, in four minutes (`--small`: tiny shapes). The
server is a process of its own on this machine: it knows ranges, and shares its speed among all connections. What is written is what the
system counts for the process that reads, and how much larger the disk's files are.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from bench import _memory, _weights, forms
from bench._process import ROOT, answer
from bench._ways import device

__all__ = ["run"]

SPEED = 50e6  # bytes per second, of all connections together
SMALL_SPEED = 2e6
FACTOR = 1.1  # times what the bytes alone take, at most
WRITTEN = 10e6  # bytes beyond the result, at most
PEAK = 600e6  # bytes above the result, at most
NAME = "bench/t5:t5.safetensors"
COMMIT = "0" * 40


def run(small: bool = False) -> dict[str, Any]:
    """{"bytes": of the file, "least_s": what they take at that speed, "factor": of "s" to that, "result": bytes, "written": bytes,
    "above_result": bytes of memory, "met": bool}.
    """
    speed = SMALL_SPEED if small else SPEED
    with _weights.orderly(), tempfile.TemporaryDirectory(prefix="sd3deploy-bench-") as place:
        file = Path(place) / "t5.safetensors"
        forms.WRITERS["FP16"](file, forms.SMALL if small else _weights.FULL)
        _memory.read_through([file])
        with _served(file, speed) as address:
            os.environ["HF_ENDPOINT"] = address
            try:
                row = answer("bench.hub", {"cache": str(Path(place) / "cache")}, Path(place))
            finally:
                del os.environ["HF_ENDPOINT"]
        size = file.stat().st_size
    least = size / speed
    found = {"bytes": size, "least_s": round(least, 1), "factor": round(row["s"] / least, 3), **row}
    found["met"] = found["factor"] <= FACTOR and row["written"] <= row["result"] + WRITTEN and row["above_result"] <= PEAK
    return found


@contextmanager
def _served(file: Path, speed: float) -> Iterator[str]:
    """The address of a server that has this file."""
    command = [sys.executable, "-m", "bench.hub", json.dumps({"serve": str(file), "speed": speed})]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        process.kill()
        process.wait()


def measured(cache: str) -> dict[str, Any]:
    """Seconds from nothing to the entry of the cache on the disk, bytes of the result, bytes written, and of memory beyond the result."""
    import bitsandbytes  # noqa: F401  # what is imported once belongs to no load
    import torch
    import transformers  # noqa: F401

    from sd3deploy.encoders import choices, load, source
    from sd3deploy.encoders.cache import Cache

    torch.zeros(2, 128).mul(2)  # begin what torch begins once
    kept = Cache(Path(cache), 10**12)
    found = source.find("Repository", source.Facts(""), repository=NAME)
    with _memory.Peak() as peak:
        before, started = _written(), time.perf_counter()
        made = load.read(choices.find("fp4"), found, device(), cache=kept)
        seconds = time.perf_counter() - started
        if (thread := load.writing()) is not None:
            thread.join()
    on_disk = sum(one.stat().st_size for one in Path(cache).rglob("*") if one.is_file())
    (entry,) = kept.entries()
    return {
        "s": round(seconds, 2),
        "on_disk_s": round(time.perf_counter() - started, 2),
        "result": entry.bytes,
        "written": max(_written() - before, on_disk),
        "above_result": peak.anonymous - entry.bytes,
        "cached": made.cached,
    }


def _written() -> int:
    """Bytes that this process has written so far; 0 where the system does not tell."""
    try:
        return int(re.findall(r"^wchar: (\d+)", Path("/proc/self/io").read_text(), re.M)[0])
    except (OSError, IndexError):
        return 0


class _Bucket:
    """Lets so many bytes a second pass, of all threads together."""

    def __init__(self, speed: float) -> None:
        self._speed, self._lock, self._next = speed, threading.Lock(), time.monotonic()

    def wait(self, count: int) -> None:
        with self._lock:
            self._next = max(self._next, time.monotonic() - 0.05) + count / self._speed
            pause = self._next - time.monotonic()
        if pause > 0:
            time.sleep(pause)


def serve(file: str, speed: float) -> None:
    """Serve until killed; the address is printed."""
    size, bucket = os.path.getsize(file), _Bucket(speed)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

        def do_HEAD(self) -> None:
            self._head(200 if self._known() else 404, 0, size if self._known() else 0)

        def _known(self) -> bool:
            return self.path.endswith("/t5.safetensors")  # huggingface_hub asks for other things, too

        def do_GET(self) -> None:
            if not self._known():
                return self._head(404, 0, 0)
            found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range") or "")
            start, end = (int(found[1]), min(int(found[2]) + 1, size)) if found else (0, size)
            self._head(206 if found else 200, start, end)
            with open(file, "rb", buffering=0) as content:
                content.seek(start)
                while start < end:
                    data = content.read(min(1 << 16, end - start))
                    bucket.wait(len(data))
                    self.wfile.write(data)
                    start += len(data)

        def _head(self, status: int, start: int, end: int) -> None:
            self.send_response(status)
            headers = {"ETag": '"bench"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes", "Content-Length": str(end - start)}
            if status == 206:
                headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()


def main(arguments: Iterable[str]) -> None:
    question = json.loads(next(iter(arguments)))
    if "serve" in question:
        serve(question["serve"], question["speed"])
    else:
        print(json.dumps(measured(**question)))


if __name__ == "__main__":
    main(sys.argv[1:])
