from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from sd3deploy.__main__ import main

ROOT = Path(__file__).parent.parent


def run(capsys, *words):
    """Exit code and JSON."""
    code = main(["check", "--json", *words])
    return code, json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("words", "code", "size"),
    [
        ("--width 1024 --height 1024", 0, (1024, 1024)),
        ("--width 1000 --height 1000 --model sd3-medium", 1, (1008, 1008)),
        ("--width 3200 --height 256", 1, (3072, 240)),
        ("--width 3200 --height 256 --model sd3.5-medium", 0, (3200, 256)),
        ("--width 0 --height 1024", 1, (1024, 1024)),
        ("", 1, (1024, 1024)),
        ("--width -1 --height 1024", 2, (-1, 1024)),
        ("--width abc --height 1024", 2, ("abc", 1024)),
        ("--width nan --height 1024", 2, ("nan", 1024)),
        ("--width 1e9 --height 1024", 2, (1000000000, 1024)),
        ("--width 1000 --height 1000 --mode block", 2, (1000, 1000)),
        ("--width 1000 --height 1000 --mode warn", 0, (1000, 1000)),
        ("--width 1000 --height 1000 --mode off", 0, (1000, 1000)),
        ("--width 1024 --height 1024 --hires 4", 1, (1024, 1024)),
        ("--width 1024 --height 1024 --encoder none", 0, (1024, 1024)),
        ("--width 1024 --height 1024 --encoder none --prompt-attention xhinker", 1, (1024, 1024)),
        ("--width 1024 --height 1024 --encoder fp4 --prompt-attention xhinker", 0, (1024, 1024)),
    ],
)
def test_sizes_and_exit_codes(capsys, words, code, size):
    found, answer = run(capsys, *words.split())
    assert (found, answer["width"], answer["height"]) == (code, *size)
    assert answer["code"] == code


def test_a_sampler(capsys):
    code, answer = run(capsys, "--width", "1024", "--height", "1024", "--sampler", "DPM++ 2M")
    assert (code, answer["sampler"]) == (1, "Default")
    assert "DPM++ 2M" in answer["findings"][0]["message"]


@pytest.mark.parametrize(("option", "value", "nearest"), [("--model", "sd35-large", "sd3.5-large"), ("--encoder", "T5 FP5", "T5 FP8")])
def test_a_name_that_means_nothing(capsys, option, value, nearest):
    assert main(["check", option, value]) == 2
    assert nearest in capsys.readouterr().err


def test_for_a_person(capsys):
    assert main(["check", "--width", "1000", "--height", "1000"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["warning: 1000×1000 does not fit this model: both sides have to be multiples of 16. The nearest size is 1008×1008. "
                     "Set the size to 1008×1008.",
                     "Runs with changes: 1008×1008, sampler Default."]  # fmt: skip


def test_it_runs_without_any_heavy_package():
    done = subprocess.run([sys.executable, "-X", "importtime", "-m", "sd3deploy", "check", "--width", "1024", "--height", "1024"],
                          cwd=ROOT, capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert " torch" not in done.stderr
    assert " diffusers" not in done.stderr
