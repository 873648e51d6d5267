"""The extension is disabled, removed, updated or there twice: nothing of it remains that should not, and nothing is lost that was set."""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest

from demo import server
from sd3deploy import __version__
from tests.contract.conftest import AUTH, PROBE, ProbedHost, start
from tests.contract.repository import git, work_tree

CHOSEN = {"sd3_text_encoder": "T5 Q4", "sd3_guard_size": "warn", "sd3_weights": "Model", "sd3_cache_limit": 7}
NAME = "sd-extension-sd3"
PATCHED = """
import sys
host = ("modules", "pipelines", "installer")
modules = [(name, vars(one)) for name, one in [*sys.modules.items()] if one and name.partition(".")[0] in host]
result = [f"{name}.{one}" for name, names in modules for one, value in [*names.items()] if hasattr(value, "__sd3deploy_original__")]
"""


@pytest.fixture
def started(tmp_path):
    """`started(data)` starts the host under test with a data folder, the probe in it; at the end of the test it ends."""
    running: list[ProbedHost] = []

    def begin(data) -> ProbedHost:
        while running:
            running.pop().stop()
        if not (data / "extensions" / "sd3-probe").exists():
            shutil.copytree(PROBE, data / "extensions" / "sd3-probe", ignore=shutil.ignore_patterns("__pycache__"))
        running.append(start(tmp_path, data.name, auth=AUTH))
        return running[0]

    yield begin
    while running:
        running.pop().stop()


def stored(host) -> dict:
    """The settings of ours in the host's file, after it has saved them all."""
    host.run("from modules import shared; shared.opts.save_atomic()")
    found = json.loads((host.data / "config.json").read_text("utf-8"))
    return {key: value for key, value in found.items() if key.startswith("sd3_")}


def assert_nothing_is_there(host):
    """No patch, no module, no route, no script; pictures and settings as ever."""
    assert host.run(PATCHED) == []
    assert host.run("import sys; result = [name for name in sys.modules if name.partition('.')[0] == 'sd3deploy']") == []
    assert host.client.get("/sdapi/v1/sd3/status").status_code == 404
    assert "sd3 deploy" not in json.dumps(host.get("/sdapi/v1/scripts")).lower()
    assert "SD3 Deploy" not in host.log()
    for _ in range(2):
        assert len(host.txt2img()["images"]) == 1
    assert host.set(samples_format="webp") == {"samples_format": True}
    assert stored(host) == CHOSEN


def test_disabled_in_the_extensions_tab(started, tmp_path):
    host = started(server.data_folder(tmp_path / "data", disabled_extensions=[NAME], **CHOSEN))
    assert_nothing_is_there(host)


def test_removed_from_the_disk_and_back_again(started, tmp_path):
    data = server.data_folder(tmp_path / "data", extension=None, **CHOSEN)
    assert_nothing_is_there(started(data))
    server.link(server.ROOT, data / "extensions" / NAME)
    host = started(data)
    assert host.get("/sdapi/v1/sd3/status")["encoder"] == "T5 Q4"
    assert stored(host) == CHOSEN


def test_disabled_after_it_has_run(started, tmp_path):
    """As the button Apply of the Extensions tab has it: the host keeps the list and starts anew."""
    data = server.data_folder(tmp_path / "data", **CHOSEN)
    host = started(data)
    assert host.get("/sdapi/v1/sd3/status")["encoder"] == "T5 Q4"
    assert len(host.run(PATCHED)) > 5
    assert host.set(disabled_extensions=[NAME]) == {"disabled_extensions": True}
    stored(host)
    (data / "sdnext.log").unlink()
    assert_nothing_is_there(started(data))


def test_updated_between_two_starts(started, tmp_path):
    """From a former version, with another number and a module that is gone today, to this one by `git pull`."""
    source = work_tree(tmp_path / "source")
    former = git(source, "rev-parse", "HEAD").strip()
    package, panel = source / "sd3deploy", source / "sd3deploy/webui/page/panel.py"
    (package / "of_old.py").write_text("", "utf-8")
    panel.write_text(panel.read_text("utf-8").replace("import messages, units", "import messages, of_old, units  # noqa: F401"), "utf-8")
    init = (package / "__init__.py").read_text("utf-8")
    (package / "__init__.py").write_text(init.replace(f'"{__version__}"', '"0.0.1"'), "utf-8")
    git(source, "add", "--all")
    git(source, "commit", "--quiet", "--message=As it was")
    data = server.data_folder(tmp_path / "data", extension=None, **CHOSEN)
    folder = data / "extensions" / NAME
    subprocess.run(["git", "clone", "--quiet", str(source), str(folder)], check=True)
    host = started(data)
    assert host.get("/sdapi/v1/sd3/report")["extension"] == "0.0.1"
    assert host.run("import sys; result = 'sd3deploy.of_old' in sys.modules")
    assert len(host.txt2img()["images"]) == 1
    git(source, "revert", "--no-edit", "HEAD")
    assert git(source, "diff", former).strip() == ""
    git(folder, "pull", "--quiet")
    host = started(data)
    assert host.get("/sdapi/v1/sd3/report")["extension"] == __version__
    assert len(host.txt2img()["images"]) == 1
    assert host.run("import sys; result = 'sd3deploy.of_old' in sys.modules") is False
    assert stored(host) == CHOSEN
    assert "SD3 Deploy: id=host." not in host.log()


def test_two_copies_in_two_folders(started, tmp_path):
    data = server.data_folder(tmp_path / "data", extension=None, **CHOSEN)
    for name in ("a-first-copy", NAME):
        shutil.copytree(server.ROOT, data / "extensions" / name,
                        ignore=shutil.ignore_patterns(".*", "build", "__pycache__", "tests", "demo", "bench", "docs"))  # fmt: skip
    host = started(data)
    lines = [line for line in (data / "sdnext.log").read_text("utf-8").splitlines() if "SD3 Deploy: id=host." in line]
    assert len(lines) == 1
    assert "id=host.twice" in lines[0]
    assert "a-first-copy" in lines[0]
    assert NAME in lines[0]
    assert host.get("/sdapi/v1/sd3/status")["encoder"] == "T5 Q4"
    result = host.txt2img(width=72, height=64)
    assert len(result["images"]) == 1
    events = [event["id"] for event in host.get("/sdapi/v1/sd3/events")["events"]]
    assert events.count("size.not-multiple") <= 1
    assert len(host.run(PATCHED)) == len(set(host.run(PATCHED)))
    assert host.run("""
        from modules import script_callbacks
        result = [len([one for one in entries if "/extension.py" in str(one.script) or "sd3deploy" in str(one.script)])
                  for name, entries in script_callbacks.callback_map.items() if name.endswith("app_started")]
    """) == [1]
    assert stored(host) == CHOSEN
    shutil.rmtree(data / "extensions" / "a-first-copy")
    (data / "sdnext.log").unlink()
    host = started(data)
    assert "SD3 Deploy: id=host." not in host.log()
    assert host.get("/sdapi/v1/sd3/status")["encoder"] == "T5 Q4"
