"""What the host does about packages and install.py."""

import json
import os

import pytest


def test_install_finds_pip_when_it_is_called(host):
    """So a wrapped installer.pip sees every installation, those of modules that took `install` at their import too."""
    assert host.run("""
        import installer
        from installer import install
        seen = []
        original, installer.pip = installer.pip, lambda arg, *args, **kwargs: seen.append(arg) or (None, "")
        install("sd3-no-such-package>=1.0", quiet=True)
        install("packaging", quiet=True)
        installer.pip = original
        result = seen
    """) == ["install --upgrade sd3-no-such-package>=1.0"]


def test_pip_makes_a_pin_of_a_lower_bound_and_adds_the_hosts_constraints(host):
    if not host.run("import os; result = os.path.exists('constraints.txt')"):
        pytest.skip("this SD.Next, before 2026-03, has no constraints")
    assert host.run("""
        import installer, subprocess
        seen = []
        def run(cmd, *args, **kwargs):
            seen.append(" ".join(args))
            return subprocess.CompletedProcess([], 0, "", ""), ""
        original, installer.run = installer.run, run
        installer.pip("install sd3-no-such-package>=1.0")
        installer.run = original
        result = seen[0]
    """).endswith("pip install sd3-no-such-package==1.0 -c constraints.txt")


def test_offline_mode_refuses(host):
    assert host.run("""
        import installer
        before = installer.opts.get("offline_mode", False)
        installer.opts["offline_mode"] = True
        result = installer.pip("install sd3-no-such-package")
        installer.opts["offline_mode"] = before
    """) in ([None, "offline"], "offline")  # the text alone before 2026-03


def test_install_py_runs_in_its_own_folder_with_the_host_importable(host):
    folder = host.data / "extensions" / "sd3-probe"
    host.run(f"import installer; installer.run_extension_installer({str(folder)!r})")
    facts = json.loads((folder / "installed.json").read_text())
    assert facts["cwd"] == str(folder)
    assert facts["PYTHONPATH"].split(os.pathsep)[0] == host.run("from modules import paths; result = paths.script_path")
    assert facts["executable"] == host.run("import sys; result = sys.executable")


def test_the_interpreter_has_pip(host):
    assert host.run("""
        import subprocess, sys
        result = subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True, text=True).returncode
    """) == 0
