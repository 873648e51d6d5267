"""`doctor` and `bundle` as they are typed: exit codes, what they print, where they look, and what they say when they can not."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from sd3deploy import host_record, inside
from sd3deploy.commands import doctor
from sd3deploy.diagnosis import installed, logfile
from sd3deploy.redact import Redactor

ROOT = Path(__file__).parent.parent
LOGS = Path(__file__).parent / "logs"
KEYS = {"rule", "cause", "package", "message", "remedy", "evidence", "line"}


def run(*arguments, text="", **environ):
    command = [sys.executable, "-m", "sd3deploy", *map(str, arguments)]
    environ = {name: value for name, value in os.environ.items() if name != "SD3DEPLOY_INSIDE"} | environ
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, input=text, env=environ)


def host(folder: Path) -> Path:
    (folder / "modules").mkdir(parents=True)
    (folder / "launch.py").touch()
    return folder


# Logs


def test_the_findings_of_a_log_as_json():
    done = run("doctor", "--log", LOGS / "attention-console.log", "--json")
    assert done.returncode == 1
    (found,) = json.loads(done.stdout)["findings"]
    assert found.keys() >= KEYS
    assert found["cause"] == "attention-processor"
    assert found["line"] > 1
    lines = (LOGS / "attention-console.log").read_bytes().decode().split("\n")
    assert found["evidence"][0].strip() == lines[found["line"] - 1].strip()
    assert done.stderr == ""


@pytest.mark.parametrize("form", ["text", "markdown"])
def test_the_findings_of_a_log_to_read(form):
    done = run("doctor", "--log", LOGS / "attention-file.log", *(["--markdown"] if form == "markdown" else []))
    assert done.returncode == 1
    assert "attention processor" in done.stdout
    assert "{" not in done.stdout


def test_a_log_that_is_piped_in_and_a_compressed_one(tmp_path):
    text = (LOGS / "bitsandbytes-console.log").read_text()
    (tmp_path / "log.gz").write_bytes(gzip.compress(text.encode("utf-16")))
    for arguments, piped in ((("-",), text), ((tmp_path / "log.gz",), "")):
        done = run("doctor", "--log", *arguments, "--json", text=piped)
        assert [one["cause"] for one in json.loads(done.stdout)["findings"]] == ["stale-availability"]


def test_a_healthy_log():
    done = run("doctor", "--log", LOGS / "healthy.log.gz", "--json")
    assert (done.returncode, json.loads(done.stdout)["findings"]) == (0, [])


@pytest.mark.parametrize("arguments", [("--log", "no/such.log"), ("--sdnext", "no/such/folder"), ("--python", "no/such/python")])
def test_what_can_not_be_looked_at_is_said_with_a_remedy(arguments):
    done = run("doctor", *arguments)
    assert done.returncode == 2
    assert "no/such" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("value", "id"), [("T5 FP4", "fp4"), ("T5 UINT4 (SDNQ)", "q4"), ("T5 FP5", "default"), (None, "default")])
def test_the_text_encoder_is_that_of_the_settings_or_what_took_its_place(tmp_path, value, id):
    (tmp_path / "config.json").write_text(json.dumps({"sd3_text_encoder": value}))
    assert doctor._encoder(inside.Folders(tmp_path, tmp_path)).id == id


# Places


def test_an_environment_that_is_not_there_or_dead(tmp_path):
    root = host(tmp_path / "sdnext")
    done = run("doctor", "--sdnext", root)
    assert (done.returncode, "--python" in done.stderr) == (2, True)
    (root / "venv" / "bin").mkdir(parents=True)
    (root / "venv" / "bin" / "python").write_text("#!/bin/sh\necho broken interpreter >&2\nexit 3\n")
    (root / "venv" / "bin" / "python").chmod(0o755)
    done = run("doctor", "--sdnext", root)
    assert (done.returncode, "broken interpreter" in done.stderr) == (2, True)


def test_the_environment_of_the_host_is_asked_whatever_python_this_is(tmp_path):
    root = host(tmp_path / "sdnext")
    venv.EnvBuilder(with_pip=True, symlinks=True).create(root / "venv")
    done = run("doctor", "--sdnext", root, "--json")
    assert done.returncode == 1, done.stderr
    found = json.loads(done.stdout)
    assert Path(found["python"]["executable"]) == root / "venv" / "bin" / "python"
    assert {"accelerate", "torch"} <= {one["package"] for one in found["findings"] if one["cause"] == "missing-package"}
    assert {one["state"] for one in found["checks"]} >= {"failed", "skipped"}


def test_a_python_that_has_nothing_can_hand_over(tmp_path):
    """-S: without site-packages, as the Python of a system that has neither pip nor packaging."""
    bare = [sys.executable, "-S", "-E", "-m", "sd3deploy", "doctor", "--log", str(LOGS / "numpy-file.log"), "--json"]
    done = subprocess.run(bare, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, "--python" in done.stderr, len(done.stderr.splitlines())) == (2, True, 1)
    venv.EnvBuilder(with_pip=True, symlinks=True).create(tmp_path / "venv")
    done = subprocess.run([*bare, "--python", str(tmp_path / "venv" / "bin" / "python")], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, [one["cause"] for one in json.loads(done.stdout)["findings"]]) == (1, ["mixed-package-files"])


def test_a_reader_that_has_seen_enough():
    script = f"{sys.executable} -m sd3deploy doctor --log {LOGS / 'numpy-file.log'} --json | head -1"
    done = subprocess.run(["sh", "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("{\n", "")


def test_folders_are_those_of_the_settings(tmp_path):
    import argparse

    root = host(tmp_path / "sdnext")
    data = tmp_path / "data"
    for folder in (data / "models", tmp_path / "elsewhere"):
        folder.mkdir(parents=True)
    (data / "config.json").write_text(
        json.dumps({"diffusers_dir": str(tmp_path / "elsewhere"), "ckpt_dir": "models", "hfcache_dir": "/no/such"})
    )
    (root / "sdnext.log").touch()
    found = inside.folders(argparse.Namespace(sdnext=str(root), data=str(data), python=None))
    assert found == inside.Folders(root, data, (data / "models", tmp_path / "elsewhere"))
    assert found.log == root / "sdnext.log"
    (data / "config.json").write_text("{broken")
    assert found.config == {}


def test_the_commit_of_a_checkout(tmp_path):
    assert inside.commit(tmp_path) == ""
    (tmp_path / ".git" / "refs" / "heads").mkdir(parents=True)
    (tmp_path / ".git" / "HEAD").write_text("ref: refs/heads/master\n")
    assert inside.commit(tmp_path) == ""
    (tmp_path / ".git" / "refs" / "heads" / "master").write_text("058a7f0cf1234\n")
    assert inside.commit(tmp_path) == "058a7f0cf"
    (tmp_path / ".git" / "HEAD").write_text("2e1e141a3aaaa\n")
    assert inside.commit(tmp_path) == "2e1e141a3"


# Repairs and bundles


def test_nothing_is_changed_and_nothing_written_without_being_asked(tmp_path):
    root = host(tmp_path / "sdnext")
    venv.EnvBuilder(with_pip=True, symlinks=True).create(root / "venv")
    done = run("doctor", "--fix", "--sdnext", root)
    assert done.returncode == 2
    assert "accelerate" in done.stdout
    assert "--yes" in done.stderr
    out = tmp_path / "bundle.zip"
    done = run("bundle", out, "--sdnext", root)
    assert done.returncode == 2
    assert "report.json" in done.stdout
    assert "--yes" in done.stderr
    assert not out.exists()


def test_a_bundle_with_the_log_and_without_secrets(tmp_path):
    out, log = tmp_path / "bundle.zip", tmp_path / "sdnext.log"
    token = "hf_" + "aBcDeFgHiJkLmNoPqRsTuVwXyZ012345"
    log.write_text("".join(logfile.blocks(LOGS / "attention-file.log")) + f"login token={token} anna@example.org\n")
    done = run("bundle", out, "--log", log, "--yes")
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(out) as archive:
        members = {name: archive.read(name).decode() for name in archive.namelist()}
    assert {"report.txt", "report.json", "report.md", "log.txt", "settings.json", "packages.txt", "timeline.json", "events.json"} <= set(
        members
    )
    assert "size of tensor" in members["log.txt"] or "unpack" in members["log.txt"]
    assert not [name for name, text in members.items() if token in text or "anna@" in text]
    again = run("bundle", out, "--log", log, "--yes")
    assert (again.returncode, "--force" in again.stderr) == (2, True)


def test_a_bug_of_ours_is_no_finding(monkeypatch, capsys):
    from sd3deploy import __main__
    from sd3deploy.commands import doctor

    monkeypatch.setattr(doctor, "examine", lambda *args, **kwargs: 1 / 0)
    assert __main__.main(["doctor", "--log", str(LOGS / "attention-file.log")]) == 2
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_it_says_what_of_the_host_had_moved_at_its_last_start(tmp_path):
    root = host(tmp_path / "sdnext")
    (root / ".git").mkdir()
    (root / ".git" / "HEAD").write_text("058a7f0cf1234\n")
    host_record.write(root, {"commit": "058a7f0cf", "checked": 103, "moved": {"modules.shared:opts.set": "is gone → no button"}})
    report = doctor._report(inside.Folders(root, root), installed.read_installed(root), [], [], Redactor.of_this_machine())
    assert report.data()["contract"]["moved"] == {"modules.shared:opts.set": "is gone → no button"}
    assert "103 names of SD.Next looked at, 1 of them not as expected" in report.text()
    (root / ".git" / "HEAD").write_text("2e1e141a3aaaa\n")
    report = doctor._report(inside.Folders(root, root), installed.read_installed(root), [], [], Redactor.of_this_machine())
    assert report.data()["contract"] == {}
