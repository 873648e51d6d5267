"""Which paths of this machine a request may name."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from sd3deploy.model_files import find_model


@pytest.fixture
def place(tmp_path):
    """models/Diffusers/sd3, models/linked → elsewhere/model, models/away → elsewhere, and what is none of anybody's business."""
    (tmp_path / "models" / "Diffusers" / "sd3").mkdir(parents=True)
    (tmp_path / "models" / "t5.safetensors").write_bytes(b"t5")
    (tmp_path / "elsewhere" / "model").mkdir(parents=True)
    (tmp_path / "elsewhere" / "secret.txt").write_text("secret")
    (tmp_path / "models" / "linked").symlink_to(tmp_path / "elsewhere" / "model")
    (tmp_path / "models" / "away").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "models" / "loop").symlink_to(tmp_path / "models" / "loop")
    (tmp_path / "modelsX").mkdir()
    return tmp_path


@pytest.mark.parametrize("asked", ["Diffusers/sd3", "t5.safetensors", "linked", "Diffusers/../t5.safetensors"])
def test_below_the_models_folders(place, asked):
    models = place / "models"
    assert find_model(asked, [place / "none", models]) == Path(os.path.normpath(models / asked))
    assert find_model(str(models / asked), [models]) == Path(os.path.normpath(models / asked))


def test_a_models_folder_that_is_a_link(place):
    (place / "link").symlink_to(place / "models")
    assert find_model("Diffusers/sd3", [place / "link"]) == place / "link" / "Diffusers" / "sd3"


@pytest.mark.parametrize(
    "asked",
    [
        "", " ", ".", "..", "/", "/etc/passwd", "../elsewhere/secret.txt", "away/secret.txt", "away/model",
        "linked/../../elsewhere/secret.txt",
        "loop", "nothing", "\0", "t5.safetensors\0", "../modelsX", "a" * 5000, "\ud800", "//evil/share", "\\\\evil\\share", "C:\\Windows",
    ],
)  # fmt: skip
def test_elsewhere_is_as_if_it_were_not_there(place, asked):
    assert find_model(asked, [place / "models"]) is None


def test_what_lies_elsewhere_is_not_even_looked_at(place, monkeypatch):
    looked = []
    for name in ("stat", "lstat", "readlink", "open", "scandir"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda path, *rest, real=real, **words: looked.append(str(path)) or real(path, *rest, **words))
    assert find_model("/etc/passwd", [place / "models"]) is None
    assert find_model(str(place / "elsewhere" / "secret.txt"), [place / "models"]) is None
    assert [path for path in looked if "passwd" in path or "secret" in path] == []


@pytest.mark.skipif(sys.platform == "win32", reason="a path of POSIX")
def test_this_machine_may_name_any_path(place):
    assert find_model("/etc/passwd", [], anywhere=True) == Path("/etc/passwd")
    assert find_model("/nowhere", [], anywhere=True) is None
    assert find_model("Diffusers/sd3", [place / "models"], anywhere=True) == place / "models" / "Diffusers" / "sd3"
