"""A plan is data: what would change, by which command, held by which constraints, and how that reads."""

import json
import sys
from dataclasses import replace

import pytest

from sd3deploy.deps import Options, Requirement, State, mending, plan
from sd3deploy.deps.damage import Damage
from sd3deploy.deps.status import Facts, Status, judge
from sd3deploy.errors import DependencyError

INSTALLED = {"torch": "2.13.0+cpu", "numpy": "2.1.2", "oddity": "git", "bitsandbytes": "0.43.3"}


def statuses(**facts):
    need = {"accelerate": ">=1.1", "bitsandbytes": ">=0.48", "sentencepiece": ">=0.2"}
    return [judge(Requirement(name, need[name]), fact) for name, fact in facts.items()]


def test_nothing_to_do_is_an_empty_plan():
    healthy = plan(statuses(accelerate=Facts("1.2", None)), Options(), INSTALLED)
    assert healthy.empty
    assert not healthy.command
    assert healthy.describe() == "Everything that is needed is installed."


def test_one_call_for_everything():
    broken = Facts("0.2.1", None, ((Damage.ORPHANS, "sentencepiece/x.py"),))
    todo = plan(statuses(accelerate=Facts(None, None), bitsandbytes=Facts("0.43.3", None), sentencepiece=broken), Options(), INSTALLED)
    assert todo.command[:4] == (sys.executable, "-m", "pip", "install")
    assert todo.command[-3:] == ("accelerate>=1.1", "bitsandbytes>=0.48", "sentencepiece==0.2.1")  # mended in its own version
    assert {"--no-deps", "--only-binary", "-c"} <= set(todo.command)
    assert [change.replace for change in todo.changes] == [True, False, True]
    assert todo.download == 394_295 + 43_139_553 + 1_713_961


def test_constraints_are_all_that_is_installed_and_stays():
    todo = plan(statuses(bitsandbytes=Facts("0.43.3", None)), Options(), INSTALLED)
    assert todo.constraints == ("numpy==2.1.2", "torch==2.13.0+cpu")


def test_preview_names_sizes_and_the_exact_command():
    todo = plan(statuses(accelerate=Facts(None, None), bitsandbytes=Facts("0.43.3", None)), Options(), INSTALLED)
    first, second, command = todo.describe().splitlines()
    assert first == "Install accelerate >=1.1 (0.4 MB)"
    assert second == "Change bitsandbytes from 0.43.3 to >=0.48 (43.1 MB)"
    assert "'accelerate>=1.1' 'bitsandbytes>=0.48'" in command


def test_stale_is_nothing_that_pip_could_help():
    todo = plan(statuses(accelerate=Facts("1.2", "1.1")), Options(), INSTALLED)
    assert todo.empty
    assert [one.name for one in todo.stale] == ["accelerate"]


def test_leftovers_alone_are_deleted_without_pip():
    todo = plan(statuses(accelerate=Facts("1.2", None, ((Damage.RESIDUE, "~ccelerate"),))), Options(), INSTALLED)
    assert (todo.sweep, todo.changes, todo.command) == (("accelerate",), (), ())
    assert not todo.empty


def test_the_hosts_extra_arguments_are_kept_as_words():
    todo = plan(statuses(accelerate=Facts(None, None)), Options(extra_args='--find-links "/my wheels" --no-index'), {})
    assert todo.command[-4:] == ("--find-links", "/my wheels", "--no-index", "accelerate>=1.1")


@pytest.mark.parametrize(
    ("text", "windows", "words"),
    [
        (r'--find-links "C:\my wheels" --no-index', True, ("--find-links", r"C:\my wheels", "--no-index")),
        (r"--find-links C:\Users\O'Brien\wheels", True, ("--find-links", r"C:\Users\O'Brien\wheels")),
        (r'--find-links="C:\new folder\" -i https://x/#a', True, ("--find-links=C:\\new folder\\", "-i", "https://x/#a")),
        (r"--find-links \\server\share\wheels", True, ("--find-links", r"\\server\share\wheels")),
        (r"--find-links '/my wheels' /a\ b", False, ("--find-links", "/my wheels", "/a b")),
        ('--find-links "/it\'s here" #no', False, ("--find-links", "/it's here", "#no")),
        ("", True, ()),
        ("", False, ()),
    ],
)
def test_extra_arguments_are_split_as_the_shell_of_the_system_does(text, windows, words, monkeypatch):
    monkeypatch.setattr("sd3deploy.deps.options._WINDOWS", windows)
    assert Options(extra_args=text).extra == words


