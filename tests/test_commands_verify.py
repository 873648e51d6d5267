"""The command: what it shows, its exit codes, Ctrl-C, and the lines that a server reads."""

from __future__ import annotations

import json
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from demo.environment import linked
from sd3deploy import messages, tiny_sd3
from sd3deploy.__main__ import main
from sd3deploy.diagnosis import checks
from tests.waiting import until

ROOT = Path(__file__).parent.parent
COMMAND = [sys.executable, "-m", "sd3deploy", "verify"]
STAND_IN = ROOT / "demo" / "host"


@pytest.fixture(scope="module")
def model():
    return str(tiny_sd3.ensure())


@pytest.fixture
def broken(model, tmp_path):
    folder = Path(shutil.copytree(model, tmp_path / "sd3"))
    os.truncate(folder / "vae" / "diffusion_pytorch_model.safetensors", 1000)
    return str(folder)


def test_the_whole_of_it_is_shown_step_by_step():
    """Each when it is done, not all at the end: test_ctrl_c reads one and stops the next."""
    done = subprocess.run(COMMAND, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    steps = [next(number for number, line in enumerate(lines) if checks.title(one.id) in line) for one in checks.STEPS]
    assert steps == sorted(steps)
    assert lines[-1].strip() == messages.text("verify.healthy")
    assert "\r" not in done.stdout + done.stderr  # no bar where nobody looks


def test_a_terminal_has_a_bar(model):
    outer, inner = pty.openpty()
    process = subprocess.Popen([*COMMAND, "--quick", "--model", model], cwd=ROOT, stdout=inner, stderr=inner)
    os.close(inner)
    shown = b""
    while process.poll() is None or select.select([outer], [], [], 0)[0]:
        if select.select([outer], [], [], 0.2)[0]:
            try:
                shown += os.read(outer, 65536)
            except OSError:  # the other end is closed
                break
    os.close(outer)
    text = shown.decode()
    assert process.wait() == 0
    assert "[####" in text
    assert f"3/5 {checks.title('imports')} numpy" in text


def test_as_json(capsys, model):
    assert main(["verify", "--quick", "--json", "--model", model]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["healthy"]
    assert [one["id"] for one in answer["results"]] == [one.id for one in checks.QUICK]


def test_only_the_run(capsys, model):
    assert main(["verify", "--only-run", "--json", "--encoder", "T5 NF4", "--model", model]) == 0
    results = json.loads(capsys.readouterr().out)["results"]
    assert [(one["id"], one["state"]) for one in results] == [("base", "ok"), ("encoder", "ok"), ("image", "ok")]
    assert results[1]["facts"]["encoder"] == "nf4"


def test_what_is_wrong_is_shown_with_its_remedy(capsys, broken):
    assert main(["verify", "--quick", "--model", broken]) == 1
    shown = capsys.readouterr().out
    assert "FAILED" in shown
    assert messages.remedy("checks.rule.file-truncated", file=Path(broken, "vae", "diffusion_pytorch_model.safetensors")) in shown
    assert messages.text("verify.unhealthy") in shown


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--model", "/nowhere/at/all"], "/nowhere/at/all"),
        (["--encoder", "T5 FP5"], "T5 FP8"),
        (["--sdnext", "/nowhere/at/all"], "/nowhere/at/all"),
    ],
)
def test_it_can_not_look(capsys, words, said):
    assert main(["verify", "--quick", *words]) == 2
    assert said in capsys.readouterr().err


def test_lines(model):
    done = subprocess.run([*COMMAND, "--only-run", "--lines", "--model", model], cwd=ROOT, capture_output=True, text=True)
    values = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0
    assert {tuple(value) for value in values} == {("progress",), ("result",)}
    assert [value["result"]["id"] for value in values if "result" in value] == ["base", "encoder", "image"]
    assert values[0]["progress"]["id"] == "base"


def test_lines_that_are_ended_half_way(model):
    process = subprocess.Popen([*COMMAND, "--only-run", "--lines", "--model", model], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert "progress" in json.loads(process.stdout.readline())
    process.kill()
    assert process.wait() == -signal.SIGKILL


def at_work(process, step):
    """Whether the command is in the middle of a step: in one of the first two its child runs, in the third it has torch itself."""
    if step == "base":
        return any("libtorch" in one.path for one in psutil.Process(process.pid).memory_maps())
    return any(step in one.cmdline() for one in psutil.Process(process.pid).children())


@pytest.mark.parametrize("at", ["imports", "device", "base"])
def test_ctrl_c(at, model):
    process = subprocess.Popen(
        [*COMMAND, "--model", model],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored where a shell has begun all this in the background
    )
    before = [one.id for one in checks.STEPS][[one.id for one in checks.STEPS].index(at) - 1]
    lines = []
    while not lines or checks.title(before) not in lines[-1]:
        lines.append(process.stdout.readline())
        assert lines[-1]
    assert until(lambda: at_work(process, at))
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the children as well
    rest, errors = process.communicate()
    assert process.returncode == 1
    assert "Traceback" not in errors
    assert messages.text("verify.stopped") in rest
    assert rest.count("cancelled") >= 2
    assert len(lines) + rest.count("\n") >= len(checks.STEPS)  # each has its line


def test_in_the_python_of_a_host(tmp_path):
    python = linked(tmp_path / "venv", without=["bitsandbytes"])
    data = tmp_path / "data"
    shutil.copytree(tiny_sd3.ensure(), data / "models" / "Diffusers" / "mine")
    words = ["--sdnext", STAND_IN, "--data", data, "--python", python, "--quick", "--json"]
    done = subprocess.run([*COMMAND, *map(str, words)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stderr
    results = {one["id"]: one for one in json.loads(done.stdout)["results"]}
    assert results["environment"]["facts"]["executable"] == str(python)
    assert results["packages"]["facts"]["absent"] == ["bitsandbytes"]
    assert [one["name"] for one in results["files"]["facts"]["models"]] == ["mine"]
