"""Who owns a file is answered by the RECORDs of all distributions: in real site folders, filled by the real pip."""

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sd3deploy import installed
from sd3deploy.deps.belongings import belongings
from sd3deploy.deps.damage import damage
from sd3deploy.deps.quarantine import Quarantine
from tests.deps_lab import bare, wheel


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A lab with wheels that share modules as the real ones do."""
    lab = bare(tmp_path_factory.mktemp("owners"))
    wheel(lab.wheels, "triton", "3.2.0")
    for name, version, package in (
        ("triton-windows", "3.2.0.post13", "triton"),
        ("pytorch-triton-rocm", "3.2.0", "triton"),
        ("pytorch-triton-xpu", "3.2.0", "triton"),
        ("pillow", "12.2.0", "PIL"),
        ("pillow-simd", "9.5.0.post2", "PIL"),
        ("opencv-python", "4.13.0.92", "cv2"),
        ("opencv-python-headless", "4.12.0.88", "cv2"),
        ("onnxruntime", "1.22.0", "onnxruntime"),
        ("onnxruntime-gpu", "1.21.0", "onnxruntime"),
        ("bitsandbytes-windows", "0.37.5", "bitsandbytes"),
    ):
        wheel(lab.wheels, name, version, package=package)
    wheel(lab.wheels, "sd3toy", "1.0", files=("tests/test_toy.py", "tests/__init__.py"))
    wheel(lab.wheels, "stranger", "1.0", files=("tests/test_stranger.py", "tests/__init__.py"))
    wheel(lab.wheels, "plugin", "1.0", files=("sd3toy/plugin.py",))
    return lab


@pytest.fixture
def lab(made):
    for entry in made.site.iterdir():
        if not entry.is_symlink():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    shutil.rmtree(made.site.parents[2] / ".sd3deploy", ignore_errors=True)
    return made


STATES = """
def of(*lines):
    found = deps.check(needs(*lines))
    return [[one.state.name, one.installed, one.brought, list(one.owners), deps.plan([one], deps.Options()).empty] for one in found]
"""
REPAIR = """
from pathlib import Path
def repaired(name):
    try:
        return deps.repair(name, None, deps.Options(extra_args=os.environ["EXTRA"])).changed
    except errors.DependencyError as error:
        return [error.id, str(error)]
"""


def tree(lab):
    """Everything in the site folder that is not linked, with what is in it."""
    own = [path for entry in lab.site.iterdir() if not entry.is_symlink() for path in [entry, *entry.rglob("*")]]
    return {str(path.relative_to(lab.site)): path.read_bytes() for path in own if path.is_file() and "__pycache__" not in path.parts}


@pytest.mark.parametrize(
    ("name", "by", "version"),
    [
        ("triton", "triton-windows", "3.2.0.post13"),
        ("triton", "pytorch-triton-rocm", "3.2.0"),
        ("triton", "pytorch-triton-xpu", "3.2.0"),
        ("Pillow", "pillow-simd", "9.5.0.post2"),
        ("onnxruntime", "onnxruntime-gpu", "1.21.0"),
        ("opencv-python", "opencv-python-headless", "4.12.0.88"),
    ],
)
def test_a_module_that_another_distribution_brings_is_healthy(lab, name, by, version):
    lab.install(by)
    before = tree(lab)
    brought = by.replace("-", "_")
    code = f"print(json.dumps([of({name!r}), repaired({name!r}) if {name in ('triton', 'Pillow')} else {{}}]))"
    assert lab.json(STATES + REPAIR + code, EXTRA=lab.offline_args) == [[["OK", version, brought, [], True]], {}]
    assert tree(lab) == before


def test_also_while_it_is_loaded_and_calls_itself_otherwise(lab):
    """triton-windows 3.2.0.post13 says that it is 3.2.0: no restart is asked for."""
    lab.install("triton-windows")
    (lab.site / "triton/__init__.py").write_text('__version__ = "3.2.0"\n')
    assert lab.json(STATES + 'import triton\nprint(json.dumps(of("triton")[0][0]))') == "OK"


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("opencv-python", "opencv-python-headless"),
        ("opencv-python-headless", "opencv-python"),
        ("onnxruntime", "onnxruntime-gpu"),
        ("onnxruntime-gpu", "onnxruntime"),
        ("pillow", "pillow-simd"),
        ("triton", "pytorch-triton-rocm"),
    ],
)
def test_two_that_own_the_same_folder_are_both_healthy(lab, first, second):
    """The second lies over the first, in another version, with other files."""
    lab.install(first)
    lab.install(second)
    assert lab.json(f"print(json.dumps(states({first!r}, {second!r})))") == {first: "OK", second: "OK"}
    code = """
