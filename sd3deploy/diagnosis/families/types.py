"""What a tensor is and where it lies: number types, devices, operators that a backend lacks, cards that torch was not built for."""

from __future__ import annotations

import re

from sd3deploy.diagnosis.failure import Failure
from sd3deploy.diagnosis.rule import Advice, Kind, Seen, Verdict, kinds
from sd3deploy.lazy import lazy

__all__ = ["KINDS", "judge"]

KINDS = kinds(
    Kind("two-devices", "device-mismatch", "setting", "https://github.com/vladmandic/sdnext/issues/4209"),
    Kind("two-types", "device-mismatch", "setting", "https://github.com/vladmandic/sdnext/issues/1431"),
    Kind("float16-on-cpu", "platform-unsupported", "setting", "https://github.com/vladmandic/sdnext/issues/342"),
    Kind("bfloat16-missing", "platform-unsupported", "setting", "https://github.com/Nerogar/OneTrainer/issues/186"),
    Kind("bfloat16-on-mac", "platform-unsupported", "setting", "https://github.com/pytorch/pytorch/issues/141864"),
    Kind("float8-compute", "fp8-storage-only", "setting", "https://github.com/huggingface/transformers/issues/33186"),
    Kind("float8-on-mac", "fp8-storage-only", "setting", "https://github.com/pytorch/pytorch/issues/148420"),
    Kind("type-unsupported", "platform-unsupported", "setting", "https://github.com/vladmandic/sdnext/issues/3552"),
    Kind("operator-missing", "platform-unsupported", "restart", "https://pytorch.org/docs/stable/notes/mps.html"),
    Kind("mps-operator", "platform-unsupported", "restart", "https://github.com/pytorch/pytorch/issues/77764"),
    Kind("no-kernel-image", "platform-unsupported", "none", "https://github.com/pytorch/pytorch/issues/149845", "torch"),
    Kind("hip-function", "platform-unsupported", "restart", "https://github.com/pytorch/pytorch/issues/164346"),
    Kind("meta-tensor", "offload-conflict", "setting", "https://github.com/vladmandic/sdnext/issues/3080"),
)

# How C++ and Python call the types, c10/core/ScalarType.h and torch's documentation of dtypes; "float" alone may be Python's own.
_TYPE = (
    r"(?:struct )?(?:c10::|torch\.(?:cuda\.|xpu\.|mps\.)?)?(Half|BFloat16|Float8_\w+|Float|Double|Byte|Char|Long|Int|u?int\d+|b?float\d+\w*"
    r"|(?<=\()(?:half|double|float)(?=\))|(?<= )float(?= !=|$)|(?<=!= )float)(?:Tensor)?"
)
_IMPLEMENTED = lazy(r"['\"](?P<op>\w+)['\"] not implemented for ['\"](?P<type>\w+)['\"]")
_DEVICE = r"(?:cpu|cuda|mps|xpu|meta|hip|privateuseone|dml|directml)(?::\d+)?"
_PAIR = lazy(rf"(?i)\b({_DEVICE})(?:\)? and |,? different from other tensors on |,? but (?:got|found) (?:\w+ ){{0,4}}?)({_DEVICE})\b")
_SAME_DEVICE = lazy(
    r"(?i)\bsame device|different devices|(?:two|both) (?:\w+ ){0,2}devices|expected device|is on \w+(?::\d)?, different"
    r"|device type \w+ .{0,60}but"
)
_SAME_TYPE = lazy(r"\bsame\b|\bequal\b|\bmatch|mismatch|!=|\bbut (?:got|found)|different|expected", re.IGNORECASE)
_SAME_DTYPE = lazy(
    r"(?i)same dtype|dtypes? (?:\([^)]*\) )?(?:mismatch|must (?:match|be the same)|should (?:match|be the same)|do(?:es)? not match)"
    r"|mismatch\w* (?:\w+ ){0,2}dtypes?|dtype == \S+, got"
)
_ON_APPLE = lazy(
    rf"{_TYPE}[\w .]* (?:is not supported on|to the) MPS|MPS (?:framework|backend|device)? ?.{{0,40}}(?:support|convert).{{0,20}}{_TYPE}"
)
_NO_BFLOAT16 = lazy(r"(?i)not? support\w* bfloat16|bfloat16 (?:is )?(?:not|only) supported|bf16 .{0,30}(?:not supported|requires)")
_UNSUPPORTED = lazy(
    r"(?i)(?:CU|HIP|ROC)(?:BLAS|DNN|SPARSE)(?:LT)?_STATUS_(?:NOT_SUPPORTED|ARCH_MISMATCH)|requested functionality is not supported"
)
_OPERATOR = lazy(
    r"Could not run ['\"](?P<op>[\w:.]+)['\"] .{0,60}?['\"](?P<backend>\w+)['\"] backend|(?:operator"
    r"|op) ['\"](?P<op2>aten::[\w.]+)['\"] is not current(?:ly)? "
    r"(?:implemented|supported) (?:for|on) the (?P<backend2>\w+)"
)
_BUILT = lazy(r"\bsm_(\d+a?)\b")
_CAPABILITY = lazy(r"CUDA capability sm_(\d+)|cuda capability (\d+)\.(\d+)", re.IGNORECASE)
_KERNEL = lazy(
    r"(?i)no kernel image|capability sm_\d+ is not compatible|capability \d+\.\d+\.? .{0,40}(?:Minimum|supported by this)"
    r"|cudaErrorNoKernelImage"
)
_HIP = lazy(
    r"(?i)HIP error: invalid device function|hipErrorInvalidDeviceFunction|hipErrorNoBinaryForGpu|TensileLibrary"
    r"|hipError\w*: no kernel image"
)
_META = lazy(r"\bmeta tensor\b|device meta is not", re.IGNORECASE)


