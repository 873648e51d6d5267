"""Takes out of a text what nobody else should read: tokens, passwords, keys, cookies, e-mail addresses and the names of users.

What is taken out is replaced by a word in angle brackets, so that the sentence around it stays readable. Rather a harmless word too much
than a secret too little, but what a failure is understood by stays: numbers, versions, tracebacks, names of models and settings.
Every step looks at each character a bounded number of times, whatever the text is.
"""

from __future__ import annotations

import base64
import getpass
import json
import math
import os
import platform
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

__all__ = ["PLACEHOLDER", "Redactor"]

PLACEHOLDER = re.compile(r"<(?:cookie|email|host|password|private key|secret|token|user)>")

# Colours, commands to a terminal, signs without width: a secret with one of them in it would not be recognized, but could be copied.
_INVISIBLE = re.compile(
    r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b\n]*(?:\x07|\x1b\\))?|[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\xad\u200b\u200e\u200f\u202a-\u202e"
    r"\u2060-\u2069\ufeff\ud800-\udfff]|(?<=[ -~])[\u200c\u200d]"
)
_ROUNDS = 6  # what one replacement brings to light is replaced in the next round; two do as a rule
_I = re.IGNORECASE

# What a line has to have, in lower case, before it is looked at for names of secrets and for folders of users; and as it is, for tokens.
_HINTS = (
    "pass", "kennwort", "contrase", "pw", "secret", "credential", "auth", "key", "token", "session", "sessid", "cookie", "user", "login",
    "sig", "policy", "code", "state",
)  # fmt: skip
_HOMES = ("home", "users", "documents", "dokumente", "media")
_BEGINNINGS = (
    "hf_", "api_org_", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_", "glpat-", "sk-", "k_live_", "k_test_", "AKIA", "ASIA", "AROA",
    "AIDA", "xox", "xapp-", "AIza", "ya29.", "npm_", "pypi-", "dckr_pat_", "r8_", "SG.", ":AA", "eyJ", "hooks.slack.com", "api/webhooks",
    "gradio.live",
)  # fmt: skip

# Where a word may begin: not inside of another, but after an escape such as %3D or \n, and as a hump of camelCase.
_LEFT = r"(?:(?<![A-Za-z])|(?-i:(?<=[a-z])(?=[A-Z]))|(?<=%[0-9A-Fa-f]{2})|(?<=\\[nrt]))"
_START = r"(?:(?<![A-Za-z0-9])|(?<=%[0-9A-Fa-f]{2})|(?<=\\[nrt])|(?<=\\u[0-9A-Fa-f]{4}))"

# Names of what is secret, as they stand in front of a value: in URLs, JSON, Python, YAML, environments and on command lines.
_WORD = (
    rf"(?:(?P<authorization>(?:proxy-)?authorization)|(?P<cookie>cookies?)"
    rf"|(?P<password>pass(?:word|wd|phrase|code|wort)s?|kennwort|contraseña|{_LEFT}(?:pwd|pw)|secrets?|credentials?|{_LEFT}auth)"
    rf"|(?P<token>{_LEFT}pass|token|(?:api|access|private|secret|auth|account|encryption|client|signing|master|license)[-_ ]?key"
    rf"|{_LEFT}(?:session[-_]?id|phpsessid|jsessionid))"
    rf"|(?P<key>tokens|{_LEFT}keys?)|(?P<user>{_LEFT}(?:user[-_]?name|logname|user|login)))"
    rf"(?:[-_]?(?:value|hash|\d{{1,2}}))?(?![\w-])"
)
_NAMED = re.compile(
    _WORD + r"(?P<closed>\\{0,4}[\"'`]|%(?:25)?2[27]|&(?:quot|apos|#39|#x27|#34);)?\]?\*{0,2}(?:[ \t]{0,8}|(?:%20){0,4})"
    r"(?:(?P<pair>,[ \t]{0,8}(?=b?\\{0,4}[\"']))"
    r"|(?P<sep>:[ \t]?(?:str|bytes|Any|(?:typing\.)?Optional\[[^\]\n]{1,40}\]{1,2}|str ?\| ?None)[ \t]?=(?!=)"
    r"|is:?(?= )|:=|[=-]>|=(?!=)|==(?=[ \t]{0,4}[\"'])|:(?!//)|%(?:25)?3D|%(?:25)?3A(?!%(?:25)?2F))(?:[ \t]{0,8}|(?:%20){0,4})"
    r"|(?P<space>[ \t]{1,8}))",
    _I,
)
_WHOLE = re.compile(_WORD + r"$", _I)
# Tokens of language models and of textual inversion, which are words.
_SPECIAL = re.compile(
    r"(?:eos|bos|pad|unk|cls|sep|mask|special|image|next|per|num|max|min|prompt|new|stop|start|end|extra|control|placeholder|trigger"
    r"|instance|initializer|modifier)[-_ ]?$",
    _I,
)
_FLAG = re.compile(r"(?<![\w-])--?[A-Za-z][\w-]{0,40}$|(?<![\w-])--?$")
_LINE_START = re.compile(r"^[ \t]*(?:- )?[\"']?[\w.-]{0,40}$")
_OPEN = re.compile(r"b?(?P<escape>\\{0,4})(?P<quote>[\"'`])|(?P<percent>%(?:25)?2[27]|&(?:quot|apos|#39|#x27|#34);)", _I)
_BRACKET = re.compile(r"[(\[{](?:[^)\]}\"'\n]|\"(?:[^\"\\\n]|\\.)*\"?|'(?:[^'\\\n]|\\.)*'?)*[)\]}]?")
_PLAIN = {'"': re.compile(r"(?:[^\"\\\n]|\\.)*"), "'": re.compile(r"(?:[^'\\\n]|\\.)*"), "`": re.compile(r"[^`\n]*")}
_BARE_PASSWORD = re.compile(r"(?:[^\s\"'&,\\<]|[\"'](?=\w)|[&,](?![\w-]{1,40}=)(?=\S)|\\(?!\\{0,3}[\"'])|<(?!/?[a-z ]{1,12}>))+")
_BARE_TOKEN = re.compile(r"[^\s\"'`&,;)\]}<>\\]+")
_BARE_ENCODED = re.compile(r"(?:[^\s\"'&<>,%]|%(?!2[0267C]|7D)[0-9A-Fa-f]{2})+", _I)
_BARE_USER = re.compile(r"[^\s\"'`&,;:)\]}<>\\/]+")
_TO_QUOTE = {'"': re.compile(r"[^\"\n]*"), "'": re.compile(r"[^'\n]*"), "`": re.compile(r"[^`\n]*")}
_LINE = re.compile(r"[^\n]*")
_SCHEME = re.compile(r"(?:Bearer|Basic|Token|Negotiate|NTLM|ApiKey|Digest|AWS4-HMAC-SHA256)(?:[ \t+]+|%20)", _I)

