"""Which package to change, and to what, so that the others stay as they are; and what the sentences about it name.

A package of the host is put back to what the host pins; where the host wants something else than what would help, the host has to be
updated, or the package that asks too much has to be changed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType

from sd3deploy import messages
from sd3deploy.deps import host_packages, requirements
from sd3deploy.diagnosis.installed import STACK, Installed
from sd3deploy.diagnosis.rule import Advice, Cause, Seen
from sd3deploy.vendored import InvalidSpecifier, SpecifierSet, canonicalize_name, version

__all__ = [
    "by_name", "change", "compare", "direction", "either", "late", "mismatch", "missing_sentence", "of_host", "older", "preferred",
    "put_back", "repair", "say", "vocabulary",
]  # fmt: skip

_FOLDER = re.compile(r"File \"(?P<folder>(?:/|[A-Za-z]:)[^\"]*?(?:site|dist)-packages)[\\/]")
_USER_SITE = re.compile(r"/\.local/lib/|appdata/roaming/python|/library/python/", re.IGNORECASE)  # of no one Python
_TORCH = frozenset(("torch", "torchvision", "torchaudio", "xformers"))  # from an index of its own: pip alone would bring the wrong build
_REINSTALLS = ("advice.missing-torch", "advice.put-back-torch", "advice.torch-other")  # what the host's next start does, with --reinstall


def say(package: str, cause: str = "", action: str = "", sentence: str = "", values: Mapping[str, object] = MappingProxyType({})) -> Advice:
    """Advice with what every sentence may name: `there` is the package, with its version where one is known."""
    words = dict(values)
    words["there"] = f"{package} {words.get('installed') or ''}".strip()
    words["asker"] = words["asker"] if words.get("asker") not in (None, "", "?") else messages.text("advice.another-package")
    if sentence in _REINSTALLS:
        action = "restart"
    return Advice(package, cause, action, sentence, words)  # type: ignore[arg-type]


def late(package: str, sentence: str, words: Mapping[str, str], seen: Seen, action: str = "refresh") -> Advice:
    """What is installed will do: the process has looked too early, or it is another Python that runs."""
    folder = elsewhere(seen)
    if folder and canonicalize_name(package) not in seen.installs:
        return say(package, "wrong-interpreter", "install", "advice.other-python", {**words, "elsewhere": folder})
    return say(package, "stale-availability", action, sentence, words)


def repair(package: str, seen: Seen, words: Mapping[str, str], sentence: str = "advice.repair") -> Advice:
    """Files that do not belong together: put the package back whole."""
    return say(package, "mixed-package-files", "install", sentence, {**vocabulary(package, seen), **words})


def change(package: str, versions: str, seen: Seen, words: Mapping[str, str], cause: Cause | str = "", sentence: str = "") -> Advice:
    """Bring a package into a range: with the host's pin where that fits, not at all where the host wants something else.

    sentence: "" for that of the rule.
    """
    installed = seen.installed
    there = (installed.version(package) if installed else None) or ""
    if there and compare(there, versions) == 0:
        return late(package, "advice.loaded-other", words, seen, "restart")
    pin = installed.pin(package) if installed else None
    if pin and compare(pin, versions) == 0:
        return say(package, cause, "install", put_back(package), {**words, "pin": pin, "target": f"{package}=={pin}"})
    asker = words.get("asker", "")
    for name in (asker, *_asking(package, versions, installed)):
        moved, wanted = (installed.version(name), installed.pin(name)) if installed and canonicalize_name(name) in STACK else (None, None)
        if moved and wanted and version(moved) != version(wanted):  # the package is right: somebody has moved the one that asks
            back = {**words, "asker": name, "installed": moved, "pin": wanted, "target": f"{name}=={wanted}"}
            return say(name, "foreign-downgrade", "install", put_back(name), back)
    if canonicalize_name(package) in _TORCH and installed:
        return say(package, cause, "restart", "advice.torch-other", words)
    if pin or (installed and installed.belongs_to_host(package) and not installed.belongs_to_host(asker)):
        return say(package, cause, "none", "advice.host-behind", {**words, "pin": pin or there})
    return say(package, cause, "install", of_host(package, sentence, seen), words)


def _asking(package: str, versions: str, installed: Installed | None) -> list[str]:
    """Who needs it in that range, which it is not: a traceback may name only who has called them."""
    wanted = set(versions.split(","))
    clashes = installed.clashes() if installed else ()
    needs = [need for need, _ in clashes if canonicalize_name(need.name) == canonicalize_name(package)]
    return [need.by for need in needs if set(need.specifier.split(",")) == wanted]


def by_name(owner: str, asker: str, versions: str, words: Mapping[str, str], seen: Seen) -> Advice:
    """A name of which it is known which versions of its package have it."""
    gone = compare("0.0.1", versions) == 0  # the versions that have it are the old ones
    installed = seen.installed
    words = {**vocabulary(owner, seen, versions), **words}
    if installed is not None and words["installed"]:
        if compare(words["installed"], versions) == 0:
            return late(owner, "advice.loaded-other", words, seen, "restart")
        pin = installed.pin(owner)
        if pin and compare(pin, versions) == 0:
            cause: Cause = "foreign-downgrade" if gone else "version-too-old"
            return say(owner, cause, "install", put_back(owner), {**words, "pin": pin, "target": f"{owner}=={pin}"})
        if not gone and (not installed.belongs_to_host(owner) or canonicalize_name(owner) in _TORCH):
            return change(owner, versions, seen, words, "version-too-old", "advice.name-new")
        return _too_demanding(owner, asker, gone, words, seen)
    if gone:
        return _too_demanding(owner, asker, gone, words, seen)
    return say(owner, "version-too-old", "install", of_host(owner, "advice.name-new", seen), words)


def _too_demanding(owner: str, asker: str, gone: bool, words: Mapping[str, str], seen: Seen) -> Advice:
    """The owner stays as it is: whoever asks has to change."""
    installed = seen.installed
    if canonicalize_name(asker) in STACK:
        there, pin = (installed.version(asker), installed.pin(asker)) if installed else (None, None)
        words = {**words, "target": f"{asker}=={pin}" if pin else asker}
        if there and pin and version(there) != version(pin):
            return say(asker, "foreign-downgrade", "install", put_back(asker), {**words, "installed": there, "pin": pin})
        if canonicalize_name(asker) in host_packages() or pin:
            return say(asker, "moved-name" if gone else "version-too-new", "none", "advice.pair", {**words, "installed": there or ""})
        sentence = "advice.name-gone" if gone else "advice.asks-too-much"
        return say(asker, "moved-name" if gone else "version-too-new", "install", sentence, {**words, "owner": owner})
    return say(owner, "moved-name", "none", "advice.extension", {**words, "owner": owner})


def either(owner: str, asker: str, words: Mapping[str, str], seen: Seen) -> Advice:
    """Two packages that do not fit, and nothing says which is wrong: rather the one that is not the host's."""
    candidates = [name for name in (asker, owner) if canonicalize_name(name) in STACK]
    package = next((name for name in candidates if canonicalize_name(name) not in host_packages()), candidates[0])
    words = {**vocabulary(package, seen), **words}
    if words["installed"] and elsewhere(seen):
        return late(package, "advice.loaded-other", words, seen, "restart")
    if canonicalize_name(package) in host_packages():
        return say(package, "moved-name", "none", "advice.pair", words)
    return say(package, "moved-name", "install", values=words)


