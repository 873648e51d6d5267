"""What the Extensions tab of the host does with an address, and what it leaves to a restart."""

from __future__ import annotations

import json

import pytest

from tests.contract.repository import made, served

INSTALLER = """
import json, os, sys
facts = {"cwd": os.getcwd(), "PYTHONPATH": os.environ.get("PYTHONPATH"), "executable": sys.executable}
with open("installed.json", "w") as file:
    json.dump(facts, file)
"""


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    folder = tmp_path_factory.mktemp("repositories")
    made(folder / "sd3-newcomer", {"install.py": INSTALLER, "scripts/newcomer.py": "import sd3probe\nsd3probe.note('newcomer')\n"})
    made(folder / "sd3-failing", {"install.py": "raise SystemExit(1)"})
    with served(folder) as found:
        yield found


def install(host, url, name=""):
    """As the button Install does, with the text that the page then shows; the type of what it raises instead."""
    return host.run(f"""
        from modules import ui_extensions
        try:
            result = ui_extensions.install_extension_from_url({name!r}, {url!r}, "", "", "default")[1]
        except Exception as error:
            result = type(error).__name__
    """)


def listed(host):
    return host.run("from modules import extensions; result = [one.name for one in extensions.extensions if one.enabled]")


def test_a_folder_of_this_machine_is_no_address(host, tmp_path):
    if install(host, "") == "":
        pytest.skip("this SD.Next, before 2026-03, takes any address")
    made(tmp_path / "here", {"install.py": ""})
    for url in (str(tmp_path / "here"), (tmp_path / "here").as_uri(), ""):
        assert install(host, url) == "ValueError"


def test_what_is_installed_has_its_install_py_run_at_once_and_its_scripts_at_the_next_start(host, address):
    before = host.count()
    folder = host.data / "extensions" / "sd3-newcomer"
    assert install(host, f"{address}/sd3-newcomer.git") == f"Extension installed: {folder} | Restart required"
    facts = json.loads((folder / "installed.json").read_text())
    assert facts["cwd"] == str(folder)
    assert facts["PYTHONPATH"].split(":")[0] == host.run("from modules import paths; result = paths.script_path")
    assert facts["executable"] == host.run("import sys; result = sys.executable")
    assert "sd3-newcomer" in listed(host)
    assert "newcomer" not in [name for name, _ in host.events(before)]


def test_the_same_again_is_refused_by_its_folder_and_by_its_address(host, address):
    if "sd3-newcomer" not in listed(host):
        install(host, f"{address}/sd3-newcomer")
    assert install(host, f"{address}/sd3-newcomer") == ""
    assert "directory already exists" in host.log()
    host.run("from modules import extensions; [one.read_info() for one in extensions.extensions]")  # as the list of the page does
    refused = ("Extension with this URL is already installed", "AssertionError")  # the second before 2026-03
    assert install(host, f"{address}/sd3-newcomer", "another-name") in refused


def test_a_failing_install_py_does_not_stop_the_installation(host, address):
    folder = host.data / "extensions" / "sd3-failing"
    assert install(host, f"{address}/sd3-failing") == f"Extension installed: {folder} | Restart required"
    assert "sd3-failing" in listed(host)
    assert "Extension installer error" in host.log()


def test_an_address_where_nothing_is_says_what_git_says(host, address):
    assert "repository" in install(host, f"{address}/sd3-nothing")
    assert not (host.data / "extensions" / "sd3-nothing").exists()


def test_nothing_is_installed_where_the_server_is_open_to_others(host, address):
    """--listen, --share or --server-name without --insecure."""
    switch = "from modules import shared; shared.cmd_opts.disable_extension_access = {}"
    host.run(switch.format(True))
    try:
        assert install(host, f"{address}/sd3-newcomer", "yet-another") == ""
    finally:
        host.run(switch.format(False))
    assert "public access is enabled and insecure is not specified" in host.log()
    assert not (host.data / "extensions" / "yet-another").exists()


@pytest.fixture(scope="module", autouse=True)
def leave_nothing(host):
    """Later modules share this server and may start it again."""
    yield
    host.run("""
        import shutil
        from modules import extensions
        for one in list(extensions.extensions):
            if one.name in ("sd3-newcomer", "sd3-failing"):
                shutil.rmtree(one.path)
        extensions.list_extensions()
    """)


def test_the_page_of_the_tab(host):
    host.login()
    config = host.get("/config")
    props = [part["props"] for part in config["components"]]
    shown = {(one.get("label") or one.get("value")) for one in props if isinstance(one.get("label") or one.get("value"), str)}
    boxes = {"Extension GIT repository URL", "Specific branch name", "Local directory name"}
    assert boxes | {"Manage extensions", "Manual install", "Install", "Apply changes", "Restart server"} <= shown
    assert {"tabs_extensions", "extension_info", "restart_submit"} <= {one.get("elem_id") for one in props}
