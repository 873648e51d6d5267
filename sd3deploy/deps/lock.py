"""One installer at a time. Two pips at once both report success and leave a broken package.

The operating system drops the lock with the process that holds it, so a crashed holder blocks nobody. A pip that outlives
its parent still holds it, because it inherited the file: that is what makes a kill of the server safe.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sd3deploy.deps import stopping
from sd3deploy.deps.workspace import workspace
from sd3deploy.errors import DependencyError
from sd3deploy.file_lock import try_lock

__all__ = ["install_lock"]

_POLL = 0.1  # seconds between two looks

# A 45 MB download (bitsandbytes) on a line of 1 Mbit/s takes 6 minutes; whoever holds the lock longer is stuck.
_PATIENCE = 900.0


@contextmanager
def install_lock(patience: float = _PATIENCE) -> Iterator[int]:
    """Hold the lock of this environment; yields the file descriptor, to be inherited by the installer process.

    patience: seconds to wait for another holder. Raises DependencyError when that was not enough, when it was told to stop (see
    stopping.stoppable), or when nothing can be written.
    """
    path = workspace() / "install.lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise DependencyError("deps.no_lock", folder=path.parent, detail=error) from error
    try:
        _wait(descriptor, path, patience)
        yield descriptor
    finally:
        os.close(descriptor)  # closing is unlocking


def _wait(descriptor: int, path: Path, patience: float) -> None:
    until = time.monotonic() + patience
    while not try_lock(descriptor):
        stopping.check()
        if time.monotonic() >= until:
            raise DependencyError("deps.locked", file=path, seconds=round(patience))
        time.sleep(_POLL)
