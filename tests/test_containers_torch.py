"""`.bin` files: the tensors lie where torch says, nothing of them is run, and whatever can not be read so is refused."""

from __future__ import annotations

import io
import pickle
import shutil
import sys
import zipfile

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from sd3deploy.encoders import source, weights
from sd3deploy.encoders.containers import open_content
from sd3deploy.encoders.files import LocalFile
from sd3deploy.errors import EncoderError
from tests import t5


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    place = tmp_path_factory.mktemp("model")
    t5.make(place)
    return place


@pytest.fixture(scope="module")
def state(model):
    return load_file(model / "t5.safetensors")


def read(file):
    return open_content(LocalFile(file))


def refusal(file):
    with pytest.raises(EncoderError) as caught:
        read(file)
    assert caught.value.remedy
    return caught.value


def numbers(content):
    types = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    return {name: weights.bytes_of(one).view(types[one.dtype]).reshape(one.shape) for name, one in content.tensors.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_tensors_are_those_that_were_saved(state, tmp_path, dtype):
    wanted = {name: tensor.to(dtype) for name, tensor in state.items()}
    torch.save(wanted, tmp_path / "pytorch_model.bin")
    found = numbers(read(tmp_path / "pytorch_model.bin"))
    assert found.keys() == wanted.keys()
    assert all(found[name].dtype is dtype and torch.equal(found[name], tensor) for name, tensor in wanted.items())


def test_views_and_shared_tensors(tmp_path):
    whole = torch.arange(12.0).reshape(3, 4)
    wanted = {"whole": whole, "again": whole, "rows": whole[1:], "scalar": torch.tensor(3.0), "one": whole.flatten()[5:6]}
    torch.save(wanted, tmp_path / "x.bin")
    found = numbers(read(tmp_path / "x.bin"))
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


def test_an_encoder_in_a_folder(model, state, tmp_path):
    full = state | {"encoder.embed_tokens.weight": state["shared.weight"], "decoder.final_layer_norm.weight": torch.ones(128)}
    torch.save(full, tmp_path / "pytorch_model.bin")
    shutil.copy(model / "text_encoder_3" / "config.json", tmp_path)
    found = weights.open_weights(source.find("Local file", source.Facts(""), str(tmp_path)))
    assert found.tensors.keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in weights.mapped(found).items())


RAN = []


class Runs:
    """What a stranger might put into a pickle."""

    def __reduce__(self):
        return RAN.append, (1,)


@pytest.mark.parametrize("what", [Runs(), {"a": Runs()}, {"a": torch.nn.Linear(1, 1)}])
def test_nothing_of_it_is_run(tmp_path, what):
    torch.save(what, tmp_path / "x.bin")
    assert refusal(tmp_path / "x.bin").id == "pickle.unsafe"
    assert RAN == []


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_bare_pickle(tmp_path, protocol):
    (tmp_path / "x.bin").write_bytes(pickle.dumps({"a": Runs()}, protocol))
    assert refusal(tmp_path / "x.bin").id == "pickle.bare"
    assert RAN == []


def test_the_form_of_old_torch(tmp_path):
    torch.save({"a": torch.ones(3)}, tmp_path / "x.bin", _use_new_zipfile_serialization=False)
    assert refusal(tmp_path / "x.bin").id == "pickle.bare"


@pytest.mark.parametrize(
    ("tensor", "kind"),
    [
        (torch.ones(3, 4).t(), "not contiguous"),
        (torch.ones(3, dtype=torch.int8), "int8"),
        (torch.ones(3, dtype=torch.float64), "float64"),
        (5, "int"),
        ({"b": torch.ones(1)}, "dict"),
    ],
)
def test_what_is_no_plain_tensor_is_named(tmp_path, tensor, kind):
    torch.save({"a": torch.ones(2), "odd": tensor}, tmp_path / "x.bin")
    error = refusal(tmp_path / "x.bin")
    assert (error.id, error.values["key"], error.values["kind"]) == ("pickle.no-tensor", "odd", kind)


