"""Values that a name announces, such as token=… and "password": "…": in URLs, JSON, Python, YAML, XML, headers and on command lines."""

from __future__ import annotations

import re

from sd3deploy.lazy import lazy
from sd3deploy.redact.kinds import PLACEHOLDER, SAID, WHOLE, WORD, group, is_secret, kind_of, mark

__all__ = ["elements", "named"]

_I = re.IGNORECASE
# What a line has to have, in lower case, before it is looked at.
_HINTS = (
    "pass", "kennwort", "contrase", "pw", "secret", "credential", "auth", "key", "token", "session", "sessid", "cookie", "user", "login",
    "logname", "sig", "policy", "code", "state",
)  # fmt: skip
# A name, what closes its quotes, and what joins it to its value.
_NAMED = lazy(
    WORD + r"(?P<closed>\\{0,4}[\"'`]|%(?:25)?2[27]|&(?:quot|apos|#39|#x27|#34);)?\]?\*{0,2}(?:[ \t]{0,8}|(?:%20){0,4})"
    r"(?:(?P<pair>,[ \t]{0,8}(?=b?\\{0,4}[\"']))"
    r"|(?P<sep>:[ \t]?(?:str|bytes|Any|(?:typing\.)?Optional\[[^\]]{1,40}\]{1,2}|str ?\| ?None)[ \t]?=(?!=)"
    r"|is:?(?= )|:=|[=-]>|=(?!=)|:(?!//)|%(?:25)?3D|%(?:25)?3A(?!%(?:25)?2F))(?:[ \t]{0,8}|(?:%20){0,4})"
    r"|(?P<space>[ \t]{1,8}))",
    _I,
)
# Parameters of web addresses that are secret only there: of signed downloads and of a sign-in.
_SIGNED = lazy(
    r"((?:[?&;]|%3F|%26)(?:(?:x-amz-|x-goog-)?(?:signature|sig|credential|security-token)|policy|key-pair-id|key|pass|code|state)(?:=|%3D))"
    r"[^&\s\"'<>]+",
    _I,
)
_ELEMENT = lazy(r"(<(\w[\w.-]{0,40})>)(?!<)[^<]+(?=</\2>)")
_LINE_START = lazy(r"^[ \t]*(?:- )?[\"']?[\w.-]{0,40}$")
# How a value begins, and how far it goes: in quotes, in brackets, and bare, by kind.
_OPEN = lazy(r"b?(?P<escape>\\{0,4})(?P<quote>[\"'`])|(?P<percent>%(?:25)?2[27]|&(?:quot|apos|#39|#x27|#34);)", _I)
_BRACKET = lazy(r"[(\[{](?:[^)\]}\"']|\"(?:[^\"\\]|\\.)*\"?|'(?:[^'\\]|\\.)*'?)*[)\]}]?")
_PLAIN = {'"': lazy(r"(?:[^\"\\]|\\.)*"), "'": lazy(r"(?:[^'\\]|\\.)*"), "`": lazy(r"[^`]*")}
_BARE_PASSWORD = lazy(r"(?:[^\s\"'&,\\<]|[\"'](?=\w)|[&,](?![\w-]{1,40}=)(?=\S)|\\(?!\\{0,3}[\"'])|<(?!/?[a-z ]{1,12}>))+")
_BARE_TOKEN = lazy(r"[^\s\"'`&,;)\]}<>\\]+")
_BARE_ENCODED = lazy(r"(?:[^\s\"'&<>,%]|%(?!2[0267C]|7D)[0-9A-Fa-f]{2})+", _I)
_BARE_USER = lazy(r"[^\s\"'`&,;:)\]}<>\\/]+")
_SCHEME = lazy(r"(?:Bearer|Basic|Token|Negotiate|NTLM|ApiKey|Digest|AWS4-HMAC-SHA256)(?:[ \t+]+|%20)", _I)
_PROSE = lazy(r"[A-Za-z]+[A-Za-z',.;:() -]*$")


def named(line: str, lowered: str) -> str:
    """Without what stands behind a name in that line, or in a web address that is signed. lowered: the line in lower case."""
    if not any(word in lowered for word in _HINTS):
        return line
    return _behind_names(_SIGNED.sub(r"\1<token>", line))


def elements(line: str) -> str:
    """Without what XML holds in an element of such a name."""
    if "</" not in line:
        return line
    return _ELEMENT.sub(lambda match: f"{match[1]}{mark(kind)}" if (kind := kind_of(match[2])) else match[0], line)


