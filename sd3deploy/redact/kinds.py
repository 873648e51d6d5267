"""The kinds of what is taken out: the word that takes its place, the names that announce it, and which values are none after all."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from sd3deploy.lazy import lazy

__all__ = [
    "COMMON",
    "LEFT",
    "NOTHING",
    "PLACEHOLDER",
    "SAID",
    "SPECIAL_VALUE",
    "WHOLE",
    "WORD",
    "group",
    "hidden",
    "is_secret",
    "kind_of",
    "mark",
]

PLACEHOLDER = lazy(r"<(?:cookie|email|host|password|private key|secret|token|user)>")
_PLACE = {"authorization": "token", "cookie": "cookie", "password": "password", "token": "token", "key": "token", "user": "user"}
_I = re.IGNORECASE

# Where a word may begin: not inside of another, but after an escape such as %3D or \n, and as a hump of camelCase.
LEFT = r"(?:(?<![A-Za-z])|(?-i:(?<=[a-z])(?=[A-Z]))|(?<=%[0-9A-Fa-f]{2})|(?<=\\[nrt]))"

# Names of what is secret, as they stand in front of a value: in URLs, JSON, Python, YAML, environments and on command lines.
WORD = (
    rf"(?:(?P<authorization>(?:proxy-)?authorization)|(?P<cookie>cookies?)"
    rf"|(?P<password>pass(?:word|wd|phrase|code|wort)s?|kennwort|contraseña|{LEFT}(?:pwd|pw)|secrets?|credentials?|{LEFT}auth)"
    rf"|(?P<token>{LEFT}pass|token|(?:api|access|private|secret|auth|account|encryption|client|signing|master|license)[-_ ]?key"
    rf"|{LEFT}(?:session[-_]?id|phpsessid|jsessionid))"
    rf"|(?P<key>tokens|{LEFT}keys?)|(?P<user>{LEFT}(?:user[-_]?name|logname|user|login)))"
    rf"(?:[-_]?(?:value|hash|\d{{1,2}}))?(?![\w-])"
)
WHOLE = lazy(WORD + r"$", _I)
# Tokens of language models and of textual inversion, which are words.
_SPECIAL = lazy(
    r"(?:eos|bos|pad|unk|cls|sep|mask|special|image|next|per|num|max|min|prompt|new|stop|start|end|extra|control|placeholder|trigger"
    r"|instance|initializer|modifier)[-_ ]?$",
    _I,
)

# A value that is none: nothing there, a state, or what the code of a traceback computes it from.
NOTHING = lazy(
    r"(?:none|null|nil|true|false|undefined|unset|unknown|yes|no|on|off|\d|\*+|\.{3}|…|<[^>\n]{0,40}>)?$", _I
)  # fmt: skip
_WORDS = (
    "and are can could empty expired failed for found from has have if in invalid is it its may missing must not of or please provided"
    " read rejected required set should str the this to unauthorized valid was were will with write wrong you your"
)
SAID = frozenset(_WORDS.split())
_CODE = lazy(
    r"(?:self|cls|kwargs|args|os|options|opts|shared|config|getattr|getpass|cmd_opts|request|response)\b[.(\[]|token\b(?![^\s,)])"
)
_CALL = lazy(r"[({\[]|[A-Za-z_][\w.]{0,80}[(\[]")
_KEY = lazy(r"[A-Za-z0-9]{6}")
_NUMBER = lazy(r"\d{1,6}(?:\.\d{1,6})?$")
SPECIAL_VALUE = lazy(r"(?:\[\w{1,8}\]|\$\{?[A-Z][A-Z0-9_]{2,40}\}?)$")
_PART = lazy(r"[A-Za-z]{0,24}\d{0,4}[A-Za-z]{0,4}$")
# Names of accounts that tell nothing about a person, and would make holes into every text.
_ACCOUNTS = (
    "root user users admin administrator ubuntu debian runner home guest test default public app docker data model models image images work"
    " workspace python sdnext automatic webui server service nobody system local localhost host build dev main opt tmp torch cuda nvidia"
    " gpu numpy diffusers transformers desktop laptop pc workstation computer"
)
COMMON = frozenset(_ACCOUNTS.split())


def kind_of(name: str) -> str:
    """Which kind of secret a name such as "hf_token" or "--auth" announces, "" for none."""
    match = WHOLE.search(name[-80:].rstrip())
    return group(match) if match else ""


def group(match: re.Match[str]) -> str:
    """The same of a match of WORD."""
    kind = next(name for name in _PLACE if match[name])
    return "" if kind in ("token", "key") and _SPECIAL.search(match.string, max(0, match.start() - 16), match.start()) else kind


def mark(kind: str) -> str:
    """What is written in place of a secret of that kind."""
    return f"<{_PLACE[kind]}>"


def hidden(kind: str, value: Any) -> Any:
    """What is stored under a name of that kind, without the secret."""
    if isinstance(value, Mapping):
        return {key: hidden(kind_of(str(key)) or kind, one) for key, one in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [hidden(kind, one) for one in value]
    if value is None or isinstance(value, bool):
        return value
    return mark(kind) if is_secret(kind, str(value), quoted=True) else value


def is_secret(kind: str, value: str, *, quoted: bool = False) -> bool:
    """Whether what stands behind a name of that kind is a value, not a state, a sentence or code."""
    if not quoted:
        value = value.rstrip(".,;:)]}")
        if value.lower() in SAID or (_CODE.match(value) and kind != "cookie"):
            return False
    if NOTHING.match(value):
        return False
    if kind in ("password", "cookie", "authorization"):
        return True
    if _NUMBER.match(value) or SPECIAL_VALUE.match(value) or (not quoted and _CALL.match(value)):
        return False
    if kind == "user":
        return value.lower() not in COMMON
    return kind != "key" or (_KEY.search(value) is not None and not _is_name(value))


def _is_name(value: str) -> bool:
    """Whether it is a name of a weight, a setting or a file rather than a key: words, with few digits."""
    parts = re.split(r"[._\-/:\s]+", value)
    if len(parts) == 1:
        return value.isalpha() and len(value) <= 24
    return all(_PART.match(part) for part in parts)
