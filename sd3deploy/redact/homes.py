"""Homes: the names of users in paths."""

from __future__ import annotations

import re

from sd3deploy.lazy import lazy

__all__ = ["homes"]

# What a line has to have, in lower case, before it is looked at.
_HINTS = ("home", "users", "documents", "dokumente", "media")
_SLASH = r"(?:[\\/]{1,8}|%5C|%2F|%255C|%252F)"
_CODED = r"%(?!2F|5C|22|27|3A|25|26)[0-9A-Fa-f]{2}|\\{1,4}u[0-9a-fA-F]{4}|\\x[89a-fA-F][0-9a-fA-F]"
_LETTER = rf"(?:[^\s\\/:*?\"'<>|,;\[\]=%]|{_CODED}|\\ |(?<=\w)'(?=\w))"
_HOME = lazy(
    rf"(?P<prefix>{_SLASH}(?:home|users|documents and settings|documents%20and%20settings|dokumente und einstellungen){_SLASH}"
    rf"|(?<![\w.])/(?:run/)?media/)"
    rf"(?:(?P<long>{_LETTER}{{1,64}}(?:(?:,? |,){_LETTER}{{1,32}}){{0,5}})(?={_SLASH})"
    rf"|(?P<quoted>{_LETTER}{{1,64}}(?: {_LETTER}{{1,32}}){{0,3}})(?=[\"'])"
    rf"|(?P<short>(?:[^\s\\/:*?\"'<>|,;\[\]=()&%]|{_CODED}){{1,64}}(?:(?-i: [A-ZÀ-Þ][\w.-]{{0,30}}){{1,2}}(?=[ \t\r]*$))?))",
    re.IGNORECASE,
)
_NOBODY = frozenset(("public", "shared", "default", "all users", "all%20users", "default user"))
# Not what pip leaves of a package that it could not delete, such as ~umpy.
_LEFTOVER = "umpy|orch|ransformers|iffusers|ccelerate|itsandbytes|illow|ydantic|radio|okenizers|afetensors"
_TILDE = lazy(rf"(?<![^\s\"'=:,(\[])~(?!(?:{_LEFTOVER})\b)[A-Za-z_][\w.-]{{0,31}}(?=[\\/])")


def homes(line: str, lowered: str) -> str:
    """Without the names of users in paths and behind a tilde. lowered: the line in lower case."""
    if any(word in lowered for word in _HINTS):
        line = _HOME.sub(_home, line)
    return _TILDE.sub("~<user>", line) if "~" in line else line


def _home(match: re.Match[str]) -> str:
    name = match["long"] or match["quoted"] or match["short"]
    return match[0] if name.lower() in _NOBODY else f"{match['prefix']}<user>"