def test_a_zip_of_something_else(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.bin", "w") as archive:
        archive.writestr("model.safetensors", b"x")
    assert refusal(tmp_path / "x.bin").id == "pickle.archive"


def rewritten(state, change=lambda name, content: (name, content), keep=False):
    """A file of torch before 2.7, put together anew by zipfile. change: name, content → name, content. keep: as torch has written it since,
    which calculates where a tensor lies."""
    before, after = io.BytesIO(), io.BytesIO()
    torch.save(state, before)
    with zipfile.ZipFile(before) as archive, zipfile.ZipFile(after, "w") as made:
        for one in archive.infolist():
            if keep or not one.filename.endswith("/.format_version"):
                made.writestr(*change(one.filename, archive.read(one)))
    return after.getvalue()


def test_another_order_of_bytes(tmp_path):
    (tmp_path / "x.bin").write_bytes(
        rewritten({"a": torch.ones(3)}, lambda name, content: (name, b"big" if name.endswith("byteorder") else content))
    )
    assert refusal(tmp_path / "x.bin").id == "pickle.big-endian"


def test_a_tensor_that_is_longer_than_its_bytes(tmp_path):
    (tmp_path / "x.bin").write_bytes(
        rewritten({"a": torch.ones(300)}, lambda name, content: (name, content[:100] if name.endswith("data/0") else content))
    )
    assert refusal(tmp_path / "x.bin").id == "source.file-damaged"


def test_put_together_anew_it_is_the_same(state, tmp_path):
    """So that the two above differ by their fault alone."""
    (tmp_path / "x.bin").write_bytes(rewritten(state))
    found = numbers(read(tmp_path / "x.bin"))
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())


def test_what_another_program_has_packed_anew_is_never_read_from_the_wrong_place(state, tmp_path):
    (tmp_path / "x.bin").write_bytes(rewritten(state, keep=True))
    assert refusal(tmp_path / "x.bin").id == "pickle.repacked"


def test_tensors_that_have_changed_places(tmp_path):
    """Of the same size, with all the places and sizes that torch wrote: only the names in the zip tell."""
    torch.save({"a": torch.ones(64), "b": torch.zeros(64)}, tmp_path / "x.bin")
    content = (tmp_path / "x.bin").read_bytes()
    assert content.count(b"/data/0") == content.count(b"/data/1") == 2
    first, second, aside = b"/data/0", b"/data/1", b"/data/_"
    (tmp_path / "x.bin").write_bytes(content.replace(first, aside).replace(second, first).replace(aside, second))
    assert refusal(tmp_path / "x.bin").id == "pickle.repacked"


def test_torch_that_can_not_read_it_safely(tmp_path, monkeypatch):
    torch.save({"a": torch.ones(3)}, tmp_path / "x.bin")
    monkeypatch.setattr(torch, "__version__", "2.5.1+cu121")
    error = refusal(tmp_path / "x.bin")
    assert error.id == "pickle.torch"
    assert "2.5.1" in error.message


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_cut_or_changed_it_is_an_error_or_lies_in_the_file(tmp_path, data):
    file = tmp_path / "x.bin"
    torch.save({"a": torch.arange(12.0), "b": torch.ones(3, 4, dtype=torch.bfloat16)}, file)
    content = bytearray(file.read_bytes())
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(1, len(content) - 1)) :]
    else:
        for _ in range(data.draw(st.integers(1, 3))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    file.write_bytes(content)
    try:
        found = read(file)
    except EncoderError:
        return
    assert all(one.offset + one.size <= len(content) for one in found.tensors.values())


def test_a_pickle_that_says_it_is_compressed_and_is_not(tmp_path):
    file = tmp_path / "x.bin"
    torch.save({"a": torch.arange(12.0)}, file)
    content = bytearray(file.read_bytes())
    for method in (8, 12, 14):  # deflate, bzip2, lzma: in the local header, and in the directory at the end
        changed = bytearray(content)
        changed[8:10] = changed[content.index(b"PK\1\2") + 10 : content.index(b"PK\1\2") + 12] = method.to_bytes(2, "little")
        file.write_bytes(changed)
        assert refusal(file).id == "source.file-damaged"


def test_torch_is_not_imported_by_the_module():
    import subprocess

    code = "import sys, sd3deploy.encoders.containers; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
