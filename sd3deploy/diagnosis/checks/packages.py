"""The packages on disk and in this process: there, whole, of versions that fit each other and the host. Nothing is imported."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from sd3deploy import deps, messages
from sd3deploy.deps import State, Status
from sd3deploy.deps.execution import left_alone
from sd3deploy.diagnosis.checks.context import Context
from sd3deploy.diagnosis.checks.result import Outcome, Say, conclude
from sd3deploy.diagnosis.checks.rules import seen
from sd3deploy.diagnosis.finding import Finding
from sd3deploy.diagnosis.installed import STACK, Installed, Need
from sd3deploy.diagnosis.rule import Advice
from sd3deploy.installed import SHARED_BY_HABIT, distributions
from sd3deploy.vendored import SpecifierSet, canonicalize_name, same_version, version

__all__ = ["HOST", "check", "clashes", "moved", "of_host", "of_status"]

_OURS = Path(__file__).parents[3]

# What Stable Diffusion 3 imports of the host's; the others may be missing. torch has some 12,000 files: it is looked at from outside.
HOST = ("numpy", "transformers", "diffusers", "tokenizers", "huggingface_hub", "safetensors")
_MAY_BE_ABSENT = ("peft",)

# Those whose version decides whether the others work.
_WEIGHTY = frozenset(
    {"accelerate", "diffusers", "huggingface-hub", "numpy", "peft", "protobuf", "safetensors", "tokenizers", "torch", "transformers"}
)

_RULES = {State.MISSING: "package-missing", State.TOO_OLD: "package-too-old", State.TOO_NEW: "package-too-new",
          State.BROKEN: "package-mixed", State.STALE: "package-stale"}  # fmt: skip

# The web page is none of Stable Diffusion's business: the host itself contradicts what gradio 3 asks for.
_PAGE = frozenset({"gradio", "fastapi", "starlette", "pydantic", "pydantic-core", "httpx"})


def check(context: Context, say: Say) -> Outcome:
    """The step: 0.2 to 0.5 s."""
    say(0.0, "")
    installed = context.installed
    core = deps.requirements()
    optional = [one for one in deps.requirements(["bitsandbytes"]) if one.group]
    failed: list[Finding] = []
    for number, status in enumerate(deps.check(core)):
        failed += of_status(status, installed)
        say(0.1 + 0.2 * number / len(core), status.name)
    absent = []
    for status in deps.check(optional):
        if status.state is State.MISSING and status.requirement.group not in context.groups:
            absent.append(status.name)  # it is installed when somebody chooses what needs it
        else:
            failed += of_status(status, installed)
    for number, name in enumerate((*HOST, *_MAY_BE_ABSENT)):
        say(0.4 + 0.4 * number / len(HOST), name)
        failed += of_host(deps.diagnose(name), installed)
    say(0.85, "torch")
    failed += _torch(installed)
    failed += clashes(installed)
    warned = list(moved(installed))
    known = {one.package for one in failed}
    failed = _once(failed)
    warned = [one for one in _once(warned) if one.package not in known]
    context.held["wrong"] = {canonicalize_name(one.package) for one in failed}
    names = [*dict.fromkeys([*(one.name for one in (*core, *optional)), "torch", *HOST])]
    brought = [*names, *sorted(STACK - {canonicalize_name(name) for name in names})]
    facts = {
        "versions": {name: installed.version(name) for name in names},
        "pins": {name: pin for name in names if (pin := installed.pin(name))},
        "absent": absent,
        "brought": {name: f"{by} {installed.version(by)}" for name in brought if (by := installed.in_place_of(name))},
        "shared": {module: list(who) for module, who in installed.modules.items() if len(who) > 1 and module not in SHARED_BY_HABIT},
    }
    text = messages.text("checks.packages.ok", torch=installed.version("torch"), transformers=installed.version("transformers"),
                         diffusers=installed.version("diffusers"))  # fmt: skip
    said = [messages.text("checks.packages.absent", names=", ".join(absent))] if absent else []
    said += [messages.text("checks.packages.brought", name=name, by=by) for name, by in facts["brought"].items()]
    said += [messages.text("checks.packages.shared", module=one, names=", ".join(who), by=who[0]) for one, who in facts["shared"].items()]
    return conclude(messages.joined(text, *said), failed, warned, facts)


def of_status(status: Status, installed: Installed) -> Iterator[Finding]:
    """What the state of a requirement of ours means."""
    name, needed = status.name, f"{status.name}{status.requirement.specifier}"
    pin = installed.pin(name)
    if pin and SpecifierSet(status.requirement.specifier).contains(pin, prereleases=True):
        needed = f"{name}=={pin}"
    values = {**_words(name, status.installed, pin), "needed": needed, "loaded": status.loaded or "", "detail": status.detail}
    if status.blocked:
        yield seen("package-mixed", {**values, **left_alone(status).values}, Advice(package=name, sentence="deps.shared"), (status.detail,))
    elif status.state in _RULES:
        yield seen(_RULES[status.state], values, Advice(package=name), (status.detail,))


def of_host(status: Status, installed: Installed) -> Iterator[Finding]:
    """What the state of a package of the host means."""
    if status.state is State.MISSING:
        if status.name not in _MAY_BE_ABSENT or installed.pin(status.name):
            yield _missing(status.name, installed)
        return
    yield from of_status(status, installed)


def clashes(installed: Installed) -> Iterator[Finding]:
    """Packages that do not fit each other, each with the one to change: first of all what is not as the host pins it."""
    rest: list[Finding] = []
    for need, there in installed.clashes(STACK - _PAGE):
        strays = [name for name in (need.name, need.by) if installed.moved(name)]
        if there is None:
            yield _missing(need.name, installed, f"{need.name}{need.specifier}")
        elif strays:
            yield _foreign(strays[0], installed, f"{need.by} {installed.version(need.by)} – {need.name}{need.specifier}")
        elif not installed.pin(need.name):
            yield _needed(need, there, installed)
        elif not installed.pin(need.by):
            rest.append(_asker(need, there, installed))
        # else both are as the host wants them: it lives with that
    yield from rest


def moved(installed: Installed) -> Iterator[Finding]:
    """Packages of Stable Diffusion that are older than the host pins them, or of another major version, though nothing contradicts it.

    A newer one within the same major version is what updates bring: it is no news.
    """
    for name in installed.pins:
        if name not in _WEIGHTY or not installed.moved(name):
            continue
        there, pin = version(installed.version(name)), version(installed.pin(name))
        if there and pin and (there < pin or there.major != pin.major):
            yield _foreign(name, installed, "")


def _needed(need: Need, there: str, installed: Installed) -> Finding:
    """What is needed goes where everybody here would take it."""
    wanted = installed.wanted(need.name) or need.specifier
    values = {**_words(need.name, there, None), "needed": f"{need.name}{wanted}", "asker": need.by}
    return seen("package-clash", values, Advice(package=need.name, cause=_cause(there, need)))


def _asker(need: Need, there: str, installed: Installed) -> Finding:
    """What is needed is as the host wants it: who needs another one has to be another one."""
    needed = f"{need.by}{installed.wanted(need.by)}"
    values = {**_words(need.by, installed.version(need.by), None), "needed": needed, "asker": f"{need.name} {there}"}
    advice = Advice(package=need.by, cause=_cause(there, need, flip=True), sentence="checks.rule.package-clash.asker")
    return seen("package-clash", values, advice)


def _cause(there: str, need: Need, flip: bool = False):
    found = version(there)
    floors = [version(one.version.removesuffix(".*")) for one in SpecifierSet(need.specifier) if one.operator in (">=", ">", "~=", "==")]
    low = any(floor is not None and found is not None and found < floor for floor in floors)
    return "version-too-old" if low != flip else "version-too-new"


def _foreign(name: str, installed: Installed, clash: str) -> Finding:
    sentence = "checks.rule.foreign-version.clash" if clash else "checks.rule.foreign-version.seen"
    values = {**_words(name, installed.version(name), installed.pin(name)), "clash": clash}
    return seen("foreign-version", values, Advice(package=name, sentence=sentence))


def _missing(name: str, installed: Installed, needed: str = "") -> Finding:
    pin = installed.pin(name)
    values = {**_words(name, None, pin), "needed": f"{name}=={pin}" if pin else needed or name, "detail": ""}
    ours = canonicalize_name(name) in {canonicalize_name(one.name) for one in deps.requirements()}
    return seen("package-missing", values, Advice(package=name, sentence="" if ours or pin else "checks.rule.package-missing.host"))


def _torch(installed: Installed) -> Iterator[Finding]:
    found = distributions("torch")
    if not found:
        yield _missing("torch", installed)
        return
    first = found[0]
    try:
        said = re.search(r"__version__\s*=\s*['\"]([^'\"]+)", (first.path.parent / "torch" / "version.py").read_text(encoding="utf-8"))
    except OSError:
        said = None
    example = said[1] if said else "torch/version.py"
    if len(found) > 1:
        example = " + ".join(one.version for one in found)
    if len(found) > 1 or not said or not same_version(example, first.version):
        detail = messages.text("deps.damage.mixed_files", example=example)
        values = {**_words("torch", first.version, installed.pin("torch")), "detail": detail}
        yield seen("package-mixed", values, Advice(package="torch", sentence="checks.rule.package-mixed.torch"))


def _words(name: str, there: str | None, pin: str | None) -> dict[str, object]:
    return {"package": name, "installed": there or "", "pin": pin or "", "executable": sys.executable, "folder": _OURS}


def _once(findings: Iterable[Finding]) -> list[Finding]:
    """One for each package: what is broken counts before what contradicts, what is missing is missing once."""
    kept: dict[str, Finding] = {}
    for one in findings:
        kept.setdefault(canonicalize_name(one.package), one)
    return list(kept.values())
