"""The operating system's lock of a file: it falls with the process that holds it, so a crashed holder blocks nobody.

Not `fasteners`, which the host ships: it takes lockf on POSIX, and that lock belongs to a process. A pip that outlives its killed parent
would not hold it, two threads of one process would both get it, and closing any other handle of the file would drop it. Besides,
install.py runs before the host has installed anything.
"""

from __future__ import annotations

import os

__all__ = ["try_lock"]

if os.name == "nt":
    import msvcrt

    def try_lock(descriptor: int) -> bool:
        """Take the lock of an open file, held until it is closed; False where somebody else has it. Never waits."""
        os.lseek(descriptor, 0, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

else:
    import fcntl

    def try_lock(descriptor: int) -> bool:
        """Take the lock of an open file, held until it is closed; False where somebody else has it. Never waits.

        A child that inherits the file holds it too. Raises OSError on a file system without locks.
        """
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True