from sd3deploy.diagnosis.installed import read_installed
found = read_installed()
print(json.dumps([list(who) for module, who in found.modules.items() if len(who) > 1]))
"""
    assert lab.json(code) == [[second.replace("-", "_"), first.replace("-", "_")]]  # the one whose files lie there is first


def test_without_the_other_the_same_is_damage(lab):
    """Otherwise the test above would prove nothing."""
    lab.install("opencv-python")
    lab.install("opencv-python-headless")
    shutil.rmtree(next(lab.site.glob("opencv_python_headless-*.dist-info")))
    assert lab.json('print(json.dumps(states("opencv-python")))') == {"opencv-python": "BROKEN"}


def test_what_is_broken_in_a_shared_folder_is_left_alone_with_the_one_thing_to_do(lab):
    lab.install("triton")
    lab.install("pytorch-triton-rocm")
    (lab.site / "triton/part.py").unlink()
    before = tree(lab)
    state, (id, text) = lab.json(STATES + REPAIR + 'print(json.dumps([of("triton")[0], repaired("triton")]))', EXTRA=lab.offline_args)
    assert state == ["BROKEN", "3.2.0", "", ["pytorch_triton_rocm"], False]
    assert id == "deps.shared"
    assert "pip uninstall -y pytorch_triton_rocm triton" in text
    assert tree(lab) == before


def test_a_fork_that_is_too_old_is_not_installed_over(lab):
    """bitsandbytes-windows 0.37 brings a module that is too old: pip would mix the two."""
    lab.install("bitsandbytes-windows")
    wheel(lab.wheels, "bitsandbytes", "0.50.2")
    before = tree(lab)
    code = 'print(json.dumps([of("bitsandbytes >=0.48")[0][:4], attempt("bitsandbytes >=0.48")]))'
    state, refused = lab.json(STATES + code, EXTRA=lab.offline_args)
    assert state == ["TOO_OLD", "0.37.5", "bitsandbytes_windows", ["bitsandbytes_windows"]]
    assert refused["id"] == "deps.shared"
    assert "pip uninstall -y bitsandbytes_windows." in refused["text"]
    assert tree(lab) == before


def test_files_that_others_put_into_a_folder_of_habit_stay(lab):
    """Two distributions with a top-level `tests`: one is repaired, the other keeps its files."""
    lab.install("sd3toy", "stranger")
    (lab.site / "sd3toy/part.py").unlink()
    theirs = lab.site / "tests/test_stranger.py"
    inside = """
from sd3deploy.deps.quarantine import Quarantine
with Quarantine("sd3toy"):
    print(json.dumps([os.path.exists(one) for one in {}]))
