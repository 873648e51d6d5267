"""T5 from a repository without a copy: the same bytes as from a file, each of them fetched once, whatever the network does."""

from __future__ import annotations

import json
import os
import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save

from sd3deploy.device import Device
from sd3deploy.encoders import choices, source, stopping
from sd3deploy.encoders.hub import RemoteFile, Repository, Spec, link, pages, patience, reader, stream
from sd3deploy.encoders.quantize import quantize
from sd3deploy.encoders.recipe import Recipe
from sd3deploy.encoders.weights import numbers, open_weights
from sd3deploy.errors import EncoderError
from tests import t5
from tests.hub_server import COMMIT, Hub, in_place_of_the_hub, with_a_model

CPU = Device("cpu", "cpu", "CPU")
FILE = "org/t5:encoders/t5.safetensors"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    t5.make(folder)
    return folder


@pytest.fixture
def hub(model, monkeypatch):
    """A server in the place of the hub; the pauses before something is tried again are none."""
    monkeypatch.setattr(patience, "FIRST", 0.0)
    monkeypatch.setattr(stream, "BLOCK", 1 << 18)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with with_a_model(model, monkeypatch) as server:
        yield server


def facts(folder, **values):
    return source.Facts("", None, (str(folder / "hub"),), **values)


def opened(folder, words=FILE, **values):
    return open_weights(source.find("Repository", facts(folder, **values), repository=words))


def make(weights, cancelled=lambda: False):
    return quantize(weights, Recipe(choices.find("fp8")), CPU, cancelled=cancelled)


def local(model):
    return make(open_weights(source.find("Local file", source.Facts(""), str(model / "t5.safetensors"))))


def same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name].view(torch.uint8), b[name].view(torch.uint8)), name


def files_below(folder):
    return [os.path.join(at, name) for at, _, names in os.walk(folder) for name in names]


def once(hub, size):
    assert size * 0.9 < hub.served <= size * 1.05


def test_the_same_tensors_each_byte_once_and_nothing_on_the_disk(hub, model, tmp_path):
    weights = opened(tmp_path)
    same(dict(make(weights).tensors), dict(local(model).tensors))
    once(hub, (model / "t5.safetensors").stat().st_size)
    assert files_below(tmp_path) == []
    assert hub.tokens["hub"]
    assert hub.tokens["cdn"] == 0  # the token is for the hub alone
    assert [file.path for file in weights.files] == [None]


def test_a_folder_with_its_config(hub, model, tmp_path):
    weights = opened(tmp_path, "org/t5:text_encoder_3/")
    assert weights.config["d_model"] == 128
    assert weights.config["dropout_rate"] == json.loads((model / "text_encoder_3" / "config.json").read_text())["dropout_rate"]
    same(dict(make(weights).tensors), dict(local(model).tensors))


def test_a_folder_of_several_files(hub, model, tmp_path):
    t5.make(tmp_path / "made").save_pretrained(tmp_path / "shards", max_shard_size="200KB")
    files = {f"te/{one.name}": one.read_bytes() for one in (tmp_path / "shards").iterdir()}
    hub.repositories["org/shards"] = files
    weights = opened(tmp_path, "org/shards:te/")
    assert len(weights.files) > 2
    same(dict(make(weights).tensors), dict(local(model).tensors))
    once(hub, sum(len(content) for name, content in files.items() if name.endswith(".safetensors")))


def test_a_repository_as_a_whole_is_looked_through(hub, model, tmp_path):
    assert {file.name for file in opened(tmp_path, "org/t5").files} == {"model.safetensors"}


def in_shards(model, factor):
    """A repository of two shards, all numbers times `factor`."""
    state = load_file(model / "t5.safetensors")
    names = {key: f"model-0000{1 + number % 2}-of-00002.safetensors" for number, key in enumerate(sorted(state))}
    parts = {name: {key: state[key] * factor for key in names if names[key] == name} for name in set(names.values())}
    files = {name: save(part, {"format": "pt"}) for name, part in parts.items()}
    config = (model / "text_encoder_3" / "config.json").read_bytes()
    return files | {"model.safetensors.index.json": json.dumps({"weight_map": names}).encode(), "config.json": config}


