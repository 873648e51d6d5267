"""What is freed goes back to the system, wherever it lies in the heap."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from sd3deploy.memory import heap

ROOT = Path(__file__).parent.parent
LAYERS = """
import gc, json, os
import torch
from sd3deploy.memory import heap

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

torch.zeros(30_000_000, dtype=torch.uint8)  # glibc takes what is smaller than the largest that was freed from the heap
torch.ones(8)
start = resident()
layers, others = [], []
for _ in range(40):
    layers.append(torch.ones(8_000_000, dtype=torch.uint8))
    others.append(torch.ones(2000, dtype=torch.uint8))
made = resident()
del layers
gc.collect()
freed = resident()
told = heap.trim()
print(json.dumps({"made": made - start, "freed": freed - start, "told": told, "trimmed": resident() - start}))
"""


@pytest.mark.skipif(sys.platform != "linux" or heap._function() is None, reason="only glibc keeps what lies below something else")
def test_layers_that_were_freed_between_others_are_given_back():
    done = subprocess.run([sys.executable, "-c", LAYERS], cwd=ROOT, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found["made"] > 300e6
    assert found["freed"] > 250e6, "the allocator gives it back by itself: there is nothing to do any more"
    assert found["told"]
    assert found["trimmed"] < 50e6


def test_elsewhere_nothing_is_done(monkeypatch):
    def none(name):
        raise OSError(name)

    heap._function.cache_clear()
    monkeypatch.setattr(heap.ctypes, "CDLL", none)
    try:
        assert heap.trim() is False
    finally:
        heap._function.cache_clear()