"""
    paths = [str(theirs), str(lab.site / "tests/__init__.py"), str(lab.site / "tests/test_toy.py"), str(lab.site / "sd3toy")]
    assert lab.json(inside.format(paths)) == [True, True, False, False]
    lab.install("--force-reinstall", "sd3toy==1.0")
    (lab.site / "sd3toy/part.py").unlink()
    assert lab.json('print(json.dumps(attempt("sd3toy ==1.0")))', EXTRA=lab.offline_args) == {"changed": {"sd3toy": "1.0"}}
    assert theirs.exists()
    assert lab.json('print(json.dumps(states("sd3toy", "stranger")))') == {"sd3toy": "OK", "stranger": "OK"}


def test_who_has_only_added_a_file_does_not_bring_the_module(lab):
    """The description of a package is gone, and a plug-in has a file in its folder: broken, but not to be repaired over the plug-in."""
    lab.install("sd3toy", "plugin")
    assert lab.json('print(json.dumps(states("sd3toy")))') == {"sd3toy": "OK"}
    shutil.rmtree(lab.site / "sd3toy-1.0.dist-info")
    before = tree(lab)
    state, refused = lab.json(STATES + 'print(json.dumps([of("sd3toy")[0][:4], attempt("sd3toy")]))', EXTRA=lab.offline_args)
    assert state == ["BROKEN", None, "", ["plugin"]]
    assert refused["id"] == "deps.shared"
    assert tree(lab) == before


def test_without_a_record_the_list_of_setuptools_tells(lab):
    lab.install("triton-windows")
    (info,) = lab.site.glob("triton_windows-*.dist-info")
    (info / "RECORD").unlink()
    (info / "top_level.txt").write_text("triton\n")
    assert lab.json(STATES + 'print(json.dumps(of("triton")[0][:3]))') == ["OK", "3.2.0.post13", "triton_windows"]


def test_what_was_put_there_after_a_killed_repair_stays(lab):
    """A repair of triton was killed; somebody installs triton-windows; the next repair does not put the old files over it."""
    lab.install("triton")
    (lab.site / "triton/part.py").unlink()
    code = 'from sd3deploy.deps import execution\nexecution.run = lambda *a: os.kill(os.getpid(), 9)\ngo("triton ==3.2.0")'
    assert lab.run(code, check=False, EXTRA=lab.offline_args).returncode == -9
    lab.install("triton-windows")
    before = tree(lab)
    assert lab.json('print(json.dumps(attempt("triton ==3.2.0")))', EXTRA=lab.offline_args)["id"] == "deps.shared"
    after = tree(lab)
    assert {file: after[file] for file in before} == before
    lab.run('import triton.part\nassert triton.part.BY == "triton-windows"')


def test_one_that_can_not_be_repaired_does_not_stop_the_others(lab):
    """Host packages, core and group, as install.py, doctor --fix and the page do it."""
    lab.install("triton", "pillow")
    lab.install("pytorch-triton-rocm")
    (lab.site / "triton/part.py").unlink()
    (lab.site / "PIL/part.py").unlink()
    wheel(lab.wheels, "accelerate", "9.0")
    code = """
from sd3deploy.deps import mending
mending.requirements = lambda groups: needs("nowhere-to-be-had", "accelerate >=1.1")
changed = {}
failures = deps.mend(["triton", "Pillow"], (), deps.Options(extra_args=os.environ["EXTRA"]), changed=changed)
print(json.dumps([changed, [[list(one.names), one.error.id] for one in failures]]))
"""
    changed, failures = lab.json(code, EXTRA=lab.offline_args)
    assert changed == {"Pillow": "12.2.0"}
    assert failures == [[["triton"], "deps.shared"], [["nowhere-to-be-had", "accelerate"], "deps.no_wheel"]]


def test_a_checkout_on_the_path_is_seen_by_its_description(lab):
    """setuptools' `develop`: an egg-info without a version in its name, beside the sources."""
    source = lab.folder / "checkout"
    (source / "sd3dev.egg-info").mkdir(parents=True, exist_ok=True)
    (source / "sd3dev.egg-info/PKG-INFO").write_text("Metadata-Version: 2.1\nName: sd3dev\nVersion: 3.1.dev0\nRequires: no\n\nText.\n")
    (source / "sd3dev").mkdir(exist_ok=True)
    (source / "sd3dev/__init__.py").write_text("")
    code = f"sys.path.append({str(source)!r})\nprint(json.dumps([versions()['sd3dev'], states('sd3dev >=3')]))"
    assert lab.json(code) == ["3.1.dev0", {"sd3dev": "OK"}]


def test_a_description_that_vanishes_meanwhile_is_not_there(monkeypatch, tmp_path):
    (tmp_path / "gone-1.0.dist-info").symlink_to(tmp_path / "nowhere")
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    assert installed.snapshot() == {}


def test_what_the_host_pins(tmp_path):
    (tmp_path / "requirements.txt").write_text(
        '--index-url https://example.invalid\nnumpy==1.26.4\nPillow==12.2.0 ; python_version < "3"\n'
        "torch>=2\nfast_api[all]==0.124.4  # why\n"
    )
    (tmp_path / "constraints.txt").write_text("numpy==2.1.2\nscipy==1.*\n")
    assert installed.pins(tmp_path) == {"numpy": "2.1.2", "fast-api": "0.124.4"}
    assert installed.pins(None) == {}


# Random environments