@pytest.mark.parametrize("windows", [True, False])
def test_a_quote_that_is_not_closed_is_a_sentence(windows, monkeypatch):
    monkeypatch.setattr("sd3deploy.deps.options._WINDOWS", windows)
    with pytest.raises(DependencyError) as caught:
        plan(statuses(accelerate=Facts(None, None)), Options(extra_args='--find-links "/my wheels'), {})
    assert caught.value.id == "deps.extra_args"
    assert "Close every quote" in str(caught.value)


def test_what_others_own_is_blocked_and_named():
    alone = replace(statuses(accelerate=Facts("1.2", None, ((Damage.ORPHANS, "x.py"),)))[0], owners=("fork",))
    todo = plan([alone, *statuses(sentencepiece=Facts(None, None))], Options(), INSTALLED)
    assert [one.name for one in todo.blocked] == ["accelerate"]
    assert [one.name for one in todo.changes] == ["sentencepiece"]
    assert todo.command[-1] == "sentencepiece>=0.2"
    assert "Leave accelerate alone: its files belong to fork too" in todo.describe()
    interrupted = replace(alone, damages=frozenset({Damage.INTERRUPTED}))
    assert not plan([interrupted], Options(), INSTALLED).blocked  # what a killed repair has left is put back first


def test_uv_where_the_host_uses_it(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name, path=None: None if path else f"/somewhere/{name}")
    todo = plan(statuses(accelerate=Facts(None, None)), Options(uv=True), {})
    assert todo.command[:5] == ("/somewhere/uv", "pip", "install", "--python", sys.executable)
    assert "--no-deps" in todo.command
    assert "--retries" not in todo.command  # uv has no such option
    monkeypatch.setattr("shutil.which", lambda name, path=None: None)
    assert plan(statuses(accelerate=Facts(None, None)), Options(uv=True), {}).command[1:3] == ("-m", "pip")


@pytest.mark.parametrize(
    ("argv", "environ", "expected"),
    [
        ([], {}, Options()),
        (["--uv"], {}, Options(uv=True)),
        ([], {"SD_UV": "true", "PIP_EXTRA_ARGS": " --user "}, Options(uv=True, extra_args="--user")),
        ([], {"SD3_NO_INSTALL": "1"}, Options(refusal="deps.not_allowed")),
        ([], {"SD_SKIPREQUIREMENTS": "True"}, Options(refusal="deps.not_allowed")),
        ([], {"SD_SKIPALL": "false", "SD3_NO_INSTALL": "0"}, Options()),
        (["--sd3-no-install"], {}, Options(refusal="deps.not_allowed")),
    ],
)
def test_options_of_the_environment(argv, environ, expected):
    assert Options.from_environment(argv, environ) == expected


def test_the_hosts_folder_and_its_offline_setting(tmp_path):
    (tmp_path / "requirements.txt").write_text("numpy==2.1.2\n")
    environ = {"PYTHONPATH": f"{tmp_path}:/elsewhere" if sys.platform != "win32" else f"{tmp_path};C:\\elsewhere"}
    assert Options.from_environment([], environ) == Options(host_root=tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"offline_mode": True}))
    assert Options.from_environment([], environ).offline
    for other in ({"offline_mode": False}, {"offline_mode": "yes"}, {}, ["offline_mode"]):
        (tmp_path / "config.json").write_text(json.dumps(other))
        assert not Options.from_environment([], environ).offline
    data = tmp_path / "data"
    data.mkdir()
    assert not Options.from_environment([], {**environ, "SD_DATADIR": str(data)}).offline  # that is where its settings are then
    (data / "config.json").write_text("not json")
    assert not Options.from_environment([], {**environ, "SD_DATADIR": str(data)}).offline


def test_each_broken_package_is_repaired_alone_and_of_each_group_the_rest_together():
    def status(name, state, group=""):
        return Status(Requirement(name, "", group), state, None, None, "")

    broken, other = status("a", State.BROKEN), status("b", State.BROKEN)
    missing, old, more = status("c", State.MISSING), status("d", State.TOO_OLD), status("e", State.MISSING, "gguf")
    found = [status("f", State.OK), missing, broken, old, other, more, status("g", State.STALE)]
    assert list(mending._batches(found)) == [(broken,), (other,), (missing, old), (more,)]
