"""Installs that really happen, and the failures that people have, provoked: the environment is as before, the cause is named."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.deps_lab import NOWHERE, Lab, bare, clean, has_registry, wheel
from tests.waiting import until

linux_root = pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="mounting a file system needs root on Linux")


@pytest.fixture
def lab(tmp_path):
    made = bare(tmp_path)
    made.toy("1.0", "2.0")
    return made


def attempt(lab: Lab, *lines: str, extra: str = "", **options):
    """Run check → plan → apply in the lab; what changed, or the error."""
    words = ", ".join([*map(repr, lines), *(f"{name}={value!r}" for name, value in options.items())])
    return lab.json(f"print(json.dumps(attempt({words})))", EXTRA=extra or lab.offline_args)


def test_installs_once_then_does_nothing(lab):
    assert attempt(lab, "sd3toy >=1.5") == {"changed": {"sd3toy": "2.0"}}
    code = 'import subprocess\nsubprocess.Popen = None\nprint(json.dumps(attempt("sd3toy")))'
    assert lab.json(code) == {"changed": {}}
    assert not (lab.site.parents[2] / ".sd3deploy/quarantine").exists()


def test_upgrades_downgrades_and_leaves_the_others(lab):
    lab.toy("1.0", "2.0", name="other")
    lab.install("other==1.0", "sd3toy==1.0")
    assert attempt(lab, "sd3toy >=2") == {"changed": {"sd3toy": "2.0"}}
    assert attempt(lab, "sd3toy <2") == {"changed": {"sd3toy": "1.0"}}
    assert lab.json("print(json.dumps(versions()))")["other"] == "1.0"


def test_says_what_it_does_while_it_does_it(lab):
    code = """
