"""install.py wherever the extension may lie, and in whatever environment SD.Next may run: with the real pip and the real git."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import packaging
import pytest

from demo.environment import python_of, site_of
from sd3deploy import deps, inside
from tests.deps_lab import ROOT, Lab, bare, clean, wheel

NAMES = [one.name for one in deps.requirements(("bitsandbytes",)) if one.name != "packaging"]
INSTALLED = "sd3: installed accelerate, protobuf, sentencepiece, bitsandbytes.\n"
SHIPPED = ("install.py", "preload.py", "extension.py", "pyproject.toml", "sd3deploy", "scripts", "javascript", "style.css")


def placed(folder: Path) -> Path:
    """This extension as a zip of it would be unpacked: without .git."""
    folder.mkdir(parents=True)
    for name in SHIPPED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, folder)
    return folder


def made(folder: Path) -> Lab:
    """An environment with nothing but pip, and wheels of all that is needed."""
    lab = bare(folder)
    for name in NAMES:
        wheel(lab.wheels, name, "99.0")
    return lab


def launch(lab: Lab, extension: Path, *words: str, python: Path | None = None, **environ: str):
    """install.py as the host runs it: in its own folder, in a process of its own; the finished process."""
    host = lab.folder / "host"
    host.mkdir(exist_ok=True)
    (host / "constraints.txt").write_text("numpy==2.1.2\n")
    environ = {**clean(), "PYTHONPATH": str(host), "PIP_EXTRA_ARGS": lab.quoted_args, **environ}
    command = [python or lab.python, *words, str(extension / "install.py")]
    return subprocess.run(command, capture_output=True, encoding="utf-8", env=environ, cwd=extension)


@pytest.mark.parametrize(("name", "locale"), [("with  space", "C"), ("扩展 и ещё ö", "C.UTF-8"), ("扩展 и ещё ö", "C")])
def test_any_path(tmp_path, name, locale):
    """The extension, the host and the environment below a folder of that name."""
    lab = made(tmp_path / name)
    extension = placed(tmp_path / name / "extensions" / "sd-extension-sd3")
    first = launch(lab, extension, LC_ALL=locale)
    assert (first.returncode, first.stdout, first.stderr) == (0, "", INSTALLED)
    again = launch(lab, extension, LC_ALL=locale, PIP_EXTRA_ARGS="--no-such-option")
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")


# Whoever runs the tests may be root, whom no mode bits stop: here each attempt to change something below the checkout fails.
READ_ONLY = """
import os, runpy, sys
place, tried = os.path.realpath(sys.argv[1]), []
def refuse(event, values):
    changes = event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "os.link", "os.chmod", "os.truncate")
    if event == "open":
        path, mode, flags = values
        changes = bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)) if isinstance(flags, int) else False
    paths = values[:1] if event == "open" else values[:2]
    if changes and any(isinstance(one, (str, bytes)) and os.path.realpath(os.fsdecode(one)).startswith(place) for one in paths):
        tried.append(event)
        raise PermissionError(30, "Read-only file system", str(values[0]))
