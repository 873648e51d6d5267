"""Six states, judged from facts and seen in real environments."""

from pathlib import Path

import psutil
import pytest

from sd3deploy.deps.damage import Damage
from sd3deploy.deps.requirement import Requirement
from sd3deploy.deps.status import Facts, State, judge
from sd3deploy.vendored import same_version
from tests.deps_lab import bare

NEED = Requirement("toy", ">=1.5,<3")


@pytest.mark.parametrize(
    ("installed", "loaded", "damages", "state"),
    [
        ("2.0", None, (), State.OK),
        ("2.0", "2.0", (), State.OK),
        ("2.0", "2.0+cpu", (), State.OK),
        ("2.0rc1", None, (), State.OK),
        ("not a version", None, (), State.OK),  # a development build that we can not judge is left alone
        (None, None, (), State.MISSING),
        (None, "2.0", (), State.MISSING),
        ("1.4", None, (), State.TOO_OLD),
        ("1.4", "2.0", (), State.TOO_OLD),  # has to be changed anyway
        ("3.0", None, (), State.TOO_NEW),
        ("2.1", "2.0", (), State.STALE),
        ("2.0", None, ((Damage.NO_RECORD, "toy-2.0.dist-info"),), State.BROKEN),
        ("2.1", "2.0", ((Damage.ORPHANS, "toy/a.py"),), State.BROKEN),  # the files first, then the restart
        (None, None, ((Damage.UNOWNED, "toy"),), State.BROKEN),
    ],
)
def test_judgement(installed, loaded, damages, state):
    status = judge(NEED, Facts(installed, loaded, damages))
    assert status.state is state
    assert bool(status.detail) == (state is not State.OK)


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [("2.1.0", "2.1", True), ("2.4+cu121", "2.4", True), ("2.4+cu121", "2.4+cpu", False), ("2.4", "2.5", False), ("git", "git", True)],
)
def test_equal_versions(one, other, equal):
    assert same_version(one, other) is equal


def test_only_leftovers_of_pip_need_no_install():
    assert judge(NEED, Facts("2.0", None, ((Damage.RESIDUE, "~oy"),))).only_residue
    assert not judge(NEED, Facts(None, None, ((Damage.RESIDUE, "~oy"),))).only_residue


def test_states_of_a_real_environment(tmp_path):
    lab = bare(tmp_path)
    lab.toy("1.0")
    lab.install("sd3toy==1.0")
    seen = lab.json('print(json.dumps([states(f"sd3toy {spec}") for spec in ("", ">=2", "<1", "==1.0")] + [states("sd3absent")]))')
    assert [next(iter(one.values())) for one in seen] == ["OK", "TOO_OLD", "TOO_NEW", "OK", "MISSING"]


def test_loaded_is_not_what_is_on_disk(tmp_path):
    lab = bare(tmp_path)
    lab.toy("1.0", "2.0")
    lab.install("sd3toy==1.0")
    code = """
import subprocess, sd3toy
subprocess.run([sys.executable, "-m", "pip", "install", "-q", *os.environ["EXTRA"].split(), "sd3toy==2.0"], check=True)
status = deps.check(needs("sd3toy"))[0]
print(json.dumps([status.state.name, status.loaded, status.installed, status.detail]))
"""
    state, loaded, installed, detail = lab.json(code, EXTRA=lab.offline_args)
    assert (state, loaded, installed) == ("STALE", "1.0", "2.0")
    assert detail == "sd3toy 1.0 is loaded, but 2.0 is on disk."


def test_a_module_that_calls_itself_by_another_version_than_its_metadata_is_no_reason_for_a_restart(tmp_path):
    lab = bare(tmp_path)
    lab.toy("1.0")
    lab.install("sd3toy==1.0")
    code = f"""
import sd3toy
sys.path.append({str(Path(psutil.__file__).parents[1])!r})  # the host ships psutil; without it nobody knows when a process began
sd3toy.__version__ = "0.9.dev0"  # as an editable install has it
status = deps.check(needs("sd3toy"))[0]
print(json.dumps([status.state.name, status.installed, status.detail]))
"""
    assert lab.json(code) == ["OK", "1.0", ""]
