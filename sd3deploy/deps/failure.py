"""What went wrong, read from the installer's output. pip and uv have no error codes; these are the words that they use."""

from __future__ import annotations

import re

__all__ = ["classify"]

# In order: the first that matches is the cause, later ones are its consequences. Most were collected from pip 23.2 and 26.3 and
# uv 0.13 with the failures provoked; those with a WinError are what Windows calls the same errno.
_SIGNATURES: tuple[tuple[str, str], ...] = (
    ("deps.externally_managed", r"externally[- ]managed"),
    ("deps.disk_full", r"\[Errno 28\]|No space left on device|\[WinError 112\]|not enough space on the disk|os error 28|\[Errno 122\]"),
    ("deps.in_use", r"\[WinError 32\]|being used by another process"),
    ("deps.no_permission", r"\[Errno 13\]|\[Errno 30\]|\[WinError 5\]|Permission denied|Read-only file system|Access is denied"),
    ("deps.certificate", r"CERTIFICATE_VERIFY_FAILED|SSLError|invalid peer certificate"),
    (
        "deps.no_network",
        r"connection broken by|NewConnectionError|Max retries exceeded|name resolution|ConnectTimeout|ReadTimeout|ProxyError"
        r"|error sending request|dns error|tcp connect error|Could not connect",
    ),
    (
        "deps.bad_download",
        r"DO NOT MATCH THE HASHES|Hash mismatch|BadZipFile|is not a valid wheel|[Ww]heel .* is invalid|incomplete-download",
    ),
    ("deps.no_wheel", r"No matching distribution found|Could not find a version that satisfies|no wheels with a matching|no version of"),
    ("deps.conflict", r"ResolutionImpossible|conflicting dependencies|No solution found"),
    ("deps.no_record", r"uninstall-no-record-file|RECORD file not found|no RECORD file"),
    ("deps.old_pip", r"no such option: --(?:report|dry-run)"),
    ("deps.no_pip", r"No module named '?pip"),
)

# Signals reach us as negative codes, through a shell as 128 + the number (9 killed, 15 terminated).
_KILLED = (137, 143)


def classify(output: str, code: int) -> tuple[str, str]:
    """The id of the sentence in messages/ and the line of the output that tells the most."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    if code < 0 or code in _KILLED:
        return "deps.interrupted", lines[-1] if lines else f"signal {abs(code)}"
    for id, signature in _SIGNATURES:
        found = next((line for line in lines if re.search(signature, line, re.IGNORECASE)), None)
        if found:
            return id, found[:300]
    telling = next((line for line in reversed(lines) if line.lower().startswith("error")), lines[-1] if lines else f"exit code {code}")
    return "deps.failed", telling[:300]
