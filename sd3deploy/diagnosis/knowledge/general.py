"""Rules for whole families of errors: they look at what is installed."""

from __future__ import annotations

from sd3deploy.diagnosis import advice
from sd3deploy.diagnosis.rule import Rule

__all__ = ["RULES"]

_NAME = r"['\"`](?P<{}>[\w.]+)['\"`]"

# What the libraries call each other in their sentences.
_LIBRARY = (
    r"(?P<needed>accelerate|bitsandbytes|sentencepiece|protobuf|peft|gguf|torchao|optimum-quanto|safetensors|compel|scipy"
    r"|transformers|tokenizers|PyTorch|huggingface[_-]hub)"
)
_LEAST = r"(?:[^.]{0,160}?(?P<versions>>=\s?[\d.]*\d))?"

RULES = (
    Rule(
        id="import-circular",
        cause="mixed-package-files",
        match=r"partially initialized module ['\"](?P<module>[\w.]+)['\"] (?:has no attribute|\()"
        r"|cannot import name ['\"]\w+['\"] from partially initialized module ['\"](?P<owner>[\w.]+)['\"]",
        action="install",
        source="https://docs.python.org/3/faq/programming.html#what-are-the-best-practices-for-using-import-in-a-module",
        advise=lambda values, seen: advice.shadowed({"module": values["module"] or values["owner"]}, seen),
    ),
    Rule(
        id="name-moved",
        cause="moved-name",
        match=rf"cannot import name {_NAME.format('name')} from {_NAME.format('module')}",
        action="install",
        source="https://docs.python.org/3/library/exceptions.html#ImportError",
        advise=advice.moved_name,
    ),
    Rule(
        id="module-missing",
        cause="missing-package",
        match=rf"No module named {_NAME.format('module')}",
        unless=r"A matching Triton is not available",  # a remark of xformers, on every Windows
        action="install",
        source="https://docs.python.org/3/library/exceptions.html#ModuleNotFoundError",
        advise=advice.missing_module,
    ),
    Rule(
        id="requirement",
        cause="version-too-old",
        match=r"(?<![\w.\-])(?P<needed>[A-Za-z][\w.\-]*)(?P<versions>(?:[<>=!~]=?\s?[\d.\w*]+,?\s?)+) is required for a normal functioning"
        r" of this module"
        r"(?:, but found [\w.\-]+?==(?P<found>[\w.+!]*\w))?",
        action="install",
        source="https://github.com/huggingface/transformers/blob/main/src/transformers/utils/versions.py",
        advise=advice.required,
    ),
    Rule(
        id="requirement-found",
        cause="version-too-old",
        match=r"requires [`'\"]?(?P<needed>[A-Za-z][\w\-]*)[`'\"]? ?(?P<versions>[<>=!~]+ ?\d[\d.]*)[`'\"]?(?: to function correctly)?,?"
        r" but (?:found )?(?P<found>\d[\w.+]*\w)",
        action="install",
        source="https://github.com/AUTOMATIC1111/stable-diffusion-webui/issues/5539",
        advise=advice.required,
    ),
    Rule(
        id="requirement-or-higher",
        cause="version-too-old",
        match=r"requires [`'\"]?(?P<needed>[A-Za-z][\w\-]*)[`'\"]?(?: ?>=| v| version)? ?(?P<least>\d[\d.]*\d)[`'\"]? or"
        r" (?:higher|newer|later|above|greater)",
        action="install",
        source="https://github.com/huggingface/diffusers/blob/main/src/diffusers/pipelines/pipeline_utils.py",
        advise=advice.or_higher,
    ),
    Rule(
        id="version-incompatible",
        cause="version-too-old",
        match=r"Found an incompatible version of (?P<needed>[\w\-]+)\. Found version (?P<found>[\w.+]+), but only versions"
        r" above (?P<least>\d[\d.]*\d)",
        action="install",
        source="https://github.com/huggingface/peft/blob/main/src/peft/import_utils.py",
        advise=advice.or_higher,
    ),
    Rule(
        id="library-unavailable",
        cause="missing-package",
        match=rf"(?:requires?|must have|Please install|have to install)(?: the| an?| torch and)?(?: latest version of)? [`'\"]?{_LIBRARY}"
        r"[`'\"]?(?: library)?(?: but it was not found|(?=>=)| to be installed|\.? (?:is not|Please)|:? ?[(`'\"]{0,2}pip install"
        rf"| installed in your envi|\. You can install| and the latest|\. Please make sure){_LEAST}",
        action="install",
        source="https://github.com/huggingface/diffusers/blob/main/src/diffusers/utils/import_utils.py",
        advise=advice.unavailable,
    ),
    Rule(
        id="metadata-missing",
        cause="missing-package",
        match=r"No package metadata was found for (?:The ['\"])?(?P<needed>[A-Za-z][\w.\-]*)",
        action="install",
        source="https://docs.python.org/3/library/importlib.metadata.html#importlib.metadata.PackageNotFoundError",
        advise=advice.missing_distribution,
    ),
    Rule(
        id="distribution-missing",
        cause="missing-package",
        match=r"The ['\"](?P<needed>[A-Za-z][\w.\-]*?)(?P<versions>[<>=!~][^'\"]*)?['\"] distribution was not found",
        action="install",
        source="https://github.com/huggingface/transformers/blob/main/src/transformers/utils/versions.py",
        advise=advice.required,
    ),
    Rule(
        id="pip-conflict",
        cause="version-too-new",
        match=r" requires [\w.\-]+(?:\[[\w,]+\])?(?:[<>=!~][^ ]*, but you have [\w.\-]+ [\w.+!]+ which is incompatible"
        r"|[^ ]*, which is not installed)",
        action="install",
        source="https://pip.pypa.io/en/stable/topics/dependency-resolution/",
        advise=advice.conflict,
    ),
    Rule(
        id="binary-symbol",
        cause="mixed-package-files",
        match=r"(?<!\w)(?P<module>\w{1,80})\.[\w.\-]{0,80}so[\w.]{0,20}: undefined symbol: (?P<name>\w+)",
        action="install",
        source="https://github.com/Dao-AILab/flash-attention/issues/854",
        advise=advice.binary,
    ),
    Rule(
        id="binary-not-loaded",
        cause="mixed-package-files",
        match=r"DLL load failed while importing (?P<module>\w+)",
        action="install",
        source="https://github.com/safetensors/safetensors/issues/610",
        advise=advice.binary,
    ),
    Rule(
        id="operator-twice",
        cause="mixed-package-files",
        match=r"Tried to register an operator \((?P<module>\w+)::",
        action="restart",
        source="https://github.com/pytorch/pytorch/blob/main/aten/src/ATen/core/dispatch/Dispatcher.cpp",
        advise=advice.duplicate_operator,
    ),
    Rule(
        id="attribute-missing",
        cause="moved-name",
        match=r"module ['\"]?(?P<module>[\w.]+)['\"]? has no attribute ['\"]?(?P<name>\w+)",
        action="install",
        source="https://docs.python.org/3/library/exceptions.html#AttributeError",
        advise=advice.missing_attribute,
    ),
    Rule(
        id="argument-unexpected",
        cause="moved-name",
        match=r"(?<![\w.])(?P<function>[\w.]{1,200})\(\) (?:got an unexpected keyword argument ['\"](?P<name>\w+)|missing \d+ required"
        r" (?:positional|keyword-only) arguments?: ['\"](?P<other>\w+))",
        action="none",
        source="https://docs.python.org/3/library/exceptions.html#TypeError",
        advise=lambda values, seen: advice.unexpected_argument({**values, "name": values["name"] or values["other"]}, seen),
    ),
)
