"""What nobody has explained: said with all that is known of it, so that whoever reads it can."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from sd3deploy import messages
from sd3deploy.diagnosis.failure import Failure, message
from sd3deploy.diagnosis.finding import Finding, finding
from sd3deploy.diagnosis.installed import Installed
from sd3deploy.diagnosis.rule import NOTHING, Kind

__all__ = ["UNKNOWN", "unknown"]

_LONGEST = 300  # characters of what an error says

UNKNOWN = Kind("unknown", "unknown", "none", "https://github.com/vladmandic/sdnext/issues")


def unknown(failure: Failure, look: Callable[[], Installed]) -> Finding:
    """Exception, what the program was doing, and who called whom: of each package the innermost frame, with its version."""
    raised = failure.last
    error = message(failure.said)
    if raised is not None and (failure.traceback or raised.text):
        error = f"{raised.name}: {raised.text}".removesuffix(": ")
    error = error if len(error) <= _LONGEST else f"{error[:_LONGEST]}…"
    installed = look() if failure.frames else NOTHING
    calls = " → ".join(_place(frame.kind, frame.owner, frame.path, frame.line, frame.function, installed) for frame in failure.innermost)
    during = messages.text(f"rule.unknown.during.{failure.during}") if failure.during else ""
    where = messages.joined(during, messages.text("rule.unknown.calls", calls=calls) if calls else "")
    found = finding(UNKNOWN, {"error": error or message(failure.text)[:_LONGEST]}, evidence=(error,))
    said = found.message if found.message.endswith((".", "…", "!", "?", "。")) or not where else f"{found.message}."
    return replace(found, message=messages.joined(said, where))


def _place(kind: str, owner: str, path: str, line: int, function: str, installed: Installed) -> str:
    """Such as "diffusers 0.39.0 (loader.py:12, load)"."""
    version = installed.version(owner.replace("_", "-")) if kind == "distribution" else ""
    file = path.replace("\\", "/").rpartition("/")[2]
    who = f"extensions/{owner}" if kind == "extension" else f"{owner} {version or ''}".strip()
    return f"{who} ({file}:{line}, {function or '?'})".strip()
