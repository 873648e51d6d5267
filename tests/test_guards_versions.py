"""The attention guard with the first diffusers that had SD3, and with that of SD.Next at the end of 2025."""

from __future__ import annotations

import os
import subprocess

import pytest

from tests import stacks


@pytest.mark.parametrize("stack", [stacks.FIRST, stacks.OLDER], ids=lambda stack: stack["diffusers"])
def test_the_guard_with_older_versions_of_diffusers(tmp_path, stack):
    python = stacks.older(tmp_path / "venv", ["peft", "bitsandbytes"], stack)  # too new for those versions, and not needed
    command = [str(python), "-m", "tests.guards_process", stack["diffusers"]]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(stacks.ROOT)}
    done = subprocess.run(command, cwd=stacks.ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(stack["diffusers"])
