"""Run by tests/test_hub_journal.py: processes that read T5 from the server of that test. This one imports what they need, which takes
seconds, and forks them off.

For each line of its input there is one of output:
{"endpoint": of the server, "cache": folder, "result": file, "stop": [place, number, when, signal] or null} → the id of a new process
{"wait": id} → how it has ended, as subprocess has it; null where it has stopped
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
import threading
import traceback
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub  # noqa: F401
import pytest
import torch
import transformers.models.t5.modeling_t5  # noqa: F401

from sd3deploy.device import Device
from sd3deploy.encoders import choices, load, source
from sd3deploy.encoders.cache import Cache, writing
from sd3deploy.encoders.cache.journal import Journal
from sd3deploy.encoders.hub import stream
from tests import t5
from tests.hub_server import in_place_of_the_hub

OWNERS = {"Journal": Journal, "load": load, "os": os, "writing": writing}


def read(asked):
    in_place_of_the_hub(SimpleNamespace(endpoint=asked["endpoint"]), pytest.MonkeyPatch())
    stream.BLOCK, stream.AHEAD = 1 << 16, 2
    if asked["stop"]:
        stop(*asked["stop"])
    found = source.find("Repository", source.Facts(""), repository="org/t5:encoders/t5.safetensors")
    made = load.read(choices.find("fp8"), found, Device("cpu", "cpu", "CPU"), cache=Cache(Path(asked["cache"])))
    if (thread := load.writing()) is not None:
        thread.join()
    with torch.no_grad():
        torch.save(made.place()(t5.tokens())[0], asked["result"])


def stop(place, number, when, how):
    """Send this process a signal before or after the n-th call of a function."""
    owner, _, name = place.partition(".")
    whole, calls = getattr(OWNERS[owner], name), itertools.count(1)

    def counted(*arguments, **named):
        mine = next(calls) == number
        if mine and when == "before":
            os.kill(os.getpid(), how)
        found = whole(*arguments, **named)
        if mine and when == "after":
            os.kill(os.getpid(), how)
        return found

    setattr(OWNERS[owner], name, counted)


def start(asked):
    assert threading.active_count() == 1  # a thread would be missing in the other process, with the locks it holds
    if child := os.fork():
        return child
    code = 1
    try:
        read(asked)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def wait(child):
    _, status = os.waitpid(child, os.WUNTRACED)
    return None if os.WIFSTOPPED(status) else os.waitstatus_to_exitcode(status)


def main():
    torch.set_num_threads(1)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    children = set()
    for line in sys.stdin:
        asked = json.loads(line)
        answer = wait(asked["wait"]) if "wait" in asked else start(asked)
        if "wait" not in asked:
            children.add(answer)
        elif answer is not None:
            children.remove(asked["wait"])
        print(json.dumps(answer), file=answers, flush=True)
    for child in children:  # the test has failed before it waited for them
        os.kill(child, signal.SIGKILL)


if __name__ == "__main__":
    main()
