"""One installer at a time, and a dead one blocks nobody."""

import signal
import subprocess
import sys

import pytest

from sd3deploy.deps.lock import install_lock
from sd3deploy.deps.workspace import workspace
from sd3deploy.errors import DependencyError
from tests.deps_lab import ROOT
from tests.waiting import HANG

HOLD = """
import signal, subprocess, sys
from sd3deploy.deps import lock
from pathlib import Path
lock.workspace = lambda: Path(sys.argv[1])
with lock.install_lock() as descriptor:
    if sys.argv[2] == "child":  # it ends when our standard input does, which is its own too
        subprocess.Popen([sys.executable, "-c", "input()"], pass_fds=(descriptor,), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    print("held", flush=True)
    signal.pause()
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr("sd3deploy.deps.lock.workspace", lambda: tmp_path)
    return tmp_path


def hold(folder, kind="alone"):
    command = [sys.executable, "-c", HOLD, str(folder), kind]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout.readline() == "held\n"
    return process


def test_waits_and_says_for_what(folder):
    process = hold(folder)
    with pytest.raises(DependencyError) as caught, install_lock(patience=0.3):
        pass
    assert caught.value.id == "deps.locked"
    assert str(folder) in str(caught.value)
    process.kill()
    process.wait()


def test_a_killed_holder_blocks_nobody(folder):
    process = hold(folder)
    process.send_signal(signal.SIGKILL)
    process.wait()
    with install_lock(patience=0):
        pass


@pytest.mark.skipif(sys.platform == "win32", reason="descriptors are inherited on POSIX")
def test_an_installer_that_outlives_its_parent_still_holds_it(folder):
    process = hold(folder, "child")
    process.kill()
    process.wait()
    with pytest.raises(DependencyError), install_lock(patience=0.2):
        pass
    process.stdin.close()
    with install_lock(patience=HANG):
        pass


@pytest.mark.skipif(sys.platform == "win32", reason="fasteners locks in another way there")
def test_fasteners_would_not_hold_for_an_installer_that_outlives_its_parent(tmp_path):
    """Why the lock is our own. When this fails, fasteners has changed, and sd3deploy/file_lock.py may go."""
    fasteners = pytest.importorskip("fasteners")
    code = """
import fasteners, subprocess, sys, time
lock = fasteners.InterProcessLock(sys.argv[1])
lock.acquire()
descriptor = lock.lockfile.fileno()
wait = [sys.executable, "-c", "import sys; sys.stdin.read()"]
subprocess.Popen(wait, pass_fds=(descriptor,), stdin=sys.stdin, stdout=subprocess.DEVNULL)
print("held", flush=True)
time.sleep(60)
"""
    path = str(tmp_path / "lock")
    process = subprocess.Popen([sys.executable, "-c", code, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    other = fasteners.InterProcessLock(path)
    assert not other.acquire(blocking=False)
    process.kill()
    process.wait()
    assert other.acquire(blocking=False)  # its child runs on, with the file open
    other.release()
    process.stdin.close()


def test_two_threads_of_one_process_take_turns_too(folder):
    with install_lock(), pytest.raises(DependencyError), install_lock(patience=0.2):
        pass


@pytest.mark.skipif(sys.platform == "win32", reason="needs a file where a folder should be")
def test_no_place_for_the_lock(folder, monkeypatch):
    (folder / "file").write_text("")
    monkeypatch.setattr("sd3deploy.deps.lock.workspace", lambda: folder / "file" / "below")
    with pytest.raises(DependencyError) as caught, install_lock():
        pass
    assert caught.value.id == "deps.no_lock"


def test_where_the_environment_can_not_be_written_each_one_has_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr("sd3deploy.deps.workspace.os.access", lambda path, mode: False)
    monkeypatch.setattr("sd3deploy.deps.workspace.Path.home", lambda: tmp_path)
    own = workspace()
    assert own.parent == tmp_path / ".cache" / "sd3deploy"
    monkeypatch.setattr("sd3deploy.deps.workspace.sys.prefix", str(tmp_path / "other"))
    assert workspace() != own
    assert workspace().parent == own.parent
