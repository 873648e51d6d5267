"""The redactor: every kind of secret, one after the other, until nothing is left to replace."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from sd3deploy.lazy import lazy
from sd3deploy.redact import machine
from sd3deploy.redact.addresses import credentials, emails
from sd3deploy.redact.homes import homes
from sd3deploy.redact.kinds import NOTHING, hidden, kind_of, mark
from sd3deploy.redact.named import elements, named
from sd3deploy.redact.spellings import Spellings
from sd3deploy.redact.tokens import private_keys, tokens

__all__ = ["Redactor"]

# Colours, commands to a terminal, signs without width: a secret with one of them in it would not be recognized, but could be copied.
_INVISIBLE = lazy(
    r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b\n]*(?:\x07|\x1b\\))?|[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\xad\u200b\u200e\u200f\u202a-\u202e"
    r"\u2060-\u2069\ufeff\ud800-\udfff]|(?<=[ -~])[\u200c\u200d]"
)
_ROUNDS = 6  # what one replacement brings to light is replaced in the next round; two do as a rule


class Redactor:
    """Call it with a text to get the text without secrets. What has been redacted stays as it is.

    secrets: what must not be seen although it does not look secret, such as passwords. users, hosts: names of people and of machines,
    replaced where they stand as words of their own. paths: the names of users in paths too; False leaves commands as they can be typed.
    """

    def __init__(self, secrets: Iterable[str] = (), users: Iterable[str] = (), hosts: Iterable[str] = (), *, paths: bool = True) -> None:
        self._paths = paths
        self._known = Spellings(secrets, users, hosts)

    @classmethod
    def of_this_machine(cls, host_folders: Iterable[Path] = (), environ: Mapping[str, str] = os.environ, *, names: bool = True) -> Redactor:
        """One that knows the tokens and passwords of this machine, the name of its user and its own name.

        host_folders: the host's folder and its data folder, where config.json and secrets.json are. names: False leaves the names of
        users and of this machine, and paths as they are: for the user's own screen, where commands are to be copied from.
        """
        secrets = machine.secrets(host_folders, environ)
        return cls(secrets, machine.people(environ), machine.hosts()) if names else cls(secrets, paths=False)

    def __call__(self, text: str) -> str:
        """The text without secrets, with as many lines as before."""
        text = _INVISIBLE.sub("", text)
        known: dict[str, str] = {}  # the lines of a log repeat
        for _ in range(_ROUNDS):
            before, text = text, self._known.secrets(text)
            text = private_keys(text)
            text = "\n".join([line and (known.get(line) or self._line(line, known)) for line in text.split("\n")])
            if text == before:
                break
        return text

    def value(self, obj: Any) -> Any:
        """The same for JSON-able values; what is stored under a name such as "password" is replaced as a whole. Others become text."""
        if isinstance(obj, str):
            return self(obj)
        if obj is None or isinstance(obj, bool | int):
            return obj
        if isinstance(obj, float):
            return obj if math.isfinite(obj) else str(obj)  # JSON has no infinity
        if isinstance(obj, Mapping):
            return self._mapping(obj)
        if isinstance(obj, list | tuple | set | frozenset):
            return self._list(sorted(obj, key=str) if isinstance(obj, set | frozenset) else list(obj))
        return self(str(obj))

    def _mapping(self, obj: Mapping[Any, Any]) -> dict[str, Any]:
        label = next((obj[name] for name in ("name", "key", "id", "setting", "option") if isinstance(obj.get(name), str)), "")
        found = {}
        for key, one in obj.items():
            kind = kind_of(str(key)) or (kind_of(label) if str(key).lower() in ("value", "default") else "")
            found[self(str(key))] = self.value(hidden(kind, one) if kind else one)
        return found

    def _list(self, items: list[Any]) -> list[Any]:
        items = [
            mark(kind_of(before)) if isinstance(before, str) and isinstance(one, str) and _is_flag(before, one) else one
            for before, one in pairwise([None, *items])
        ]
        if all(isinstance(one, str) for one in items) and not any("\n" in one for one in items):  # lines: a key may go over many
            lines = self("\n".join(items)).split("\n")
            if len(lines) == len(items):
                return list(map(self, lines))
        return [self.value(one) for one in items]

    def _line(self, line: str, known: dict[str, str]) -> str:
        """One line, until there is nothing more to replace."""
        text = line
        for _ in range(_ROUNDS):
            before, text = text, self._once(text)
            if text == before:
                break
        known[line] = known[text] = text
        return text

    def _once(self, text: str) -> str:
        """Every kind once; each looks only at a line that has what it can not be without."""
        lowered = text.lower()
        text = credentials(text, lowered)
        text = named(text, lowered)
        text = tokens(text, lowered)
        text = emails(text)
        if self._paths:
            text = homes(text, lowered)
        return self._known.names(elements(text))


def _is_flag(before: str, value: str) -> bool:
    return before.startswith("-") and "=" not in before and not value.startswith("-") and bool(kind_of(before)) and not NOTHING.match(value)
