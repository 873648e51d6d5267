"""Installations that are ended half-way, in real environments with the real pip: the environment is as it was, and nothing goes on."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading

import pytest

from sd3deploy import deps
from sd3deploy.deps import pip
from sd3deploy.deps.stopping import Stopped, stoppable
from tests.deps_lab import bare, wheel
from tests.test_deps_execution import tree

# Installs the lines as `go` of the laboratory does, and is told to stop as soon as `when` says so.
STOPPED = """
import pathlib
from sd3deploy.deps.stopping import Stopped, stoppable
def stopped(*lines, when, **options):
    try:
        with stoppable(when):
            return {"changed": go(*lines, **options).changed}
    except Stopped as error:
        return {"id": error.id}
def called():
    return pathlib.Path(os.environ["CALLED"]).exists()
"""


@pytest.fixture
def lab(tmp_path):
    made = bare(tmp_path)
    made.toy("1.0", "2.0")
    return made


@pytest.fixture
def silence(tmp_path):
    """The environment of an installer whose package index takes every connection and never says a word: whoever waits for that, waits for
    an hour. CALLED is there when somebody has called.
    """
    called = tmp_path / "called"
    with socket.create_server(("127.0.0.1", 0)) as server:

        def listen():
            kept = []  # closed, they would be an answer
            while True:
                try:
                    kept.append(server.accept())
                except OSError:  # the test is over
                    return
                called.touch()

        thread = threading.Thread(target=listen)
        thread.start()
        index = f"--index-url http://127.0.0.1:{server.getsockname()[1]}/simple"
        yield {"EXTRA": f"--no-compile {index} --timeout 3600", "CALLED": str(called)}
        server.shutdown(socket.SHUT_RDWR)
        thread.join()


def test_a_pip_that_says_nothing_is_ended(lab, silence):
    before = tree(lab)
    assert lab.json(STOPPED + 'print(json.dumps(stopped("sd3toy", when=called)))', **silence) == {"id": "deps.cancelled"}
    assert tree(lab) == before == {}


def test_what_was_moved_away_comes_back(lab, silence):
    """A broken package is out of the way when the stop comes: its files are back, as broken as they were."""
    lab.install("sd3toy==1.0")
    (lab.site / "sd3toy/part.py").unlink()
    before = tree(lab)
    found = lab.json(STOPPED + 'print(json.dumps([stopped("sd3toy ==1.0", when=called), states("sd3toy")]))', **silence)
    assert found[0]["id"] == "deps.cancelled"
    assert found[1] == {"sd3toy": "BROKEN"}
    assert tree(lab) == before
    assert not (lab.site.parents[2] / ".sd3deploy/quarantine").exists()


def test_a_healthy_package_that_was_to_be_changed_is_as_it_was(lab, silence):
    lab.install("sd3toy==1.0")
    before = tree(lab)
    found = lab.json(STOPPED + 'print(json.dumps([stopped("sd3toy ==2.0", when=called), states("sd3toy ==1.0")]))', **silence)
    assert found[0]["id"] == "deps.cancelled"
    assert found[1] == {"sd3toy": "OK"}
    assert tree(lab) == before
    lab.run("import sd3toy.part; assert sd3toy.part.VALUE == '1.0'")


def test_ended_in_the_middle_of_writing(lab):
    """The stop comes with the first file of a large package on the disk."""
    wheel(lab.wheels, "sd3big", "1.0", size=100_000_000)
    code = """
import pathlib, sysconfig
half = pathlib.Path(sysconfig.get_path("purelib"), "sd3big")
seen = []
def asked():
    seen.append(half.exists())
    return seen[-1]
try:
    with stoppable(asked):
        go("sd3big")
    print(json.dumps("installed"))
except Stopped as error:
    print(json.dumps([error.id, half.exists(), states("sd3big")["sd3big"]]))