NAMES = ("alpha", "beta", "gamma")
FILES = (
    "one/__init__.py",
    "one/a.py",
    "one/deep/b.py",
    "two/__init__.py",
    "two/c.py",
    "tests/__init__.py",
    "tests/t.py",
    "lone.py",
    "x.libs/y.so",
)


@st.composite
def environments(draw):
    """Name → the files that its RECORD lists. Whoever comes later lies over the others."""
    return {name: draw(st.sets(st.sampled_from((*FILES, f"{name}/__init__.py", f"{name}/z.py")), min_size=1)) for name in NAMES}


def build(folder: Path, listed: dict[str, set[str]]) -> Path:
    site = folder / "site-packages"
    shutil.rmtree(folder, ignore_errors=True)
    site.mkdir(parents=True)
    for name, files in listed.items():
        for file in files:
            (site / file).parent.mkdir(parents=True, exist_ok=True)
            (site / file).write_text(f"{name} {file}" * (5 + list(listed).index(name)))  # no two are of one size
        info = site / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Name: {name}\nVersion: 1.0\n\n")
        (info / "RECORD").write_text("".join(f"{file},,{(site / file).stat().st_size}\n" for file in sorted(files)))
    return site


def contents(site: Path) -> dict[str, str]:
    return {path.relative_to(site).as_posix(): path.read_text() for path in site.rglob("*") if path.is_file()}


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(listed=environments(), name=st.sampled_from(NAMES))
def test_ownership_in_any_environment(tmp_path, monkeypatch, listed, name):
    site = build(tmp_path / "any", listed)
    monkeypatch.setattr("sys.path", [str(site)])
    monkeypatch.setattr("sd3deploy.deps.quarantine.workspace", lambda: tmp_path / "any/work")
    others = {file for other, files in listed.items() if other != name for file in files}
    before = contents(site)

    for one in NAMES:  # whoever lies over whom, nobody is broken
        assert damage(one, belongings(one)) == ()

    own = belongings(name)
    moved = {path.relative_to(site).as_posix() for path in own.all()}
    covered = {file for file in before for top in moved if file == top or file.startswith(f"{top}/")}
    assert not covered & others
    assert listed[name] - others <= covered
    shared = {file for file in listed[name] & others if not file.startswith("tests/")}
    if shared & {"one/__init__.py", "two/__init__.py"}:
        assert own.owners

    quarantine = Quarantine(name)
    quarantine.__enter__()
    assert before.keys() - contents(site).keys() == covered
    quarantine.__exit__(KeyError, KeyError(), None)
    assert contents(site) == before  # put back, whole

    with Quarantine(name):
        pass
    after = contents(site)
    assert {file: after.get(file) for file in others} == {file: before[file] for file in others}
    assert not (listed[name] - others) & after.keys()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(listed=environments())
def test_owners_are_those_whose_record_says_so(tmp_path, monkeypatch, listed):
    site = build(tmp_path / "any", listed)
    monkeypatch.setattr("sys.path", [str(site)])
    found = installed.owners(site, ["one", "lone.py"])
    for file in FILES:
        wanted = {name for name, files in listed.items() if file in files} if file.startswith("one/") or file == "lone.py" else set()
        assert {one.name for one in found.get(file, ())} == wanted
    for module, who in installed.modules().items():
        root = module.replace(".", "/")
        real = [name for name in NAMES if {f"{root}/__init__.py", f"{root}.py"} & listed[name]]
        assert {one.name for one in who} == set(real)
        if len(real) > 1:
            assert who[0].name == real[-1]  # the last one installed


def test_plain_values_for_a_diagnosis(lab):
    """What another distribution brings contradicts nobody, and is named."""
    lab.install("triton-windows", "pillow-simd")
    wheel(lab.wheels, "needy", "1.0", needs=("triton==3.3.0", "pillow>=11"))
    lab.install("needy")
    code = """
from sd3deploy.diagnosis.installed import read_installed
found = read_installed()
print(json.dumps([found.version("triton"), found.in_place_of("Pillow"), found.brings("PIL.Image"), found.brings("triton.language"),
                  len(found.clashes(frozenset({"needy", "triton", "pillow"}))), found.in_place_of("torch")]))
"""
    assert json.loads(lab.run(code).stdout) == ["3.2.0.post13", "pillow_simd", "pillow_simd", "triton_windows", 0, ""]
