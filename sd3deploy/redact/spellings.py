"""Spellings: what is known to be a secret or a name, found in whatever way it is written."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable, Iterable
from urllib.parse import quote, quote_plus

from sd3deploy.redact.kinds import PLACEHOLDER

__all__ = ["Spellings"]

_BACKSLASH = r"(?:\\|%(?:25)?5[Cc])"


class Spellings:
    """Of secrets (two characters at least), of names of users, where they stand as words of their own, and of hosts (four at least)."""

    def __init__(self, secrets: Iterable[str], users: Iterable[str], hosts: Iterable[str]) -> None:
        secrets = {line.strip() for secret in secrets for line in (secret, *(secret.splitlines() if "\n" in secret.strip() else ()))}
        users = [name.strip() for name in users]
        long = [secret for secret in secrets if len(secret) >= 4]
        self._literals = _longest_first(form for secret in long for form in _variants(secret))
        special = _longest_first(secret for secret in long if not (secret.isascii() and secret.isalnum()))
        self._mixed = re.compile("|".join(map(_spelled, special))) if special else None
        self._short = _words(secret for secret in secrets if len(secret) in (2, 3))
        self._names = (
            (_words(form for name in users if len(name) > 2 for form in _variants(name)), "<user>"),
            (_segments(name for name in users if 0 < len(name) < 3), "<user>"),
            (_words(form for name in hosts if len(name.strip()) > 3 for form in _variants(name.strip())), "<host>"),
        )

    def secrets(self, text: str) -> str:
        """Without the secrets."""
        return _outside(text, self._secret)

    def names(self, text: str) -> str:
        """Without the names of users and hosts."""
        for pattern, word in self._names:
            if pattern:
                text = _outside(text, lambda part, pattern=pattern, word=word: pattern.sub(word, part))
        return text

    def _secret(self, text: str) -> str:
        for form in self._literals:
            text = text.replace(form, "<secret>")
        if self._mixed and any(sign in text for sign in "%\\&"):
            text = self._mixed.sub("<secret>", text)
        return self._short.sub("<secret>", text) if self._short else text


def _outside(text: str, change: Callable[[str], str]) -> str:
    """Change what is between the placeholders: a user may be called "user", a password be "password"."""
    parts, at = [], 0
    for match in PLACEHOLDER.finditer(text):
        parts += [change(text[at : match.start()]), match[0]]
        at = match.end()
    return "".join([*parts, change(text[at:])])


def _longest_first(forms: Iterable[str]) -> list[str]:
    return sorted(set(forms), key=lambda form: (-len(form), form))


def _variants(word: str) -> set[str]:
    """How it may be spelled in a URL, in JSON, in Python's repr and in HTML."""
    escaped = json.dumps(word)[1:-1]
    forms = {word, escaped, json.dumps(word, ensure_ascii=False)[1:-1], escaped.replace("\\", "\\\\"), repr(word)[1:-1], ascii(word)[1:-1]}
    forms |= {word.replace("'", "\\'"), word.replace('"', '\\"'), word.replace("/", "\\/")}
    forms |= {html.escape(word, quote=False), *(html.escape(word).replace("&#x27;", sign) for sign in ("'", "&#x27;", "&#39;"))}
    plain = word.encode("utf-8", "replace").decode()
    encoded = {quote(plain), quote(plain, safe=""), quote_plus(plain), quote(plain, safe="!*'()~/:@")}
    encoded |= {re.sub("%..", lambda match: match[0].lower(), form) for form in encoded}
    # Lines are not joined: a text keeps as many as it had.
    return {form for form in forms | encoded | {quote(form) for form in encoded} if "\n" not in form}


def _spelled(word: str) -> str:
    """A pattern for it in which each sign may be written in any of the ways that there are, also where they are mixed."""
    return "".join(re.escape(sign) if sign.isascii() and sign.isalnum() else _sign(sign) for sign in word)


def _sign(sign: str) -> str:
    encoded = f"{_BACKSLASH}{{0,8}}" + "".join(f"%(?:25)?(?i:{byte:02x})" for byte in sign.encode("utf-8", "replace"))
    names = {"&": "amp", "<": "lt", ">": "gt", '"': "quot", "'": "apos"}
    units = sign.encode("utf-16-be", "replace")
    escaped = "".join(rf"{_BACKSLASH}{{1,8}}u(?i:{units[at] * 256 + units[at + 1]:04x})" for at in range(0, len(units), 2))
    ways = [encoded, escaped, rf"&#0?{ord(sign)};|&#x(?i:{ord(sign):x});", rf"{_BACKSLASH}{{0,8}}{re.escape(sign)}"]
    ways += [f"&{names[sign]};"] if sign in names else []
    ways += [rf"{_BACKSLASH}{{1,8}}x(?i:{ord(sign):02x})"] if ord(sign) < 256 else []
    ways += [r"\+"] if sign == " " else []
    return f"(?:{'|'.join(ways)})"


def _words(forms: Iterable[str]) -> re.Pattern[str] | None:
    escaped = _longest_first(re.escape(form) for form in forms if form)
    edge = r"(?:(?<![^\W_])|(?<=%[0-9A-Fa-f]{2})|(?<=\\[nrt]))"
    return re.compile(rf"{edge}(?:{'|'.join(escaped)})(?![^\W_])", re.IGNORECASE) if escaped else None


def _segments(names: Iterable[str]) -> re.Pattern[str] | None:
    """Short names: only as a folder."""
    escaped = "|".join(sorted({re.escape(name) for name in names}))
    return re.compile(rf"(?<=[\\/])(?:{escaped})(?=[\\/\"'])", re.IGNORECASE) if escaped else None
