"""Below Python: processes that die, compiled libraries that do not load, kernels that can not be compiled."""

from __future__ import annotations

import re

from sd3deploy.diagnosis import advice, cure
from sd3deploy.diagnosis.failure import NATIVE, Failure
from sd3deploy.diagnosis.installed import of_stack
from sd3deploy.diagnosis.rule import Advice, Kind, Seen, Verdict, kinds
from sd3deploy.lazy import lazy

__all__ = ["KINDS", "judge"]

KINDS = kinds(
    Kind("process-crashed", "unknown", "none", "https://docs.python.org/3/library/faulthandler.html"),
    Kind("library-not-loaded", "platform-unsupported", "none", "https://docs.python.org/3/library/ctypes.html#finding-shared-libraries"),
    Kind("system-library-old", "platform-unsupported", "none", "https://github.com/bitsandbytes-foundation/bitsandbytes/issues/1610"),
    Kind("binary-symbol", "mixed-package-files", "install", "https://github.com/Dao-AILab/flash-attention/issues/854"),
    Kind("binary-not-loaded", "mixed-package-files", "install", "https://github.com/safetensors/safetensors/issues/610"),
    Kind("torch-library", "mixed-package-files", "restart", "https://github.com/vladmandic/sdnext/issues/3375", "torch"),
    Kind("torch-cuda-library", "mixed-package-files", "restart", "https://github.com/pytorch/pytorch/issues/131312", "torch"),
    Kind("flash-attention-built", "platform-unsupported", "none", "https://github.com/MeiGen-AI/MultiTalk/issues/81", "flash-attn"),
    Kind("bnb-library-missing", "platform-unsupported", "setting",
         "https://github.com/bitsandbytes-foundation/bitsandbytes/issues/1559", "bitsandbytes"),
    Kind("compile-failed", "platform-unsupported", "setting", "https://github.com/pytorch/pytorch/issues/137689"),
)

_GPU = lazy(
    r"(?i)by GPU node|\bXid \(PCI|\bamdgpu|\bROCm|\bHSA|\bhip\w*\.|nvcuda|libcuda|\bnvlddmkm|\bDXGI|device (?:lost|removed|hung)"
)
# A library that a loader has named: its file, or the module that it is.
_LIBRARY = lazy(
    r"(?i)(?P<file>(?:\b[A-Za-z]:(?=[\\/]))?[\w./\\~+\- ]*?[\w+.\-]+\.(?:so[\d.]*|dll|dylib|pyd))['\")]*"
    r"(?:: (?:undefined symbol: (?P<symbol>\w+)"
    r"|symbol \w+, version|cannot open shared|cannot enable executable stack"
    r"|version `|invalid ELF|wrong ELF|file too short|failed to map| ?\(no such file)| ?\(or one of its dependencies\))"
    r"|DLL load failed while importing (?P<module>\w+)"
    r"|(?:Error loading|Could not find module|Library not loaded:?|dlopen\(|Could not load (?:dynamic )?library|Failed to load"
    r"|cannot load library) ?"
    r"['\"(]?(?P<file2>[^'\"),]+?\.(?:so[\d.]*|dll|dylib))"
)
# What a compiled library asks of the system that it was not built for.
_OLD = lazy(r"version [`'](?P<version>(?:GLIBC|GLIBCXX|CXXABI)_[\d.]+)'? not found(?: \(required by (?P<needs>[^)]+)\))?")
_BITSANDBYTES = lazy(
    r"(?i)Could not (?:find the bitsandbytes (?:CUDA|ROCm|HIP|XPU)? ?binary|load bitsandbytes native library)|Configured (?:CUDA|ROCm"
    r"|XPU) binary not found at"
    r"|Required library version not found|libbitsandbytes_\w+\.(?:so|dll|dylib)['\"]?: cannot open|libcudart\.so not found in any"
    r"|CUDA Setup failed despite|bitsandbytes was compiled without GPU support|has no attribute ['\"]cadam32bit_grad_fp32"
    r"|Error (?:named symbol not found|no kernel image is available[\w ]*|invalid device function) at line \d+ in file \S*ops\.(?:cu|hip)"
)
_CUDA = lazy(r"^lib(?:cu(?!da\.so)|nv|nccl)\w*\.so", re.IGNORECASE)
_COMPILER = lazy(
    r"BackendCompilerFailed|InductorError|TritonMissing|torch\._(?:dynamo|inductor)\.exc|backend=['\"]inductor|LoweringException"
    r"|CppCompileError|Failed to find C compiler"
)


