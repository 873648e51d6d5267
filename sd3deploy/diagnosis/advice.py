"""What general rules conclude from what is installed: which package to change, and to what. Each function answers for one family of
errors; None: it is none of Stable Diffusion's packages, so it is no failure of it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from sd3deploy.deps import host_packages
from sd3deploy.diagnosis import cure
from sd3deploy.diagnosis.installed import STACK, Installed, of_stack
from sd3deploy.diagnosis.names import NAMES
from sd3deploy.diagnosis.rule import Advice, Seen
from sd3deploy.lazy import lazy
from sd3deploy.vendored import canonicalize_name, same_version

__all__ = [
    "Advise", "back_to_host", "binary", "conflict", "duplicate_operator", "in_extension", "leftover", "locked", "missing_attribute",
    "missing_module", "moved_name", "native_library", "needs", "numpy_two", "or_higher", "pip_refused",
    "protobuf", "pydantic", "quantization", "required", "shadowed", "tokenizer", "too_old", "unavailable", "unexpected_argument",
    "whole", "wrong_version",
]  # fmt: skip

Advise = Callable[[Mapping[str, str], Seen], "Advice | None"]

# Missing on most machines, and missed by nobody until something really needs it: only a failure counts, not a remark.
_TRITON = ("triton", "triton-windows", "pytorch-triton-rocm", "pytorch-triton-xpu")
_OPTIONAL = frozenset(("xformers", *_TRITON, "hf-xet", "torchao", "optimum-quanto"))

# Parts that are compiled: where one is missing, the package was installed for another Python, or only in part.
_COMPILED = lazy(r"^(?:_C|_imaging|_multiarray_umath|_umath_linalg|_pydantic_core|_safetensors_rust|_sentencepiece|tokenizers)$")

_COMPILED_OF = {"_imaging": "pillow", "_multiarray_umath": "numpy", "_umath_linalg": "numpy"}


def missing_module(values: Mapping[str, str], seen: Seen) -> Advice | None:
    """`No module named M`: missing, installed elsewhere, installed too late, or a part that another version has."""
    module = values["module"]
    package = seen.installed.brings(module)
    if not of_stack(package) or (canonicalize_name(package) in _OPTIONAL and not seen.failure.failed):
        return None
    part = module.removeprefix("google.protobuf").rpartition(".")
    words = cure.vocabulary(package, seen, module=module, wanted=cure.preferred(package, seen.installed))
    if not seen.installed and part[0]:
        return _missing_part(module, package, words, seen)
    if words["installed"]:
        if part[0]:
            return _missing_part(module, package, words, seen)
        return cure.late(package, "rule.module-missing.late", words, seen)
    if not seen.installed and canonicalize_name(package) in seen.installs:
        return cure.say(package, "stale-availability", "refresh", "rule.module-missing.late", words)
    if canonicalize_name(package) == "triton":  # has no wheel for Windows under its own name
        windows = seen.installed.system == "Windows" if seen.installed else re.search(r"\b[A-Za-z]:[\\/]", seen.text)
        words["target"] = "triton-windows" if windows else "triton"
        return cure.say(package, "missing-package", "install", "advice.missing-other", words)
    return cure.say(package, "missing-package", "install", cure.missing_sentence(package), words)


def moved_name(values: Mapping[str, str], seen: Seen) -> Advice | None:
    """`cannot import name N from P`: of the two packages the one that does not fit what the other needs, or what the host pins."""
    owner = seen.installed.brings(values["module"])
    asker = seen.failure.asker(owner)
    if not of_stack(owner) and not of_stack(asker):
        return None
    words = {"name": values["name"], "module": values["module"], "asker": asker or seen.failure.extension}
    versions = NAMES.get((canonicalize_name(owner), values["name"]))
    if versions:
        return cure.by_name(owner, asker, versions, words, seen)
    found = cure.mismatch((owner, asker), words, seen.installed)
    return found or cure.either(owner, asker, words, seen)


def missing_attribute(values: Mapping[str, str], seen: Seen) -> Advice | None:
    """`module 'P' has no attribute 'N'`: as a name that can not be imported, but for modules of the asker's own."""
    owner = seen.installed.brings(values["module"])
    if not of_stack(owner):
        return None
    return moved_name(values, seen)


