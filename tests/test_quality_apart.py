"""Quality measured in a process of its own: what the command finds, ended and held on from outside, and why it could not."""

from __future__ import annotations

import json
import threading
from dataclasses import replace

import pytest

from sd3deploy import messages, tiny_tokenizers
from sd3deploy.device import Device
from sd3deploy.encoders import source
from sd3deploy.encoders.cache import Cache
from sd3deploy.encoders.choices import find
from sd3deploy.encoders.hub import Repository, Spec
from sd3deploy.encoders.stopping import Stopped
from sd3deploy.encoders.weights import open_weights
from sd3deploy.errors import EncoderError
from sd3deploy.memory import capacity
from sd3deploy.memory.errors import Errors
from sd3deploy.quality import measuring
from sd3deploy.quality.apart import Order, in_child
from sd3deploy.quality.kept import Kept, errors_of
from tests import t5

CPU = Device("cpu", "cpu", "CPU")
TEXTS = ["a photo of a cat", "", *(f"the red sign says {word}" for word in range(10))]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "mine"
    t5.make(folder)
    tiny_tokenizers.t5(folder / "tokenizer_3")
    return folder


@pytest.fixture(scope="module")
def place(model):
    return source.find("Model", source.Facts(str(model)))


@pytest.fixture
def order(place, tmp_path):
    (tmp_path / "prompts.txt").write_text("\n".join(TEXTS))
    return Order(place, tmp_path / "prompts.txt", [], Cache(tmp_path / "kept"), CPU)


def never():
    return False


def counted(order):
    """How many prompts are kept of a choice that runs everywhere."""
    return len(Kept(order.cache, open_weights(order.source).fingerprint(), order.device).measured(find("q4")))


def test_it_is_what_is_measured_here_and_is_kept_for_the_recommendation(order, place, tmp_path):
    seen = []
    found = in_child(order, lambda *at: seen.append(at), never, never)
    here = measuring.measured(open_weights(place), [find("q4")], TEXTS, [], None, CPU)
    numbers = found["report"]["choices"]
    assert numbers.keys() == {choice.id for choice in measuring.able((), CPU)[0]}
    assert [one["error"] for one in numbers["q4"]["prompts"]] == pytest.approx([one.error for one in here.rows[0].measured])
    assert "<html" in found["page"]
    assert found["title"] == here.title
    assert [fraction for fraction, *_ in seen] == sorted(fraction for fraction, *_ in seen)
    assert seen[-1][0] == 1.0
    errors = errors_of(order.cache, place)
    assert errors.prompts == len(here.prompts)
    assert errors.measured == pytest.approx({id: one["error"]["mean"] for id, one in numbers.items()})
    seen.clear()
    assert in_child(order, lambda *at: seen.append(at), never, never) == found
    assert seen == []  # nothing is measured twice


def test_what_was_measured_before_it_was_ended_is_kept(order):
    ended = threading.Event()

    def progress(fraction, done, all, name):
        if done:
            ended.set()

    with pytest.raises(Stopped):
        in_child(order, progress, ended.is_set, never)
    kept = counted(order)
    assert 0 < kept < len(TEXTS)
    seen = []
    in_child(order, lambda *at: seen.append(at), never, never)
    assert {(all, done >= kept) for _, done, all, _ in seen} == {(len(TEXTS), True)}  # it goes on from there
    assert counted(order) == len(TEXTS)


def test_while_it_is_told_to_hold_on_it_does_nothing(order):
    """It is held from the beginning: it comes to no prompt until it is let go."""
    looks, seen, held = [0], [], [True]

    def hold():
        looks[0] += 1
        if looks[0] == 150 and not seen:  # fifteen seconds, in which it would have begun
            held[0] = False
        return held[0]

    in_child(order, lambda *at: seen.append(looks[0]), never, hold)
    assert min(seen) >= 150


