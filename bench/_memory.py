"""What work takes of its process's memory at its peak, and which files the system keeps in memory."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

__all__ = ["PIECE", "Peak", "cached", "drop", "read_through", "status"]

PIECE = 16 * 2**20  # bytes of one raw read

# In a process of its own: much of what allocates holds Python's lock meanwhile, and a thread would sleep through it.
WATCH = """
import select, sys, time
most, told, done = {}, False, False
with open(f"/proc/{sys.argv[1]}/status", "rb", buffering=0) as file:
    while not done:
        done = bool(select.select([sys.stdin], [], [], 0.002 if told else 0)[0])
        file.seek(0)
        for line in file.read(4096).split(b"\\n"):
            if line.startswith((b"VmRSS", b"RssAnon")):
                name, value = line.split()[:2]
                most[name] = max(most.get(name, 0), int(value))
        if not told:
            print("ready", flush=True)
            told = True
print(most[b"VmRSS:"], most[b"RssAnon:"])
"""


class Peak:
    """Watches this process while the block runs. resident: growth of all its memory at the peak, files that are mapped and were touched
    included; anonymous: of what is its alone, read every 2 ms; both in bytes above what there was at the beginning.

    The kernel's own high-water mark (VmHWM, begun anew) counts for the first, so that nothing falls between two readings. Both are 0
    on systems other than Linux, whose numbers mean other things.
    """

    resident = anonymous = 0

    def __enter__(self) -> Peak:
        if sys.platform == "linux":
            command = [sys.executable, "-I", "-S", "-c", WATCH, str(os.getpid())]
            self._watcher = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            assert self._watcher.stdout is not None
            self._watcher.stdout.readline()
            self._exact = False
            with suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5")  # proc(5): the high-water mark is now what is resident
                self._exact = True
            self._level = status()
        return self

    def __exit__(self, *_: object) -> None:
        if sys.platform == "linux":
            output = self._watcher.communicate("\n")[0]
            resident, anonymous = (1024 * int(value) for value in output.split())
            self.resident = max(resident, status()["VmHWM"] if self._exact else 0) - self._level["VmRSS"]
            self.anonymous = anonymous - self._level["RssAnon"]


def status() -> dict[str, int]:
    """Of this process, in bytes: VmRSS, its highest until now (VmHWM), and the part that is no file (RssAnon). Linux."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines if words[0] in ("VmHWM:", "VmRSS:", "RssAnon:")}


def read_through(files: Iterable[Path], memory: memoryview | None = None) -> int:
    """Read the files from end to end with plain system calls, 16 MiB at a time: into `memory`, one behind the other, else always into the
    same buffer. Returns the bytes.
    """
    buffer = memoryview(bytearray(PIECE)) if memory is None else memory
    total = 0
    for file in files:
        handle = os.open(file, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        try:
            while count := _read(handle, buffer[:PIECE] if memory is None else buffer[total : total + PIECE]):
                total += count
        finally:
            os.close(handle)
    return total


def _read(handle: int, buffer: memoryview) -> int:
    if not len(buffer):
        return 0
    if hasattr(os, "readv"):
        return os.readv(handle, [buffer])
    data = os.read(handle, len(buffer))
    buffer[: len(data)] = data
    return len(data)


def drop(files: Iterable[Path]) -> bool:
    """Ask the system to forget what it keeps of the files. Whether it did; a mapped file or a file system of its own kind stays."""
    files = list(files)
    if not hasattr(os, "posix_fadvise"):
        return False
    for file in files:
        handle = os.open(file, os.O_RDONLY)
        try:
            os.fsync(handle)  # what is not on the disk yet can not be forgotten
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(handle)
    share = cached(files)
    return share is not None and share < 0.01


def cached(files: Iterable[Path]) -> float | None:
    """The share of the files' pages that the system keeps in memory, 0 to 1; None where it does not tell (mincore)."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p]
    pages = found = 0
    page = os.sysconf("SC_PAGE_SIZE")
    for file in files:
        size = file.stat().st_size
        handle = os.open(file, os.O_RDONLY)
        try:
            address = libc.mmap(None, size, 1, 1, handle, 0)  # PROT_READ, MAP_SHARED: mapped, not read
        finally:
            os.close(handle)
        if address in (None, ctypes.c_void_p(-1).value):
            return None
        states = ctypes.create_string_buffer(-(-size // page))
        failed = libc.mincore(address, size, states)
        libc.munmap(address, size)
        if failed:
            return None
        pages += len(states)
        found += sum(byte & 1 for byte in states.raw)
    return found / pages if pages else 0.0