"""
    assert lab.json(STOPPED + code, EXTRA=lab.offline_args) == ["deps.cancelled", False, "MISSING"]
    assert not [path.name for path in lab.site.iterdir() if "3big" in path.name]
    assert lab.json('print(json.dumps(attempt("sd3big")))', EXTRA=lab.offline_args) == {"changed": {"sd3big": "1.0"}}


def test_ended_in_the_middle_of_replacing(lab):
    """The stop comes when the old version is gone and the new one is there in part."""
    lab.install("sd3toy==1.0")
    wheel(lab.wheels, "sd3toy", "2.0", size=100_000_000)
    before = tree(lab)
    code = """
import pathlib, sysconfig
new = pathlib.Path(sysconfig.get_path("purelib"), "sd3toy", "data.bin")
try:
    with stoppable(new.exists):
        go("sd3toy ==2.0")
    print(json.dumps("installed"))
except Stopped as error:
    print(json.dumps([error.id, states("sd3toy ==1.0")]))
"""
    assert lab.json(STOPPED + code, EXTRA=lab.offline_args) == ["deps.cancelled", {"sd3toy": "OK"}]
    assert tree(lab) == before
    lab.run("import sd3toy.part; assert sd3toy.part.VALUE == '1.0'")


def test_uv_is_ended_too(lab, silence, monkeypatch):
    monkeypatch.setenv("PATH", os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]]))
    code = 'print(json.dumps(stopped("sd3toy ==1.0", uv=True, when=called)))'
    words = silence | {"EXTRA": silence["EXTRA"].replace("--no-compile ", "").partition(" --timeout")[0], "UV_HTTP_TIMEOUT": "3600"}
    assert lab.json(STOPPED + code, **words) == {"id": "deps.cancelled"}


def test_waiting_for_another_installation_ends_too(lab):
    """Another process holds the lock, and would for good. The stop comes when it has been asked for some times."""
    code = """