def in_cache(folder, files, but=()):
    """What huggingface_hub would have kept of an earlier commit of org/two."""
    snapshot = folder / "models--org--two" / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs" / "main").write_text("a" * 40)
    for name, content in files.items():
        if name not in but:
            (snapshot / name).write_bytes(content)


def test_files_of_two_commits_are_never_mixed(hub, model, tmp_path):
    old, new = in_shards(model, 1.0), in_shards(model, 5.0)
    hub.repositories["org/two"] = new
    in_cache(tmp_path / "hub", old, but=["model-00002-of-00002.safetensors"])
    found = opened(tmp_path, "org/two")
    assert [file.path for file in found.files] == [None, None]
    state = load_file(model / "t5.safetensors")
    assert all(torch.equal(numbers(weight), state[name] * 5.0) for name, weight in found.tensors.items())


def test_a_snapshot_that_lacks_a_file_offline(hub, model, tmp_path):
    in_cache(tmp_path / "hub", in_shards(model, 1.0), but=["model-00002-of-00002.safetensors"])
    with pytest.raises(EncoderError, match="org/two") as caught:
        opened(tmp_path, "org/two", offline=True)
    assert caught.value.id == "hub.offline"


@pytest.mark.parametrize("branch", [b"\xff\xfe", b"x" * 5000])
def test_a_branch_that_is_damaged_in_the_cache_is_asked_for(hub, model, tmp_path, branch):
    hub.repositories["org/two"] = in_shards(model, 1.0)
    in_cache(tmp_path / "hub", hub.repositories["org/two"])
    (tmp_path / "hub" / "models--org--two" / "refs" / "main").write_bytes(branch)
    assert [file.path for file in opened(tmp_path, "org/two").files] == [None, None]


def test_a_snapshot_that_is_whole_is_read_whatever_the_hub_has(hub, model, tmp_path):
    hub.repositories["org/two"] = in_shards(model, 5.0)
    in_cache(tmp_path / "hub", in_shards(model, 1.0))
    assert all(file.path for file in opened(tmp_path, "org/two").files)
    assert hub.requests == []


def test_an_index_leads_to_files_of_its_repository(hub, model, tmp_path):
    for name in ("../../x.safetensors", "/etc/passwd", "x" * 300, ""):
        index = json.dumps({"weight_map": {"shared.weight": name}}).encode()
        hub.repositories["org/two"] = {"model.safetensors.index.json": index}
        with pytest.raises(EncoderError) as caught:
            opened(tmp_path, "org/two")
        assert caught.value.id == "source.json-damaged"


def test_a_file_that_a_revision_does_not_have_leads_to_the_page_of_the_repository(hub, tmp_path):
    with pytest.raises(EncoderError) as caught:
        opened(tmp_path, "org/t5@main:none.safetensors")
    assert caught.value.id == "hub.no-file"
    assert f"{hub.endpoint}/org/t5," in caught.value.remedy


@pytest.mark.parametrize("words", [FILE, "org/t5"])
def test_a_server_that_does_not_tell_versions_apart_is_refused(hub, tmp_path, words):
    hub.versions = False
    with pytest.raises(EncoderError) as caught:
        opened(tmp_path, words)
    assert caught.value.id == "hub.no-identity"


@pytest.mark.parametrize("where", ["user:SECRET@127.0.0.1:9", "127.0.0.1:9/?token=SECRET"])
@pytest.mark.parametrize("words", [FILE, "org/t5", "https://user:SECRETpw@huggingface.co/x y", "hf_SECRETabcdefghijklmnopqrstuvwxyz0123"])
def test_secrets_of_an_address_are_not_shown(hub, tmp_path, monkeypatch, where, words):
    from huggingface_hub import constants, file_download

    monkeypatch.setattr(patience, "FIRST", 0.001)
    monkeypatch.setattr(constants, "ENDPOINT", f"http://{where}")
    for module in (constants, file_download):
        if hasattr(module, "HUGGINGFACE_CO_URL_TEMPLATE"):
            monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", f"http://{where}" + "/{repo_id}/resolve/{revision}/{filename}")
    with pytest.raises(EncoderError) as caught:
        opened(tmp_path, words)
    assert "SECRET" not in f"{caught.value} {caught.value.remedy}"


def test_several_weights_are_named(hub, tmp_path):
    hub.repositories["org/many"] = {"a.gguf": b"a", "b.gguf": b"b"}
    with pytest.raises(EncoderError, match="several weights") as caught:
        opened(tmp_path, "org/many")
    assert "org/many:a.gguf, org/many:b.gguf" in caught.value.remedy