sys.addaudithook(refuse)
sys.argv = [os.path.join(place, "install.py")]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    print(len(tried))
"""


def test_a_checkout_that_can_not_be_written_to(tmp_path):
    lab = made(tmp_path)
    extension = placed(tmp_path / "extensions" / "sd-extension-sd3")
    before = sorted(extension.rglob("*"))
    environ = {**clean(), "PIP_EXTRA_ARGS": lab.quoted_args}
    done = subprocess.run([lab.python, "-c", READ_ONLY, extension], capture_output=True, text=True, env=environ, cwd=extension)
    assert (done.returncode, done.stderr) == (0, INSTALLED)
    assert int(done.stdout) > 0  # Python's own attempts to keep compiled files: the refusal works
    assert sorted(extension.rglob("*")) == before


def test_a_submodule_and_a_work_tree(tmp_path):
    lab = made(tmp_path)
    source = placed(tmp_path / "source")

    def git(place: Path, *words: str) -> str:
        command = ["git", "-c", "protocol.file.allow=always", "-c", "user.name=A", "-c", "user.email=a@example.com", *words]
        return subprocess.run(command, cwd=place, check=True, capture_output=True, text=True).stdout.strip()

    git(source, "init", "--quiet")
    git(source, "add", ".")
    git(source, "commit", "--quiet", "-m", "All of it")
    whole = tmp_path / "whole"
    whole.mkdir()
    git(whole, "init", "--quiet")
    git(whole, "submodule", "--quiet", "add", str(source), "extensions/sd-extension-sd3")
    git(source, "worktree", "add", "--quiet", "-b", "other", str(tmp_path / "tree"))
    git(source, "pack-refs", "--all")
    places = [whole / "extensions" / "sd-extension-sd3", tmp_path / "tree", source]
    assert [(place / ".git").is_file() for place in places] == [True, True, False]
    for place in places:
        assert inside.commit(place) == git(place, "rev-parse", "HEAD")[:9]
    assert launch(lab, places[0]).stderr == INSTALLED
    assert launch(lab, places[1]).stderr == ""


def packaging_in(site: Path) -> None:
    """What every environment of the host has."""
    for entry in Path(packaging.__file__).parents[1].glob("packaging*"):
        (site / entry.name).symlink_to(entry)


@pytest.fixture
def uv_lab(tmp_path):
    """An environment as uv makes it, without pip."""
    folder = tmp_path / "uv"
    lab = made(tmp_path / "lab")
    uv = shutil.which("uv", path=str(Path(sys.executable).parent)) or shutil.which("uv")
    subprocess.run([str(uv), "venv", "--quiet", "--python", sys.executable, str(folder)], check=True, capture_output=True)
    packaging_in(site_of(folder))
    return Lab(lab.folder, python_of(folder), site_of(folder), lab.wheels), str(Path(str(uv)).parent)


@pytest.mark.parametrize("with_uv", [False, True])
def test_an_environment_of_uv_has_no_pip_and_gets_none(uv_lab, tmp_path, with_uv):
    lab, folder_of_uv = uv_lab
    environ = {"SD_UV": "1", "PATH": os.pathsep.join([folder_of_uv, os.environ["PATH"]])} if with_uv else {}
    extension = placed(tmp_path / "extensions" / "sd-extension-sd3")
    done = launch(lab, extension, **environ)
    assert (done.returncode, done.stderr) == (0, INSTALLED)
    assert not list(lab.site.glob("pip*"))
    assert launch(lab, extension, **environ).stderr == ""


def test_without_any_pip_the_remedy_is_named(uv_lab, tmp_path):
    """Neither in the environment nor beside the Python, as on a Debian without python3-venv."""
    lab, _ = uv_lab
    extension = placed(tmp_path / "extensions" / "sd-extension-sd3")
    (lab.site / "sitecustomize.py").write_text("import sys; sys.modules['ensurepip'] = None\n")
    done = launch(lab, extension)
    assert done.returncode == 1
    assert done.stderr.startswith("sd3: [deps.no_pip] ")


def test_an_environment_of_conda_is_one_like_any_other(tmp_path):
    """conda's own packages have no RECORD that pip could undo; what is missing is installed beside them."""
    lab = made(tmp_path)
    (lab.python.parents[1] / "conda-meta").mkdir()
    for name, version in (("accelerate", "99.0"),):
        lab.install(f"{name}=={version}")
        info = lab.site / f"{name}-{version}.dist-info"
        (info / "INSTALLER").write_text("conda\n")
        (info / "RECORD").unlink()
    done = launch(lab, placed(tmp_path / "extensions" / "sd-extension-sd3"), CONDA_PREFIX=str(lab.python.parents[1]))
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("sd3: installed ")


SITE = "import sysconfig; print(sysconfig.get_path('purelib'))"


def pythons() -> list[str]:
    """Interpreters of this machine, of other versions than this one, from 3.10 on."""
    found = {}
    for folder in dict.fromkeys([*os.environ["PATH"].split(os.pathsep), *map(str, Path.home().glob(".pyenv/versions/*/bin"))]):
        for minor in range(10, 16):
            file = Path(folder, f"python3.{minor}")
            if minor != sys.version_info[1] and minor not in found and file.is_file() and "shims" not in folder:
                found[minor] = str(file)
    return [found[minor] for minor in sorted(found)]


@pytest.mark.parametrize("python", pythons() or [sys.executable], ids=lambda path: Path(path).name)
def test_other_pythons_of_this_machine(tmp_path, python):
    lab = made(tmp_path / "lab")
    folder = tmp_path / "environment"
    subprocess.run([python, "-m", "venv", str(folder)], check=True, capture_output=True)
    packaging_in(Path(subprocess.check_output([python_of(folder), "-c", SITE], text=True).strip()))
    extension = placed(tmp_path / "extensions" / "sd-extension-sd3")
    done = launch(lab, extension, python=python_of(folder))
    assert (done.returncode, done.stderr) == (0, INSTALLED)
    assert launch(lab, extension, python=python_of(folder)).stderr == ""
