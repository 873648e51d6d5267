"""What runs in the children of the checks: `python -m sd3deploy.diagnosis.checks.probe imports NAME …` and `… device DEVICE BACKEND`."""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from sd3deploy.child import answer, follow_parent
from sd3deploy.diagnosis.checks.imports import IMPORTS

__all__ = ["device", "imports", "matmul"]

# Of the output of a 4-bit layer against the same layer in full precision: FP4 loses 0.12 of normally distributed weights (deps/proof.py).
_TOLERANCE = 0.3


def imports(names: list[str], write: Callable[[Any], None]) -> None:
    """Each import, and how it went."""
    for name in names:
        write({"name": name})
        started = time.perf_counter()
        error = ""
        try:
            exec(IMPORTS[name], {})
        except BaseException:  # a library that calls exit() has failed too
            error = traceback.format_exc()
        write({"name": name, "seconds": round(time.perf_counter() - started, 3), "error": error})


def device(words: list[str], write: Callable[[Any], None]) -> None:
    """The facts about the device, then what it really computes. words: torch's and the host's for it, "" to look; "4bit" to try that."""
    import torch

    from sd3deploy.device import detect_device
    from sd3deploy.memory import capacity

    build = {"torch": torch.__version__, "cuda": torch.version.cuda, "hip": torch.version.hip, "available": torch.cuda.is_available()}
    write(build)
    found = detect_device(*words[:2])
    write({"device": asdict(found)})
    write({"capacity": asdict(capacity.read_capacity(found))})
    dtype = getattr(torch, found.compute_dtype)
    write(_tried("plain", lambda: _plain(torch, found.torch, dtype)))
    if "4bit" in words[2:]:
        write(_tried("4bit", lambda: matmul(found.torch, found.compute_dtype)))


def matmul(where: str, compute_dtype: str) -> dict[str, float]:
    """A linear layer of bitsandbytes on the device, in FP4 and NF4, against the same layer in full precision: the relative error of each.

    Raises DependencyError, or ArithmeticError for a result that is wrong.
    """
    import bitsandbytes
    import torch

    from sd3deploy.deps import prove_bitsandbytes

    prove_bitsandbytes(where)
    compute = getattr(torch, compute_dtype)
    random = torch.Generator().manual_seed(0)
    linear = torch.nn.Linear(128, 64, bias=False)
    linear.weight.data = torch.randn(64, 128, generator=random)
    x = torch.randn(16, 128, generator=random)
    wanted = linear(x)
    errors = {}
    for kind in ("fp4", "nf4"):
        layer = bitsandbytes.nn.Linear4bit(128, 64, bias=False, compute_dtype=compute, quant_type=kind)
        layer.load_state_dict(linear.state_dict())
        layer = layer.to(where)  # quantizes
        layer(x.to(where, compute))  # some processors pack the weights anew at the first call: what counts is the second
        made = layer(x.to(where, compute)).float().cpu()
        errors[kind] = ((made - wanted).abs().mean() / wanted.abs().mean()).item()
        if not errors[kind] < _TOLERANCE:  # also catches nan
            raise ArithmeticError(f"{kind}: mean error {errors[kind]:.3f} of the mean magnitude")
    return errors


def _plain(torch: Any, where: str, dtype: Any) -> dict[str, float]:
    """An attention and a convolution, as the model has them."""
    x = torch.randn(1, 4, 32, 32).to(where, dtype)
    found = torch.nn.functional.scaled_dot_product_attention(x, x, x)
    found = torch.nn.functional.conv2d(found, torch.ones(4, 4, 3, 3).to(where, dtype), padding=1)
    mean = found.float().abs().mean().item()
    if not 0 < mean < float("inf"):
        raise ArithmeticError(f"mean {mean}")
    return {"mean": mean}


def _tried(name: str, run: Callable[[], dict[str, float]]) -> dict[str, Any]:
    try:
        return {name: run(), "error": ""}
    except Exception:
        return {name: None, "error": traceback.format_exc()}


if __name__ == "__main__":
    follow_parent()
    {"imports": imports, "device": device}[sys.argv[1]](sys.argv[2:], answer())