# A value that is none: nothing there, a state, or what the code of a traceback computes it from.
_NOTHING = re.compile(
    r"(?:none|null|nil|true|false|undefined|unset|unknown|yes|no|on|off|\d|\*+|\.{3}|…|<[^>\n]{0,40}>)?$", _I
)  # fmt: skip
_WORDS = (
    "and are can could empty expired failed for found from has have if in invalid is it its may missing must not of or please provided"
    " read rejected required set should str the this to unauthorized valid was were will with write wrong you your"
)
_SAID = frozenset(_WORDS.split())
_PROSE = re.compile(r"[A-Za-z]+[A-Za-z',.;:() -]*$")
_CODE = re.compile(
    r"(?:self|cls|kwargs|args|os|options|opts|shared|config|getattr|getpass|cmd_opts|request|response)\b[.(\[]|token\b(?![^\s,)])"
)
_CALL = re.compile(r"[({\[]|[A-Za-z_][\w.]{0,80}[(\[]")
_KEY = re.compile(r"[A-Za-z0-9]{6}")
_NUMBER = re.compile(r"\d{1,6}(?:\.\d{1,6})?$")
_SPECIAL_VALUE = re.compile(r"(?:</?\w{1,12}>|<\|\w{1,30}\|>|\[\w{1,8}\]|\$\{?[A-Z][A-Z0-9_]{2,40}\}?)$")
_PART = re.compile(r"[A-Za-z]{0,24}\d{0,4}[A-Za-z]{0,4}$")

