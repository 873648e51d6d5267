"""What the scripts here share: a process that imports the libraries as the host does, and the steps of a no-restart test."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
import time
import types
import warnings

warnings.filterwarnings("ignore")


def boot() -> None:
    """The host's order of imports, its marks in the libraries, and the classes that its first pages pull in."""
    _try("numpy.random")
    _try("scipy")
    import torch

    _try("torchvision")
    loader = types.ModuleType("modules.loader")
    sys.modules["modules"] = types.ModuleType("modules")
    sys.modules["modules.loader"] = loader
    loader._bnb = _try("bitsandbytes")
    import huggingface_hub  # noqa: F401

    _try("accelerate")
    _try("pydantic")
    import tokenizers  # noqa: F401

    fake = types.ModuleType("transformers.dependency_versions_check")
    fake.dep_version_check = lambda package, hint=None: None
    sys.modules["transformers.dependency_versions_check"] = fake
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    _try("gradio")
    import diffusers.utils.import_utils

    diffusers.utils.import_utils._bitsandbytes_available = loader._bnb
    import diffusers.loaders.single_file

    class VersionString(str):
        def __ge__(self, other):
            if isinstance(other, tuple):
                return tuple(int(part) for part in re.findall(r"\d+", self.split("+")[0])[:3]) >= other
            return super().__ge__(other)

    torch.__version__ = VersionString(torch.__version__)
    for name in ("StableDiffusion3Pipeline", "StableDiffusion3Img2ImgPipeline", "FluxPipeline", "AutoPipelineForText2Image"):
        getattr(diffusers, name)
    for name in ("T5EncoderModel", "T5TokenizerFast", "T5Tokenizer", "CLIPTextModelWithProjection", "AutoTokenizer"):
        getattr(transformers, name)
    for name in ("bitsandbytes", "gguf", "torchao", "quanto"):
        _try(f"diffusers.quantizers.{name}")
    torch.manual_seed(0)


def _try(name: str) -> bool:
    try:
        importlib.import_module(name)
    except Exception:
        return False
    return True


def pip(*requirements: str) -> None:
    """Install into the environment of this process; prints a mark when there is no registry."""
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--quiet", *requirements]
    started = time.perf_counter()
    result = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": ""})
    if "connection broken" in result.stderr or "Failed to establish" in result.stderr:
        print("NO REGISTRY", file=sys.stderr)
    assert result.returncode == 0, result.stderr
    print(f"pip {' '.join(requirements)}: {time.perf_counter() - started:.1f} s")


def fails(use, expected: str) -> None:
    """`use` raises an error in whose chain of causes `expected` (a regular expression) is found."""
    try:
        use()
    except Exception as error:
        chain, link = [], error
        while link is not None:
            chain.append(f"{type(link).__name__}: {link}")
            link = link.__cause__ or link.__context__
        assert any(re.search(expected, text, re.I) for text in chain), f"{use}: {chain}"
    else:
        raise AssertionError(f"{use} works already")


def hot(requirement: str, **uses: tuple) -> None:
    """The no-restart test. uses: name=(callable, expected error). Each fails; pip; each still fails; refresh; each works."""
    from sd3deploy.refresh import refresh

    started = time.perf_counter()
    for use, error in uses.values():
        fails(use, error)
    print(f"uses without {requirement}: {time.perf_counter() - started:.1f} s")
    pip(requirement)
    for use, _ in uses.values():
        fails(use, "")
    verdict = refresh([requirement.partition("=")[0]])
    print(f"refresh {requirement}: {verdict.seconds:.2f} s, {len(verdict.steps)} steps")
    assert verdict.ok, verdict
    assert not [step for step in verdict.steps if "failed" in step], verdict.steps
    started = time.perf_counter()
    for name, (use, _) in uses.items():
        try:
            use()
        except Exception as error:
            raise AssertionError(f"{name} still fails after refresh: {verdict.steps}") from error
    print(f"uses: {time.perf_counter() - started:.1f} s")
    again = refresh([requirement.partition("=")[0]])
    print(f"  again: {again.seconds:.2f} s")
    assert again.ok, again
    assert not again.steps, again.steps


def anew(requirement: str, **uses: tuple) -> None:
    """The opposite: each use fails; pip; refresh says that a new process is needed and why; each still fails."""
    from sd3deploy.refresh import refresh

    for use, error in uses.values():
        fails(use, error)
    pip(requirement)
    verdict = refresh([requirement.partition("=")[0]])
    print(f"refresh {requirement}: {verdict.seconds:.2f} s, {[entry.reason for entry in verdict.restart]}")
    assert [entry.name for entry in verdict.restart] == [requirement.partition("=")[0]], verdict
    assert verdict.refreshed == ()
    for use, _ in uses.values():
        fails(use, "")


def identities() -> dict:
    """The classes and functions of the libraries by module and name: none of them may be exchanged by a refresh."""
    found = {}
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] in ("transformers", "diffusers", "accelerate", "peft", "huggingface_hub", "tokenizers"):
            for key, value in list(getattr(module, "__dict__", {}).items()):
                if isinstance(value, (type, types.FunctionType)) and type(value).__name__ != "DummyObject":
                    found[name, key] = value
    return found


def same(before: dict) -> None:
    """Nothing that was bound is bound to something else now."""
    moved = [key for key, value in before.items() if key[0] in sys.modules and vars(sys.modules[key[0]]).get(key[1]) is not value]
    print(f"identities: {len(before)} kept")
    assert not moved, moved[:20]
