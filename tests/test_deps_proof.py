"""bitsandbytes imports without error even when its native library does not load: only a quantized tensor proves that it works."""

import shutil
import subprocess
import sys
import textwrap

import pytest

from demo.environment import linked
from sd3deploy import deps
from sd3deploy.errors import DependencyError
from tests.deps_lab import ROOT, clean


@pytest.mark.parametrize(
    ("system", "machine", "there"),
    [
        ("Linux", "x86_64", True),
        ("Linux", "aarch64", True),
        ("Linux", "ppc64le", False),
        ("Windows", "AMD64", True),
        ("Darwin", "arm64", True),
        ("Darwin", "x86_64", False),
        ("FreeBSD", "amd64", False),
    ],
)
def test_platforms_with_a_wheel(system, machine, there):
    assert deps.has_wheel(system, machine) is there


def prove(python, code="", device="cpu"):
    """Prove it in a process of its own; "fine", or the error."""
    script = f"""
import sys
from sd3deploy import deps, errors
{textwrap.dedent(code)}
try:
    deps.prove_bitsandbytes({device!r})
    print("fine")
except errors.DependencyError as error:
    print(error.id, error)
"""
    done = subprocess.run([python, "-c", script], capture_output=True, text=True, cwd=ROOT, env={**clean(), "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def bitsandbytes():
    pytest.importorskip("torch")
    return pytest.importorskip("bitsandbytes")


def test_proved_on_the_processor(bitsandbytes):
    deps.prove_bitsandbytes("cpu")


@pytest.mark.parametrize(("kind", "measured"), [("nf4", 0.089), ("fp4", 0.122)])
def test_the_error_that_the_tolerance_rests_on(bitsandbytes, kind, measured):
    import torch

    values = torch.randn(256, 256, generator=torch.Generator().manual_seed(1))
    back = bitsandbytes.functional.dequantize_4bit(*bitsandbytes.functional.quantize_4bit(values, quant_type=kind))
    assert ((back - values).abs().mean() / values.abs().mean()).item() == pytest.approx(measured, rel=0.05)


def test_a_library_that_computes_nonsense_is_not_believed(bitsandbytes, monkeypatch):
    import torch

    monkeypatch.setattr(bitsandbytes.functional, "dequantize_4bit", lambda packed, state: torch.full((64, 64), float("nan")))
    with pytest.raises(DependencyError) as caught:
        deps.prove_bitsandbytes("cpu")
    assert caught.value.id == "deps.native"
    assert "ArithmeticError: fp4" in str(caught.value)


def test_a_layer_that_computes_nonsense_is_not_believed(bitsandbytes, monkeypatch):
    """The tensor is quantized well, but the layer does not use it."""
    monkeypatch.setattr(bitsandbytes.nn.Linear4bit, "forward", lambda self, x: x)
    with pytest.raises(DependencyError, match="ArithmeticError: fp4"):
        deps.prove_bitsandbytes("cpu")


def test_a_device_that_is_not_there(bitsandbytes):
    with pytest.raises(DependencyError) as caught:
        deps.prove_bitsandbytes("cuda:99")
    assert "does not work on cuda:99" in str(caught.value)


def test_not_installed_is_said(monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.setitem(sys.modules, "bitsandbytes.functional", None)
    with pytest.raises(DependencyError) as caught:
        deps.prove_bitsandbytes("cpu")
    assert "import of bitsandbytes.functional halted" in str(caught.value)


@pytest.mark.gpu
def test_a_broken_native_library_on_a_gpu(tmp_path):
    """Every native file is replaced by rubbish: the import succeeds, the quantization says why not."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("bitsandbytes")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    assert prove(sys.executable, device="cuda") == "fine"
    python = linked(tmp_path / "environment", copied=["bitsandbytes"])
    for file in (tmp_path / "environment").rglob("bitsandbytes/libbitsandbytes_*"):
        file.write_bytes(b"rubbish")
    subprocess.run([python, "-c", "import bitsandbytes"], check=True, env=clean())
    assert prove(python, device="cuda").startswith("deps.native bitsandbytes does not work on cuda")
    shutil.rmtree(tmp_path / "environment")
