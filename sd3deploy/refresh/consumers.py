"""What the model stack believes: a refresh ends with asking it.

Each question is an expression in a module's namespace: the library's own predicates (`is_bitsandbytes_available()`), flags that name the
package (`USE_PEFT_BACKEND`), names that a guarded import would have bound, and a real use where there is one. What is answered with no
here is asked of a new process: only where that one says yes would a restart help.
"""

from __future__ import annotations

import importlib
import inspect
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from subprocess import DEVNULL, PIPE
from types import ModuleType
from typing import Any

from sd3deploy.loaded import real_module
from sd3deploy.refresh.caches import modules_of
from sd3deploy.refresh.imports import lacking
from sd3deploy.refresh.package import Package, read_package
from sd3deploy.refresh.private import LIBRARIES
from sd3deploy.vendored import canonicalize_name

__all__ = ["Question", "in_a_new_process", "is_asked_about", "stale", "use_in_diffusers", "use_in_transformers"]

log = logging.getLogger(__name__)

Question = tuple[str, str]  # module, expression

_CHECKS = ("import_utils", "imports")  # the modules of the libraries that hold their predicates
_PATIENCE_S = 120  # to import the whole stack anew takes 5 s on two cores; a new process that hangs must not hang this one
_LOOK_S = 0.2  # how soon whoever waits for it looks whether it was cancelled
_MARK = "sd3deploy-answers:"

_OUR_USES = {  # package → library → a real use, of this module
    "bitsandbytes": {"transformers": "use_in_transformers()", "diffusers": "use_in_diffusers()"},
}


def stale(package: Package, libraries: tuple[str, ...], cancelled: Callable[[], bool]) -> list[Question]:
    """The questions that this process answers with no and a new one with yes. Empty where the package is as usable as it can be."""
    questions = list(dict.fromkeys(_questions(package, libraries)))
    noes = [question for question in questions if not answer(*question)]
    if not noes:
        return []
    log.debug("asking a new process: %s", noes)
    return [question for question, said in zip(noes, in_a_new_process(noes, cancelled), strict=True) if said]


def is_asked_about(name: str) -> bool:
    """Whether a library of the model stack that is loaded has a check for the distribution, or is it. Imports nothing."""
    package = read_package(name)
    return name in {canonicalize_name(one) for one in LIBRARIES} or any(
        package.mentioned_in(key)
        for module, loaded in modules_of(LIBRARIES)
        if module.rpartition(".")[2] in _CHECKS
        for key, value in list(vars(loaded).items())
        if key.endswith("_available") and callable(value)
    )


def _questions(package: Package, libraries: tuple[str, ...]) -> Iterable[Question]:
    for name, module in modules_of(libraries):
        checks = name.rpartition(".")[2] in _CHECKS
        for key, value in list(vars(module).items()):
            if (value is False or (checks and _is_predicate(name, key, value))) and package.mentioned_in(key):
                yield name, key if value is False else f"{key}()"
    for name, bound in lacking([package], libraries):
        yield name, f"type(globals().get({bound!r})).__name__ not in ('NoneType', 'DummyObject')"
    for library, use in _OUR_USES.get(package.name, {}).items():
        if library in libraries:
            yield __name__, use


def _is_predicate(module: str, name: str, value: Any) -> bool:
    """Whether it is a check of that module's own that asks for nothing."""
    if not name.startswith(("is_", "has_", "_is_", "_has_")) or not callable(value) or getattr(value, "__module__", "") != module:
        return False
    parameters = inspect.signature(value).parameters.values()
    return all(one.default is not one.empty or one.kind in (one.VAR_POSITIONAL, one.VAR_KEYWORD) for one in parameters)


def answer(module: str, expression: str) -> bool:
    """The answer of this process. What raises is a no."""
    try:
        return bool(eval(expression, vars(importlib.import_module(module))))
    except (Exception, SystemExit):
        return False


def in_a_new_process(questions: list[Question], cancelled: Callable[[], bool]) -> list[bool]:
    """The answers of a new process with this one's sys.path. Yes to all where none can be had, or `cancelled` answers True meanwhile: what
    is not known needs a restart.
    """
    path = [str(Path(__file__).parents[2]), *sys.path]
    code = f"import json, sys; sys.path[:] = json.loads(sys.argv[1]); from {__name__} import _tell; _tell(sys.argv[2])"
    command = [sys.executable, "-c", code, json.dumps(path), json.dumps(questions)]
    offline = {**os.environ, "HF_HUB_OFFLINE": "1"}  # nothing here may ask the network
    try:
        with subprocess.Popen(command, stdout=PIPE, stderr=DEVNULL, stdin=DEVNULL, text=True, env=offline) as process:
            try:
                return json.loads(_output(process, cancelled).rpartition(_MARK)[2])
            finally:
                process.kill()
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        log.debug("a new process gave no answer: %s", error)
        return [True] * len(questions)


def _output(process: subprocess.Popen[str], cancelled: Callable[[], bool]) -> str:
    for _ in range(int(_PATIENCE_S / _LOOK_S)):
        if cancelled():
            break
        try:
            return process.communicate(timeout=_LOOK_S)[0]
        except subprocess.TimeoutExpired:
            continue
    return ""


def _tell(questions: str) -> None:
    answers = [answer(*question) for question in json.loads(questions)]
    print(_MARK + json.dumps(answers))


# Real uses. In both processes the same: what a machine without a GPU refuses is no matter of what is installed.


def use_in_transformers() -> bool:
    """Whether transformers itself puts a 4-bit layer into a model."""
    import torch
    import transformers
    from transformers.integrations.bitsandbytes import replace_with_bnb_linear
    from transformers.quantizers import AutoHfQuantizer

    config = transformers.BitsAndBytesConfig(load_in_4bit=True)
    _environment(AutoHfQuantizer.from_config(config))
    return _is_four_bit(replace_with_bnb_linear(torch.nn.Sequential(torch.nn.Linear(64, 64)), quantization_config=config))


def use_in_diffusers() -> bool:
    """Whether diffusers itself puts a 4-bit layer into a model."""
    import diffusers
    import torch
    from diffusers.quantizers.bitsandbytes import utils
    from diffusers.quantizers.bitsandbytes.bnb_quantizer import BnB4BitDiffusersQuantizer

    config = diffusers.BitsAndBytesConfig(load_in_4bit=True)
    _environment(BnB4BitDiffusersQuantizer(config))
    return _is_four_bit(utils.replace_with_bnb_linear(torch.nn.Sequential(torch.nn.Linear(64, 64)), [], quantization_config=config))


def _environment(quantizer: Any) -> None:
    try:
        quantizer.validate_environment()
    except RuntimeError as error:
        if "GPU" not in str(error):
            raise


def _is_four_bit(model: Any) -> bool:
    bitsandbytes: ModuleType | None = real_module("bitsandbytes")
    return bitsandbytes is not None and isinstance(model[0], vars(bitsandbytes)["nn"].Linear4bit)