def test_what_it_refuses_is_the_same_sentence_here(order, tmp_path):
    (tmp_path / "lonely").mkdir()
    (tmp_path / "lonely" / "t5.safetensors").symlink_to(order.source.place + "/t5.safetensors")
    alone = source.find("Local file", source.Facts(""), str(tmp_path / "lonely" / "t5.safetensors"))
    with pytest.raises(EncoderError) as raised:
        in_child(replace(order, source=alone), lambda *at: None, never, never)
    assert (raised.value.id, raised.value.message) == ("quality.no-tokenizer", messages.text("quality.no-tokenizer"))


def test_a_process_that_ends_by_itself_is_told(order, monkeypatch):
    monkeypatch.setattr(Order, "dump", lambda order: "{}")
    with pytest.raises(EncoderError) as raised:
        in_child(order, lambda *at: None, never, never)
    assert raised.value.id == "quality.ended"
    assert "KeyError" in raised.value.message


def test_an_order_is_the_same_on_the_other_side(place, tmp_path):
    device = Device("cuda:1", "cuda", "GeForce", (8, 6))
    file = tmp_path / "t5.safetensors"
    shared = {"config": t5.make(tmp_path).config, "cache_dir": "/caches", "local_files_only": True}
    remote = Repository(Spec("a/b", "t5.safetensors", "main"), ["/caches"])
    for one in (place, source.Source("file", file=file), source.Source("x/y", "x/y", arguments=shared), source.Source("r", remote=remote)):
        order = Order(one, tmp_path / "prompts.txt", [tmp_path], Cache(tmp_path / "kept", 5), device)
        text = order.dump()
        other = Order.load(text)
        assert (other.device, other.file, other.places, other.dump()) == (device, tmp_path / "prompts.txt", [tmp_path], text)
        assert (other.source.name, other.source.place, other.source.file) == (one.name, one.place, one.file)
    assert json.loads(text)["remote"] == ["a/b@main:t5.safetensors", "/caches"]


# What is refused before


@pytest.mark.parametrize(
    "away",
    [
        source.Source("o/n:t5.safetensors", remote=Repository(Spec("o/n", "t5.safetensors"), [])),
        source.Source("o/n", remote=Repository(Spec("o/n"), [])),
        source.Source("o/n", "o/n", arguments={"cache_dir": "/nowhere"}),
    ],
    ids=["file", "repository", "model"],
)
def test_weights_that_are_not_on_this_disk_are_refused_without_the_network(away, monkeypatch):
    monkeypatch.setattr("socket.socket.connect", None)
    with pytest.raises(EncoderError) as raised:
        measuring.opened(away)
    assert raised.value.id == "quality.remote"


@pytest.mark.parametrize(
    ("ram", "own", "id"),
    [(1.9e9, None, "quality.memory"), (8e9, 2.1e9, "quality.memory-device"), (8e9, None, ""), (8e9, 4e9, "")],
)
def test_memory_that_is_short_is_said_with_the_need(monkeypatch, ram, own, id):
    monkeypatch.setattr(capacity, "read_free", lambda device: (int(ram), own and int(own)))
    if not id:
        measuring.require_memory(CPU)
        return
    with pytest.raises(EncoderError, match=r"2\.\d GB") as raised:
        measuring.require_memory(Device("cuda:0", "cuda", "GeForce"))
    assert raised.value.id == id


def test_free_memory_is_what_this_machine_says():
    ram, own = capacity.read_free(CPU)
    assert 0 < ram <= capacity.read_capacity(CPU).ram_total
    assert own is None


# What needs packages that are not there is not measured, and stops no recommendation by what is


def test_what_needs_no_package_is_enough_to_go_by():
    plain = {choice.id: 0.5 - choice.error for choice in measuring.OURS if not choice.groups}
    errors = Errors(plain, 3)
    order = [choice.id for choice in errors.order(measuring.OURS)]
    assert errors.cover(measuring.OURS)
    assert order[: len(plain)] == sorted(plain, key=plain.get)
    assert len(order) == len(measuring.OURS)
    short = Errors(dict(list(plain.items())[1:]), 3)
    assert not short.cover(measuring.OURS)