# Arguments of which it is known which version of whom knows them, and who has begun to pass them.
_ARGUMENTS = {
    ("scaled_dot_product_attention", "enable_gqa"): ("torch", ">=2.5", "diffusers"),  # https://github.com/pytorch/pytorch/releases/tag/v2.5.0
    ("scaled_dot_product_attention", "scale"): ("torch", ">=2.1", "diffusers"),
    ("__init__", "offload_state_dict"): ("diffusers", ">=0.36", "transformers"),  # https://github.com/huggingface/diffusers/pull/12438
}


def unexpected_argument(values: Mapping[str, str], seen: Seen) -> Advice | None:
    """`f() got an unexpected keyword argument 'K'`: two packages, or the host and one, that do not belong together."""
    tops = list(dict.fromkeys(canonicalize_name(top) for top in seen.failure.tops))
    involved = [top for top in tops if top in STACK]
    if not involved:
        return None
    known = _ARGUMENTS.get((values["function"].rpartition(".")[2], values["name"]))
    if known:
        package, versions, by = known
        return needs(package, versions, by, "rule.requirement")(values, seen)
    words = {"name": values["name"], "module": f"{values['function']}()", "asker": involved[-1]}
    found = cure.mismatch(tuple(reversed(involved)), words, seen.installed)
    if found or seen.failure.extension_asks:
        return found
    asker = involved[-1]
    return cure.say(asker, "moved-name", "none", "advice.argument", {**cure.vocabulary(asker, seen), **words})


def required(values: Mapping[str, str], seen: Seen) -> Advice | None:
    """`X requires Y>=Z`: missing, too old, too new; or right by now, and only this process does not know."""
    package, versions = values["needed"], (values.get("versions") or "").replace(" ", "").rstrip(",")
    if not of_stack(package):
        return None
    others = "transformers" if "normal functioning" in seen.text else seen.failure.extension
    words = cure.vocabulary(package, seen, versions, asker=values.get("asker") or seen.failure.asker(package) or others)
    found = values.get("found") or ""
    there = words["installed"]
    if not seen.installed and canonicalize_name(package) in seen.installs:
        words["installed"] = seen.installs[canonicalize_name(package)]
        return cure.say(package, "stale-availability", "refresh", "rule.requirement.late", words)
    if not seen.installed and found:
        return cure.older(package, versions, found, words, seen)
    if not there:
        return cure.say(package, "missing-package", "install", cure.missing_sentence(package), words)
    if cure.compare(there, versions) == 0:
        return cure.late(package, "rule.requirement.late", words, seen)
    return cure.change(package, versions, seen, words, cure.direction(there, versions), "rule.requirement")


def unavailable(values: Mapping[str, str], seen: Seen) -> Advice | None:
    """A library says that another one is not there, or not new enough: it asked once, and remembers."""
    package = _library(values["needed"])
    return required({**values, "needed": package}, seen)


def quantization(values: Mapping[str, str], seen: Seen) -> Advice | None:
    """`Using bitsandbytes 4-bit quantization requires …`: accelerate, bitsandbytes, or a GPU that the libraries of the time insisted on."""
    said = re.split(r"Using .?bitsandbytes.? [48]-bit", seen.text, flags=re.IGNORECASE)[-1][:300]  # the lines of code above quote others
    named = [name for name in ("accelerate", "bitsandbytes") if re.search(rf"requires.*\b{name}", said, re.IGNORECASE)] or ["bitsandbytes"]
    pairs = re.findall(r"(accelerate|bitsandbytes)\s*(>=\s*[\d.]+\d)", said, re.IGNORECASE)
    minima = {name.lower(): versions.replace(" ", "") for name, versions in pairs}
    wrong = named[-1]
    if seen.installed:
        there = {name: seen.installed.version(name) or "0" for name in named}
        wrong = next((name for name in named if cure.compare(there[name], minima.get(name, ">=0.1"))), "")
        if not wrong and "bitsandbytes" in named and _wants_gpu(seen.installed):
            return cure.say("bitsandbytes", "platform-unsupported", "setting", "advice.no-gpu", cure.vocabulary("bitsandbytes", seen))
        wrong = wrong or named[-1]
    return required({"needed": wrong, "versions": minima.get(wrong, ""), "asker": "transformers"}, seen)


