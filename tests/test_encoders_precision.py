"""The types in which T5 is computed: float32 on a CPU that emulates bfloat16, float16 with a wider `wo` where there is no bfloat16."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sd3deploy.device import Device, cpu_has_bfloat16, detect_device
from sd3deploy.encoders import choices, source
from sd3deploy.encoders import t5 as modules
from sd3deploy.encoders.load import load
from sd3deploy.encoders.measure import measure
from sd3deploy.memory.estimate import Setup, estimate
from sd3deploy.memory.sizes import MODELS
from tests import t5

CPU = Device("cpu", "cpu", "CPU")
MADE = [choice.id for choice in choices.CHOICES if choice.error is not None]
HALVES = [id for id in MADE if not choices.unsuitable(choices.find(id), replace(CPU, bf16=False))]

# What a process says in which torch's library for bfloat16 takes the CPU for one with AVX2 alone.
_EMULATING = """
import json, sys, torch
from sd3deploy.device import detect_device
from sd3deploy.encoders import choices, source
from sd3deploy.encoders.load import load
from sd3deploy.encoders.measure import measure
from tests import t5
device, said = detect_device("cpu", "cpu"), {}
full = torch.load(sys.argv[2])
for id in sys.argv[3:]:
    encoder = load(choices.find(id), source.find("Model", source.Facts(sys.argv[1])), device)
    seen, size = set(), measure(encoder).bytes
    for module in encoder.encoder.block.modules():
        if hasattr(module, "in_features"):
            module.support_avx512bf16_for_cpu = False  # bitsandbytes asks the CPU itself
            module.register_forward_hook(lambda module, given, made: seen.update({str(given[0].dtype), str(made.dtype)}))
    with torch.no_grad():
        outputs = [encoder(t5.tokens())[0] for _ in range(2)]
    errors = [float((one.float() - full).norm() / full.norm()) for one in outputs]
    said[id] = [errors, str(outputs[0].dtype), sorted(seen), size]
print(json.dumps([device.emulates, device.product_dtype, device.compute_dtype, said]))
"""

def limit(id):
    """Of the relative error of the output of the small model; garbage is at 1."""
    return 0.35 if "4" in id else 0.15


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    return folder, t5.make(folder)


def read(id, folder, device=CPU):
    return load(choices.find(id), source.find("Model", source.Facts(str(folder))), device)


def error(found, wanted):
    return float((found.float() - wanted).norm() / wanted.norm())


@pytest.fixture(scope="module")
def emulating(model, tmp_path_factory):
    folder, full = model
    file = tmp_path_factory.mktemp("output") / "full.pt"
    torch.save(full(t5.tokens())[0], file)
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
    root = Path(__file__).parents[1]
    command = [sys.executable, "-c", _EMULATING, str(folder), str(file), *MADE]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=root, timeout=600)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_cpu_that_emulates_bfloat16_is_known(emulating):
    assert emulating[:3] == [True, "float32", "bfloat16"]
    here = detect_device("cpu", "cpu")
    assert (here.emulates, here.product_dtype) == (not cpu_has_bfloat16(), "bfloat16" if cpu_has_bfloat16() else "float32")
    assert replace(CPU, bf16=False, emulates=True).product_dtype == "float16"


@pytest.mark.parametrize("id", MADE)
def test_it_computes_in_float32_and_stores_what_every_other_does(model, emulating, id):
    errors, output, seen, size = emulating[3][id]
    assert (output, seen) == ("torch.bfloat16", ["torch.float32"])
    with torch.no_grad():
        here = read(id, model[0])
        assert size == measure(here).bytes  # before bitsandbytes packs them anew for some CPUs
        found, wanted = here(t5.tokens())[0], model[1](t5.tokens())[0]
    assert max(errors) < limit(id)
    assert max(errors) < 1.05 * error(found, wanted) + 0.001  # float32 is no worse


@pytest.mark.parametrize("id", HALVES)
def test_in_float16_nothing_leaves_its_range_twice(tmp_path, id):
    full = t5.make(tmp_path, wide=True)
    encoder = read(id, tmp_path, replace(CPU, bf16=False))
    seen = []
    for module in modules.feed_forwards(encoder):
        module.wo.register_forward_hook(lambda module, given, made: seen.append((given[0].dtype, made.dtype, made.abs().max().item())))
    with torch.no_grad():
        wanted = full(t5.tokens())[0]
        for _ in range(2):
            found = encoder(t5.tokens())[0]
            assert torch.isfinite(found).all()
            assert error(found, wanted) < limit(id)
    assert {one[:2] for one in seen} == {(torch.float32, torch.float32)}
    assert max(one[2] for one in seen) > torch.finfo(torch.float16).max  # or this test would show nothing


@pytest.mark.parametrize("id", HALVES)
def test_what_is_wide_is_so_for_the_time_of_its_layer(model, id):
    """Nothing that the encoder keeps has grown by two calls."""
    encoder = read(id, model[0], replace(CPU, bf16=False))
    before = measure(encoder).bytes
    with torch.no_grad():
        for _ in range(2):
            encoder(t5.tokens())
    assert measure(encoder).bytes <= before


@pytest.mark.parametrize("id", ["fp4", "int8"])
def test_the_estimate_counts_a_layer_in_float32(id):
    setup = Setup(MODELS["sd3-medium"], choices.find(id), kind="cpu", offload="none")
    narrow, wide = (estimate(replace(setup, product=product)).phases["encode"].activation for product in ("bfloat16", "float32"))
    assert wide - narrow >= 2 * 4096 * 10240


def test_a_cpu_makes_few_rows_wide_at_a_time(monkeypatch):
    monkeypatch.setattr(modules, "WIDENED", 1000)
    weight, x = torch.randn(50, 100).bfloat16(), torch.randn(3, 7, 100)
    made = modules._product(x, (weight,), lambda rows: rows.float())
    assert torch.allclose(made, x @ weight.float().T, atol=1e-4)