def mismatch(names: tuple[str, ...], words: Mapping[str, str], installed: Installed | None) -> Advice | None:
    """One of these contradicts what another of them needs, or is not what the host pins."""
    if installed is None:
        return None
    names = tuple(name for name in names if name and canonicalize_name(name) in STACK)
    among = frozenset(map(canonicalize_name, names))
    # of one alone it is not known who has asked for it: anybody may have
    clashes = installed.clashes(among)
    if len(among) == 1:
        clashes = tuple(one for one in installed.clashes() if canonicalize_name(one[0].name) in among)
    for need, there in clashes:
        if there is None or version(there) == version(installed.pin(need.name)):
            continue  # what the host itself wants is no fault of anybody
        values = {
            **words,
            "needed": f"{need.name}{need.specifier}",
            "asker": need.by,
            "installed": there,
            "target": f"{need.name}{need.specifier}",
        }
        return change(need.name, need.specifier, Seen(installed), values, direction(there, need.specifier), "rule.requirement")
    for name in names:
        there, pin = installed.version(name), installed.pin(name)
        if there and pin and version(there) != version(pin):
            values = {**words, "installed": there, "pin": pin, "target": f"{name}=={pin}"}
            sentence = put_back(name) if canonicalize_name(name) in _TORCH else "rule.foreign-version"
            return say(name, "foreign-downgrade", "install", sentence, values)
    return None


