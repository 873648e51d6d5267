"""Each stack is looked at through the functions that torch has for it; their answers are made up, because no machine has all of them."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import psutil
import pytest

from sd3deploy.device import Device
from sd3deploy.device import detect_device as look_at_device
from sd3deploy.memory import capacity
from sd3deploy.memory.capacity import GIB, Capacity, card, read_capacity
from sd3deploy.memory.estimate import constants

CONTEXT = constants("cuda").context
RAM = (64 * GIB, 40 * GIB)  # total, available


@pytest.fixture(autouse=True)
def _ram(monkeypatch, request):
    if "real" not in request.node.name:
        monkeypatch.setattr(capacity, "_ram", lambda: RAM)


def device(backend, torch="cuda:0"):
    return Device(torch, backend, "a card")


def cuda(total=24 * GIB, free=20 * GIB, reserved=0, asked=None):
    """torch, as far as it is asked about a CUDA device. asked: a list that gets the devices."""

    def of(value):
        def answer(device):
            if asked is not None:
                asked.append(device)
            return value

        return answer

    return SimpleNamespace(cuda=SimpleNamespace(mem_get_info=of((free, total)), memory_reserved=of(reserved)))


@pytest.mark.parametrize("backend", ["cuda", "rocm", "zluda"])
def test_cuda_and_what_calls_itself_so(backend):
    asked = []
    found = read_capacity(device(backend, "cuda:1"), torch=cuda(free=14 * GIB, reserved=6 * GIB, asked=asked))
    assert (found.kind, found.name, found.total) == (backend, "a card", 24 * GIB)
    assert found.usable == (14 + 6) * GIB  # what this process holds it can use again
    assert found.others == (24 - 14 - 6) * GIB - CONTEXT
    assert not found.unified
    assert set(asked) == {"cuda:1"}


def test_where_nobody_else_is_there_are_no_others():
    assert read_capacity(device("cuda"), torch=cuda(free=24 * GIB - CONTEXT // 2)).others == 0


@pytest.mark.parametrize(("fraction", "usable"), [(0.0, 20 * GIB), (0.5, 12 * GIB), (0.9, 20 * GIB), (1.0, 20 * GIB)])
def test_the_hosts_limit_for_this_process(fraction, usable):
    assert read_capacity(device("cuda"), fraction=fraction, torch=cuda()).usable == usable


@pytest.mark.parametrize(("platform", "spills"), [("win32", True), ("linux", False), ("darwin", False)])
@pytest.mark.parametrize("backend", ["cuda", "rocm", "zluda"])
def test_windows_takes_ram_instead(monkeypatch, backend, platform, spills):
    monkeypatch.setattr(sys, "platform", platform)
    assert read_capacity(device(backend), torch=cuda()).spills == spills


def xpu(**more):
    functions = {
        "memory_reserved": lambda device: 3 * GIB,
        "get_device_properties": lambda device: SimpleNamespace(total_memory=16 * GIB),
    }
    return SimpleNamespace(xpu=SimpleNamespace(**functions | more))


@pytest.mark.parametrize("backend", ["ipex", "xpu"])
def test_intel(backend):
    found = read_capacity(device(backend, "xpu:0"), torch=xpu(mem_get_info=lambda device: (9 * GIB, 16 * GIB)))
    assert (found.kind, found.total, found.usable) == ("xpu", 16 * GIB, 12 * GIB)
    assert found.others == 4 * GIB - constants("xpu").context


def test_intel_before_torch_could_tell_what_is_free():
    found = read_capacity(device("ipex", "xpu:0"), torch=xpu())
    assert (found.total, found.usable, found.others) == (16 * GIB, 16 * GIB, 0)


def test_intel_does_not_spill_on_windows(monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")
    assert not read_capacity(device("ipex", "xpu:0"), torch=xpu()).spills


def mps(recommended=12 * GIB, allocated=2 * GIB):
    return SimpleNamespace(
        mps=SimpleNamespace(recommended_max_memory=lambda: recommended, driver_allocated_memory=lambda: allocated),
    )


def test_apple_has_one_memory():
    found = read_capacity(device("mps", "mps"), torch=mps())
    assert (found.kind, found.total, found.usable, found.others, found.unified) == ("mps", 12 * GIB, 12 * GIB, 0, True)
    assert read_capacity(device("mps", "mps"), fraction=0.5, torch=mps()).usable == 6 * GIB


@pytest.mark.parametrize("backend", ["directml", "something new"])
def test_a_device_that_tells_nothing(backend):
    found = read_capacity(device(backend, "privateuseone:0"), torch=SimpleNamespace())
    assert found == Capacity("unknown", "a card", ram_total=RAM[0], ram_usable=RAM[1])


@pytest.mark.parametrize("backend", ["cpu", "openvino"])
def test_a_cpu_has_ram_alone(backend):
    found = read_capacity(device(backend, "cpu"), torch=SimpleNamespace())
    assert found == Capacity("cpu", "a card", ram_total=RAM[0], ram_usable=RAM[1])


def test_what_the_model_has_in_ram_can_be_used_again():
    assert read_capacity(device("cuda"), in_ram=5 * GIB, torch=cuda()).ram_usable == 45 * GIB
    assert read_capacity(device("cpu"), in_ram=50 * GIB, torch=cuda()).ram_usable == RAM[0]


def test_the_real_machine():
    found = read_capacity(look_at_device("cpu", "cpu"))
    memory = psutil.virtual_memory()
    assert found.kind == "cpu"
    assert 0 < found.ram_usable <= found.ram_total <= memory.total
    assert found.ram_usable <= memory.available + 2**29  # which changes from one look to the next
    assert found.total == found.usable == 0


@pytest.mark.gpu
@pytest.mark.skipif("not __import__('torch').cuda.is_available()", reason="no CUDA device")
def test_a_real_gpu():
    import torch

    block = torch.zeros(2**28, dtype=torch.uint8, device="cuda")
    found = read_capacity(look_at_device("cuda", "cuda"))
    free, total = torch.cuda.mem_get_info()
    assert found.total == total
    assert found.usable - free == pytest.approx(torch.cuda.memory_reserved(), abs=2**26)
    del block


def test_a_card_that_is_not_here():
    assert card(16) == Capacity("cuda", "16 GB", 16 * GIB, 16 * GIB - CONTEXT)
    assert (card(7.5).name, card(7.5).total) == ("7.5 GB", int(7.5 * GIB))
    assert (card(8, 32).ram_total, card(8, 32).ram_usable) == (32 * GIB, 32 * GIB)
    assert card(0.1).usable == 0


# The limit of a container


def write(folder, files):
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


VERSION_2 = {
    "memory.max": "8589934592\n",
    "memory.current": "3221225472\n",
    "memory.stat": "anon 2147483648\nfile 1073741824\ninactive_file 1073741824\nactive_file 0\n",
}
VERSION_1 = {
    "memory/memory.limit_in_bytes": "4294967296\n",
    "memory/memory.usage_in_bytes": "2147483648\n",
    "memory/memory.stat": "cache 5\ninactive_file 1\ntotal_inactive_file 536870912\n",
}
NO_LIMIT = (sys.maxsize, 0)


def test_control_groups_of_version_2(tmp_path):
    write(tmp_path, VERSION_2)
    assert capacity._container(tmp_path) == (8 * GIB, 2 * GIB)  # files that were read can be forgotten


def test_control_groups_of_version_1(tmp_path):
    write(tmp_path, VERSION_1)
    assert capacity._container(tmp_path) == (4 * GIB, int(1.5 * GIB))


@pytest.mark.parametrize("broken", [{"memory.max": "max\n"}, {"memory.current": "?"}, {"memory.stat": "a b c\n"}, {"memory.max": ""}])
def test_without_a_limit_or_with_one_that_can_not_be_read(tmp_path, broken):
    write(tmp_path, VERSION_2 | broken)
    assert capacity._container(tmp_path) == NO_LIMIT
    write(tmp_path, VERSION_1)  # as where both are mounted
    assert capacity._container(tmp_path) == (4 * GIB, int(1.5 * GIB))


def test_no_control_groups(tmp_path):
    assert capacity._container(tmp_path) == NO_LIMIT
    assert capacity._container(tmp_path / "nowhere") == NO_LIMIT


def test_more_cached_than_used_is_nothing_used(tmp_path):
    write(tmp_path, VERSION_2 | {"memory.current": "5"})
    assert capacity._container(tmp_path) == (8 * GIB, 0)


@pytest.mark.parametrize(
    ("limit", "expected"),
    [((4 * GIB, 3 * GIB), (4 * GIB, GIB)), ((4 * GIB, 5 * GIB), (4 * GIB, 0)), ((10**15, 0), None), (NO_LIMIT, None)],
)
def test_real_ram_within_a_container(monkeypatch, limit, expected):
    monkeypatch.setattr(capacity, "_container", lambda: limit)
    memory = SimpleNamespace(total=16 * GIB, available=12 * GIB)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    assert capacity._ram() == (expected or (16 * GIB, 12 * GIB))
