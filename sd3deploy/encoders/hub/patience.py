"""How often something is tried again, and after what pause."""

from __future__ import annotations

import threading
from collections.abc import Mapping

from sd3deploy.encoders.hub import failure
from sd3deploy.encoders.stopping import Stopped
from sd3deploy.errors import EncoderError

__all__ = ["Patience"]

FIRST, LONGEST = 0.5, 30.0  # seconds: the first pause, which doubles, and the longest
_ASKED = 300.0  # seconds at most that a server may ask for with Retry-After
TRIES = 10  # without a byte in between: about two minutes


class Patience:
    """Of one read. ended: set when nobody wants it any more. tries: in a row without progress. server, file: for the sentence."""

    def __init__(self, ended: threading.Event, server: str, file: str, tries: int | None = None) -> None:
        self._ended, self._server, self._file = ended, failure.shown(server), file
        self._tries, self._failed = TRIES if tries is None else tries, 0

    def progress(self) -> None:
        """Something has come."""
        self._failed = 0

    def bear(self, error: Exception | str, headers: Mapping[str, str] | None = None) -> None:
        """Wait after a failure that may pass; raises EncoderError after too many in a row, and at once for one that does not pass;
        Stopped when it is not wanted any more.
        """
        if isinstance(error, Exception) and not failure.passes(error):
            raise failure.told(error, self._server, self._file) from error
        self._failed += 1
        if self._failed >= self._tries:
            cause = error if isinstance(error, Exception) else None
            raise EncoderError("hub.unreachable", server=self._server, file=self._file, error=failure.words(error)) from cause
        pause = min(LONGEST, FIRST * 2 ** (self._failed - 1))
        if self._ended.wait(pause if (asked := _retry_after(headers)) is None else asked):
            raise Stopped("encoder.stopped")


def _retry_after(headers: Mapping[str, str] | None) -> float | None:
    """Seconds that a server asks for; None where it does not, or names a date."""
    value = str((headers or {}).get("Retry-After") or "").strip()
    return min(float(value), _ASKED) if value.isdecimal() and value.isascii() else None
