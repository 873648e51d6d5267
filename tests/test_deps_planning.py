"""A plan is data: what would change, by which command, held by which constraints, and how that reads."""

import json
import sys

import pytest

from sd3deploy.deps import Options, Requirement, plan
from sd3deploy.deps.damage import Damage
from sd3deploy.deps.status import Facts, judge

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
        ([], {"SD3_NO_INSTALL": "1"}, Options(allow=False)),
        ([], {"SD_SKIPREQUIREMENTS": "True"}, Options(allow=False)),
        ([], {"SD_SKIPALL": "false", "SD3_NO_INSTALL": "0"}, Options()),
        (["--sd3-no-install"], {}, Options(allow=False)),
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
    data = tmp_path / "data"
    data.mkdir()
    assert not Options.from_environment([], {**environ, "SD_DATADIR": str(data)}).offline  # that is where its settings are then
    (data / "config.json").write_text("not json")
    assert not Options.from_environment([], {**environ, "SD_DATADIR": str(data)}).offline
