"""Real damage in throw-away installations of SD.Next: the doctor names what is wrong, and what it says to do heals it.

Each installation is a folder with the host's pins, the tiny model and an environment in DIR/venv; the doctor is started from another
Python.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import pytest

from demo.environment import linked, python_of, site_of
from sd3deploy import tiny_sd3
from tests.deps_lab import clean, has_registry, overlay
from tests.stacks import ROOT

PINNED = ("accelerate", "huggingface_hub", "numpy", "peft", "protobuf", "sentencepiece")

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="environments are made of links, disks are mounted")


@dataclass(frozen=True)
class Install:
    """An SD.Next that does not run."""

    root: Path

    @property
    def python(self) -> Path:
        return python_of(self.root / "venv")

    @property
    def site(self) -> Path:
        return site_of(self.root / "venv")

    def pip(self, *arguments: str) -> None:
        command = [self.python, "-m", "pip", "install", "--quiet", "--no-deps", "--disable-pip-version-check", *arguments]
        done = subprocess.run(command, env=clean(), capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr

    def doctor(self, *arguments: str):
        command = [sys.executable, "-m", "sd3deploy", "doctor", "--sdnext", self.root, "--json", *arguments]
        done = subprocess.run(command, cwd=ROOT, env=clean(), capture_output=True, text=True)
        assert done.returncode in (0, 1), done.stdout + done.stderr
        return done.returncode, json.loads(done.stdout)["findings"]

    def follow(self, remedy: str) -> None:
        """Do what a remedy says: the command in it."""
        found = re.search(r"(\S*python\S*) -m (pip install(?: --\S+)* (?:\"[^\"]+\"|\S+\w)|sd3deploy doctor --fix)", remedy)
        assert found, remedy
        command = [found[1], "-m", *shlex.split(found[2])]
        command += ["--yes", "--sdnext", str(self.root)] if "doctor" in command else []
        done = subprocess.run(command, cwd=ROOT, env=clean(), capture_output=True, text=True)
        assert done.returncode in (0, 1), done.stdout + done.stderr


def install(folder: Path, *, without=(), copied=()) -> Install:
    root = folder / "sdnext"
    (root / "modules").mkdir(parents=True)
    (root / "launch.py").touch()
    (root / "requirements.txt").write_text("".join(f"{name}=={metadata.version(name)}\n" for name in PINNED))
    shutil.copytree(tiny_sd3.ensure(), root / "models" / "Diffusers" / "tiny-sd3")
    (root / "config.json").write_text(json.dumps({"sd3_text_encoder": "T5 FP4"}))
    linked(root / "venv", without=[*without, "gguf"], copied=copied)
    return Install(root)


@pytest.fixture(scope="module", autouse=True)
def registry():
    if not has_registry():
        pytest.skip("no package registry can be reached")


def half(install: Install, name: str, version: str) -> None:
    """Put the files of another version over those that are there, as an installer that removes nothing does."""
    target = install.root / "other"
    install.pip(f"{name}=={version}", "--target", str(target))
    overlay(target, install.site, name)


def healed(broken: Install, wanted: dict[str, set[str]]) -> None:
    """The doctor names each package with one of the causes; what it says to do is done; then it is content."""
    code, found = broken.doctor()
    assert code == 1
    causes = {one["package"].replace("-", "_"): one["cause"] for one in reversed(found)}
    assert {name: cause for name, cause in causes.items() if cause in wanted.get(name, ())}.keys() == wanted.keys(), found
    for remedy in dict.fromkeys(one["remedy"] for one in found):
        broken.follow(remedy)
    assert broken.doctor() == (0, [])


# Several at once where one does not hide the other: each doctor loads all libraries, and that takes its time.
REMOVED = [("accelerate", "bitsandbytes", "sentencepiece"), ("huggingface_hub", "peft", "protobuf")]


@pytest.mark.parametrize("names", REMOVED, ids=" ".join)
def test_packages_that_are_missing(tmp_path, names):
    healed(install(tmp_path, without=names), {name: {"missing-package"} for name in names})


MOVED = [
    {"accelerate": "0.26.1", "bitsandbytes": "0.45.5", "peft": "0.10.0", "sentencepiece": "0.1.99"},
    {"huggingface_hub": "0.36.2"},
    {"numpy": "1.26.4"},
]


@pytest.mark.parametrize("versions", MOVED, ids=" ".join)
def test_packages_that_somebody_has_moved(tmp_path, versions):
    broken = install(tmp_path, without=versions)
    broken.pip(*(f"{name}=={version}" for name, version in versions.items()))
    healed(broken, {name: {"version-too-old", "foreign-downgrade"} for name in versions})


def test_a_transformers_that_does_not_fit_the_rest(tmp_path):
    broken = install(tmp_path, without=["transformers"])
    with open(broken.root / "requirements.txt", "a") as file:
        file.write(f"transformers=={metadata.version('transformers')}\n")
    broken.pip("transformers==4.57.6")
    healed(broken, {"transformers": {"foreign-downgrade"}})


HALVES = [{"numpy": "1.26.4", "accelerate": "0.26.1"}, {"bitsandbytes": "0.45.5", "huggingface_hub": "0.36.2"}]


@pytest.mark.parametrize("versions", HALVES, ids=" ".join)
def test_packages_of_two_halves(tmp_path, versions):
    broken = install(tmp_path, copied=versions)
    for name, version in versions.items():
        half(broken, name, version)
    healed(broken, {name: {"mixed-package-files"} for name in versions})


def test_a_native_library_that_is_cut_off(tmp_path):
    broken = install(tmp_path, copied=["bitsandbytes"])
    library = next((broken.site / "bitsandbytes").glob("libbitsandbytes_cpu*"))
    library.write_bytes(library.read_bytes()[:1000])
    healed(broken, {"bitsandbytes": {"mixed-package-files"}})


# Files of the model


def test_weights_that_are_cut_off(tmp_path):
    broken = install(tmp_path)
    weights = next((broken.root / "models").rglob("text_encoder_3/*.safetensors"))
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    code, found = broken.doctor()
    assert code == 1
    assert found[0]["rule"] == "file-truncated"
    assert str(weights.name) in found[0]["message"]
    weights.write_bytes(whole)
    assert broken.doctor() == (0, [])


def test_a_model_without_its_text_encoder(tmp_path):
    broken = install(tmp_path)
    folder = broken.root / "models" / "Diffusers" / "tiny-sd3" / "text_encoder"
    folder.rename(tmp_path / "aside")
    code, found = broken.doctor()
    assert code == 1
    assert found[0]["cause"] in ("missing-text-encoder", "network")
    assert "text_encoder" in found[0]["message"]
    (tmp_path / "aside").rename(folder)
    assert broken.doctor() == (0, [])


# The machine


@contextmanager
def mounted(folder: Path, *options):
    done = subprocess.run(["mount", *map(str, options), folder], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"nothing can be mounted here: {done.stderr.strip()}")
    try:
        yield
    finally:
        if "remount" not in "".join(map(str, options)):
            subprocess.run(["umount", folder], check=True)


def test_a_disk_that_is_full(tmp_path):
    broken = install(tmp_path)
    models = broken.root / "models"
    shutil.move(models, tmp_path / "models")
    models.mkdir()
    with mounted(models, "-t", "tmpfs", "-o", "size=8m", "tmpfs"):
        shutil.copytree(tmp_path / "models", models, dirs_exist_ok=True)
        with pytest.raises(OSError, match="No space left"):
            (models / "filler").write_bytes(bytes(8_000_000))
        code, found = broken.doctor()
        assert (code, found[0]["cause"]) == (1, "disk-full")
        assert str(models) in found[0]["message"]
    shutil.rmtree(models)
    shutil.move(tmp_path / "models", models)
    assert broken.doctor() == (0, [])


def test_an_environment_that_may_not_be_written(tmp_path):
    broken = install(tmp_path)
    with mounted(broken.site, "--bind", broken.site), mounted(broken.site, "-o", "remount,ro,bind"):
        code, found = broken.doctor()
        assert (code, found[0]["cause"]) == (1, "permission")
        assert str(broken.site) in found[0]["message"]
    assert broken.doctor() == (0, [])


# The log


def test_what_the_log_says_counts_until_the_server_is_started_again(tmp_path):
    broken = install(tmp_path)
    log = broken.root / "sdnext.log"
    shutil.copy(ROOT / "tests" / "logs" / "attention-file.log", log)
    code, found = broken.doctor()
    assert (code, [one["cause"] for one in found]) == (1, ["attention-processor"])
    with open(log, "a") as file:
        file.write("2026-11-26 09:00:00,000 | pc | sd | INFO | launch | Starting SD.Next\n")
    assert broken.doctor() == (0, [])
