"""Addresses: the name and password in front of the host of a web address or a command, the name in front of a prompt, and e-mail."""

from __future__ import annotations

import re

from sd3deploy.lazy import lazy

__all__ = ["AUTHORITY", "credentials", "emails"]

AUTHORITY = lazy(r"(?<=://)[^\s/?#\"'<>]*@")
_ODD_AUTHORITY = lazy(r"(?<=://)[^\s/:@\"'<>]{1,64}:(?!\d{1,5}(?:[/?#\s\"']|$)|/)[^\s\"'<>]{1,128}@(?=[\w\[])")
_ENCODED_AUTHORITY = lazy(r"(?<=%3A%2F%2F)(?:[^\s&\"'%]|%(?!40|2F)[0-9A-F]{2}){1,200}%40", re.IGNORECASE)
_SSHPASS = lazy(r"(sshpass -p ?)(?!<)\S+")
_CURL = lazy(r"(?<!\S)(-u[ =]?[\"']?)[^\s:\"'<>]{1,64}:[^\s\"']+")
_AT = lazy(r"@|%40|\\u0040")
_LOCAL = lazy(
    r"(?:\\{1,4}u[0-9a-fA-F]{4}|\\x[89a-fA-F][0-9a-fA-F]|\"[^\"\s@\\/]{1,30}(?: [^\"\s@\\/]{1,30}){0,3}\"|[\w.!#$&'*+=?^`{|}~-]"
    r"|%(?!40|2F|3A|3D|26|22|27|20)[0-9A-Fa-f]{2})+$"
)
_CODED_LETTER = r"%[89A-Fa-f][0-9A-Fa-f]|\\{1,4}u[0-9a-fA-F]{4}|\\x[89a-fA-F][0-9a-fA-F]"  # not one of ASCII, in a URL, JSON or Python
_DOMAIN = lazy(
    rf"(?:(?:[^\W_]|{_CODED_LETTER})(?:(?:[\w-]|{_CODED_LETTER}){{0,62}})\.){{1,8}}"
    rf"(?P<top>xn--[\w-]{{2,58}}|(?:[^\W\d_]|{_CODED_LETTER}){{2,24}})(?![\w-])"
)
_ENDINGS = "png jpg jpeg gif webp svg json yaml txt js css whl gz safetensors ckpt gguf dll exe log"
_FILES = frozenset(_ENDINGS.split())  # logo@2x.png
_PROMPT = lazy(r"(?<![\w.@+<-])[A-Za-z_][\w.-]{0,31}(?=@(?:localhost\b|[\w-]{1,63}:[~/]))")


def credentials(line: str, lowered: str) -> str:
    """Without the names and passwords in web addresses and behind `curl -u` and `sshpass -p`. lowered: the line in lower case."""
    if "://" in line or "%2f%2f" in lowered:
        line = AUTHORITY.sub(_credentials, line)
        line = _ODD_AUTHORITY.sub(_credentials, line)
        line = _ENCODED_AUTHORITY.sub("<user>:<password>%40", line)
    if "-u" in line:
        line = _CURL.sub(r"\1<user>:<password>", line)
    if "sshpass" in line:
        line = _SSHPASS.sub(r"\1<password>", line)
    return line


def emails(line: str) -> str:
    """Without e-mail addresses, and without the name of a prompt such as jane@desktop:~$."""
    if not _AT.search(line):
        return line
    return _PROMPT.sub("<user>", _without_emails(line))


def _without_emails(text: str) -> str:
    parts, at = [], 0
    for sign in _AT.finditer(text):
        if sign.start() < at:
            continue
        domain = _DOMAIN.match(text, sign.end())
        if domain is None or domain["top"].lower() in _FILES:
            continue
        local = _LOCAL.search(text[_before(text, at, sign.start()) : sign.start()])
        if local is None or local[0] == "git":  # git@github.com:…
            continue
        start = sign.start() - len(local[0])
        start += len(local[0]) - len(local[0].lstrip("'`={|*?&"))  # quotes and signs that only stand before it
        if start == sign.start():
            continue
        parts += [text[at:start], "<email>"]
        at = domain.end()
    return "".join([*parts, text[at:]]) if parts else text


def _before(text: str, least: int, at: int) -> int:
    """Where the part of an address in front of its sign may begin."""
    least = max(least, at - 80)
    if text[at - 1 : at] == '"':
        return least
    start = at
    while start > least and (text[start - 1].isalnum() or text[start - 1] in ".!#$&'*+=?^`{|}~-_%\\"):
        start -= 1
    return start


def _credentials(match: re.Match[str]) -> str:
    user, colon, _ = match[0].rpartition("@")[0].partition(":")
    if user in ("", "git") and not colon:
        return match[0]
    return "<user>:<password>@" if colon else "<user>@"
