"""Logs as Docker, Kubernetes and systemd keep them, and as people paste them: what stands before each line hides nothing."""

from __future__ import annotations

import pytest

from sd3deploy.diagnosis import matcher
from sd3deploy.diagnosis.collected import bare

TRACEBACK = """\
Traceback (most recent call last):
  File "/opt/sdnext/modules/processing_diffusers.py", line 140, in process_base
    output = shared.sd_model(**base_args)
  File "/opt/sdnext/venv/lib/python3.11/site-packages/diffusers/pipelines/stable_diffusion_3/pipeline.py", line 9, in __call__
    hidden = self.transformer(x)
RuntimeError: Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu!
"""
CONSOLE = '10:00:00-000001 INFO     Load model: select="sd3"\n10:00:09-000001 ERROR    Load text encoder: the disk has gone\n'
FILE = "2026-07-23 19:21:21,419 | pc | sd | INFO | sd_models | Load\n2026-07-23 19:21:22,419 | pc | sd | ERROR | sd_models | It is odd\n"
PREFIXES = {
    "compose": "sdnext-1  | ",
    "compose, with times": "sdnext-1  | 2025-07-01T10:00:00.000000001Z ",
    "docker": "2025-07-01T10:00:00.123456789Z ",
    "kubernetes": "2025-07-01T10:00:00.123456789+02:00 stderr F ",
    "a supervisor": "2025-07-01 10:00:00,000 [stderr] ",
    "journald": "Jan 05 11:00:00 box python3[811]: ",
    "journald, German": "Mär  5 11:00:00 box webui.sh[811]: ",
    "journald, iso": "2025-07-01T10:00:00+0200 box python3[811]: ",
    "pasted": "    ",
}


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("log", [TRACEBACK, CONSOLE, FILE], ids=["traceback", "console", "file"])
def test_it_is_read_as_without(prefix, log):
    written = "".join(f"{PREFIXES[prefix]}{line}\n" for line in log.splitlines())
    assert bare(written) == log
    plain, found = matcher.read([log]), matcher.read([written])
    assert plain
    assert [(one.rule, one.message, one.line) for one in found] == [(one.rule, one.message, one.line) for one in plain]


@pytest.mark.parametrize("log", [TRACEBACK, CONSOLE, FILE, "name   | value\nsize | 5\nThis is the rest\nof it\nand more\n", ""])
def test_what_has_none_stays_as_it_is(log):
    assert bare(log) == log