lines, options = [], deps.Options(extra_args=os.environ["EXTRA"])
deps.apply(deps.plan(deps.check(needs("sd3toy")), options), options, lines.append)
print(json.dumps(lines))
"""
    assert any("sd3toy" in line for line in lab.json(code, EXTRA=lab.offline_args))


def test_what_needs_no_installation_is_not_refused_where_none_is_allowed(lab):
    """Leftovers of a stopped pip do no harm: they are swept where that is allowed, and left where nothing is to be changed."""
    lab.install("sd3toy==2.0")
    (lab.site / "~d3toy").mkdir()
    for refusal in ("deps.not_allowed", "deps.forbidden"):
        assert attempt(lab, "sd3toy", refusal=refusal) == {"changed": {}}
    assert (lab.site / "~d3toy").is_dir()
    assert attempt(lab, "sd3toy", offline=True, extra=NOWHERE) == {"changed": {}}
    assert not (lab.site / "~d3toy").exists()


def test_switched_off_and_offline(lab):
    code = 'print(json.dumps([attempt("sd3toy", **one)["id"] for one in ({"refusal": "deps.not_allowed"}, {"offline": True})]))'
    assert lab.json(code, EXTRA=NOWHERE) == ["deps.not_allowed", "deps.offline"]
    assert attempt(lab, "sd3toy", offline=True) == {"changed": {"sd3toy": "2.0"}}  # a folder of wheels needs no network


def test_no_network_is_said_with_the_remedy(lab):
    error = attempt(lab, "sd3toy", extra=NOWHERE)
    assert error["id"] == "deps.no_network"
    assert "PIP_EXTRA_ARGS" in error["text"]


def test_a_network_that_hangs_up_is_tried_twice_and_no_more(lab):
    """pip alone would try six times and wait longer before each: eight seconds instead of one."""
    tries = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def hang_up():
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:  # closed: the test is over
                    return
                tries.append(1)
                connection.close()

        threading.Thread(target=hang_up, daemon=True).start()
        error = attempt(lab, "sd3toy", extra=f"--index-url http://127.0.0.1:{server.getsockname()[1]}/simple")
        server.shutdown(socket.SHUT_RDWR)
    assert error["id"] == "deps.no_network"
    assert len(tries) == 2


def test_no_wheel(lab):
    assert attempt(lab, "sd3toy >=3")["id"] == "deps.no_wheel"


def test_a_failed_repair_puts_everything_back(lab):
    lab.install("sd3toy==1.0")
    (lab.site / "sd3toy/part.py").unlink()
    (lab.site / "~d3toy").mkdir()
    before = tree(lab)
    (lab.wheels / "sd3toy-1.0-py3-none-any.whl").write_bytes(b"damaged")
    assert attempt(lab, "sd3toy ==1.0")["id"] == "deps.bad_download"
    assert tree(lab) == before


def test_success_that_is_none_is_not_believed(lab):
    error = attempt(lab, "sd3toy", extra=f"{lab.offline_args} --target {lab.folder / 'elsewhere'}")
    assert error["id"] == "deps.not_proven"
    assert (lab.folder / "elsewhere/sd3toy").is_dir()


@pytest.mark.skipif(sys.platform == "win32", reason="builds its Python from links")
def test_python_that_belongs_to_the_system(lab):
    """A Python of its own, not a virtual environment, marked as a distribution marks its own."""
    prefix = lab.folder / "system"
    library = prefix / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}"
    (prefix / "bin").mkdir(parents=True)
    library.mkdir(parents=True)
    for entry in Path(os.__file__).parent.iterdir():
        if entry.name != "site-packages":
            (library / entry.name).symlink_to(entry)
    shutil.copytree(lab.site, library / "site-packages", symlinks=True)
    (library / "EXTERNALLY-MANAGED").write_text("[externally-managed]\nError=Use the package manager.\n")
    python = Path(shutil.copy2(Path(sys.executable).resolve(), prefix / "bin"))
    error = attempt(Lab(lab.folder, python, library / "site-packages", lab.wheels), "sd3toy")
    assert error["id"] == "deps.externally_managed"
    assert "virtual environment" in error["text"]


@linux_root
def test_read_only(lab):
    lab.install("sd3toy==1.0")
    with mounted(["--bind", str(lab.site), str(lab.site)], lab.site):
        subprocess.run(["mount", "-o", "remount,ro,bind", str(lab.site)], check=True)
        error = attempt(lab, "sd3toy >=2")
    assert error["id"] == "deps.no_permission"
    assert lab.json('print(json.dumps(states("sd3toy ==1.0")))') == {"sd3toy": "OK"}


@linux_root
def test_full_disk_leaves_nothing_half_installed(lab):
    wheel(lab.wheels, "sd3big", "1.0", size=3_000_000)
    small = lab.folder / "small"
    shutil.copytree(lab.site, small, symlinks=True)
    with mounted(["-t", "tmpfs", "-o", "size=1m", "tmpfs", str(lab.site)], lab.site):
        shutil.copytree(small, lab.site, symlinks=True, dirs_exist_ok=True)
        assert attempt(lab, "sd3big")["id"] == "deps.disk_full"
        assert not [path.name for path in lab.site.iterdir() if "sd3big" in path.name]


def test_full_disk_is_seen_before_anything_starts(lab):
    code = "import shutil\nshutil.disk_usage = lambda folder: type('Usage', (), {'free': 100_000_000})\n"
    error = lab.json(code + 'print(json.dumps(attempt("bitsandbytes >=0.48")))')
    assert error["id"] == "deps.disk_full"
    assert "172 MB" in error["text"]


def test_killed_half_way_heals(lab):
    """The installing process and its pip die while a broken package is out of the way: the next one finishes the work."""
    lab.install("sd3toy==1.0")
    (lab.site / "sd3toy/part.py").unlink()
    code = """
from sd3deploy.deps import execution
import signal, sysconfig
def die(*command):
    half = sysconfig.get_path("purelib") + "/sd3toy"
    os.makedirs(half)
    open(half + "/half.py", "w").close()
    os.kill(os.getpid(), signal.SIGKILL)
