"""Who asks for what, and who lacks it: modules, names, attributes, arguments and versions, in the words of Python and of the libraries."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from sd3deploy.diagnosis import advice, cure
from sd3deploy.diagnosis.failure import Failure, class_owner
from sd3deploy.diagnosis.rule import Advice, Kind, Seen, Verdict, kinds
from sd3deploy.lazy import lazy

__all__ = ["KINDS", "judge"]

_PYTHON = "https://docs.python.org/3/library/exceptions.html"
_TRANSFORMERS = "https://github.com/huggingface/transformers/blob/main/src/transformers/utils/"
KINDS = kinds(
    Kind("install-not-run", "missing-package", "restart", "https://github.com/adieyal/sd-dynamic-prompts/pull/215"),
    Kind("folder-without-package", "mixed-package-files", "install", "https://github.com/vladmandic/sdnext/issues/3797"),
    Kind("import-circular", "mixed-package-files", "install", "https://docs.python.org/3/faq/programming.html"),
    Kind("module-missing", "missing-package", "install", f"{_PYTHON}#ModuleNotFoundError"),
    Kind("name-moved", "moved-name", "install", f"{_PYTHON}#ImportError"),
    Kind("attribute-missing", "moved-name", "install", f"{_PYTHON}#AttributeError"),
    Kind("argument-unexpected", "moved-name", "none", f"{_PYTHON}#TypeError"),
    Kind("requirement", "version-too-old", "install", f"{_TRANSFORMERS}versions.py"),
    Kind("library-unavailable", "missing-package", "install", f"{_TRANSFORMERS}import_utils.py"),
    Kind("pip-conflict", "version-too-new", "install", "https://pip.pypa.io/en/stable/topics/dependency-resolution/"),
    Kind("operator-twice", "mixed-package-files", "restart", "https://github.com/pytorch/pytorch/blob/main/aten/src/ATen/core/dispatch/Dispatcher.cpp"),
    Kind("import-failed", "missing-package", "none", f"{_PYTHON}#ImportError"),
    Kind("module-foreign", "missing-package", "none", f"{_PYTHON}#ModuleNotFoundError"),
    Kind("name-foreign", "moved-name", "none", f"{_PYTHON}#AttributeError"),
)

_LIBRARY = (  # as the libraries call each other in their sentences
    r"(?P<needed>accelerate|bitsandbytes|sentencepiece|protobuf|peft|gguf|torchao|optimum-quanto|safetensors|compel|scipy"
    r"|transformers|tokenizers|PyTorch|torch|huggingface[_-]hub|PEFT)"
)
_NEEDS = r"[`'\"]?(?P<needed>[A-Za-z][\w.\-]*?)[`'\"]?"
_VERSIONS = r"(?P<versions>(?:[<>=!~]=?\s?\d[\d.\w*]*,?\s?)+)"
_LEAST = r"(?P<least>\d[\d.]*\d)"
_FOUND = r"(?P<found>\d[\w.+]*\w)"

Advise = Callable[[Mapping[str, str], Seen], "Advice | None"]
# What Python and the libraries say: the first whose conclusion is about a package of Stable Diffusion's speaks.
_SENTENCES: tuple[tuple[str, str, Advise], ...] = (
    ("install-not-run", r"No module named ['\"](?P<module>[\w.]+)", advice.in_extension),
    ("folder-without-package", r"cannot import name ['\"]\w+['\"] from ['\"](?P<module>[\w.]+)['\"] \(unknown location\)", advice.leftover),
    ("folder-without-package", r"module ['\"](?P<module>\w+)['\"] has no attribute ['\"]__version__", advice.leftover),
    ("import-circular", r"partially initialized module ['\"](?P<module>[\w.]+)['\"]", advice.shadowed),
    ("name-moved", r"cannot import name ['\"`](?P<name>\w+)['\"`] from ['\"`](?P<module>[\w.]+)", advice.moved_name),
    ("module-missing", r"No module named ['\"`](?P<module>[\w.]+)", advice.missing_module),
    ("requirement", rf"(?<![\w.\-]){_NEEDS}{_VERSIONS} is required for a normal functioning"
     r"(?:[^,]*, but found [\w.\-]+?==(?P<found>[\w.+!]*\w))?", advice.required),
    ("requirement", rf"requires {_NEEDS} ?(?P<versions>[<>=!~]+ ?\d[\d.]*)[`'\"]?(?: to function correctly)?,? but (?:found )?{_FOUND}",
     advice.required),
    ("requirement", rf"requires {_NEEDS}(?: ?>=| v| version)? ?{_LEAST}[`'\"]? or (?:higher|newer|later|above|greater)", advice.or_higher),
    ("requirement", rf"incompatible version of {_NEEDS}\. Found version (?P<found>[\w.+]+), but only versions above {_LEAST}",
     advice.or_higher),
    ("requirement", rf"{_LIBRARY} ?>= ?{_LEAST} is required but found {_FOUND}", advice.or_higher),
    ("requirement", rf"upgrade {_LIBRARY} to at least v?{_LEAST}", advice.too_old),
    ("requirement", r"current `(?P<needed>accelerate)` installation does not support it(?P<least>)", advice.too_old),
    ("library-unavailable", rf"(?<![\w-]){_LIBRARY} backend is required", advice.unavailable),
    ("library-unavailable", rf"(?:requires?|must have|Please install|have to install)(?: the| an?| torch and)?(?: latest version of)? "
     rf"[`'\"]?{_LIBRARY}[`'\"]?(?: library)?(?: but it was not found|(?=>=)"
     rf"| to be installed|\.? (?:is not|Please)|:? ?[(`'\"]{{0,2}}pip install"
     r"| installed in your envi|\. You can install| and the latest|\. Please make sure)(?:[^.]{0,160}?(?P<versions>>=\s?[\d.]*\d))?",
     advice.unavailable),
    ("library-unavailable", r"No package metadata was found for (?:The ['\"])?(?P<needed>[A-Za-z][\w.\-]*)", advice.required),
    ("library-unavailable", r"The ['\"](?P<needed>[A-Za-z][\w.\-]*?)(?P<versions>[<>=!~][^'\"]*)?['\"] distribution was not found",
     advice.required),
    ("pip-conflict", r" requires [\w.\-]+(?:\[[\w,]+\])?(?:[<>=!~][^ ]*, but you have [\w.\-]+ [\w.+!]+ which is incompatible"
     r"|[^ ]*, which is not installed)", advice.conflict),
    ("operator-twice", r"Tried to register an operator \((?P<module>\w+)::", advice.duplicate_operator),
    ("attribute-missing", r"module ['\"]?(?P<module>[\w.]+)['\"]? has no attribute ['\"]?(?P<name>\w+)", advice.missing_attribute),
    ("argument-unexpected", r"(?<![\w.])(?P<function>[\w.]{1,200})\(\) (?:got an unexpected keyword argument ['\"](?P<name>\w+)"
     r"|missing \d+ required (?:positional|keyword-only) arguments?: ['\"](?P<name2>\w+)"
     r"|got multiple values for (?:keyword )?argument ['\"](?P<name3>\w+))", advice.unexpected_argument),
)  # fmt: skip
_MATCHES = tuple((kind, lazy(pattern, re.IGNORECASE), advise) for kind, pattern, advise in _SENTENCES)
_IMPORTS = frozenset(("ImportError", "ModuleNotFoundError", "PackageNotFoundError", "DistributionNotFound"))
_INSTALL = lazy(
    r"pip install (?:--?[\w-]+ )*['\"]?([A-Za-z][\w.\-]*)|(?:the|an?|and|requires|needs"
    r"|install) [`'\"]?([A-Za-z][\w\-]*)[`'\"]? (?:library|package|on which|to be installed)"
    r"|^[`'\"]?([A-Za-z][\w\-]*)[`'\"]? (?:library |package )?(?:is|was)(?:n't| not) (?:available|installed|found)"
    r"|requires? (?:the )?[`'\"]?(?!CUDA|ROCm|GPU)([A-Za-z][\w\-]*)[`'\"]? ?(?:\d|>=|\.|,|to\b|but|$)"
    r"|(?:[Pp]lease |to )install (?:the )?[`'\"]?([A-Za-z][\w\-]*)[`'\"]?",
)
_OF_PROGRAMS = ("comfy", "modules", "backend", "ldm_patched", "folder_paths", "nodes", "execution", "scripts")
_OF_CLASS = lazy(r"(?:type object )?['\"](?P<class>\w+)['\"] (?:object )?has no attribute ['\"](?P<name>\w+)")


def judge(failure: Failure, seen: Seen) -> Verdict | None:
    """Which package or extension asks for what, and which of the two has to move."""
    for kind, pattern, advise in _MATCHES:
        if found := pattern.search(failure.text if kind == "pip-conflict" else failure.said):
            values = {name.rstrip("23"): value for name, value in found.groupdict().items() if value}
            values = {"name": "", "module": "", "versions": "", "found": "", "least": "", **values}
            if (said := advise(values, seen)) is not None:
                return Verdict(KINDS[kind], values, said, found[0])
            if failure.failed and kind in ("module-missing", "name-moved", "attribute-missing", "argument-unexpected"):
                return _foreign(values, failure, seen)
    found = _OF_CLASS.search(failure.said) if failure.failed else None
    if found and (verdict := _of_class(found["class"], found["name"], failure, seen)):
        return verdict
    return _import(failure, seen) if failure.failed and failure.types & _IMPORTS else None


def _import(failure: Failure, seen: Seen) -> Verdict | None:
    """An ImportError says itself what it is, whatever its words are: which package they name, and who has asked."""
    text = next((one.text for one in failure.chain if one.type in _IMPORTS and one.text), "")
    if not text:  # what is announced comes with its traceback
        return None
    named = _INSTALL.search(text)
    asker = failure.extension if failure.extension_asks else next(iter(reversed(failure.tops)), failure.program)
    if named:
        needed = next(filter(None, named.groups()))
        if (said := advice.unavailable({"needed": needed, "versions": "", "asker": asker.replace("_", "-")}, seen)) is not None:
            return Verdict(KINDS["library-unavailable"], {}, said, text)
        said = Advice(sentence="rule.module-foreign.extension" if asker else "")
        return Verdict(KINDS["module-foreign"], {"package": needed, "asker": asker}, said)
    return Verdict(KINDS["import-failed"], {"error": text[:300], "asker": asker or "?"}, matched=text) if asker else None


def _of_class(name: str, attribute: str, failure: Failure, seen: Seen) -> Verdict | None:
    """A class that a library has changed under another that uses it."""
    owner = class_owner(name)
    asker = next((top for top in reversed(failure.tops) if top not in (owner, "torch")), "")
    asker = failure.extension if failure.extension_asks else asker.replace("_", "-")
    if not owner or not asker or asker == owner:
        return None
    words = {**cure.vocabulary(owner, seen), "name": attribute, "module": name, "asker": asker, "owner": owner}
    moved = None if failure.extension_asks else cure.mismatch((owner, asker), words, seen.installed)
    sentence = "advice.extension" if failure.extension_asks else "advice.class"
    return Verdict(KINDS["attribute-missing"], {}, moved or cure.say(owner, "moved-name", "none", sentence, words))


def _foreign(values: Mapping[str, str], failure: Failure, seen: Seen) -> Verdict | None:
    """None of Stable Diffusion's packages: an extension and the program that it was made for, or a package that only an extension needs."""
    module = values["module"] or f"{values.get('function', '')}()"
    top = module.partition(".")[0]
    parts = failure.program if top in _OF_PROGRAMS else ""
    owner = parts or seen.installed.brings(top)
    asker = failure.extension if failure.extension_asks else failure.asker(owner) or failure.extension
    words = {"name": values["name"] or module.rpartition(".")[2], "module": module, "owner": owner, "asker": asker or "?", "package": owner}
    if not values["name"] and not parts and "." not in module:
        return Verdict(KINDS["module-foreign"], words, Advice(sentence="rule.module-foreign.extension" if asker else ""))
    return Verdict(KINDS["name-foreign"], words) if asker and asker != owner else None