def judge(failure: Failure, seen: Seen) -> Verdict | None:
    """What died or did not load; a shell that only says that something has died is weak: what it was may be said beside it."""
    said = failure.said
    if old := _OLD.search(said):
        owner = _owner(old["needs"] or "", failure) or "?"
        advised = Advice(owner if of_stack(owner) else "", sentence="rule.system-library-old.bnb" if owner == "bitsandbytes" else "")
        return Verdict(KINDS["system-library-old"], {"owner": owner, "version": old["version"]}, advised)
    if _BITSANDBYTES.search(said):
        return Verdict(KINDS["bnb-library-missing"], {}, advice.native_library({}, seen))
    if not failure.failed:
        return None
    if _COMPILER.search(said):
        sentence = Advice(cause="missing-package", sentence="rule.compile-failed.triton") if "triton" in said.lower() else Advice()
        sentence = Advice(sentence="rule.compile-failed.compiler") if "C compiler" in said else sentence
        return Verdict(KINDS["compile-failed"], {"error": failure.last.text[:200] if failure.last else "?"}, sentence)
    if library := _LIBRARY.search(said):
        return _library(library, failure, seen)
    if NATIVE.search(said):
        gpu = _GPU.search(said)
        where = " → ".join(f"{frame.owner} ({frame.function})" for frame in failure.innermost if frame.owner)
        if gpu:
            said_of = Advice(cause="platform-unsupported", action="restart", sentence="rule.process-crashed.gpu")
            return Verdict(KINDS["process-crashed"], {}, said_of)
        words = {"how": said[-200:], "where": where}
        return Verdict(KINDS["process-crashed"], words, Advice(sentence="rule.process-crashed.where" if where else ""), weak=not where)
    return None


def _library(found: re.Match[str], failure: Failure, seen: Seen) -> Verdict | None:
    """Whose it is: torch's, its CUDA's, that of a package, of a package whose code asked for it."""
    file = (found["file"] or found["file2"] or "").strip()
    name = re.split(r"[\\/]", file)[-1] or found["module"]
    top = (found["module"] or name).partition(".")[0]
    values = {"name": found["symbol"] or top, "module": top, "library": name, "file": file}
    if "flash_attn" in top:
        return Verdict(KINDS["flash-attention-built"], values)
    if _CUDA.match(name):
        return Verdict(KINDS["torch-cuda-library"], values, cure.say("torch", values=cure.vocabulary("torch", seen)))
    if re.search(r"[\\/]torch[\\/].*\.dll$", file, re.IGNORECASE):
        return Verdict(KINDS["torch-library"], values, cure.say("torch", values=cure.vocabulary("torch", seen)))
    said = advice.binary(values, seen)
    if said is not None and (found["symbol"] or found["module"]):
        return Verdict(KINDS["binary-symbol" if found["symbol"] else "binary-not-loaded"], values, said)
    owner = _owner(file, failure)
    package = owner if of_stack(owner) else ""
    return Verdict(KINDS["library-not-loaded"], {"library": name, "owner": owner or top}, Advice(package=package))


def _owner(file: str, failure: Failure) -> str:
    """The package in whose folder it lies, else whose code asked for it; "" where nobody knows."""
    return next(iter(re.findall(r"(?:site|dist)-packages[\\/](\w+)", file)), "") or (failure.tops[-1] if failure.tops else "")