execution.run = die
go("sd3toy ==1.0")
"""
    done = lab.run(code, check=False, EXTRA=lab.offline_args)
    assert done.returncode == -signal.SIGKILL
    assert lab.json('print(json.dumps(states("sd3toy")))') == {"sd3toy": "BROKEN"}
    assert attempt(lab, "sd3toy ==1.0") == {"changed": {"sd3toy": "1.0"}}
    assert lab.run("import sd3toy.part").returncode == 0
    assert not (lab.site / "sd3toy/half.py").exists()
    assert not (lab.site.parents[2] / ".sd3deploy/quarantine").exists()


def test_killed_pip_heals(lab):
    """pip is killed in the middle of writing a package."""
    wheel(lab.wheels, "sd3big", "1.0", size=100_000_000)
    command = [lab.python, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--find-links", str(lab.wheels), "sd3big"]
    process = subprocess.Popen(command, env=clean(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert until(lambda: (lab.site / "sd3big").exists() or process.poll() is not None)
    process.kill()
    process.wait()
    wheel(lab.wheels, "sd3big", "1.0")  # smaller, for the sake of time
    assert lab.json('print(json.dumps(states("sd3big")))') == {"sd3big": "BROKEN"}
    assert attempt(lab, "sd3big") == {"changed": {"sd3big": "1.0"}}


def test_two_at_once_install_once(lab):
    code = 'print(json.dumps(attempt("sd3toy")))'
    with ThreadPoolExecutor() as pool:
        both = list(pool.map(lambda _: lab.json(code, EXTRA=lab.offline_args), range(2)))
    assert sorted(both, key=str) == [{"changed": {"sd3toy": "2.0"}}, {"changed": {}}]


def test_uv_installs_and_gives_way_to_pip(lab, monkeypatch):
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    done = lab.json(
        'outcome = go("sd3toy ==1.0", uv=True)\nprint(json.dumps([outcome.changed, outcome.output]))',
        EXTRA=lab.offline_args,
        UV_CONSTRAINT="constraints.txt",
    )
    assert done[0] == {"sd3toy": "1.0"}
    assert "sd3toy==1.0" in done[1]
    # uv does not know this option: pip is asked, as the host does.
    assert attempt(lab, "sd3toy >=2", uv=True, extra=f"{lab.offline_args} --no-warn-conflicts") == {"changed": {"sd3toy": "2.0"}}


def test_a_loaded_package_that_changed_asks_for_a_restart(lab):
    lab.install("sd3toy==1.0")
    code = """
import sd3toy
from sd3deploy.deps import mending
mending.requirements = lambda groups: needs("sd3toy >=2")
try:
    deps.ensure((), deps.Options(extra_args=os.environ["EXTRA"]))
except errors.RestartRequired as error:
    print(json.dumps([error.id, str(error)]))
"""
    id, text = lab.json(code, EXTRA=lab.offline_args)
    assert id == "deps.restart"
    assert "sd3toy 1.0 is loaded, but 2.0 is on disk now" in text


def test_a_real_package_from_the_real_index(lab):
    if not has_registry():
        pytest.skip("no package index can be reached")
    code = "print(json.dumps(list(deps.ensure((), deps.Options()))))"
    assert "sentencepiece" in lab.json(code)
    lab.run("import sentencepiece, google.protobuf")
    assert lab.json(code) == []


def tree(lab: Lab) -> dict[str, bytes]:
    """Every file of the toy in the site folder, and the empty folders."""
    own = [path for path in lab.site.rglob("*") if "d3toy" in str(path.relative_to(lab.site)) and "__pycache__" not in path.parts]
    return {str(path.relative_to(lab.site)): path.read_bytes() if path.is_file() else b"" for path in own}


class mounted:
    """A file system mounted for the length of a block."""

    def __init__(self, arguments, where):
        self.arguments, self.where = arguments, where

    def __enter__(self):
        if subprocess.run(["mount", *self.arguments], capture_output=True).returncode:
            pytest.skip("mounting is not permitted here")

    def __exit__(self, *_):
        subprocess.run(["umount", str(self.where)], check=True)