def test_a_repository_without_weights(hub, tmp_path):
    hub.repositories["org/none"] = {"README.md": b""}
    with pytest.raises(EncoderError, match="no weights"):
        opened(tmp_path, "org/none")


def test_broken_connections_go_on_where_they_were(hub, model, tmp_path):
    weights = opened(tmp_path)
    hub.broken = [0, 5, 40_000, 70_001, 100_000] * 3
    same(dict(make(weights).tensors), dict(local(model).tensors))
    once(hub, (model / "t5.safetensors").stat().st_size)
    assert hub.broken == []


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_a_server_that_is_busy_is_asked_again(hub, model, tmp_path, status):
    weights = opened(tmp_path)
    hub.status = [(status, {"Retry-After": "0"})] * 7
    same(dict(make(weights).tensors), dict(local(model).tensors))
    assert hub.status == []


def test_a_server_that_stays_busy_is_given_up(hub, tmp_path):
    weights = opened(tmp_path)
    hub.status = [(503, {})] * 1000
    with pytest.raises(EncoderError, match="HTTP 503") as caught:
        make(weights)
    assert caught.value.id == "hub.unreachable"
    assert 1000 - len(hub.status) <= stream.CONNECTIONS * patience.TRIES


def test_an_address_that_has_expired_is_asked_for_again(hub, model, tmp_path):
    weights = opened(tmp_path)
    hub.generation = 1
    same(dict(make(weights).tensors), dict(local(model).tensors))
    once(hub, (model / "t5.safetensors").stat().st_size)


@pytest.mark.parametrize(
    ("status", "id"), [(401, "hub.refused"), (403, "hub.refused"), (404, "hub.no-file"), (416, "hub.range"), (418, "hub.status")]
)
def test_what_the_server_refuses_while_it_is_read(hub, tmp_path, status, id):
    weights = opened(tmp_path)
    hub.status = [(status, {})] * 1000
    with pytest.raises(EncoderError) as caught:
        make(weights)
    assert caught.value.id == id
    assert caught.value.remedy
    assert len(hub.status) > 1000 - 4 * stream.CONNECTIONS  # nothing of that is asked again and again


@pytest.mark.parametrize(
    ("status", "headers", "id"),
    [
        (403, {"X-Error-Code": "GatedRepo"}, "hub.gated"),
        (401, {"X-Error-Code": "GatedRepo"}, "hub.gated"),
        (401, {"X-Error-Code": "RepoNotFound"}, "hub.no-repository"),
        (401, {}, "hub.refused"),
        (403, {}, "hub.refused"),
        (404, {"X-Error-Code": "EntryNotFound"}, "hub.no-file"),
        (404, {"X-Error-Code": "RevisionNotFound"}, "hub.no-file"),
        (404, {}, "hub.no-file"),
        (503, {}, "hub.unreachable"),
        (418, {}, "hub.status"),
    ],
)
@pytest.mark.parametrize("words", [FILE, "org/t5"])
def test_what_the_hub_refuses(hub, tmp_path, status, headers, id, words):
    hub.head_status = status, headers
    with pytest.raises(EncoderError) as caught:
        opened(tmp_path, words)
    # The list of files is asked for by huggingface_hub, which tries nothing again.
    assert caught.value.id == ("hub.status" if words == "org/t5" and status == 503 else id)
    assert caught.value.remedy


def test_nobody_answers(hub, tmp_path):
    hub.close()
    with pytest.raises(EncoderError) as caught:
        opened(tmp_path)
    assert caught.value.id == "hub.unreachable"


@pytest.mark.parametrize("words", [FILE, "org/t5"])
def test_offline_nothing_is_asked(hub, tmp_path, words):
    with pytest.raises(EncoderError) as caught:
        opened(tmp_path, words, offline=True)
    assert caught.value.id == "hub.offline"
    assert hub.requests == []


