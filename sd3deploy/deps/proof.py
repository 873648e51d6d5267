"""Whether bitsandbytes can run here: first by its wheels, then by really quantizing a tensor.

Its native library may fail to load and `import bitsandbytes` still succeeds, with a stand-in that raises at first use.
"""

from __future__ import annotations

import platform
import sys
from typing import Any

from sd3deploy.errors import DependencyError

__all__ = ["has_wheel", "prove_bitsandbytes"]

# The files that its releases since 0.48 have in the registry.
_WHEELS = {
    "Linux": ("x86_64", "aarch64"),
    "Windows": ("AMD64", "ARM64"),
    "Darwin": ("arm64",),
}

# Mean error, relative to the mean magnitude, of standard normal values: 0.089 for NF4 and 0.122 for FP4, measured with
# bitsandbytes 0.50.2 by tests/test_deps_proof.py. Noise would give more than 1.
_TOLERANCE = 0.25


def has_wheel(system: str | None = None, machine: str | None = None) -> bool:
    """Whether bitsandbytes publishes a wheel for a platform (default: this one), in the words of the `platform` module."""
    return (machine or platform.machine()) in _WHEELS.get(system or platform.system(), ())


def prove_bitsandbytes(device: str) -> None:
    """Quantize and dequantize 4,096 values to 4 bit on `device` ("cuda", "cuda:1", "cpu", "mps", …), both FP4 and NF4, and compute with a
    layer of each.

    Raises DependencyError with the cause when the package, its native library or the device does not do it.
    """
    try:
        import torch
        from bitsandbytes.functional import dequantize_4bit, quantize_4bit
        from bitsandbytes.nn import Linear4bit

        where = torch.device(device)
        dtype = torch.float32 if where.type == "cpu" else torch.float16
        values = torch.randn(64, 64, generator=torch.Generator().manual_seed(0)).to(where, dtype)
        for kind in ("fp4", "nf4"):
            packed, state = quantize_4bit(values, quant_type=kind)
            back = dequantize_4bit(packed, state)
            layer: Any = Linear4bit(64, 64, bias=False, compute_dtype=dtype, quant_type=kind)
            layer.weight.data = values.cpu()
            with torch.no_grad():
                out = layer.eval().to(where)(values)
            for found, right in ((back, values), (out, values @ values.T)):
                error = ((found - right).abs().mean() / right.abs().mean()).item()
                if not error < _TOLERANCE:  # also catches nan
                    raise ArithmeticError(f"{kind}: mean error {error:.3f} of the mean magnitude")
    except Exception as error:  # anything at all may come out of a native library: it is kept as the cause, and named
        raise DependencyError("deps.native", device=device, detail=_first_line(error), executable=sys.executable) from error


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
