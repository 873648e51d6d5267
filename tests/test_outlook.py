"""What a source is, and what it costs, is said before any of it is read; and it is what then happens."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
from safetensors.torch import load_file

from sd3deploy.deployment.offers import offers
from sd3deploy.deployment.wanted import Wanted
from sd3deploy.device import Device
from sd3deploy.encoders import choices, load, outlook, source
from sd3deploy.encoders.cache import Cache
from sd3deploy.errors import EncoderError
from tests import forms, gguf_files, t5
from tests.hub_server import with_a_model

CPU = Device("cpu", "cpu", "CPU", bf16=True, fp8=True)
FILE = "org/t5:encoders/t5.safetensors"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    t5.make(folder)
    return folder


@pytest.fixture(scope="module")
def state(model):
    return load_file(model / "t5.safetensors")


@pytest.fixture
def hub(model, monkeypatch):
    with with_a_model(model, monkeypatch) as server:
        yield server


class Host:
    """What the offers ask of one."""

    def __init__(self, model, cache, caches=(), shared=None):
        self._facts, self._cache = source.Facts(str(model), shared, tuple(map(str, caches))), cache

    def facts(self):
        return self._facts

    def device(self):
        return CPU

    def cache(self):
        return self._cache


def found(model, tmp_path, weights="Local file", file="", repository=FILE, choice="fp8", keep=False, cache=True, shared=None):
    """Kind → what is offered."""
    host = Host(model, Cache(tmp_path / "cache") if cache else None, [tmp_path / "hub"], shared)
    return {one.kind: one for one in offers(host, Wanted(choices.find(choice), weights, str(file), repository, keep))}


def test_a_file_says_what_it_is_and_what_it_costs(model, state, tmp_path):
    file = gguf_files.write(tmp_path / "t5.gguf", state, "Q8_0")
    offer = found(model, tmp_path, file=file)["Local file"]
    assert offer.chosen
    assert offer.outlook.what == f"small T5 for tests, Q8_0, {file.stat().st_size / 1e6:.1f} MB, complete."
    assert (offer.outlook.fetched, offer.outlook.stored, offer.outlook.cached) == (0, 0, False)
    assert 0.8 * file.stat().st_size < offer.outlook.read < file.stat().st_size
    assert offer.outlook.kept > 0
    for words in ("are read from the disk.", "is kept in", "has been quantized before (Q8_0)"):
        assert words in offer.outlook.cost


@pytest.mark.parametrize("choice", [one.id for one in choices.CHOICES if one.quantized])
def test_what_will_be_kept_is_told_to_the_byte(model, tmp_path, choice):
    from sd3deploy.encoders.quantize import quantize
    from sd3deploy.encoders.recipe import Recipe
    from sd3deploy.encoders.weights import open_weights

    place = source.find("Local file", source.Facts(""), str(model / "t5.safetensors"))
    made = quantize(open_weights(place), Recipe(choices.find(choice), CPU.compute_dtype), CPU)
    offer = found(model, tmp_path, file=model / "t5.safetensors", choice=choice)["Local file"].outlook
    assert abs(offer.kept - made.size) < 0.02 * made.size


def test_packages_that_will_be_installed_are_named(model, state, tmp_path, monkeypatch):
    from sd3deploy import deps

    file = gguf_files.write(tmp_path / "t5.gguf", state, "Q8_0")
    there = found(model, tmp_path, file=file)["Local file"].outlook
    assert "Packages" not in there.cost
    check = deps.check
    monkeypatch.setattr(deps, "check", lambda needed: [replace(one, state=deps.State.MISSING) for one in check(needed)])
    cost = found(model, tmp_path, file=file)["Local file"].outlook.cost
    assert "gguf" in cost.partition("Packages will be installed for it: ")[2]


def test_what_is_kept_already_is_read_from_there(model, tmp_path):
    cache = Cache(tmp_path / "cache")
    place = source.find("Local file", source.Facts(""), str(model / "t5.safetensors"))
    load.read(choices.find("fp8"), place, CPU, cache=cache)
    load.writing().join()
    (entry,) = cache.entries()
    offer = found(model, tmp_path, file=model / "t5.safetensors")["Local file"].outlook
    assert (offer.cached, offer.read, offer.kept) == (True, entry.bytes, 0)
    assert not found(model, tmp_path, file=model / "t5.safetensors", choice="bf16")["Local file"].outlook.cached


def test_the_network_is_asked_for_the_chosen_one_alone(hub, model, tmp_path):
    offer = found(model, tmp_path, file=model / "t5.safetensors")["Repository"]
    assert (offer.name, offer.outlook, offer.problem) == (FILE, None, None)
    host = Host(model, None)
    wanted = Wanted(choices.find("fp8"), "Repository", repository=FILE)
    assert {one.kind: one.outlook is None for one in offers(host, wanted, ask=False)}["Repository"]
    assert hub.requests == []
    offer = found(model, tmp_path, "Repository")["Repository"].outlook
    size = (model / "t5.safetensors").stat().st_size
    assert 0.9 * size < offer.fetched < size
    assert (offer.read, offer.stored) == (0, 0)
    assert "none of that is stored" in offer.cost
    assert hub.served < 0.5 * size
    offer = found(model, tmp_path, "Repository", keep=True)["Repository"].outlook
    assert offer.stored == offer.fetched
    assert str(tmp_path / "hub") in offer.cost
    assert not (tmp_path / "hub").exists()


@pytest.mark.parametrize(
    ("choice", "keep", "each"), [("bf16", False, True), ("fp8", False, False), ("bf16", True, False)]
)
def test_what_is_fetched_at_each_load_is_said(hub, model, tmp_path, choice, keep, each):
    offer = found(model, tmp_path, "Repository", choice=choice, keep=keep)["Repository"].outlook
    assert ("fetched anew at each load" in offer.cost) == each


def test_a_model_that_is_not_on_this_disk(hub, model, tmp_path):
    hub.repositories["org/sd3"] = hub.repositories["org/t5"]
    offer = found("org/sd3", tmp_path, "Model")["Model"].outlook
    assert offer.stored == offer.fetched > 0
    assert not (tmp_path / "hub").exists()
    assert found("org/sd3", tmp_path, "Local file", model / "t5.safetensors")["Model"].outlook is None


def test_a_server_that_gives_files_as_a_whole_only(hub, model, tmp_path):
    hub.ranges = False
    assert found(model, tmp_path, "Repository")["Repository"].problem.id == "hub.whole"
    assert not (tmp_path / "hub").exists()


@pytest.mark.parametrize(
    ("kind", "values", "id"),
    [
        ("Local file", {}, "source.file-unset"),
        ("Local file", {"file": "/nowhere"}, "source.file-missing"),
        ("Shared repository", {}, "source.shared-off"),
        ("Repository", {"repository": "words"}, "hub.spec"),
        ("Repository", {"repository": "org/t5:none"}, "hub.no-file"),
        ("Model", {"model": ""}, "source.no-model"),
        ("Automatic", {"model": ""}, "source.no-model"),
    ],
)
def test_what_can_not_be_used_says_why(hub, model, tmp_path, kind, values, id):
    offer = found(values.pop("model", model), tmp_path, kind, **values)[kind]
    assert (offer.outlook, offer.problem.id) == (None, id)
    assert offer.problem.remedy


def test_a_row_that_names_nothing_is_no_error_unless_it_is_chosen(model, tmp_path):
    rows = found(model, tmp_path, "Automatic", repository="")
    assert all(rows[kind].problem is None and rows[kind].outlook is None for kind in ("Local file", "Repository"))


def test_a_file_that_lacks_a_part_is_not_complete(model, state, tmp_path):
    tensors = {name: forms.raw(tensor) for name, tensor in state.items() if "block.2.layer.1" not in name}
    file = forms.save(tmp_path / "t5.safetensors", tensors, t5.MARKED)
    assert found(model, tmp_path, file=file)["Local file"].problem.id == "source.incomplete"


def test_room_is_looked_at_before(model, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(outlook.shutil, "disk_usage", lambda place: usage._replace(free=10**9))
    offer = found(model, tmp_path, file=model / "t5.safetensors")["Local file"].outlook
    assert offer.kept == 0
    assert "There is no room for" in offer.cost


def test_nothing_is_kept_without_a_cache_or_beyond_its_limit(model, tmp_path):
    offer = found(model, tmp_path, file=model / "t5.safetensors", cache=False)["Local file"].outlook
    assert (offer.kept, "made anew each time" in offer.cost) == (0, True)
    place = source.find("Local file", source.Facts(""), str(model / "t5.safetensors"))
    offer = outlook.look(place, source.Facts(""), choices.find("fp8"), CPU, Cache(tmp_path / "cache", 1), True)
    assert (offer.kept, "sd3_cache_limit" in offer.cost) == (0, True)


@pytest.mark.parametrize("choice", ["default", "none"])
def test_who_wants_no_t5_of_ours_pays_nothing(model, tmp_path, choice):
    offer = found(model, tmp_path, file=model / "t5.safetensors", choice=choice)["Local file"].outlook
    assert (offer.read, offer.kept) == (0, 0)
    assert "reads none of it" in offer.cost


def test_looking_needs_an_answer_of_the_network_only_where_it_may_ask(model, hub, tmp_path):
    place = source.find("Repository", source.Facts(""), repository=FILE)
    with pytest.raises(EncoderError) as caught:
        outlook.look(place, source.Facts(""), choices.find("fp8"), CPU, None, False)
    assert caught.value.id == "hub.offline"
