"""The demo, as a user runs it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from demo.__main__ import CACHE
from demo.server import ROOT


@pytest.mark.xdist_group("demo")
def test_from_nothing_to_an_image_with_a_4_bit_t5(tmp_path):
    report = tmp_path / "report.json"
    words = [sys.executable, "-m", "demo", "--headless", "--json", str(report)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(report.read_text())
    assert result["restarts"] == 0
    assert result["bitsandbytes_before"] is None
    assert result["bitsandbytes_after"]
    assert result["encoder"] == "T5 FP4"
    assert result["linear4bit"] == 21
    assert result["wo_quantized"]
    assert result["t5_bytes"] < 0.4 * result["t5_bytes_16bit"]
    assert all(isinstance(one, float) for one in result["seconds"].values())
    assert Image.open(Path(result["image"])).size == (512, 512)
    assert "together" in done.stdout


def test_its_data_lies_where_gradio_serves_the_extensions_files_from():
    assert not any(part.startswith(".") for part in CACHE.relative_to(ROOT).parts)
