"""What is broken on disk is seen; what people and package managers do on purpose is not called broken."""

import json
import shutil

import pytest

from tests.deps_lab import bare, overlay

LOOK = """
from sd3deploy.deps.belongings import belongings
from sd3deploy.deps.damage import damage
def look():
    print(json.dumps(sorted(kind.name.lower() for kind, _ in damage("sd3toy", belongings("sd3toy")))))
look()
"""
HEAL = """
go("sd3toy ==1.0")
look()
import sd3toy.part
assert sd3toy.part.VALUE == "1.0"
"""


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A lab with version 1.0 installed, and the files of 2.0 beside it."""
    lab = bare(tmp_path_factory.mktemp("damage"))
    lab.toy("1.0", "2.0")
    lab.pip("install", "--no-index", "--find-links", str(lab.wheels), "--target", str(lab.folder / "other"), "sd3toy==2.0")
    lab.install("sd3toy==1.0")
    shutil.copytree(lab.site, lab.folder / "healthy", symlinks=True)
    return lab


@pytest.fixture
def lab(two):
    shutil.rmtree(two.site)
    shutil.copytree(two.folder / "healthy", two.site, symlinks=True)
    return two


def _duplicate(lab):
    overlay(lab.folder / "other", lab.site, "sd3toy-2.0.dist-info")


def _no_record(lab):
    (lab.site / "sd3toy-1.0.dist-info/RECORD").unlink()


def _no_metadata(lab):
    (lab.site / "sd3toy-1.0.dist-info/METADATA").unlink()


def _unowned(lab):
    shutil.rmtree(lab.site / "sd3toy-1.0.dist-info")


def _empty_folder(lab):
    _unowned(lab)
    shutil.rmtree(lab.site / "sd3toy")
    (lab.site / "sd3toy").mkdir()


def _missing(lab):
    (lab.site / "sd3toy/part.py").unlink()


def _orphans(lab):
    overlay(lab.folder / "other", lab.site, "sd3toy")


def _mixed(lab):
    for file in (lab.site / "sd3toy").glob("*.py"):
        file.write_text(file.read_text() + "# of another version\n")


def _native(lab):
    (lab.site / "sd3toy/library.so").write_text("rubbish")


def _residue(lab):
    (lab.site / "~d3toy").mkdir()


def _residue_of_metadata(lab):
    (lab.site / "~d3toy-0.9.dist-info").mkdir()


def _deeper_residue(lab):
    (lab.site / "~~3toy").mkdir()


@pytest.mark.parametrize(
    ("harm", "expected"),
    [
        (_duplicate, {"duplicate"}),
        (_no_record, {"no_record"}),
        (_no_metadata, {"no_metadata"}),
        (_unowned, {"unowned"}),
        (_empty_folder, {"unowned"}),
        (_missing, {"missing_files"}),
        (_orphans, {"orphans"}),
        (_mixed, {"mixed_files"}),
        (_native, {"mixed_files"}),
        (_residue, {"residue"}),
        (_residue_of_metadata, {"residue"}),
        (_deeper_residue, {"residue"}),
    ],
)
def test_harm_is_seen_and_healed(lab, harm, expected):
    harm(lab)
    before, after = lab.run(LOOK + HEAL, EXTRA=lab.offline_args).stdout.splitlines()
    assert set(json.loads(before)) == expected
    assert json.loads(after) == []
    assert not [path for path in lab.site.iterdir() if path.name.startswith("~")]


def _nothing(lab):
    pass


def _edited(lab):
    (lab.site / "sd3toy/part.py").write_text("VALUE = 'edited by its user'\n")


def _conda(lab):
    (lab.site / "sd3toy-1.0.dist-info/RECORD").unlink()
    (lab.site / "sd3toy-1.0.dist-info/INSTALLER").write_text("conda\n")


def _compiled(lab):
    (lab.site / "sd3toy/__pycache__").mkdir(exist_ok=True)
    (lab.site / "sd3toy/__pycache__/gone.cpython-311.pyc").write_bytes(b"")


def _notes(lab):
    (lab.site / "sd3toy/cache.json").write_text("{}")


def _stranger(lab):
    (lab.site / "~umpy").mkdir()
    (lab.site / "sd3toy_extra").mkdir()


@pytest.mark.parametrize("deed", [_nothing, _edited, _conda, _compiled, _notes, _stranger])
def test_what_is_done_on_purpose_is_left_alone(lab, deed):
    deed(lab)
    assert lab.json(LOOK) == []