# Tokens that are known by their beginning: the documentation of GitHub, GitLab, Hugging Face, OpenAI, AWS, Slack, Google, Stripe, npm,
# PyPI, Docker, Replicate, SendGrid and Telegram; and the web addresses of hooks, which are secrets as a whole.
_TOKEN = re.compile(
    rf"hf_[A-Za-z0-9]{{20,}}|{_START}hf_(?=[a-z]{{0,40}}[A-Z0-9])[A-Za-z0-9]{{6,}}|api_org_[A-Za-z0-9]{{10,}}"
    rf"|gh[pousr]_[A-Za-z0-9]{{10,}}|github_pat_\w{{10,}}|glpat-[\w-]{{10,}}"
    rf"|{_START}sk-(?:(?:proj|ant|or|admin|svcacct)-|(?=[A-Za-z_-]{{0,160}}[0-9]))[\w-]{{16,}}|{_START}sk-[A-Za-z]{{20,}}|{_START}[srp]k_(?:live|test)_[A-Za-z0-9]{{10,}}"
    rf"|{_START}(?:AKIA|ASIA|AROA|AIDA)[A-Z0-9]{{12,}}|{_START}xox[a-z]-[\w-]{{8,}}|{_START}xapp-[\w-]{{10,}}"
    rf"|{_START}AIza[\w-]{{20,}}|{_START}ya29\.[\w-]{{10,}}|{_START}npm_[A-Za-z0-9]{{20,}}|{_START}pypi-[\w-]{{20,}}"
    rf"|dckr_pat_[\w-]{{10,}}|{_START}r8_[A-Za-z0-9]{{20,}}|{_START}SG\.[\w-]{{10,}}\.[\w-]{{10,}}|{_START}\d{{8,10}}:AA[\w-]{{30,}}"
    rf"|{_START}eyJ[\w-]{{5,}}(?:\.[\w-]*){{1,4}}|{_START}eyJ[\w-]{{16,}}"
    rf"|(?<=hooks\.slack\.com/services/)[\w/-]+|(?<=discord\.com/api/webhooks/)[\w/-]+|(?<=discordapp\.com/api/webhooks/)[\w/-]+"
    rf"|{_START}[0-9a-z]{{10,40}}(?=\.gradio\.live)"
)
_LONG = re.compile(r"(?<![A-Za-z0-9])[A-Za-z0-9]{32,}")
_AFTER_ESCAPE = re.compile(r"(?<=%[0-9A-Fa-f]{2})[A-Za-z0-9]{32,}|(?<=\\u[0-9a-f]{4})[A-Za-z0-9]{32,}")
_RANDOM = re.compile(r"(?<![\w-])[\w-]{36,200}(?![\w-])", re.ASCII)
_SYMBOL = re.compile(r"_{1,3}Z(?:N[KSVR]?|S|T[VIS])?(?:St)?\d")  # what C++ makes of a name, as in "undefined symbol: _ZN3c106detail…"
_BASE64_LINE = re.compile(r"^[ \t]*[A-Za-z0-9+/]{56,}={0,2}[ \t\r]*$", re.MULTILINE)
_BEARER = re.compile(rf"{_LEFT}(?P<scheme>bearer|basic)(?P<space>[ \t+]{{1,4}}|%20)(?P<value>[\w.~+/=:-]{{6,}})", _I)
_SIGNED = re.compile(
    r"((?:[?&;]|%3F|%26)(?:(?:x-amz-|x-goog-)?(?:signature|sig|credential|security-token)|policy|key-pair-id|key|pass|code|state)(?:=|%3D))"
    r"([^&\s\"'<>]+)",
    _I,
)

_ELEMENT = re.compile(r"(<(\w[\w.-]{0,40})>)(?!<)[^<\n]+(?=</\2>)")

_AUTHORITY = re.compile(r"(?<=://)[^\s/?#\"'<>]*@")
_ODD_AUTHORITY = re.compile(r"(?<=://)[^\s/:@\"'<>]{1,64}:(?!\d{1,5}(?:[/?#\s\"']|$)|/)[^\s\"'<>]{1,128}@(?=[\w\[])")
_ENCODED_AUTHORITY = re.compile(r"(?<=%3A%2F%2F)(?:[^\s&\"'%]|%(?!40|2F)[0-9A-F]{2}){1,200}%40", _I)
_SSHPASS = re.compile(r"(sshpass -p ?)(?!<)\S+")
_CURL = re.compile(r"(?<!\S)(-u[ =]?[\"']?)[^\s:\"'<>]{1,64}:[^\s\"']+")

