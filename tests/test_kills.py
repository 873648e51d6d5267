"""kill -9 before the n-th change of a file, in install.py or in its pip: the next start is right, or says what to do.

bench/kills.py does the same by the clock with the real packages.
"""

import signal
import sys

import pytest

from bench import kills

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")

# Counts what changes files in the environment, and kills this process (and with it its pip, or its parent) before the one that is named.
COUNT = """
import os, sys
role = "install.py" if sys.orig_argv[-1].endswith("install.py") else ""
if "--no-deps" in sys.orig_argv and "--dry-run" not in sys.orig_argv:
    role = "pip"
wanted, _, at = os.environ.get("SD3_KILL", "").partition(":")
if role and role == wanted:
    seen, prefix = 0, os.path.realpath(sys.prefix)
    note = os.open(os.environ["SD3_COUNT"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    def count(event, arguments):
        global seen
        if event == "open":
            changes = isinstance(arguments[0], str) and (set(arguments[1] or "") & set("wax+") or arguments[2] & (os.O_WRONLY | os.O_RDWR))
        else:
            changes = event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link")
        if changes and os.path.realpath(os.fspath(arguments[0])).startswith(prefix) and "install.lock" not in str(arguments[0]):
            seen += 1
            os.write(note, b".")
            if str(seen) == at:
                os.killpg(0, 9) if os.environ.get("SD3_KILL_ALL") else os.kill(os.getpid(), 9)
    sys.addaudithook(count)
"""

EACH = 5  # moments of each process in each scene; bench/kills.py has more


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kills")
    scenes = {scene.name.split()[0]: scene for scene in kills.scenes(folder, small=True)}
    for scene in scenes.values():
        (scene.start / "sitecustomize.py").write_text(COUNT)
    return scenes


@pytest.fixture
def launched(monkeypatch, tmp_path):
    """`launched(scene, role, at)`: a start that kills itself before change number `at` of `role`, never for 0; its exit code, what it says,
    and how many changes `role` has begun.
    """
    file = tmp_path / "count"

    def launch(scene, role, at=0, everybody=False):
        file.unlink(missing_ok=True)
        scene.reset()
        with monkeypatch.context() as patch:
            for name, value in (("SD3_KILL", f"{role}:{at}"), ("SD3_KILL_ALL", "1" if everybody else ""), ("SD3_COUNT", str(file))):
                patch.setenv(name, value)
            code, said = scene.begin()
        return code, said, file.stat().st_size

    return launch


@pytest.mark.parametrize("role", ["install.py", "pip"])
@pytest.mark.parametrize("scene", ["install", "repair"])
def test_the_next_start_is_right_or_says_what_to_do(made, launched, scene, role):
    scene = made[scene]
    code, said, changes = launched(scene, role)
    assert (code, kills.wrong(scene)) == (0, []), said
    assert changes >= EACH
    for number in range(EACH):
        at = 1 + changes * number // EACH if number < EACH - 1 else changes  # the first, the last, and some between them
        code, _, seen = launched(scene, role, at, everybody=number % 2 == 1)
        assert seen == at
        assert role == "pip" or code == -signal.SIGKILL
        found = kills.after(scene)
        assert not found["wrong"], (role, at, found)
        assert found["offline"] != "silent", (role, at, found)


def test_two_hosts_on_one_environment(made):
    for scene in made.values():
        assert kills.together(scene) == "right"
        assert kills.together(scene, kill=True) == "right"
