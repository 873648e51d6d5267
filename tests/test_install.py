"""install.py as the host runs it: a process of its own, in the extension's folder, with the host's folder on PYTHONPATH."""

import os
import shutil
import subprocess
import sys
from argparse import ArgumentParser

import pytest

import preload
from sd3deploy import deps
from tests.deps_lab import NOWHERE, ROOT, bare, clean, wheel

TOYS = [one.name for one in deps.requirements(("bitsandbytes",)) if one.name != "packaging"]
HEAVY = {"torch", "numpy", "transformers", "diffusers", "accelerate", "bitsandbytes", "gradio", "pip", "modules", "installer"}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A lab, a host folder, and this extension in a folder with a space in its name."""
    lab = bare(tmp_path_factory.mktemp("launch"))
    host = lab.folder / "host"
    host.mkdir()
    (host / "constraints.txt").write_text("numpy==2.1.2\n")
    extension = lab.folder / "my extensions" / "sd-extension-sd3"
    for name in ("install.py", "preload.py", "pyproject.toml"):
        extension.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, extension)
    shutil.copytree(ROOT / "sd3deploy", extension / "sd3deploy", ignore=shutil.ignore_patterns("__pycache__"))
    for name in TOYS:
        wheel(lab.wheels, name, "99.0")
    return lab


def launch(lab, *arguments, **environ):
    """Run it; the finished process."""
    environ = {**clean(), "PYTHONPATH": str(lab.folder / "host"), "PIP_EXTRA_ARGS": lab.offline_args, **environ}
    command = [lab.python, str(lab.folder / "my extensions/sd-extension-sd3/install.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environ, cwd=lab.folder / "my extensions/sd-extension-sd3")


@pytest.fixture
def lab(made):
    """Nothing installed yet."""
    for entry in made.site.iterdir():
        if not entry.is_symlink():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    return made


def test_installs_all_then_nothing(lab):
    first = launch(lab)
    assert (first.returncode, first.stdout) == (0, "")
    assert first.stderr == "sd3: installed accelerate, protobuf, sentencepiece, bitsandbytes.\n"
    again = launch(lab, PIP_EXTRA_ARGS="--no-such-option")
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")
    costs_nothing(lab)
    a_broken_numpy_is_put_back(lab)


def costs_nothing(lab):
    """None of the heavy libraries, nor pip, is imported; bench/install.py has the seconds."""
    code = "import runpy, sys\ntry: runpy.run_path(sys.argv[1], run_name='__main__')\nexcept SystemExit: print(*sorted(sys.modules))"
    path = str(lab.folder / "my extensions/sd-extension-sd3/install.py")
    done = subprocess.run([lab.python, "-c", code, path], capture_output=True, text=True, env=clean(), check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert "sd3deploy" in loaded
    assert not loaded & HEAVY


def a_broken_numpy_is_put_back(lab):
    """With a toy in its place: tests/test_repair.py has the real ones."""
    wheel(lab.wheels, "numpy", "2.1.2")
    lab.install("numpy==2.1.2")
    (lab.site / "numpy-2.1.2.dist-info/RECORD").unlink()
    done = launch(lab)
    assert (done.returncode, done.stderr) == (0, "sd3: installed numpy.\n")
    assert (lab.site / "numpy-2.1.2.dist-info/RECORD").exists()


def test_without_network_it_is_one_line_and_a_code(lab):
    failed = launch(lab, PIP_EXTRA_ARGS=NOWHERE, PIP_CONFIG_FILE=os.devnull)
    assert failed.returncode == 1
    assert failed.stderr.startswith("sd3: [deps.no_network] accelerate, ")
    assert failed.stderr.count("\n") == 1


def test_bitsandbytes_may_fail(lab):
    """Only some text encoders need it, and the running server tries again."""
    lab.install(*(name for name in TOYS if name != "bitsandbytes"))
    failed = launch(lab, PIP_EXTRA_ARGS=f"--no-index --find-links {lab.folder / 'nothing'}")
    assert failed.returncode == 0
    assert failed.stderr.startswith("sd3: [deps.no_wheel] ")


OFF = [(["--sd3-no-install"], {}), ([], {"SD3_NO_INSTALL": "1"}), ([], {"SD_SKIPREQUIREMENTS": "1"})]


@pytest.mark.parametrize(("arguments", "environ"), OFF)
def test_switched_off(lab, arguments, environ):
    done = launch(lab, *arguments, **environ)
    assert done.returncode == 0
    assert done.stderr.startswith("sd3: [deps.not_allowed]")
    assert not list(lab.site.glob("accelerate*"))


def test_a_bug_of_ours_does_not_stop_the_host(lab):
    broken = lab.folder / "my extensions/sd-extension-sd3/pyproject.toml"
    text = broken.read_text()
    broken.write_text("[project]\n")
    done = launch(lab)
    broken.write_text(text)
    assert done.returncode == 1
    assert done.stderr.startswith("sd3: [KeyError]")
    assert done.stderr.count("\n") == 1


def test_the_flag(monkeypatch):
    monkeypatch.delenv("SD3_NO_INSTALL", raising=False)
    parser = ArgumentParser(conflict_handler="resolve")
    preload.preload(parser)
    assert parser.parse_args([]).sd3_no_install is False
    assert parser.parse_args(["--sd3-no-install"]).sd3_no_install is True
    monkeypatch.setenv("SD3_NO_INSTALL", "1")
    preload.preload(parser)  # the host may read the file twice
    assert parser.parse_args([]).sd3_no_install is True


def test_the_flags_file_imports_nothing_heavy():
    code = "import sys; before = set(sys.modules); import preload; print(*sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert set(done.stdout.split()) <= {"preload", "os"}
