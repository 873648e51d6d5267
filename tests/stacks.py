"""Throw-away environments for tests that install packages: the stack of the running interpreter, and an older one.

Everything that a test lets pip install or replace must be left out here: the rest are links, and pip would follow them.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import fasteners
import pytest

from demo.environment import linked
from sd3deploy import tiny_sd3

__all__ = ["FIRST", "NEWER", "OLDER", "PINS", "ROOT", "Result", "copied", "current", "model", "newer", "older", "passed", "script"]

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = Path(__file__).parent / "no_restart"

# What tests install into a running process.
PINS = {
    "accelerate": "1.14.0",
    "bitsandbytes": "0.50.2",
    "gguf": "0.19.0",
    "peft": "0.19.1",
    "sentencepiece": "0.2.1",
}
# The last transformers 4, with the diffusers and huggingface_hub of its time.
OLDER = {"transformers": "4.57.6", "diffusers": "0.36.0", "huggingface_hub": "0.36.2", "tokenizers": "0.22.2"}
# What came out by the end of 2026, with what it needs beside.
NEWER = {
    "transformers": "5.24.0",
    "diffusers": "0.42.1",
    "huggingface_hub": "2.4.0",
    "accelerate": "1.15.0",
    "peft": "0.21.2",
    "tokenizers": "0.23.3",
    "httpx2": "2.16.2",
    "httpcore2": "2.16.2",
    "truststore": "0.10.5",
}
# The first diffusers with SD3, and what it was released with.
FIRST = {"transformers": "4.41.2", "diffusers": "0.29.2", "huggingface_hub": "0.25.2", "tokenizers": "0.19.1"}


def current(target: Path, without: Iterable[str]) -> Path:
    """The interpreter of an environment like the running one, less some distributions."""
    return linked(target, without=[*without, "gguf"])


def copied(target: Path, names: Iterable[str]) -> Path:
    """The running environment, with real files of some distributions for pip to replace."""
    return linked(target, copied=names)


def older(target: Path, without: Iterable[str], stack: dict[str, str] = OLDER) -> Path:
    """The same with the older stack, or with another one, which is installed once and kept under .cache."""
    pins = [f"{name}=={version}" for name, version in stack.items()]
    running = (ROOT / "demo" / "requirements.txt").read_text()  # its packages are links: another version leaves them hanging
    key = hashlib.sha256(" ".join([*pins, sys.version, sys.prefix, running]).encode()).hexdigest()[:12]
    base = ROOT / ".cache" / f"older-{key}"
    base.parent.mkdir(exist_ok=True)
    with fasteners.InterProcessLock(base.with_suffix(".lock")):  # another process of the tests may want the same one
        if not (base / "complete").exists():
            _pip(linked(base, without=stack), *pins)
            (base / "complete").touch()
    return linked(target, without=[*without, "gguf"], source=base)


def newer(target: Path, without: Iterable[str]) -> Path:
    """The same with the newer stack."""
    return older(target, without, NEWER)


def model(target: Path) -> Path:
    """The tiny SD3, with a T5 vocabulary from sentencepiece's own trainer: the slow loaders want its normalizer, too."""
    import sentencepiece

    shutil.copytree(tiny_sd3.ensure(), target)
    words = ("hello", "world", "red", "blue", "photo", "with", "on", "in", "the", "of")
    lines = [f"a cat holding a sign that says {word} {number}" for number, word in enumerate(words * 20)]
    options = {"vocab_size": 60, "model_type": "unigram", "pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1, "minloglevel": 2}
    with open(target / "tokenizer_3" / "spiece.model", "wb") as file:
        sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(lines), model_writer=file, **options)
    return target


Result = subprocess.CompletedProcess


def script(python: Path, name: str, *arguments: object) -> Result:
    """Run a script of tests/no_restart in a new process of an environment."""
    path = os.pathsep.join([str(ROOT), str(SCRIPTS)])
    # Nothing is asked of a hub: the models are made on the spot.
    environment = {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    command = [str(python), str(SCRIPTS / name), *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT)


def passed(result: Result) -> str:
    """The output of a script; its failure is the test's."""
    if "NO REGISTRY" in result.stderr:
        pytest.skip("no package registry can be reached")
    assert result.returncode == 0, f"{result.stdout}\n{result.stderr}"
    return result.stdout


def _pip(python: Path, *requirements: str) -> None:
    command = [str(python), "-m", "pip", "install", "--no-deps", "--quiet", *requirements]
    result = subprocess.run(command, capture_output=True, text=True)
    if "connection broken" in result.stderr or "Failed to establish" in result.stderr:
        pytest.skip("no package registry can be reached")
    assert result.returncode == 0, result.stderr