def test_offline_by_the_environment(hub, tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(EncoderError) as caught:
        opened(tmp_path)
    assert caught.value.id == "hub.offline"
    assert hub.requests == []


def test_a_file_that_changes_half_way(hub, tmp_path):
    weights = opened(tmp_path)

    def change(number):
        if number == 5:
            content = hub.repositories["org/t5"]["encoders/t5.safetensors"]
            hub.repositories["org/t5"]["encoders/t5.safetensors"] = content[:-1] + b"x"

    hub.change = change
    with pytest.raises(EncoderError) as caught:
        make(weights)
    assert caught.value.id == "hub.changed"
    assert opened(tmp_path).fingerprint() != weights.fingerprint()


def test_a_file_that_becomes_shorter(hub, tmp_path):
    weights = opened(tmp_path)
    content = hub.repositories["org/t5"]["encoders/t5.safetensors"]
    hub.repositories["org/t5"]["encoders/t5.safetensors"] = content[:-1000]
    with pytest.raises(EncoderError) as caught:
        make(weights)
    assert caught.value.id == "hub.changed"


def test_a_file_that_has_changed_when_its_address_expires(hub, tmp_path):
    weights = opened(tmp_path)
    hub.repositories["org/t5"]["encoders/t5.safetensors"] += b"x"
    hub.generation = 1
    with pytest.raises(EncoderError) as caught:
        make(weights)
    assert caught.value.id == "hub.changed"


def test_without_ranges_it_is_downloaded(hub, model, tmp_path):
    hub.ranges = False
    weights = opened(tmp_path)
    (file,) = weights.files
    assert file.path is not None
    assert file.path.is_relative_to(tmp_path / "hub")
    same(dict(make(weights).tensors), dict(local(model).tensors))


def test_a_server_that_gives_no_more_ranges_half_way_is_told_and_the_next_try_downloads(hub, model, tmp_path):
    weights = opened(tmp_path)
    hub.change = lambda number: setattr(hub, "ranges", number < 5)
    with pytest.raises(EncoderError, match="does not give the bytes") as caught:
        make(weights)
    assert caught.value.id == "hub.range"
    hub.ranges, hub.change = False, lambda number: None
    (file,) = opened(tmp_path).files
    assert file.path is not None


def test_a_size_that_is_not_told_any_more_half_way(hub, tmp_path):
    weights = opened(tmp_path)
    hub.sizes, hub.generation = False, 1
    with pytest.raises(EncoderError) as caught:
        make(weights)
    assert caught.value.id == "hub.range"


def test_what_is_to_be_kept_is_kept_and_then_read_from_the_disk(hub, model, tmp_path):
    found = source.find("Repository", facts(tmp_path), repository=FILE, keep=True)
    (file,) = open_weights(found).files
    assert file.path is not None
    assert file.path.read_bytes() == (model / "t5.safetensors").read_bytes()
    assert file.path.parent.parent.name == COMMIT
    before = len(hub.requests)
    (again,) = opened(tmp_path, offline=True).files
    assert again.path == file.path
    assert len(hub.requests) == before


def test_a_folder_that_is_kept_is_of_one_commit(hub, model, tmp_path):
    hub.repositories["org/two"] = in_shards(model, 1.0)
    kept = source.find("Repository", facts(tmp_path), repository="org/two", keep=True)
    files = open_weights(kept).files
    assert {file.path.parent.name for file in files} == {COMMIT}
    assert kept.remote.remote is False
    assert all(file.path for file in opened(tmp_path, "org/two", offline=True).files)


def test_a_branch_that_moves_on_while_it_is_kept(hub, model, tmp_path):
    hub.repositories["org/two"] = in_shards(model, 1.0)
    hub.commit = "f" * 40
    with pytest.raises(EncoderError) as caught:
        open_weights(source.find("Repository", facts(tmp_path), repository="org/two", keep=True))
    assert caught.value.id == "hub.changed"


def test_what_lies_side_by_side_is_one_block():
    assert [(one.offset, one.size) for one in stream._blocks([(0, 5), (5, 7), (12, 0), (20, 4)])] == [(0, 12), (20, 4)]


def test_a_disk_without_room_for_what_is_to_be_kept(hub, tmp_path, monkeypatch):
    from sd3deploy.encoders.hub import repository

    monkeypatch.setattr(repository, "SPARE", 10**18)
    with pytest.raises(EncoderError, match="can not be stored") as caught:
        open_weights(source.find("Repository", facts(tmp_path), repository=FILE, keep=True))
    assert "sd3_weights_keep" in caught.value.remedy


def test_cancel_while_the_server_hangs(hub, tmp_path):
    weights = opened(tmp_path)
    hub.hanging.set()
    with pytest.raises(stopping.Stopped):
        make(weights, hub.hung.is_set)
    assert not hub.released.is_set()  # it hangs still


@pytest.mark.parametrize("keep", [False, True])
def test_cancel_while_the_server_hangs_before_the_header(hub, tmp_path, keep):
    hub.hanging.set()
    found = source.find("Repository", facts(tmp_path), repository=FILE, keep=keep)
    with stopping.stoppable(hub.hung.is_set), pytest.raises(stopping.Stopped):
        open_weights(found)


def test_cancel_ends_a_pause(hub, tmp_path):
    weights = opened(tmp_path)
    hub.status = [(429, {"Retry-After": "299"})] * 1000
    with pytest.raises(stopping.Stopped):
        make(weights, lambda: len(hub.status) < 1000)


def test_what_is_read_ahead_is_bounded(hub, tmp_path, monkeypatch):
    """As long as nobody reads, no more than AHEAD blocks are asked for."""
    monkeypatch.setattr(stream, "BLOCK", 1 << 14)
    hub.repositories["org/t5"]["zeros.bin"] = bytes(1 << 20)
    file = RemoteFile.find("org/t5", "zeros.bin")
    before = len(hub.requests)
    content = file.open()
    content.expect([(1 << 17, 1 << 19)])
    content.seek(1 << 17)
    assert content.read(1 << 14) == bytes(1 << 14)
    content.seek((1 << 17) + (1 << 14) * (stream.AHEAD - 1))
    assert content.read(10) == bytes(10)
    content.close()
    assert len(hub.requests) - before <= 2 * stream.AHEAD


@pytest.fixture(scope="module")
def noise():
    server = Hub()
    server.repositories["org/noise"] = {"noise.bin": os.urandom(300_000)}
    yield server
    server.close()


@given(reads=st.lists(st.tuples(st.integers(0, 310_000), st.integers(0, 150_000)), max_size=8), data=st.data())
def test_any_read_gives_what_a_file_would(noise, reads, data):
    content = noise.repositories["org/noise"]["noise.bin"]
    with pytest.MonkeyPatch.context() as patch:
        in_place_of_the_hub(noise, patch)
        patch.setattr(stream, "BLOCK", 40_000)
        patch.setattr(pages, "PAGE", 10_000)
        patch.setattr(reader, "_SMALL", 20_000)
        with RemoteFile.find("org/noise", "noise.bin").open() as file:
            cuts = sorted(data.draw(st.lists(st.integers(0, 300_000), max_size=6)))
            spans = [(start, end - start) for start, end in zip(cuts[::2], cuts[1::2], strict=False)]
            for offset, size in [*reads[:2], *reads[4:]]:
                file.seek(offset)
                assert exactly(file, size) == content[offset : offset + size]
            file.expect(spans)
            for offset, size in [*spans, *reads]:
                file.seek(offset)
                assert exactly(file, size) == content[offset : offset + size]


def exactly(file, size):
    found = b""
    while len(found) < size and (part := file.read(size - len(found))):
        found += part
    return found


def test_files_are_equal_by_what_they_are(hub):
    first, second = (RemoteFile.find("org/t5", "encoders/t5.safetensors") for _ in range(2))
    assert first == second
    assert hash(first) == hash(second)
    assert hub.endpoint not in json.dumps(first.fingerprint())
    assert first.fingerprint()["etag"] == first.etag
    assert RemoteFile.find("org/t5", "text_encoder_3/model.safetensors") != first


def test_one_object_asks_once(hub, tmp_path):
    found = Repository(Spec.parse(FILE), [str(tmp_path)])
    threads = [threading.Thread(target=found.files) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [method for method, _, _ in hub.requests] == ["HEAD", "GET"]


def test_a_session_of_requests_reads_the_same(hub, model, tmp_path, monkeypatch):
    """That is what huggingface_hub before 1.0 gives."""
    import requests
    from huggingface_hub import utils

    weights = opened(tmp_path)
    monkeypatch.setattr(utils, "get_session", requests.Session)
    hub.broken = [0, 5, 40_000, 70_001]
    same(dict(make(weights).tensors), dict(local(model).tensors))
    assert link.failure.passes(requests.exceptions.ChunkedEncodingError("x"))