def older(package: str, versions: str, found: str, words: Mapping[str, str], seen: Seen) -> Advice:
    """What the text itself says about the versions, where nobody knows what is installed by now."""
    sentence = of_host(package, "rule.requirement", seen)
    return say(package, direction(found, versions), "install", sentence, {**words, "installed": found, "name": package, "module": package})


def missing_sentence(package: str) -> str:
    """Torch comes with the host's installer, what is the host's with the host, what is ours with a text encoder, the rest by hand."""
    if canonicalize_name(package) in _TORCH:
        return "advice.missing-torch"
    if canonicalize_name(package) in host_packages():
        return "advice.missing-host"
    ours = {canonicalize_name(one.name) for one in requirements(("bitsandbytes",))}
    return "advice.missing" if canonicalize_name(package) in ours else "advice.missing-other"


def put_back(package: str) -> str:
    return "advice.put-back-torch" if canonicalize_name(package) in _TORCH else "advice.put-back"


def of_host(package: str, sentence: str, seen: Seen) -> str:
    """The variant of a sentence for what the host or its installer brings."""
    if not sentence:
        return ""
    if canonicalize_name(package) in _TORCH:
        return "advice.torch-other"
    known = {"rule.requirement": "advice.requirement-host", "advice.name-new": "advice.name-new-host"}
    return known.get(sentence, sentence) if seen.installed is None and canonicalize_name(package) in host_packages() else sentence


def vocabulary(package: str, seen: Seen, versions: str = "", **more: str) -> dict[str, str]:
    """What the sentences name: the package, what is there of it, what is needed and what to install."""
    wanted = preferred(package, seen.installed)
    if versions and "==" not in wanted:
        wanted = f"{package}{versions}"
    words = {"needed": f"{package}{versions}", "target": wanted, "wanted": wanted, "asker": "?", "installed": ""}
    if seen.installed is not None:
        words["installed"] = seen.installed.version(package) or ""
    return {**words, **more}


def preferred(package: str, installed: Installed | None) -> str:
    """What to install: the host's pin, else what everybody here would take."""
    if installed is None:
        return package
    pin = installed.pin(package)
    return f"{package}=={pin}" if pin else f"{package}{installed.wanted(package)}"


def compare(there: str, versions: str) -> int:
    """-1: below what is asked for, 1: above it, 0: it will do."""
    found = version(there)
    try:
        wanted = SpecifierSet(versions)
    except InvalidSpecifier:
        return 0
    if found is None or wanted.contains(found, prereleases=True):
        return 0
    floors = [version(one.version.removesuffix(".*")) for one in wanted if one.operator in (">=", ">", "~=", "==")]
    return -1 if any(floor is not None and found < floor for floor in floors) else 1


def direction(there: str, versions: str) -> Cause:
    return "version-too-old" if compare(there, versions) < 0 else "version-too-new"


def elsewhere(seen: Seen) -> str:
    """The folder of another Python's packages in which a traceback ran; "" when it is ours, or when nobody can tell."""
    executable = seen.installed.executable if seen.installed else ""
    if not executable:
        return ""
    plain = lambda path: path.replace("\\\\", "/").replace("\\", "/").lower()  # noqa: E731
    ours = re.sub(r"/(?:(?:bin|scripts)/)?[^/]+$", "", plain(executable))
    folders = [found["folder"] for found in _FOLDER.finditer(seen.text) if found["folder"].startswith("/") == executable.startswith("/")]
    if any(plain(folder).startswith(f"{ours}/") or _USER_SITE.search(plain(folder)) for folder in folders):
        return ""
    return folders[-1] if folders else ""