def conflict(values: Mapping[str, str], seen: Seen) -> Advice | None:
    """pip's list of what does not fit: the first of it that is about Stable Diffusion's packages, and still so."""
    pattern = (
        r"([\w.\-]+) [\w.+!]+ requires ([\w.\-]+)(?:\[[\w,]+\])?((?:[<>=!~]=?[\w.*+]+,?)+)[^,.;]*?, but you have [\w.\-]+ ([\w.+!]+) which"
    )
    for by, name, versions, found in re.findall(pattern, seen.text):
        if not of_stack(by) or not of_stack(name):
            continue
        if seen.installed:
            there = seen.installed.version(name)
            pair = [canonicalize_name(by), canonicalize_name(name)]
            needs = [need for need in seen.installed.needs if [canonicalize_name(need.by), canonicalize_name(need.name)] == pair]
            current = needs[0].specifier if needs else versions
            # over by now, or the host itself wants them so: it installs some of its packages without asking what they need
            kept = seen.installed.pin(name) and not any(map(seen.installed.moved, (by, name)))
            if there is None or cure.compare(there, current) == 0 or kept:
                continue
            words = cure.vocabulary(name, seen, current, asker=by)
            return cure.change(name, current, seen, words, cure.direction(there, current), "rule.requirement")
        return cure.older(name, versions, found, cure.vocabulary(name, seen, versions, asker=by), seen)
    for by, name in re.findall(r"([\w.\-]+) [\w.+!]+ requires ([\w.\-]+)[^,]{0,80}, which is not installed", seen.text):
        if of_stack(by) and of_stack(name) and not seen.installed.version(name):
            return required({"needed": name, "versions": "", "asker": by}, seen)
    return None


def wrong_version(values: Mapping[str, str], seen: Seen) -> Advice | None:
    """The host finds another version than it wants: somebody changes it, unless it is right by now."""
    package = values["needed"]
    if not of_stack(package):
        return None
    pin = seen.installed.pin(package) or values["pin"]  # what it wants by now
    there = seen.installed.version(package)
    if there and same_version(there, pin):
        return None
    words = {**cure.vocabulary(package, seen), "pin": pin, "installed": there or values["found"], "target": f"{package}=={pin}"}
    return cure.say(package, "foreign-downgrade", "install", values=words)


def leftover(values: Mapping[str, str], seen: Seen) -> Advice | None:
    """A folder without its package, which Python takes for one; a folder that pip has left behind under a name with ~ or -."""
    name = values.get("module") or ""
    package = _truncated(values["rest"]) if values.get("rest") else seen.installed.brings(name)
    if not of_stack(package):
        return None
    return cure.repair(package, seen, {"module": name or package}, "")


def binary(values: Mapping[str, str], seen: Seen) -> Advice | None:
    """A compiled part that does not load: built for another torch, another Python, or of another version than the rest."""
    top = (values.get("module") or "").partition(".")[0].lower()
    named = next((name for name in sorted(STACK, key=len, reverse=True) if name.replace("-", "_") in top), _COMPILED_OF.get(top, ""))
    tops = [seen.installed.brings(top) for top in seen.failure.tops]
    package = next((one for one in (named, *reversed(tops)) if of_stack(one)), "")
    if not package:
        return None
    words = {"name": values.get("name") or values.get("module") or "", "module": values.get("module") or package, "asker": package}
    return cure.mismatch((package, "torch"), words, seen.installed) or cure.repair(package, seen, words, "")


def native_library(values: Mapping[str, str], seen: Seen) -> Advice:
    """bitsandbytes without a library for this machine: nothing to install where there is no GPU that it supports."""
    words = cure.vocabulary("bitsandbytes", seen, ">=0.48")
    there = words["installed"]
    if seen.installed.device.lower() in ("cuda", "rocm", "hip") and there and cure.compare(there, ">=0.48") < 0:
        return cure.say("bitsandbytes", "version-too-old", "install", "advice.native-old", words)
    return cure.say("bitsandbytes", "platform-unsupported", values=words)