def judge(failure: Failure, seen: Seen) -> Verdict | None:
    """Which types or devices do not go together, or which the device does not have."""
    said = failure.said
    if _HIP.search(said):
        return Verdict(KINDS["hip-function"])
    if _KERNEL.search(said):
        return _kernel(said, seen)
    if apple := _ON_APPLE.search(said):
        kind = apple[1] or apple[2]
        if kind.lower().startswith(("float8", "bfloat16")):
            return Verdict(KINDS["float8-on-mac" if "8" in kind.lower().replace("bfloat16", "") else "bfloat16-on-mac"])
        return Verdict(KINDS["type-unsupported"], {"type": kind})
    if missing := _IMPLEMENTED.search(said):
        return _not_implemented(missing["op"], missing["type"])
    if _META.search(said):
        return Verdict(KINDS["meta-tensor"])
    if (operator := _OPERATOR.search(said)) and not failure.again:
        backend = operator["backend"] or operator["backend2"]
        name = operator["op"] or operator["op2"]
        return Verdict(KINDS["mps-operator" if backend == "MPS" else "operator-missing"], {"operator": name, "backend": backend})
    return (_two(said) or _unsupported(said)) if failure.failed else None


def _not_implemented(operator: str, kind: str) -> Verdict:
    if kind == "Half":
        return Verdict(KINDS["float16-on-cpu"], {"op": operator})
    if kind == "BFloat16":
        return Verdict(KINDS["bfloat16-missing"])
    if kind.startswith("Float8"):
        return Verdict(KINDS["float8-compute"], {"op": operator, "type": kind})
    return Verdict(KINDS["type-unsupported"], {"type": kind})


def _two(said: str) -> Verdict | None:
    """Two devices, or two types, in one computation; a type of torch.cuda says both."""
    tensors = re.findall(r"torch\.(?:(cuda|xpu|mps)\.)?\w+Tensor", said)
    if len(set(tensors)) > 1 and "type" in said.lower():
        return Verdict(KINDS["two-devices"], {"one": tensors[0] or "cpu", "other": tensors[1] or "cpu"})
    pair = _PAIR.search(said)
    if _SAME_DEVICE.search(said) or (pair and "tensor" in said.lower() and "device" in said.lower()):
        one, other = pair.groups() if pair else ("cpu", "the GPU")
        return Verdict(KINDS["two-devices"], {"one": one, "other": other})
    if "Promotion for Float8" in said:
        return Verdict(KINDS["float8-compute"])
    names = re.findall(rf"(?<![\w'\"]){_TYPE}(?!\w)", said)
    if (len(names) >= 2 and _SAME_TYPE.search(said)) or _SAME_DTYPE.search(said):
        if len(names) < 2:
            return Verdict(KINDS["two-types"], {}, Advice(sentence="rule.two-types.bare"))
        return Verdict(KINDS["two-types"], {"one": names[0], "other": names[1]})
    return None


def _unsupported(said: str) -> Verdict | None:
    """A type that the card or its library can not compute in."""
    if _NO_BFLOAT16.search(said):
        return Verdict(KINDS["bfloat16-missing"])
    if _UNSUPPORTED.search(said):
        kind = "bfloat16" if "16BF" in said else "float8" if "R_8F" in said else "float16" if "R_16F" in said else ""
        if kind == "bfloat16":
            return Verdict(KINDS["bfloat16-missing"])
        return Verdict(KINDS["type-unsupported"], {"type": kind}, Advice(sentence="" if kind else "rule.type-unsupported.bare"))
    return None


def _kernel(said: str, seen: Seen) -> Verdict:
    """The capability of the card, against what this torch was built for: too old for it, too new, or nobody knows.

    torch for CUDA 12.8 and later has no kernels below 7.0 (7.5 from CUDA 13 on), torch for CUDA 12.6 has from 5.0 on
    (https://github.com/pytorch/pytorch/issues/157517); 12.0, the RTX 50 series, takes CUDA 12.8 (pytorch/pytorch#149845).
    """
    found = _CAPABILITY.search(said)
    number = int(found[1] or found[2] + found[3]) if found else 0
    built = [int(re.sub(r"\D", "", one)) for one in _BUILT.findall(said) if int(re.sub(r"\D", "", one)) != number]
    words = {"capability": f"{number // 10}.{number % 10}", "torch": seen.told.get("torch", "")}
    if not number:
        return Verdict(KINDS["no-kernel-image"], words)
    if number < 50:
        return Verdict(KINDS["no-kernel-image"], words, Advice(sentence="rule.no-kernel-image.ancient", action="setting"))
    if number < min([*built, 70]):
        return Verdict(KINDS["no-kernel-image"], words, Advice(sentence="rule.no-kernel-image.older"))
    return Verdict(KINDS["no-kernel-image"], words, Advice(sentence="rule.no-kernel-image.newer"))
