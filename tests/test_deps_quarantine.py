"""What is moved out of the way is whole in one of the two places, also across file systems, and whenever the process dies."""

import itertools
import shutil
from pathlib import Path

import pytest

from sd3deploy.deps import quarantine
from sd3deploy.deps.quarantine import Quarantine, interrupted, recover, rubbish
from tests.test_installed import build, contents

OTHER_DISK = Path("/dev/shm")
LISTED = {"toy": {"toy/__init__.py", "toy/part.py", "toy/deep/b.py", "lone.py", "toy.libs/a.so"}, "other": {"other/__init__.py"}}


class Killed(BaseException):
    """As if the process had ended here: nothing of ours runs after it."""


@pytest.fixture
def elsewhere(tmp_path):
    """A folder on another file system, to which nothing can be renamed; without one, on the same."""
    if OTHER_DISK.is_dir() and OTHER_DISK.stat().st_dev != tmp_path.stat().st_dev:
        folder = OTHER_DISK / f"sd3deploy-test-{tmp_path.name}-{id(tmp_path)}"
        yield folder
        shutil.rmtree(folder, ignore_errors=True)
    else:
        pytest.skip("there is no second file system")


@pytest.fixture(params=["same", "other"])
def site(request, tmp_path, monkeypatch):
    work = tmp_path / "work" if request.param == "same" else request.getfixturevalue("elsewhere")
    monkeypatch.setattr(quarantine, "workspace", lambda: work)
    made = build(tmp_path / "environment", LISTED)
    monkeypatch.setattr("sys.path", [str(made)])
    return made


def test_away_and_back(site):
    before = contents(site)
    made = Quarantine("toy")
    made.__enter__()
    assert {file for file in before if file not in contents(site)} == {file for file in before if "toy" in file or file == "lone.py"}
    made.__exit__(OSError, OSError(), None)
    assert contents(site) == before
    with Quarantine("toy"):
        pass
    assert set(contents(site)) == {"other/__init__.py", "other-1.0.dist-info/METADATA", "other-1.0.dist-info/RECORD"}


OPERATIONS = ("rename", "replace", "unlink", "mkdir", "rmdir", "write_text"), ("rmtree", "copytree", "copy2")


def dying(monkeypatch, at):
    """Kill before the change of a file number `at`. Returns a counter."""
    counter = itertools.count(1)

    def wrap(owner, name):
        original = getattr(owner, name)

        def wrapped(*args, **kwargs):
            if next(counter) == at:
                raise Killed
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, wrapped)

    for owner, names in zip((Path, shutil), OPERATIONS, strict=True):
        for name in names:
            wrap(owner, name)
    return counter


@pytest.mark.parametrize("ends", ["well", "badly"])
def test_killed_before_any_of_its_operations(site, tmp_path, monkeypatch, ends):
    """Until it has ended well the old files come back, whole; whatever is left means nothing or is recognized."""
    before, gone = contents(site), {"other/__init__.py", "other-1.0.dist-info/METADATA", "other-1.0.dist-info/RECORD"}
    for at in itertools.count(1):
        build(tmp_path / "environment", LISTED)
        with monkeypatch.context() as patch:
            dying(patch, at)
            try:
                made = Quarantine("toy")
                made.__enter__()
                made.__exit__(*((None, None, None) if ends == "well" else (OSError, OSError(), None)))
                survived = True
            except Killed:
                survived = False
        quarantine._active.clear()  # another process
        recover("toy", healthy=False)
        for folder in rubbish():
            shutil.rmtree(folder)
        found = contents(site)
        assert found == before or (ends == "well" and set(found) == gone), at
        assert not interrupted("toy")
        if survived:
            break
    assert at > 10


def test_killed_while_it_recovers(site, tmp_path, monkeypatch):
    before = contents(site)
    for at in itertools.count(1):
        build(tmp_path / "environment", LISTED)
        made = Quarantine("toy")
        made.__enter__()
        (site / "toy").mkdir()
        (site / "toy/half.py").write_text("of the next version")
        quarantine._active.clear()
        with monkeypatch.context() as patch:
            dying(patch, at)
            try:
                recover("toy", healthy=False)
                survived = True
            except Killed:
                survived = False
        recover("toy", healthy=False)
        for folder in rubbish():
            shutil.rmtree(folder)
        assert contents(site) == before, at
        if survived:
            break
    assert at > 5


def test_what_is_whole_is_kept_after_a_kill_at_the_very_end(site):
    """The new files were there, only the note about the old ones had not been deleted."""
    Quarantine("toy").__enter__()
    quarantine._active.clear()
    (site / "toy").mkdir()
    (site / "toy/__init__.py").write_text("new")
    recover("toy", healthy=True)
    assert (site / "toy/__init__.py").read_text() == "new"
    assert not interrupted("toy")