def _behind_names(text: str) -> str:
    parts, at, position = [], 0, 0
    while match := _NAMED.search(text, position):
        position = match.end()
        kind = group(match)
        span = _span(text, match, kind) if kind else None
        if span is None:
            continue
        start, end = span
        if PLACEHOLDER.match(text, start) or start == end:
            position = max(position, end)
            continue
        value = text[start:end]
        quoted = start > match.end() or match["closed"] is not None
        if (match["sep"] or "").startswith(("is", "IS")) and (value.islower() or len(value) < 6):  # "the token is missing"
            continue
        if not (match["pair"] and WHOLE.match(value)) and is_secret(kind, value, quoted=quoted and kind != "user"):
            parts += [text[at:start], mark(kind)]
            at = position = end
    return "".join([*parts, text[at:]]) if parts else text


def _span(text: str, match: re.Match[str], kind: str) -> tuple[int, int] | None:
    """Where the value begins and ends; None where there is none."""
    at, begun = match.end(), match.start()
    while begun and (text[begun - 1].isalnum() or text[begun - 1] in "_-") and match.start() - begun < 44:
        begun -= 1
    name = text[begun : match.start()]
    around = text[begun - 1] if begun and not match["closed"] and text[begun - 1] in _PLAIN else ""
    if match["pair"] and (not match["closed"] or kind in ("key", "user")):
        return None
    if match["space"] and (match["closed"] or not name.startswith("-") or text.startswith("-", at)):
        return None
    if kind == "user" and not (match["closed"] or match["space"] or (match["sep"] or "").startswith(("=", "%3"))):
        return None  # "user: hello"
    opened = _OPEN.match(text, at)
    if opened:
        start, end = opened.end(), _closing(text, opened)
    elif text[at : at + 1] in ("(", "[", "{") and kind not in ("key", "user"):
        start, end = at, _BRACKET.match(text, at).end()  # type: ignore[union-attr]
        if end - start <= 2:
            return None
    elif around and kind in ("password", "cookie") and not match["space"]:
        start, end = at, _before(around, text, at)
    else:
        start, end = at, _bare(text, match, kind)
    if kind == "authorization" and (scheme := _SCHEME.match(text, start, end)):
        start = scheme.end()
    return start, end


def _closing(text: str, opened: re.Match[str]) -> int:
    """Where what was opened by a quote ends, which may be escaped, or at the end of the line."""
    at = opened.end()
    if opened["percent"]:
        return _before(opened["percent"], text, at)
    if not opened["escape"]:
        return _PLAIN[opened["quote"]].match(text, at).end()  # type: ignore[union-attr]
    end = text.find(opened["escape"] + opened["quote"], at)
    while end > at and text[end - 1] == "\\":  # escaped once more
        end = text.find(opened["escape"] + opened["quote"], end + 1)
    return end if end >= 0 else len(text)


def _before(sign: str, text: str, at: int) -> int:
    """Where the sign comes next, or the end of the line."""
    end = text.find(sign, at)
    return end if end >= 0 else len(text)


def _bare(text: str, match: re.Match[str], kind: str) -> int:
    at = match.end()
    if PLACEHOLDER.match(text, at):
        return at  # what follows it may be a secret, too
    if (match["sep"] or "").startswith("%"):
        pattern = _BARE_ENCODED
    elif kind == "cookie":
        return len(text)
    elif kind == "authorization":
        scheme = _SCHEME.match(text, at)
        if scheme and scheme[0].lower().startswith(("digest", "aws4")):
            return len(text)
        pattern, at = _BARE_PASSWORD, scheme.end() if scheme else at
    elif kind == "password" and match["sep"] == ":" and text[at - 1] in " \t" and _starts_line(text, match.start()):
        value = text[at:].rstrip()  # YAML: a pass phrase has blanks
        return at if _PROSE.match(value) and value.split(None, 1)[0].rstrip(".,") in SAID else at + len(value)
    else:
        pattern = {"password": _BARE_PASSWORD, "user": _BARE_USER}.get(kind, _BARE_TOKEN)
    found = pattern.match(text, at)
    return found.end() if found else at


def _starts_line(text: str, at: int) -> bool:
    return _LINE_START.match(text[max(0, at - 80) : at]) is not None