def duplicate_operator(values: Mapping[str, str], seen: Seen) -> Advice | None:
    """A package with operators of its own that was loaded a second time."""
    package = seen.installed.brings(values["module"])
    if not of_stack(package) and not seen.failure.tops:
        return None
    return cure.say(package, values=cure.vocabulary(package, seen))


def or_higher(values: Mapping[str, str], seen: Seen) -> Advice | None:
    """`X requires Y v1.2 or higher`, `Found version 0.9, but only versions above 0.16 are supported`."""
    return unavailable({**values, "versions": f">={values['least']}"}, seen)


def too_old(values: Mapping[str, str], seen: Seen) -> Advice | None:
    """`upgrade X to at least v1.2`: it is there, the text does not say in which version."""
    if seen.installed:
        return or_higher({**values, "least": values["least"] or "1.1"}, seen)
    package = _library(values["needed"])
    words = cure.vocabulary(package, seen, f">={values['least'] or '1.1'}")
    return cure.say(package, "version-too-old", "install", cure.of_host(package, "advice.too-old", seen), words)


def tokenizer(values: Mapping[str, str], seen: Seen) -> Advice | None:
    """A tokenizer that can not be read: transformers names tiktoken, but for T5 it is sentencepiece or protobuf that is not there."""
    absent = [name for name in ("sentencepiece", "protobuf") if seen.installed and seen.installed.version(name) is None]
    return required({"needed": absent[0] if absent else "sentencepiece", "versions": "", "asker": "transformers"}, seen)


def whole(package: str) -> Advise:
    """For a rule that shows files of two versions of one package."""

    def advise(values: Mapping[str, str], seen: Seen) -> Advice:
        return cure.say(package, values={**cure.vocabulary(package, seen), **values})

    return advise


def pydantic(values: Mapping[str, str], seen: Seen) -> Advice | None:
    """fastapi of the days of pydantic 1 with pydantic 2: whichever of them is not what the host pins."""
    pin = seen.installed.pin("pydantic")
    if pin and seen.installed.version("pydantic") and not seen.installed.moved("pydantic"):
        return back_to_host("fastapi")(values, seen)
    return back_to_host("pydantic")({**values, "target": f"pydantic=={pin}" if pin else "pydantic<2"}, seen)


def protobuf(values: Mapping[str, str], seen: Seen) -> Advice | None:
    """Generated code that is older than protobuf: sentencepiece before 0.2, else somebody has moved protobuf."""
    if cure.compare(seen.installed.version("sentencepiece") or "9", ">=0.2") < 0:
        return needs("sentencepiece", ">=0.2", by="transformers", sentence="advice.too-old")(values, seen)
    return back_to_host("protobuf")(values, seen)


def numpy_two(values: Mapping[str, str], seen: Seen) -> Advice | None:
    """A compiled module of the days of NumPy 1 with NumPy 2: NumPy was moved up, or the module is too old for the host."""
    if seen.installed.moved("numpy") or not (seen.installed.pin("numpy") and seen.installed.version("numpy")):
        return back_to_host("numpy")(values, seen)
    package = seen.installed.brings(next((top for top in reversed(seen.failure.tops) if top != "numpy"), ""))
    if not of_stack(package):
        return None
    return cure.say(package, "version-too-old", "install", "advice.repair", {**cure.vocabulary(package, seen), "module": package})


def in_extension(values: Mapping[str, str], seen: Seen) -> Advice | None:
    """An extension asks for one of Stable Diffusion's packages that is not there: its installer has not run since."""
    package = seen.installed.brings(values["module"])
    if not of_stack(package) or not seen.failure.extension_asks:
        return None
    if seen.installed.version(package):
        return missing_module(values, seen)
    return cure.say(package, values={**cure.vocabulary(package, seen), "extension": seen.failure.extension})


def locked(values: Mapping[str, str], seen: Seen) -> Advice | None:
    """A file of a package that pip could not replace, because the running server holds it."""
    found = re.search(r"site-packages[\\/]+(?P<top>[~\w.\-]+)", values.get("file") or "")
    if not found:
        return None
    top = re.sub(r"\.dist-info$", "", found["top"])
    package = _truncated(top) if top.startswith(("~", "-")) else seen.installed.brings(top)
    if not of_stack(package):
        return None
    return cure.say(package, values={**cure.vocabulary(package, seen), "file": values["file"].replace("\\\\", "\\")})


