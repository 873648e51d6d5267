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
from sd3deploy.diagnosis.installed import Installed, of_stack
from sd3deploy.diagnosis.rule import Advice, Cause, Seen
from sd3deploy.lazy import lazy
from sd3deploy.vendored import InvalidSpecifier, SpecifierSet, canonicalize_name, same_version, version

__all__ = ["back", "by_name", "change", "compare", "direction", "either", "late", "mismatch", "missing_sentence", "of_host", "older",
           "preferred", "put_back", "repair", "say", "vocabulary"]  # fmt: skip

_FOLDER = lazy(r"File \"(?P<folder>(?:/|[A-Za-z]:)[^\"]*?(?:site|dist)-packages)[\\/]")
_USER_SITE = lazy(r"/\.local/lib/|appdata/roaming/python|/library/python/", re.IGNORECASE)  # of no one Python
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


def back(package: str, words: Mapping[str, str], installed: Installed, cause: Cause = "foreign-downgrade", sentence: str = "") -> Advice:
    """Put a package of the host back to what the host pins."""
    there, pin = installed.version(package), installed.pin(package)
    words = {**words, "installed": there or "", "pin": pin or "", "target": f"{package}=={pin}"}
    return say(package, cause, "install", sentence or put_back(package), words)


def change(package: str, versions: str, seen: Seen, words: Mapping[str, str], cause: Cause, sentence: str = "") -> Advice:
    """Bring a package into a range: with the host's pin where that fits, not at all where the host wants something else.

    sentence: "" for that of the rule.
    """
    installed = seen.installed
    there, pin = installed.version(package) or "", installed.pin(package)
    if there and compare(there, versions) == 0:
        return late(package, "advice.loaded-other", words, seen, "restart")
    if pin and compare(pin, versions) == 0:
        return back(package, words, installed, cause)
    asker = words.get("asker", "")
    # who needs it in that range, which it is not: a traceback may name only who has called them
    needs = [need for need, _ in installed.clashes() if canonicalize_name(need.name) == canonicalize_name(package)]
    for name in (asker, *(need.by for need in needs if set(need.specifier.split(",")) == set(versions.split(",")))):
        if of_stack(name) and installed.moved(name):  # the package is right: somebody has moved the one that asks
            return back(name, {**words, "asker": name}, installed)
    if canonicalize_name(package) in _TORCH and installed:
        return say(package, cause, "restart", "advice.torch-other", words)
    if pin or (installed and installed.belongs_to_host(package) and not installed.belongs_to_host(asker)):
        return say(package, cause, "none", "advice.host-behind", {**words, "pin": pin or there})
    return say(package, cause, "install", of_host(package, sentence, seen), words)


def by_name(owner: str, asker: str, versions: str, words: Mapping[str, str], seen: Seen) -> Advice:
    """A name of which it is known which versions of its package have it."""
    gone = compare("0.0.1", versions) == 0  # the versions that have it are the old ones
    installed = seen.installed
    words = {**vocabulary(owner, seen, versions), **words}
    if words["installed"]:
        if compare(words["installed"], versions) == 0:
            return late(owner, "advice.loaded-other", words, seen, "restart")
        pin = installed.pin(owner)
        if pin and compare(pin, versions) == 0:
            return back(owner, words, installed, "foreign-downgrade" if gone else "version-too-old")
        if not gone and (not installed.belongs_to_host(owner) or canonicalize_name(owner) in _TORCH):
            return change(owner, versions, seen, words, "version-too-old", "advice.name-new")
        return _too_demanding(owner, asker, gone, words, seen)
    if gone:
        return _too_demanding(owner, asker, gone, words, seen)
    return say(owner, "version-too-old", "install", of_host(owner, "advice.name-new", seen), words)


def _too_demanding(owner: str, asker: str, gone: bool, words: Mapping[str, str], seen: Seen) -> Advice:
    """The owner stays as it is: whoever asks has to change."""
    if not of_stack(asker):
        return say(owner, "moved-name", "none", "advice.extension", {**words, "owner": owner})
    if seen.installed.moved(asker):
        return back(asker, words, seen.installed)
    cause, pin = "moved-name" if gone else "version-too-new", seen.installed.pin(asker)
    words = {**words, "target": f"{asker}=={pin}" if pin else asker}
    if canonicalize_name(asker) in host_packages() or pin:
        return say(asker, cause, "none", "advice.pair", {**words, "installed": seen.installed.version(asker) or ""})
    return say(asker, cause, "install", "advice.name-gone" if gone else "advice.asks-too-much", {**words, "owner": owner})


def either(owner: str, asker: str, words: Mapping[str, str], seen: Seen) -> Advice:
    """Two packages that do not fit, and nothing says which is wrong: rather the one that is not the host's."""
    candidates = [name for name in (asker, owner) if of_stack(name)]
    package = next((name for name in candidates if canonicalize_name(name) not in host_packages()), candidates[0])
    words = {**vocabulary(package, seen), **words}
    if words["installed"] and elsewhere(seen):
        return late(package, "advice.loaded-other", words, seen, "restart")
    if canonicalize_name(package) in host_packages():
        return say(package, "moved-name", "none", "advice.pair", words)
    return say(package, "moved-name", "install", values=words)


def mismatch(names: tuple[str, ...], words: Mapping[str, str], installed: Installed) -> Advice | None:
    """One of these contradicts what another of them needs, or is not what the host pins."""
    among = frozenset(map(canonicalize_name, filter(of_stack, names)))
    # of one alone it is not known who has asked for it: anybody may have
    alone = [one for one in installed.clashes() if canonicalize_name(one[0].name) in among]
    for need, there in alone if len(among) == 1 else installed.clashes(among):
        if there is not None and not same_version(there, installed.pin(need.name) or ""):  # what the host itself wants is nobody's fault
            needed = f"{need.name}{need.specifier}"
            values = {**words, "needed": needed, "target": needed, "asker": need.by, "installed": there}
            return change(need.name, need.specifier, Seen(installed), values, direction(there, need.specifier), "rule.requirement")
    moved = next((name for name in names if of_stack(name) and installed.moved(name)), "")
    sentence = "" if canonicalize_name(moved) in _TORCH else "rule.foreign-version"
    return back(moved, words, installed, sentence=sentence) if moved else None


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
    return known.get(sentence, sentence) if not seen.installed and canonicalize_name(package) in host_packages() else sentence


def vocabulary(package: str, seen: Seen, versions: str = "", **more: str) -> dict[str, str]:
    """What the sentences name: the package, what is there of it, what is needed and what to install."""
    wanted = preferred(package, seen.installed)
    if versions and "==" not in wanted:
        wanted = f"{package}{versions}"
    there = seen.installed.version(package) or ""
    return {"needed": f"{package}{versions}", "target": wanted, "wanted": wanted, "asker": "?", "installed": there, **more}


def preferred(package: str, installed: Installed) -> str:
    """What to install: the host's pin, else what everybody here would take."""
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
    executable = seen.installed.executable
    if not executable:
        return ""
    plain = lambda path: path.replace("\\\\", "/").replace("\\", "/").lower()  # noqa: E731
    ours = re.sub(r"/(?:(?:bin|scripts)/)?[^/]+$", "", plain(executable))
    folders = [found["folder"] for found in _FOLDER.finditer(seen.text) if found["folder"].startswith("/") == executable.startswith("/")]
    if any(plain(folder).startswith(f"{ours}/") or _USER_SITE.search(plain(folder)) for folder in folders):
        return ""
    return folders[-1] if folders else ""