_BEGIN = re.compile(r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----")
_END = re.compile(r"-----END [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----")
_BODY = re.compile(r"(?:[ \t\r\n]|\\[nrt]|[A-Za-z0-9+/=]{16,})*")
_LONGEST_KEY = 20_000  # characters; one of 16384 bits has 13,000
_IN_KEY = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/= \t\r\n\\"
_KEY_LINE = re.compile(r"^[ \t]*[A-Za-z0-9+/=]{40,}", re.MULTILINE)

_AT = re.compile(r"@|%40|\\u0040")
_LOCAL = re.compile(
    r"(?:\\{1,4}u[0-9a-fA-F]{4}|\\x[89a-fA-F][0-9a-fA-F]|\"[^\"\s@\\/]{1,30}(?: [^\"\s@\\/]{1,30}){0,3}\"|[\w.!#$&'*+=?^`{|}~-]"
    r"|%(?!40|2F|3A|3D|26|22|27|20)[0-9A-Fa-f]{2})+$"
)
_CODED_LETTER = r"%[89A-Fa-f][0-9A-Fa-f]|\\{1,4}u[0-9a-fA-F]{4}|\\x[89a-fA-F][0-9a-fA-F]"  # not one of ASCII, in a URL, JSON or Python
_DOMAIN = re.compile(
    rf"(?:(?:[^\W_]|{_CODED_LETTER})(?:(?:[\w-]|{_CODED_LETTER}){{0,62}})\.){{1,8}}"
    rf"(?P<top>xn--[\w-]{{2,58}}|(?:[^\W\d_]|{_CODED_LETTER}){{2,24}})(?![\w-])"
)
_ENDINGS = "png jpg jpeg gif webp svg json yaml txt js css whl gz safetensors ckpt gguf dll exe log"

_FILES = frozenset(_ENDINGS.split())  # logo@2x.png
_PROMPT = re.compile(r"(?<![\w.@+<-])[A-Za-z_][\w.-]{0,31}(?=@(?:localhost\b|[\w-]{1,63}:[~/]))")

_BACKSLASH = r"(?:\\|%(?:25)?5[Cc])"
_SLASH = r"(?:[\\/]{1,8}|%5C|%2F|%255C|%252F)"
_CODED = r"%(?!2F|5C|22|27|3A|25|26)[0-9A-Fa-f]{2}|\\{1,4}u[0-9a-fA-F]{4}|\\x[89a-fA-F][0-9a-fA-F]"
_LETTER = rf"(?:[^\s\\/:*?\"'<>|,;\[\]=%]|{_CODED}|\\ |(?<=\w)'(?=\w))"
_HOME = re.compile(
    rf"(?P<prefix>{_SLASH}(?:home|users|documents and settings|documents%20and%20settings|dokumente und einstellungen){_SLASH}"
    rf"|(?<![\w.])/(?:run/)?media/)"
    rf"(?:(?P<long>{_LETTER}{{1,64}}(?:(?:,? |,){_LETTER}{{1,32}}){{0,5}})(?={_SLASH})"
    rf"|(?P<quoted>{_LETTER}{{1,64}}(?: {_LETTER}{{1,32}}){{0,3}})(?=[\"'])"
    rf"|(?P<short>(?:[^\s\\/:*?\"'<>|,;\[\]=()&%]|{_CODED}){{1,64}}(?:(?-i: [A-ZÀ-Þ][\w.-]{{0,30}}){{1,2}}(?=[ \t\r]*$))?))",
    _I | re.MULTILINE,
)
_NOBODY = frozenset(("public", "shared", "default", "all users", "all%20users", "default user"))
# Not what pip leaves of a package that it could not delete, such as ~umpy.
_LEFTOVER = "umpy|orch|ransformers|iffusers|ccelerate|itsandbytes|illow|ydantic|radio|okenizers|afetensors"
_TILDE = re.compile(rf"(?<![^\s\"'=:,(\[])~(?!(?:{_LEFTOVER})\b)[A-Za-z_][\w.-]{{0,31}}(?=[\\/])")

# Variables of the environment that hold secrets, and some that only sound like it.
_SECRET_VARIABLE = re.compile(r"TOKEN|KEY|SECRET|PASSWORD|PASSWD|CREDENTIAL|COOKIE", _I)
_NO_SECRET_VARIABLE = re.compile(r"TOKENIZERS|MAX_TOKENS|KEYBOARD|KEYMAP|KEYRING|_TIMEOUT$", _I)
_SECRET_SETTING = re.compile(r"(?:^|_)(?:token|key|secret|password|passwd|credentials?)$", _I)
_SHORTEST = 6  # characters: what is shorter, such as "false" or "8 GB", is in every text
# Names of accounts that tell nothing about a person, and would make holes into every text.
_ACCOUNTS = (
    "root user users admin administrator ubuntu debian runner home guest test default public app docker data model models image images work"
    " workspace python sdnext automatic webui server service nobody system local localhost host build dev main opt tmp torch cuda nvidia"
    " gpu numpy diffusers transformers desktop laptop pc workstation computer"
)
_COMMON = frozenset(_ACCOUNTS.split())


class Redactor:
    """Call it with a text to get the text without secrets. What has been redacted stays as it is.

    secrets: what must not be seen although it does not look secret, such as passwords. users, hosts: names of people and of machines,
    replaced where they stand as words of their own. paths: the names of users in paths too; False leaves commands as they can be typed.
    """

    def __init__(self, secrets: Iterable[str] = (), users: Iterable[str] = (), hosts: Iterable[str] = (), *, paths: bool = True) -> None:
        self._paths = paths
        given = {line.strip() for secret in secrets for line in (secret, *(secret.splitlines() if "\n" in secret.strip() else ()))}
        variants = {form for secret in given if len(secret) >= 4 for form in _variants(secret)}
        self._literals = sorted(variants, key=lambda form: (-len(form), form))
        special = [secret for secret in given if len(secret) >= 4 and not (secret.isascii() and secret.isalnum())]
        special.sort(key=lambda secret: (-len(secret), secret))
        self._loose = re.compile("|".join(map(_spelled, special))) if special else None
        self._short = _words(secret for secret in given if len(secret) in (2, 3))
        self._users = _words(form for name in users for form in (_variants(name.strip()) if len(name.strip()) > 2 else ()))
        self._segments = _segments(name.strip() for name in users if 0 < len(name.strip()) < 3)
        self._hosts = _words(form for name in hosts for form in (_variants(name.strip()) if len(name.strip()) > 3 else ()))

    @classmethod
    def of_this_machine(cls, host_folders: Iterable[Path] = (), environ: Mapping[str, str] = os.environ, *, names: bool = True) -> Redactor:
        """One that knows the tokens and passwords of this machine, the name of its user and its own name.

        host_folders: the host's folder and its data folder, where config.json and secrets.json are. names: False leaves the names of
        users and of this machine, and paths as they are: for the user's own screen, where commands are to be copied from.
        """
        secrets = {*_of_environment(environ), *_of_huggingface(environ), *_of_command_line(sys.argv)}
        for folder in host_folders:
            for file in ("config.json", "secrets.json"):
                secrets.update(_of_settings(Path(folder) / file))
        if not names:
            return cls(secrets, paths=False)
        hosts = {name for name in (platform.node(), platform.node().partition(".")[0]) if name.lower() not in _COMMON}
        return cls(secrets, _people(environ), hosts)

    def __call__(self, text: str) -> str:
        """The text without secrets, with as many lines as before."""
        text = _INVISIBLE.sub("", text)
        known: dict[str, str] = {}  # the lines of a log repeat
        for _ in range(_ROUNDS):
            before, text = text, _outside(text, self._literal)
            if "PRIVATE KEY" in text:
                text = _private_keys(text)
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
        named = next((obj[name] for name in ("name", "key", "id", "setting", "option") if isinstance(obj.get(name), str)), "")
        found = {}
        for key, one in obj.items():
            kind = _kind(str(key)) or (_kind(named) if str(key).lower() in ("value", "default") and named else "")
            found[self(str(key))] = self.value(_hidden(kind, one) if kind else one)
        return found

    def _list(self, items: list[Any]) -> list[Any]:
        items = [
            f"<{_PLACE[_kind(before)]}>" if isinstance(before, str) and isinstance(one, str) and _is_flag(before, one) else one
            for before, one in zip([None, *items], items, strict=False)
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
        """Every kind, where the line has what one can not be without."""
        lowered = text.lower()
        if "://" in text or "%2f%2f" in lowered:
            text = _AUTHORITY.sub(_credentials, text)
            text = _ODD_AUTHORITY.sub(_credentials, text)
            text = _ENCODED_AUTHORITY.sub("<user>:<password>%40", text)
        if "-u" in text:
            text = _CURL.sub(r"\1<user>:<password>", text)
        if "sshpass" in text:
            text = _SSHPASS.sub(r"\1<password>", text)
        if any(word in lowered for word in _HINTS):
            text = _SIGNED.sub(lambda match: match[0] if PLACEHOLDER.match(match[2]) else f"{match[1]}<token>", text)
            text = _named(text)
        if "bearer" in lowered or "basic" in lowered:
            text = _BEARER.sub(_bearer, text)
        if any(word in text for word in _BEGINNINGS):
            text = _TOKEN.sub("<token>", text)
        if len(text) >= 32:
            text = _LONG.sub(_long, text)
            text = _AFTER_ESCAPE.sub(_long, text) if "%" in text or "\\u" in text else text
            text = _RANDOM.sub(_random, text)
            text = _BASE64_LINE.sub(_long, text)
        if "@" in text or "%40" in text or "\\u0040" in text:
            text = _emails(text)
            text = _PROMPT.sub("<user>", text)
        if self._paths and any(word in lowered for word in _HOMES):
            text = _HOME.sub(_home, text)
        if self._paths and "~" in text:
            text = _TILDE.sub("~<user>", text)
        if "</" in text:
            text = _ELEMENT.sub(lambda match: f"{match[1]}<{_PLACE[_kind(match[2])]}>" if _kind(match[2]) else match[0], text)
        for pattern, word in ((self._users, "<user>"), (self._segments, "<user>"), (self._hosts, "<host>")):
            if pattern:
                text = _outside(text, lambda part, pattern=pattern, word=word: pattern.sub(word, part))
        return text

    def _literal(self, text: str) -> str:
        for form in self._literals:
            text = text.replace(form, "<secret>") if form in text else text
        if self._loose and any(sign in text for sign in "%\\&"):
            text = self._loose.sub("<secret>", text)
        return self._short.sub("<secret>", text) if self._short else text


_PLACE = {"authorization": "token", "cookie": "cookie", "password": "password", "token": "token", "key": "token", "user": "user"}


def _outside(text: str, change: Any) -> str:
    """Change what is between the placeholders: a user may be called "user", a password be "password"."""
    if "<" not in text:
        return change(text)
    parts, at = [], 0
    for match in PLACEHOLDER.finditer(text):
        parts += [change(text[at : match.start()]), match[0]]
        at = match.end()
    return "".join([*parts, change(text[at:])])


def _variants(word: str) -> set[str]:
    """How it may be spelled in a URL, in JSON, in Python's repr and in HTML."""
    escaped = json.dumps(word)[1:-1]
    forms = {word, escaped, json.dumps(word, ensure_ascii=False)[1:-1], escaped.replace("\\", "\\\\"), repr(word)[1:-1], ascii(word)[1:-1]}
    forms |= {word.replace("\\", "\\\\"), word.replace("'", "\\'"), word.replace('"', '\\"'), word.replace("/", "\\/")}
    forms.add(word.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;"))
    html = word.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace('"', "&quot;")
    forms |= {html, html.replace("'", "&#x27;"), html.replace("'", "&#39;")}
    plain = word.encode("utf-8", "replace").decode()
    encoded = {quote(plain), quote(plain, safe=""), quote_plus(plain), quote(plain, safe="!*'()~/:@")}
    encoded |= {re.sub("%..", lambda match: match[0].lower(), form) for form in encoded}
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
    escaped = sorted({re.escape(form) for form in forms if form}, key=lambda form: (-len(form), form))
    edge = r"(?:(?<![^\W_])|(?<=%[0-9A-Fa-f]{2})|(?<=\\[nrt]))"
    return re.compile(rf"{edge}(?:{'|'.join(escaped)})(?![^\W_])", _I) if escaped else None


def _segments(names: Iterable[str]) -> re.Pattern[str] | None:
    """Short names: only as a folder."""
    escaped = "|".join(sorted({re.escape(name) for name in names}))
    return re.compile(rf"(?<=[\\/])(?:{escaped})(?=[\\/\"'])", _I) if escaped else None


def _kind(name: str) -> str:
    """Which kind of secret a name such as "hf_token" or "--auth" announces, "" for none."""
    match = None
    for match in _WHOLE.finditer(name[-80:].rstrip()):  # noqa: B007 (only one can end it)
        break
    return _group(match, name[-80:]) if match else ""


def _group(match: re.Match[str], text: str) -> str:
    kind = next(name for name in _PLACE if match[name])
    return "" if kind in ("token", "key") and _SPECIAL.search(text, max(0, match.start() - 16), match.start()) else kind


def _is_flag(before: str, value: str) -> bool:
    return before.startswith("-") and "=" not in before and not value.startswith("-") and bool(_kind(before)) and not _NOTHING.match(value)


def _hidden(kind: str, value: Any) -> Any:
    """What is stored under a name of that kind, without the secret."""
    if isinstance(value, Mapping):
        return {key: _hidden(_kind(str(key)) or kind, one) for key, one in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_hidden(kind, one) for one in value]
    if value is None or isinstance(value, bool):
        return value
    return f"<{_PLACE[kind]}>" if _is_secret(kind, str(value), quoted=True) else value


def _is_secret(kind: str, value: str, *, quoted: bool = False) -> bool:
    if not quoted:
        value = value.rstrip(".,;:)]}")
        if value.lower() in _SAID or (_CODE.match(value) and kind != "cookie"):
            return False
    if _NOTHING.match(value):
        return False
    if kind in ("password", "cookie", "authorization"):
        return True
    if _NUMBER.match(value) or _SPECIAL_VALUE.match(value) or (not quoted and _CALL.match(value)):
        return False
    if kind == "user":
        return value.lower() not in _COMMON
    return kind != "key" or (_KEY.search(value) is not None and not _is_name(value))


def _is_name(value: str) -> bool:
    """Whether it is a name of a weight, a setting or a file rather than a key: words, with few digits."""
    parts = re.split(r"[._\-/:\s]+", value)
    if len(parts) == 1:
        return value.isalpha() and len(value) <= 24
    return all(_PART.match(part) for part in parts)


def _named(text: str) -> str:
    """Replace what stands behind a name that announces a secret."""
    parts, at, position = [], 0, 0
    while match := _NAMED.search(text, position):
        position = match.end()
        kind = _group(match, text)
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
        if not (match["pair"] and _WHOLE.match(value)) and _is_secret(kind, value, quoted=quoted and kind != "user"):
            parts += [text[at:start], f"<{_PLACE[kind]}>"]
            at = position = end
    return "".join([*parts, text[at:]]) if parts else text


def _span(text: str, match: re.Match[str], kind: str) -> tuple[int, int] | None:
    """Where the value begins and ends; None where there is none."""
    at, begun = match.end(), match.start()
    while begun and (text[begun - 1].isalnum() or text[begun - 1] in "_-") and match.start() - begun < 44:
        begun -= 1
    name = text[begun : match.start()]
    around = text[begun - 1] if begun and not match["closed"] and text[begun - 1] in _TO_QUOTE else ""
    if match["pair"] and (not match["closed"] or kind in ("key", "user")):
        return None
    if match["space"] and (match["closed"] or not name.startswith("-") or text.startswith("-", at)):
        return None
    if (kind == "user" and not (match["closed"] or match["space"] or (match["sep"] or "").startswith(("=", "%3")))) or match["sep"] == "==":
        return None  # "user: hello"
    opened = _OPEN.match(text, at)
    if opened:
        start = opened.end()
        start, end = start, _closing(text, opened)
    elif text[at : at + 1] in ("(", "[", "{") and kind not in ("key", "user"):
        start, end = at, _BRACKET.match(text, at).end()  # type: ignore[union-attr]
        if end - start <= 2:
            return None
    elif around and kind in ("password", "cookie") and not match["space"]:
        start, end = at, _TO_QUOTE[around].match(text, at).end()  # type: ignore[union-attr]
    else:
        start, end = at, _bare(text, match, kind, name)
    if kind == "authorization" and (scheme := _SCHEME.match(text, start, end)):
        start = scheme.end()
    return start, end


def _closing(text: str, opened: re.Match[str]) -> int:
    """Where what was opened by a quote ends, which may be escaped, or at the end of the line."""
    at = opened.end()
    if opened["percent"] or opened["escape"]:
        line = text.find("\n", at)
        end = text.find(opened["percent"] or opened["escape"] + opened["quote"], at, line if line >= 0 else len(text))
        while end >= 0 and not opened["percent"] and text[end - 1] == "\\" and end > at:  # escaped once more
            end = text.find(opened["escape"] + opened["quote"], end + 1, line if line >= 0 else len(text))
        return end if end >= 0 else (line if line >= 0 else len(text))
    return _PLAIN[opened["quote"]].match(text, at).end()  # type: ignore[union-attr]


def _bare(text: str, match: re.Match[str], kind: str, name: str) -> int:
    at = match.end()
    if PLACEHOLDER.match(text, at):
        return at
    if (match["sep"] or "").startswith("%"):
        pattern = _BARE_ENCODED
    elif kind == "cookie":
        pattern = _LINE
    elif kind == "authorization":
        scheme = _SCHEME.match(text, at)
        if scheme and scheme[0].lower().startswith(("digest", "aws4")):
            pattern = _LINE
        else:
            pattern, at = _BARE_PASSWORD, scheme.end() if scheme else at
    elif kind == "password" and match["sep"] == ":" and text[at - 1] in " \t" and _starts_line(text, match.start()):
        found = _LINE.match(text, at)  # YAML: a pass phrase has blanks
        value = found[0].rstrip() if found else ""
        return at if _PROSE.match(value) and value.split(None, 1)[0].rstrip(".,") in _SAID else at + len(value)
    else:
        pattern = {"password": _BARE_PASSWORD, "user": _BARE_USER}.get(kind, _BARE_TOKEN)
    found = pattern.match(text, at)
    return found.end() if found else at


def _starts_line(text: str, at: int) -> bool:
    return _LINE_START.match(text[max(text.rfind("\n", max(0, at - 80), at) + 1, at - 80) : at]) is not None


def _credentials(match: re.Match[str]) -> str:
    user, colon, _ = match[0].rpartition("@")[0].partition(":")
    if not user and not colon:
        return match[0]
    if user == "git" and not colon:
        return match[0]
    return "<user>:<password>@" if colon else "<user>@"


def _bearer(match: re.Match[str]) -> str:
    value = match["value"]
    if match["scheme"].lower() == "bearer":
        hidden = len(value) >= 16 or any(letter.isdigit() for letter in value)
    else:
        try:
            hidden = b":" in base64.b64decode(value + "=" * (-len(value) % 4), validate=True)
        except ValueError:
            hidden = False
    return f"{match['scheme']}{match['space']}<token>" if hidden else match[0]


def _long(match: re.Match[str]) -> str:
    value = match[0]
    mixed = any(letter.isdigit() for letter in value) and any(letter.isalpha() for letter in value)
    if "/" in value:  # a path has few capitals
        mixed = mixed and any(letter.islower() for letter in value) and sum(letter.isupper() for letter in value) > len(value) // 8
    if not mixed or _is_class(value):
        return value
    before = re.split(r"\W", match.string[max(0, match.start() - 400) : match.start()])[-1]  # the parts of a symbol are joined by "_"
    return value if _SYMBOL.match(before + value) else "<token>"


def _is_class(word: str) -> bool:
    """Whether it is made of words, such as StableDiffusion3ControlNetInpaintingPipeline."""
    words = re.findall("[a-z]+", word)
    capitals, digits = sum(map(str.isupper, word)), sum(map(str.isdigit, word))
    return capitals >= 3 and digits <= 4 and sum(map(len, words)) >= max(0.65 * len(word), 3 * len(words))


def _random(match: re.Match[str]) -> str:
    """Letters and digits in an order that no name has, such as of secrets.token_urlsafe()."""
    value = match[0]
    kinds = [1 if letter.islower() else 2 if letter.isupper() else 3 if letter.isdigit() else 0 for letter in value]
    changes = sum(one != other for one, other in pairwise(kinds) if one and other)
    enough = kinds.count(1) >= 6 and kinds.count(2) >= 6 and kinds.count(3) >= 3
    return "<token>" if enough and changes >= 0.4 * len(value) and not _SYMBOL.match(value) else value


def _private_keys(text: str) -> str:
    parts, at = [], 0
    last_end = max((match.end() for match in _END.finditer(text)), default=-1)
    while begin := _BEGIN.search(text, at):
        end = _END.search(text, begin.end(), begin.end() + _LONGEST_KEY) if begin.end() < last_end else None
        stop = end.end() if end else len(text[: _BODY.match(text, begin.end()).end()].rstrip())  # type: ignore[union-attr]
        stop = max(stop, begin.end())
        parts += [text[at : begin.start()], "<private key>", "\n" * text.count("\n", begin.start(), stop)]
        at = stop
    text = "".join([*parts, text[at:]]) if parts else text
    parts, at = [], 0
    for end in _END.finditer(text):  # the beginning has been cut off
        before = text[max(at, end.start() - _LONGEST_KEY) : end.start()]
        line = _KEY_LINE.search(before, len(before.rstrip(_IN_KEY)))
        start = end.start() - len(before) + line.start() if line else end.start()
        parts += [text[at:start], "<private key>", "\n" * text.count("\n", start, end.end())]
        at = end.end()
    return "".join([*parts, text[at:]]) if parts else text


def _emails(text: str) -> str:
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


def _home(match: re.Match[str]) -> str:
    name = match["long"] or match["quoted"] or match["short"]
    return match[0] if name.lower() in _NOBODY else f"{match['prefix']}<user>"


def _boring(value: str) -> bool:
    value = value.strip()
    short = len(value) < _SHORTEST or (value.isdigit() and len(value) < 8)
    return short or value.lower() in _COMMON or _NOTHING.match(value) is not None


def _of_environment(environ: Mapping[str, str]) -> Iterator[str]:
    for name, value in environ.items():
        if _SECRET_VARIABLE.search(name) and not _NO_SECRET_VARIABLE.search(name) and not _boring(value) and not _is_path(value):
            yield value
        if "://" in value and (found := _AUTHORITY.search(value)):  # a proxy
            password = found[0][:-1].partition(":")[2]
            yield from () if _boring(password) else (password,)


def _is_path(value: str) -> bool:
    try:
        return len(value) < 4096 and os.path.isabs(value) and os.path.exists(value)
    except ValueError:  # a zero in it
        return False


def _of_huggingface(environ: Mapping[str, str]) -> Iterator[str]:
    """Where huggingface_hub keeps tokens (its constants.py)."""
    cache = environ.get("XDG_CACHE_HOME") or os.path.join(environ.get("HOME") or environ.get("USERPROFILE") or "~", ".cache")
    homes = {environ.get("HF_HOME") or "", os.path.join(cache, "huggingface"), os.path.join("~", ".cache", "huggingface")}
    files = {os.path.join(home, name) for home in homes if home for name in ("token", "stored_tokens")}
    files |= {environ[name] for name in ("HF_TOKEN_PATH", "HF_STORED_TOKENS_PATH") if environ.get(name)}
    for file in sorted(files):
        for line in _read(Path(os.path.expanduser(file))).splitlines():
            value = line.rpartition("=")[2].strip()
            if not line.startswith("[") and not _boring(value):
                yield value


def _of_settings(file: Path) -> Iterator[str]:
    try:
        yield from _of_value(json.loads(_read(file) or "{}"), "")
    except (ValueError, RecursionError):  # half-written, or not the host's
        return


def _of_value(value: Any, name: str) -> Iterator[str]:
    if isinstance(value, dict):
        for key, one in value.items():
            yield from _of_value(one, str(key) if not _SECRET_SETTING.search(name) else name)
    elif isinstance(value, list):
        for one in value:
            yield from _of_value(one, name)
    elif isinstance(value, str) and _SECRET_SETTING.search(name) and not _boring(value) and not _SPECIAL_VALUE.match(value):
        yield value


def _of_command_line(arguments: list[str]) -> Iterator[str]:
    for before, one in zip(["", *arguments], arguments, strict=False):
        name, equals, value = one.partition("=") if one.startswith("-") else (before, "=", one)
        if name.startswith("-") and equals and _kind(name) in ("password", "token") and not value.startswith("-"):
            for pair in value.split(","):  # --auth "name:password,name:password"
                password = pair.rpartition(":")[2]
                yield from () if _boring(password) else (password,)


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace") if file.stat().st_size < 4_000_000 else ""
    except (OSError, ValueError):
        return ""


def _people(environ: Mapping[str, str]) -> set[str]:
    names = {environ.get(name, "") for name in ("USER", "USERNAME", "LOGNAME", "SUDO_USER")}
    names |= {re.split(r"[\\/]", environ[name].rstrip("\\/"))[-1] for name in ("HOME", "USERPROFILE") if environ.get(name)}
    if environ is os.environ:
        try:
            names.add(getpass.getuser())
        except (OSError, KeyError, ImportError):  # an account without a name, as in containers
            pass
    known = _COMMON | {name.lower() for name in sys.stdlib_module_names}
    return {name for name in names if name and name.lower() not in known and not name.isdigit()}