import subprocess, sys
holder = subprocess.Popen([sys.executable, "-c", "from sd3deploy.deps.lock import install_lock\\n"
                           "with install_lock():\\n print('held', flush=True)\\n input()"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
holder.stdout.readline()
from sd3deploy.deps import lock
tries, real = [], lock.try_lock
lock.try_lock = lambda descriptor: tries.append(real(descriptor)) or tries[-1]
found = stopped("sd3toy", when=lambda: len(tries) > 2)
holder.kill()
print(json.dumps([found, tries]))
"""
    assert lab.json(STOPPED + code, EXTRA=lab.offline_args) == [{"id": "deps.cancelled"}, [False] * 3]


def test_a_stop_before_the_start_starts_nothing(lab):
    code = STOPPED + 'import subprocess\nsubprocess.Popen = None\nprint(json.dumps(stopped("sd3toy", when=lambda: True)))'
    assert lab.json(code, EXTRA=lab.offline_args) == {"id": "deps.cancelled"}
    assert tree(lab) == {}


def test_a_stop_that_comes_too_late_takes_nothing_back(lab):
    code = """
from sd3deploy.deps import execution
real, over = execution.run, []
execution.run = lambda *command: (real(*command), over.append(True))[0]
found = stopped("sd3toy", when=lambda: bool(over))
print(json.dumps([found, bool(over)]))
"""
    assert lab.json(STOPPED + code, EXTRA=lab.offline_args) == [{"changed": {"sd3toy": "2.0"}}, True]


# Of any command

CHILD = """
import subprocess, sys, threading
print(subprocess.Popen([sys.executable, "-c", "import threading; threading.Event().wait()"]).pid, flush=True)
threading.Event().wait()
"""
DEAF = "import signal, threading; signal.signal(signal.SIGINT, signal.SIG_IGN); print('deaf', flush=True); threading.Event().wait()"


def ended(code: str) -> list[str]:
    """What a Python process that would go on for good has said before it was ended."""
    said: list[str] = []
    first = threading.Event()

    def progress(line: str) -> None:
        said.append(line)
        first.set()

    with stoppable(first.is_set), pytest.raises(Stopped):
        pip.run((sys.executable, "-c", code), deps.Options(), progress)
    return said


def test_children_end_with_their_parent():
    child, *_ = ended(CHILD)
    assert not alive(int(child))


def test_who_does_not_listen_is_killed():
    assert ended(DEAF) == ["deaf"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no process groups")
def test_the_installer_does_not_take_us_with_it():
    """It runs in a session of its own: the signal that ends it reaches nobody else."""
    heard: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: heard.append(number))
    try:
        ended(CHILD)
    finally:
        signal.signal(signal.SIGINT, before)
    assert heard == []


def test_without_anybody_who_may_stop_it_nothing_is_watched():
    threads = threading.active_count()
    code, output = pip.run((sys.executable, "-c", "import os; print(os.getsid(0) if hasattr(os, 'getsid') else 0)"), deps.Options())
    assert code == 0
    assert int(output) == (os.getsid(0) if hasattr(os, "getsid") else 0)
    assert threading.active_count() == threads


def alive(pid: int) -> bool:
    """Whether a process still runs; one that nobody has waited for yet does not."""
    found = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout.strip()
    return bool(found) and not found.startswith("Z")


# The page's own installation

PAGE = """
import threading
from types import SimpleNamespace
from sd3deploy.deployment.locks import Busy
from sd3deploy.events import Events
from sd3deploy.webui.services import installing
told = []
options = deps.Options(extra_args=os.environ["EXTRA"], refusal=os.environ.get("REFUSAL", ""))
host = SimpleNamespace(install_options=lambda: options, queue=threading.Lock, pipeline=lambda: None)
page = installing.Installing(SimpleNamespace(host=host, busy=Busy(), events=Events(lambda event: told.append(event.id))))
def installed_by_the_page(groups=(), repair=True):
    job = page.start(groups, repair)
    while page.running:
        threading.Event().wait(0.01)
    return job.report()
"""


def test_one_that_can_not_be_repaired_does_not_stop_the_page_from_the_rest(lab):
    """triton shares its folder and is broken; NumPy is broken too; what the encoders need is missing."""
    for name, version, package in (("triton", "3.2.0", ""), ("pytorch-triton-rocm", "3.2.0", "triton"), ("numpy", "2.1.2", "")):
        wheel(lab.wheels, name, version, package=package)
        lab.install(name)
    for name in ("accelerate", "protobuf", "sentencepiece"):
        wheel(lab.wheels, name, "99.0", package={"protobuf": "google/protobuf"}.get(name, ""))
    (lab.site / "triton/part.py").unlink()
    (lab.site / "numpy/part.py").unlink()
    theirs = (lab.site / "triton/library.so").read_text()
    job, told, plan = lab.json(PAGE + "plan = page.plan((), True).describe()\nprint(json.dumps([installed_by_the_page(), told, plan]))",
                               EXTRA=lab.offline_args)  # fmt: skip
    assert "Leave triton alone: its files belong to pytorch_triton_rocm too" in plan
    assert sorted(job["changed"]) == ["accelerate", "numpy", "protobuf", "sentencepiece"]
    assert (job["state"], job["error"]["id"]) == ("failed", "deps.shared")
    assert "pip uninstall -y pytorch_triton_rocm triton" in job["error"]["remedy"]
    assert told.count("deps.shared") == 1
    assert (lab.site / "triton/library.so").read_text() == theirs
    assert lab.json('print(json.dumps(states("numpy", "accelerate")))') == {"numpy": "OK", "accelerate": "OK"}


@pytest.mark.parametrize(("refusal", "id"), [("deps.forbidden", "install.forbidden"), ("deps.not_allowed", "install.switched-off")])
def test_the_page_and_every_other_way_in_get_the_same_answer(lab, refusal, id):
    code = """
found = [page.allowed().id]
for way in (lambda: page.start(()), lambda: deps.ensure((), options), lambda: go("sd3toy", refusal=options.refusal)):
    try:
        way()
    except errors.DependencyError as error:
        found.append(error.id)
print(json.dumps(found))
"""
    assert lab.json(PAGE + code, EXTRA=lab.offline_args, REFUSAL=refusal) == [id, id, refusal, refusal]
    assert tree(lab) == {}
