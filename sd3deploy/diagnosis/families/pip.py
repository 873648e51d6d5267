"""What pip and uv refuse or can not build: which package, for which Python, and whether anything of SD.Next's has to change for it."""

from __future__ import annotations

import re

from sd3deploy.diagnosis import advice, cure
from sd3deploy.diagnosis.failure import Failure
from sd3deploy.diagnosis.families import network
from sd3deploy.diagnosis.installed import of_stack
from sd3deploy.diagnosis.rule import Advice, Kind, Seen, Verdict, kinds
from sd3deploy.lazy import lazy

__all__ = ["KINDS", "judge"]

_PIP = "https://pip.pypa.io/en/stable/topics/"
KINDS = kinds(
    Kind("build-failed", "platform-unsupported", "none", "https://github.com/google/sentencepiece/issues/1121"),
    Kind("pip-leftovers", "mixed-package-files", "install", "https://github.com/vladmandic/sdnext/issues/2565"),
    Kind("pip-managed", "wrong-interpreter", "none", "https://peps.python.org/pep-0668/"),
    Kind("venv-incomplete", "platform-unsupported", "restart", "https://github.com/AUTOMATIC1111/stable-diffusion-webui/pull/16533"),
    Kind("pip-resolution", "foreign-downgrade", "none", f"{_PIP}dependency-resolution/"),
    Kind("pip-no-version", "platform-unsupported", "none", "https://github.com/AUTOMATIC1111/stable-diffusion-webui/issues/10592"),
    Kind("pip-python", "platform-unsupported", "none", "https://github.com/Stability-AI/stablediffusion/issues/421"),
    Kind("python-version", "platform-unsupported", "none", "https://github.com/vladmandic/sdnext/issues/3872"),
)

_UV = r"No solution found when resolving .{0,300}?\bBecause "
_SENTENCES = (
    ("pip-leftovers", r"Ignoring invalid distribution (?P<rest>[~\-][\w.\-]*)", advice.leftover),
    ("pip-managed", r"externally-managed-environment|environment is externally managed", None),
    ("venv-incomplete", r"'ensurepip', .{0,80}returned non-zero exit|ensurepip is not available|No module named ensurepip", None),
    ("pip-resolution", r"Cannot install (?P<what>.{1,300}?) because these package versions have conflicting", advice.pip_refused),
    ("pip-no-version", r"No matching distribution found for (?P<what>[A-Za-z][\w.\-]*\S*)"
     r"|(?<![\w.\-])(?P<file>[A-Za-z][\w.]{0,60}-\d[\w.+\-]{0,150}\.whl) is not a supported wheel on this platform", advice.pip_refused),
    ("pip-python", r"Package ['\"](?P<what>[\w.\-]+)['\"] requires a different Python: (?P<found>[\d.]*\d) not in"
     r" ['\"](?P<versions>[^'\"]+)", advice.pip_refused),
    ("pip-python", _UV + r"the current Python version \((?P<found>[\d.]*\d)\) does not satisfy Python(?P<versions>\S+) and"
     r" (?P<what>[A-Za-z][\w\-]*)", advice.pip_refused),
    ("pip-no-version", _UV + r"(?:there (?:is|are) no versions? of |only )?(?P<what>[A-Za-z][\w\-]*)\S*"
     r" (?:and you|was not found|is available|has no wheels)", advice.pip_refused),
    ("pip-resolution", _UV + r"(?P<what>.{1,300}?),? we can conclude", advice.pip_refused),
    ("python-version", r"Incompatible Python version|Python version incompatible", None),
)  # fmt: skip
_MATCHES = tuple((kind, lazy(pattern, re.IGNORECASE), advise) for kind, pattern, advise in _SENTENCES)
_NETWORK = lazy(
    r"(?i)connection broken|Failed to establish|getaddrinfo|Name or service|name resolution|Max retries|Network is unreachable|ProxyError"
)
_BUILD = lazy(
    r"(?:Failed building wheel for|Failed to build(?: installable wheels for .*?projects)?|Could not build wheels for"
    r"|Failed to (?:download and )?build)"
    r" [\s`(]*(?P<package>[A-Za-z][\w.\-]*)"
)
_PYTHON = lazy(r"[\\/]python(3\.\d+)[\\/]|Python(3)(\d+)[\\/]|\bcp(3)(\d\d+)\b|\bPython (3\.\d+)", re.IGNORECASE)


def judge(failure: Failure, seen: Seen) -> Verdict | None:
    """pip's words are its own and have not changed for years; what came of the network is said by that family."""
    said = failure.said
    for kind, pattern, advise in _MATCHES:
        if (found := pattern.search(said)) and not (kind == "pip-no-version" and _NETWORK.search(said)):
            values = {name: value or "" for name, value in found.groupdict().items()}
            if kind == "pip-no-version" and (host := seen.told.get("unfetched")):  # pip has said so before, and goes on as if nothing were
                return Verdict(network.KINDS["server-unreachable"], {"host": host})
            if kind == "pip-no-version" and seen.told.get("unreached"):
                return Verdict(network.KINDS["server-unreachable"], values, Advice(sentence="rule.server-unreachable.index"))
            said_of = advise(values, seen) if advise else Advice()
            return Verdict(KINDS[kind], values, said_of) if said_of is not None else None
    build = _BUILD.search(said) if failure.failed else None
    return _build(build["package"].strip("`()"), failure, seen) if build else None


def _build(package: str, failure: Failure, seen: Seen) -> Verdict:
    """A package without a wheel for this Python is built from its source, which needs compilers that few have."""
    found = _PYTHON.search(failure.text)
    python = seen.told.get("python") or (".".join(filter(None, found.groups())) if found else "3")
    words = {**cure.vocabulary(package, seen), "package": package, "python": python}
    sentence = "rule.build-failed" if of_stack(package) else "rule.build-failed.foreign"
    return Verdict(KINDS["build-failed"], words, Advice(package, sentence=sentence))
