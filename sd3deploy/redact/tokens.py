"""Tokens and private keys that are known by their shape, wherever they stand."""

from __future__ import annotations

import base64
import re
from itertools import pairwise

from sd3deploy.lazy import lazy
from sd3deploy.redact.kinds import LEFT

__all__ = ["private_keys", "tokens"]

# What a line has to have before it is looked at for tokens of a known beginning.
_BEGINNINGS = (
    "hf_", "api_org_", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_", "glpat-", "sk-", "k_live_", "k_test_", "AKIA", "ASIA", "AROA",
    "AIDA", "xox", "xapp-", "AIza", "ya29.", "npm_", "pypi-", "dckr_pat_", "r8_", "SG.", ":AA", "eyJ", "hooks.slack.com", "api/webhooks",
    "gradio.live",
)  # fmt: skip
_START = r"(?:(?<![A-Za-z0-9])|(?<=%[0-9A-Fa-f]{2})|(?<=\\[nrt])|(?<=\\u[0-9A-Fa-f]{4}))"
# Tokens that are known by their beginning: the documentation of GitHub, GitLab, Hugging Face, OpenAI, AWS, Slack, Google, Stripe, npm,
# PyPI, Docker, Replicate, SendGrid and Telegram; and the web addresses of hooks, which are secrets as a whole.
_TOKEN = lazy(
    r"hf_[A-Za-z0-9]{20,}|api_org_[A-Za-z0-9]{10,}|gh[pousr]_[A-Za-z0-9]{10,}|github_pat_\w{10,}|glpat-[\w-]{10,}|dckr_pat_[\w-]{10,}"
    rf"|{_START}(?:hf_(?=[a-z]{{0,40}}[A-Z0-9])[A-Za-z0-9]{{6,}}"
    r"|sk-(?:(?:proj|ant|or|admin|svcacct)-|(?=[A-Za-z_-]{0,160}[0-9]))[\w-]{16,}|sk-[A-Za-z]{20,}|[srp]k_(?:live|test)_[A-Za-z0-9]{10,}"
    r"|(?:AKIA|ASIA|AROA|AIDA)[A-Z0-9]{12,}|xox[a-z]-[\w-]{8,}|xapp-[\w-]{10,}|AIza[\w-]{20,}|ya29\.[\w-]{10,}|npm_[A-Za-z0-9]{20,}"
    r"|pypi-[\w-]{20,}|r8_[A-Za-z0-9]{20,}|SG\.[\w-]{10,}\.[\w-]{10,}|\d{8,10}:AA[\w-]{30,}|eyJ[\w-]{5,}(?:\.[\w-]*){1,4}|eyJ[\w-]{16,})"
    r"|(?:(?<=hooks\.slack\.com/services/)|(?<=discord\.com/api/webhooks/)|(?<=discordapp\.com/api/webhooks/))[\w/-]+"
    rf"|{_START}[0-9a-z]{{10,40}}(?=\.gradio\.live)"
)
_LONG = lazy(r"(?<![A-Za-z0-9])[A-Za-z0-9]{32,}")
_RANDOM = lazy(r"(?<![\w-])[\w-]{36,200}(?![\w-])", re.ASCII)
_SYMBOL = lazy(r"_{1,3}Z(?:N[KSVR]?|S|T[VIS])?(?:St)?\d")  # what C++ makes of a name, as in "undefined symbol: _ZN3c106detail…"
_BASE64_LINE = lazy(r"^[ \t]*[A-Za-z0-9+/]{56,}={0,2}[ \t\r]*$")
_BEARER = lazy(rf"{LEFT}(?P<scheme>bearer|basic)(?P<space>[ \t+]{{1,4}}|%20)(?P<value>[\w.~+/=:-]{{6,}})", re.IGNORECASE)
_BEGIN = lazy(r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----")
_END = lazy(r"-----END [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----")
_BODY = lazy(r"(?:[ \t\r\n]|\\[nrt]|[A-Za-z0-9+/=]{16,})*")
_LONGEST_KEY = 20_000  # characters; one of 16384 bits has 13,000
_IN_KEY = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/= \t\r\n\\"
_KEY_LINE = lazy(r"^[ \t]*[A-Za-z0-9+/=]{40,}", re.MULTILINE)


def tokens(line: str, lowered: str) -> str:
    """Without tokens, and without what is too long and too random to be a name. lowered: the line in lower case."""
    if "bearer" in lowered or "basic" in lowered:
        line = _BEARER.sub(_bearer, line)
    if any(word in line for word in _BEGINNINGS):
        line = _TOKEN.sub("<token>", line)
    if len(line) >= 32:
        line = _LONG.sub(_long, line)
        line = _RANDOM.sub(_random, line)
        line = _BASE64_LINE.sub(_long, line)
    return line


def private_keys(text: str) -> str:
    """Without private keys, of which there are as many lines left as there were, also where the beginning or the end has been cut off."""
    if "PRIVATE KEY" not in text:
        return text
    parts, at = [], 0
    last_end = max((match.end() for match in _END.finditer(text)), default=-1)
    while begin := _BEGIN.search(text, at):
        end = _END.search(text, begin.end(), begin.end() + _LONGEST_KEY) if begin.end() < last_end else None
        stop = end.end() if end else len(text[: _BODY.match(text, begin.end()).end()].rstrip())  # type: ignore[union-attr]
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
