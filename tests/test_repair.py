"""NumPy in halves, made on purpose with real NumPys: seen, mended to the version that the host pins, importable again."""

import io
import json
import shutil
import subprocess
import sys
import zipfile

import pytest

from tests.deps_lab import bare, clean, has_registry, overlay

PIN, OTHER = "2.1.2", "1.26.4"
BROADCAST = "import numpy.ma, numpy.random; numpy.broadcast_to(1, 3); print(numpy.__version__)"

pytestmark = pytest.mark.skipif(sys.version_info >= (3, 13), reason=f"NumPy {OTHER} has no wheel for this Python")


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    """A lab, and beside it one folder for each NumPy. The host pins 2.1.2."""
    if not has_registry():
        pytest.skip("no package index can be reached")
    lab = bare(tmp_path_factory.mktemp("numpy"))
    for version in (PIN, OTHER):
        subprocess.run(
            [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary", ":all:", "-d", lab.wheels, f"numpy=={version}"],
            check=True,
            env=clean(),
            capture_output=True,
        )
        (wheel,) = lab.wheels.glob(f"numpy-{version}-*.whl")
        slim(wheel)
        shutil.unpack_archive(wheel, lab.folder / version, "zip")
    (lab.folder / "constraints.txt").write_text(f"fastapi==0.124.4\nnumpy=={PIN}  # the host's\n")
    return lab


def slim(wheel):
    """The same NumPy without its tests and headers, uncompressed: half the files, for the sake of time."""
    packed = zipfile.ZipFile(io.BytesIO(wheel.read_bytes()))
    kept = [name for name in packed.namelist() if "/tests/" not in name and not name.endswith((".pyi", ".a", ".h", ".f", ".f90"))]
    with zipfile.ZipFile(wheel, "w") as out:
        for name in kept:
            data = packed.read(name)
            if name.endswith("/RECORD"):
                data = b"\n".join(row for row in data.splitlines() if row.split(b",")[0].decode() in kept) + b"\n"
            out.writestr(name, data)


@pytest.fixture
def lab(pristine):
    """NumPy 2.1.2 as pip installs it; what a test does to it is undone by the next."""
    for entry in pristine.site.iterdir():
        if "umpy" in entry.name:
            shutil.rmtree(entry)
    shutil.rmtree(pristine.site.parents[2] / ".sd3deploy", ignore_errors=True)
    overlay(pristine.folder / PIN, pristine.site, *names(pristine, PIN))
    return pristine


def names(lab, version):
    return [entry.name for entry in (lab.folder / version).iterdir()]


def swap(lab, version):
    """Another NumPy on disk, cleanly."""
    for entry in list(lab.site.glob("numpy*")):
        shutil.rmtree(entry)
    overlay(lab.folder / version, lab.site, *names(lab, version))


DIAGNOSE = "\nstatus = deps.diagnose_numpy()\nprint(json.dumps([status.state.name, sorted(kind.name.lower() for kind in status.damages)]))"
REPAIR = """
from pathlib import Path
options = deps.Options(extra_args=os.environ["EXTRA"], host_root=Path("."))
print(json.dumps(deps.repair("numpy", Path("."), options).changed))
"""


def _ignore_installed(lab):
    """pip install --ignore-installed: 2.1.2 over 1.26.4, both descriptions there."""
    swap(lab, OTHER)
    overlay(lab.folder / PIN, lab.site, *names(lab, PIN))


def _ignore_installed_downwards(lab):
    overlay(lab.folder / OTHER, lab.site, *names(lab, OTHER))


def _cleanup_then_install(lab):
    """A description without RECORD was deleted by a clean-up; the next install found nothing to remove."""
    _ignore_installed(lab)
    shutil.rmtree(lab.site / f"numpy-{OTHER}.dist-info")


def _no_record(lab):
    (lab.site / f"numpy-{PIN}.dist-info/RECORD").unlink()


def _killed_pip(lab):
    """The old one renamed, a part of the new one written, its description not yet."""
    swap(lab, OTHER)
    (lab.site / "numpy").rename(lab.site / "~umpy")
    (lab.site / f"numpy-{OTHER}.dist-info").rename(lab.site / f"~umpy-{OTHER}.dist-info")
    (lab.site / "numpy.libs").rename(lab.site / "~umpy.libs")
    (lab.site / "numpy").mkdir()
    overlay(lab.folder / PIN / "numpy", lab.site / "numpy", "lib")


def _killed_uv(lab):
    """An orphan folder and nothing that describes it."""
    shutil.rmtree(lab.site / f"numpy-{PIN}.dist-info")
    shutil.rmtree(lab.site / "numpy/_core")


def _killed_uv_later(lab):
    """A description without RECORD and METADATA: importlib.metadata says that the version is None."""
    for file in ("RECORD", "METADATA"):
        (lab.site / f"numpy-{PIN}.dist-info" / file).unlink()


def _full_disk(lab):
    for file in list((lab.site / "numpy").rglob("*.so"))[:3]:
        file.unlink()


@pytest.mark.parametrize(
    ("harm", "seen"),
    [
        (_ignore_installed, "duplicate"),
        (_ignore_installed_downwards, "duplicate"),
        (_cleanup_then_install, "orphans"),
        (_no_record, "no_record"),
        (_killed_pip, "residue"),
        (_killed_uv, "unowned"),
        (_killed_uv_later, "no_metadata"),
        (_full_disk, "missing_files"),
    ],
)
def test_halves_on_disk(lab, harm, seen):
    harm(lab)
    before, repaired, after = map(json.loads, lab.run(DIAGNOSE + REPAIR + DIAGNOSE, EXTRA=lab.offline_args).stdout.splitlines())
    assert before[0] == "BROKEN"
    assert seen in before[1]
    assert repaired == {"numpy": PIN}
    assert after == ["OK", []]
    assert lab.run(BROADCAST).stdout.strip() == PIN
    assert not [entry.name for entry in lab.site.iterdir() if entry.name.startswith("~")]
    assert not (lab.site.parents[2] / ".sd3deploy/quarantine").exists()


@pytest.mark.parametrize("harm", [_killed_pip, _killed_uv, _full_disk])
def test_the_halves_were_really_broken(lab, harm):
    """Otherwise the test above would prove nothing. (One NumPy over another imports, and fails later in what was compiled for it.)"""
    harm(lab)
    assert lab.run(BROADCAST, check=False).returncode != 0


def test_healthy_is_left_alone(lab):
    """Nor is it imported: that would take its time at every start of the host."""
    code = 'state = deps.diagnose_numpy().state.name\nprint(json.dumps([state, "numpy" in sys.modules]))'
    assert lab.json(code) == ["OK", False]
    assert lab.json(REPAIR, EXTRA="--no-index") == {}


def test_leftovers_of_pip_beside_a_healthy_one_need_no_pip(lab):
    (lab.site / "~umpy.libs").mkdir()
    assert lab.json(DIAGNOSE) == ["BROKEN", ["residue"]]
    assert lab.json("import subprocess\nsubprocess.Popen = None\n" + REPAIR, EXTRA="--no-index") == {}
    assert lab.json(DIAGNOSE) == ["OK", []]


def test_without_its_wheel_everything_is_put_back(lab):
    _killed_pip(lab)
    before = sorted(str(path.relative_to(lab.site)) for path in lab.site.rglob("*umpy*"))
    code = REPAIR.replace("print(", "try:\n    print(").rstrip() + "\nexcept errors.DependencyError as error: print(json.dumps(error.id))"
    assert lab.json(code, EXTRA=f"--no-index --find-links {lab.folder / 'nothing'}") == "deps.no_wheel"
    assert sorted(str(path.relative_to(lab.site)) for path in lab.site.rglob("*umpy*")) == before


def test_killed_while_it_is_out_of_the_way(lab):
    """The repair itself is killed: NumPy is gone from its place, and the next look knows why."""
    _no_record(lab)
    kill = "from sd3deploy.deps import execution\nexecution.run = lambda *a: os.kill(os.getpid(), 9)\n"
    assert lab.run(kill + REPAIR, check=False, EXTRA=lab.offline_args).returncode == -9
    assert not (lab.site / "numpy").exists()
    assert lab.json(DIAGNOSE) == ["BROKEN", ["interrupted"]]
    assert lab.json(REPAIR, EXTRA=lab.offline_args) == {"numpy": PIN}
    assert lab.run(BROADCAST).stdout.strip() == PIN


def test_halves_in_this_process(lab):
    """2.1.2 is loaded, 1.26.4 is put on disk, something is imported late: the error that people report. A restart is asked for."""
    code = f"""
import shutil, numpy
from pathlib import Path
site = Path({str(lab.site)!r})
for name in site.glob("numpy*"): shutil.rmtree(name)
for part in Path({OTHER!r}).iterdir(): shutil.copytree(part, site / part.name, copy_function=os.link)
late = ""
try:
    import numpy.ma
except ImportError as error:
    late = str(error)
status = deps.diagnose_numpy()
options = deps.Options(extra_args=os.environ["EXTRA"], host_root=Path("."))
try:
    deps.repair("numpy", Path("."), options)
except errors.RestartRequired as error:
    print(json.dumps([late, status.state.name, status.loaded, status.installed, error.id, str(error)]))
"""
    late, state, loaded, installed, id, text = lab.json(code, EXTRA=lab.offline_args)
    assert "broadcast_to" in late
    assert (state, loaded, installed) == ("STALE", PIN, OTHER)
    assert id == "repair.restart"
    assert PIN in text
    assert OTHER in text
    assert "Restart the server" in text
    assert lab.run(BROADCAST).stdout.strip() == PIN  # a new process is well again


def test_loaded_and_changed_but_as_the_host_wants_it(lab):
    """1.26.4 loaded, 2.1.2 on disk is the pin: nothing to install, only to restart."""
    swap(lab, OTHER)
    code = f"""
import shutil, numpy
from pathlib import Path
site = Path({str(lab.site)!r})
for name in site.glob("numpy*"): shutil.rmtree(name)
for part in Path({PIN!r}).iterdir(): shutil.copytree(part, site / part.name, copy_function=os.link)
try:
    deps.repair("numpy", Path("."), deps.Options(extra_args="--no-index"))
except errors.RestartRequired as error:
    print(json.dumps([error.id, str(error)]))
"""
    id, text = lab.json(code)
    assert id == "deps.restart"
    assert f"numpy {OTHER} is loaded, but {PIN} is on disk now" in text


def test_only_what_is_the_hosts_or_ours(lab):
    code = 'try: deps.repair("requests")\nexcept errors.DependencyError as error: print(json.dumps(error.id))'
    assert lab.json(code) == "repair.not_ours"


def test_without_a_pin(lab):
    """The only version that its description names; with two, nobody knows."""
    _no_record(lab)
    free = REPAIR.replace('Path(".")', "None")
    assert lab.json(free, EXTRA=lab.offline_args) == {"numpy": PIN}
    _ignore_installed(lab)
    code = "try:" + free.replace("\n", "\n    ") + "\nexcept errors.DependencyError as error: print(json.dumps(error.id))"
    assert lab.json(code, EXTRA=lab.offline_args) == "repair.no_version"
