"""Whole logs of SD.Next, as its own logger and rich wrote them while the real libraries failed; and how much memory a large one takes."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from sd3deploy.diagnosis import logfile, matcher

ROOT = Path(__file__).parent.parent
LOGS = Path(__file__).parent / "logs"
CLASSICS = {
    "bitsandbytes": ("stale-availability", "bitsandbytes"),
    "numpy": ("mixed-package-files", "numpy"),
    "attention": ("attention-processor", ""),
}
FORMS = ("console", "boxed", "folded", "file")  # as rich wraps, in frames, cut at the edge of a window, and the file


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", CLASSICS)
def test_the_three_classic_errors(name, form):
    found = matcher.read(logfile.blocks(LOGS / f"{name}-{form}.log"))
    assert [(one.cause, one.package) for one in found] == [CLASSICS[name]]
    assert found[0].remedy


def test_numpy_replaced_under_a_running_process():
    (found,) = matcher.read(logfile.blocks(LOGS / "numpy-dtype-console.log"))
    assert found.package == "numpy"


def test_no_false_alarm_in_a_healthy_log():
    """Ten thousand lines of a real server that makes pictures with SD3, swaps encoders, and complains about other things."""
    text = "".join(logfile.blocks(LOGS / "healthy.log.gz"))
    assert text.count("\n") >= 10_000
    assert [found.message for found in matcher.read(logfile.blocks(LOGS / "healthy.log.gz"))] == []


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """300 MB: what a healthy server says, an error every now and then."""
    quiet = "".join(logfile.blocks(LOGS / "healthy.log.gz")).splitlines(keepends=True)
    errors = (LOGS / "attention-file.log").read_text(encoding="utf-8")
    path, draw = tmp_path_factory.mktemp("log") / "sdnext.log", random.Random(1)
    parts = ["".join(draw.choices(quiet, k=2000)) for _ in range(20)]
    with open(path, "w", encoding="utf-8") as file:
        while file.tell() < 300e6:
            file.write(draw.choice(parts) + errors)
    yield path
    path.unlink()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says how much a process has taken at most")
def test_a_log_of_300_mb_takes_little_memory(large):
    code = (
        "import json, sys; from sd3deploy.diagnosis import logfile, matcher;"
        "found = matcher.read(logfile.blocks(sys.argv[1]));"
        # of this program alone: what getrusage says begins with the size of the process that started it
        "used = [int(line.split()[1]) for line in open('/proc/self/status') if line.startswith('VmHWM')];"
        "print(json.dumps([[one.cause for one in found], used[0] / 1024]))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(large)], cwd=ROOT, capture_output=True, text=True, check=True)
    causes, megabytes = json.loads(done.stdout)
    assert "attention-processor" in causes
    assert megabytes < 100
