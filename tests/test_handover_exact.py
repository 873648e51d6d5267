"""The old encoder stays where memory holds both to the byte, and makes way where one byte is missing."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from sd3deploy.encoders import handover, measure
from sd3deploy.encoders.handover import WORK, Handover
from sd3deploy.memory.capacity import Capacity

NEED = 1_000_000  # bytes that the next encoder takes


class Host:
    def __init__(self, memory):
        self.memory = memory

    def capacity(self):
        return self.memory

    def swapped(self, pipeline):
        pass

    def free(self):
        pass


@pytest.fixture
def pipeline():
    return SimpleNamespace(text_encoder_3=torch.nn.Linear(100, 100), vae=torch.nn.Linear(10, 10))


def change(pipeline, **memory):
    return Handover(pipeline, Host(Capacity(**memory)), again=lambda: None, mapped=False, gone=lambda: None)


@pytest.mark.parametrize(("missing", "stays"), [(0, True), (1, False)])
def test_in_ram(pipeline, missing, stays):
    memory = {"kind": "cpu", "ram_total": 2**40, "ram_usable": NEED + WORK - missing}
    change(pipeline, **memory).before_reading(lambda old: NEED)
    assert (pipeline.text_encoder_3 is not None) is stays


def test_what_takes_no_ram_makes_nobody_go(pipeline):
    change(pipeline, kind="cpu", ram_total=2**40, ram_usable=1).before_reading(lambda old: 0)
    assert pipeline.text_encoder_3 is not None


@pytest.mark.parametrize(("missing", "moves"), [(0, []), (1, ["cpu"])])
def test_on_the_device(pipeline, monkeypatch, missing, moves):
    """As if encoders lay on a device of their own; where none is, all that is missing is the device."""
    monkeypatch.setattr(handover, "_on_cpu", lambda module: False)
    monkeypatch.setattr(handover, "_held", lambda pipeline: 300)  # of the pipeline, all of which has room to be elsewhere
    moved = []
    monkeypatch.setattr(pipeline.text_encoder_3, "to", lambda device: moved.append(str(device)))
    memory = {"kind": "cuda", "total": 2**40, "usable": NEED + 300 - missing, "ram_total": 2**40, "ram_usable": 2**40}
    change(pipeline, **memory).before_placing(lambda old: NEED)
    assert moved == moves


@pytest.mark.parametrize(("missing", "stays"), [(0, True), (1, False)])
def test_it_waits_in_ram_where_that_holds_it_to_the_byte(pipeline, monkeypatch, missing, stays):
    monkeypatch.setattr(handover, "_on_cpu", lambda module: False)
    size = measure.measure(pipeline.text_encoder_3).bytes
    monkeypatch.setattr(pipeline.text_encoder_3, "to", lambda device: None)
    change(pipeline, kind="cuda", total=2**40, usable=1, ram_total=2**40, ram_usable=size - missing).before_placing(lambda old: NEED)
    assert (pipeline.text_encoder_3 is not None) is stays