def shadowed(values: Mapping[str, str], seen: Seen) -> Advice | None:
    """A module that is imported while it is being imported: a file of the same name stands before it, or a part of it is broken."""
    package = seen.installed.brings(values["module"])
    if not of_stack(package):
        return None
    return cure.repair(package, seen, {"module": values["module"]}, "")


def pip_refused(values: Mapping[str, str], seen: Seen) -> Advice | None:
    """pip found nothing that fits everybody, or nothing at all: of the packages that it names the first of Stable Diffusion's."""
    said = " ".join(values.get(name) or "" for name in ("what", "file"))
    named = [re.split(r"-\d", name)[0] for name in re.findall(r"[A-Za-z][\w.\-]*", said)]
    package = next((name for name in named if of_stack(name)), "")
    return cure.say(package, values=cure.vocabulary(package, seen)) if package else None


def needs(package: str, versions: str, by: str = "", sentence: str = "") -> Advise:
    """For a rule about one package that `by` needs in a range: what to do depends on what is there and what the host pins."""

    def advise(values: Mapping[str, str], seen: Seen) -> Advice:
        words = {**cure.vocabulary(package, seen, versions, asker=by), **values}
        if not seen.installed:
            return cure.say(package, "version-too-old", values=words)
        if not words["installed"]:
            return cure.say(package, "missing-package", "install", cure.missing_sentence(package), words)
        return cure.change(package, versions, seen, words, "version-too-old", sentence)

    return advise


def back_to_host(package: str) -> Advise:
    """For a rule about a host package that somebody has moved, or whose files are of two versions."""

    def advise(values: Mapping[str, str], seen: Seen) -> Advice:
        words = {**cure.vocabulary(package, seen), **values}
        return cure.back(package, words, seen.installed) if seen.installed.moved(package) else cure.say(package, values=words)

    return advise


def _missing_part(module: str, package: str, words: Mapping[str, str], seen: Seen) -> Advice:
    """The package is there, this part of it is not."""
    part = module.rpartition(".")[2]
    if _COMPILED.match(part):
        return cure.repair(package, seen, words)
    asker = seen.failure.asker(package)
    words = {**words, "asker": asker or seen.failure.extension, "name": part}
    versions = NAMES.get((canonicalize_name(package), part))
    if versions:
        return cure.by_name(package, asker, versions, words, seen)
    found = cure.mismatch((package, asker), words, seen.installed)
    if found:
        return found
    if of_stack(asker) and canonicalize_name(asker) not in host_packages():
        words = {**cure.vocabulary(asker, seen), **words, "owner": package}
        return cure.say(asker, "moved-name", "install", "rule.module-missing.part", words)
    if of_stack(asker) or canonicalize_name(package) in host_packages():
        return cure.say(package, "moved-name", "none", "advice.pair", words)
    return cure.say(package, "moved-name", "none", "advice.extension", {**words, "owner": package})


def _wants_gpu(installed: Installed) -> bool:
    """Whether the libraries that are installed say "not installed" where there is only no GPU.

    transformers asked for CUDA below 4.45, and with bitsandbytes below 0.43.1 always (is_bitsandbytes_available in its
    utils/import_utils.py).
    """
    torch = installed.version("torch") or ""
    without = "+cpu" in torch or installed.device.lower() in ("cpu", "directml", "openvino", "mps", "zluda")
    old = lambda name, bound: cure.compare(installed.version(name) or "0", f">={bound}") < 0  # noqa: E731
    return without and (old("transformers", "4.45") or old("bitsandbytes", "0.43.1"))


def _library(name: str) -> str:
    """The distribution that a sentence calls "the SentencePiece library"."""
    name = name.strip("`'\" ").lower()
    return {"pytorch": "torch", "quanto": "optimum-quanto"}.get(name, name)


def _truncated(rest: str) -> str:
    """The package of which pip has cut the first letter: "umpy" is numpy."""
    rest = canonicalize_name(rest.lstrip("~-"))
    return next((name for name in sorted(STACK) if rest and name != rest and (name[1:] == rest or name[2:] == rest)), rest)
