"""GGUF: read to the same numbers as by the `gguf` package, by names of whoever wrote it; and whatever is wrong with one is said."""

from __future__ import annotations

import struct
import sys

import gguf
import numpy
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from sd3deploy import deps
from sd3deploy.deployment.making import Making
from sd3deploy.deployment.placed import Placed
from sd3deploy.deployment.undertaking import Undertaking
from sd3deploy.deployment.wanted import Wanted
from sd3deploy.device import Device
from sd3deploy.encoders import choices, identity, quantize, source, weights
from sd3deploy.encoders.containers import open_content
from sd3deploy.encoders.containers.gguf import BLOCKS
from sd3deploy.encoders.files import LocalFile
from sd3deploy.encoders.forms import Layer, recognise
from sd3deploy.encoders.recipe import Recipe
from sd3deploy.encoders.stored import Stored
from sd3deploy.errors import EncoderError
from sd3deploy.events import Events
from tests import gguf_files, t5

LEGACY = ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"]  # what the package can write
WO = "encoder.block.1.layer.1.DenseReluDense.wo.weight"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    t5.make(folder)
    return folder


@pytest.fixture(scope="module")
def state(model):
    return load_file(model / "t5.safetensors")


@pytest.fixture(scope="module")
def small(state, tmp_path_factory):
    """A file of 8 bit."""
    return gguf_files.write(tmp_path_factory.mktemp("gguf") / "t5.gguf", state)


def opened(file):
    return weights.open_weights(source.find("Local file", source.Facts(""), str(file)))


def refusal(file):
    with pytest.raises(EncoderError) as caught:
        opened(file)
    assert caught.value.remedy
    return caught.value


@pytest.mark.parametrize("kind", LEGACY)
def test_the_numbers_are_those_of_the_package(state, tmp_path, kind):
    file = gguf_files.write(tmp_path / "t5.gguf", state, kind)
    theirs = {tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type) for tensor in gguf.GGUFReader(file).tensors}
    found = opened(file)
    assert found.tensors.keys() == state.keys()
    for name, weight in found.tensors.items():
        numbers = weights.numbers(weight).float()
        assert numpy.array_equal(numbers.numpy(), theirs[gguf_files.llama(name)]), name
        assert torch.allclose(numbers, state[name], atol=0.2 * float(state[name].abs().max())), name
    assert found.exact == (kind in ("F32", "F16", "BF16"))
    assert found.groups == (() if found.exact else ("gguf",))


def test_q8_0_by_its_formula(state, small):
    """A block: a scale in float16, and 32 numbers of 8 bit."""
    weight = opened(small).tensors[WO]
    raw = numpy.frombuffer(small.read_bytes(), "u1", weight.stored.size, weight.stored.offset).reshape(-1, 34)
    wanted = raw[:, :2].copy().view("<f2").astype("f4") * raw[:, 2:].copy().view("i1")
    assert numpy.array_equal(weights.numbers(weight).numpy(), wanted.reshape(128, 256))


@pytest.mark.parametrize("kind", [name for name, (numbers, _) in BLOCKS.items() if numbers > 1])
def test_pieces_are_the_whole(kind, tmp_path):
    """Every type that is said to be read, from any bytes: rows decoded in pieces are those decoded at once."""
    rows, width, (numbers, size) = 37, 512, BLOCKS[kind]
    data = torch.randint(0, 256, (rows, width // numbers * size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    file = tmp_path / "x"
    file.write_bytes(bytes(data.flatten().tolist()))
    stored = Stored(LocalFile(file), "x.weight", 0, data.numel(), kind, (rows, width))
    found = recognise(Layer("x", {"weight": stored}))
    assert found.layout.name == kind
    assert found.shape == (rows, width)
    decode = found.layout.open(weights.bytes_of)
    pieces = [decode(data[first : first + 5].flatten(), first, min(5, rows - first)) for first in range(0, rows, 5)]
    with numpy.errstate(all="ignore"):
        whole = gguf.quants.dequantize(data.numpy(), gguf.GGMLQuantizationType[kind])
    assert torch.cat(pieces).dtype is torch.float32
    assert numpy.array_equal(torch.cat(pieces).numpy(), whole, equal_nan=True)


def test_the_sizes_of_blocks_are_the_packages():
    theirs = {kind.name: sizes for kind, sizes in gguf.GGML_QUANT_SIZES.items()}
    assert {name: theirs[name] for name in BLOCKS} == BLOCKS


@pytest.mark.parametrize("prefix", identity.PREFIXES)
@pytest.mark.parametrize("arch", ["pig", "cow", None])
def test_transformers_own_names_with_a_prefix(state, tmp_path, prefix, arch):
    """stable-diffusion.cpp writes no key at all, calcuis' converters an arch of their own: the names decide."""
    file = gguf_files.write(tmp_path / "t5.gguf", state, renamed=lambda name: prefix + name, arch=arch)
    assert opened(file).tensors.keys() == state.keys()


def test_what_belongs_to_others_is_left_alone(state, tmp_path):
    more = {"dec.blk.0.attn_q.weight": torch.zeros(8, 8), "output.weight": torch.zeros(8, 8), "spiece_model": torch.zeros(9)}
    assert opened(gguf_files.write(tmp_path / "t5.gguf", state, more=more)).tensors.keys() == state.keys()


def test_it_can_be_quantized_again(state, small):
    made = quantize.quantize(opened(small), Recipe(choices.find("fp8"), "float32"), Device("cpu", "cpu", "CPU"))
    assert torch.isfinite(made.tensors["encoder.final_layer_norm.weight"]).all()
    assert f"{WO}" in made.tensors


def test_the_package_is_missing(small, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    monkeypatch.setitem(sys.modules, "gguf.constants", None)
    found = opened(small)  # the header needs no package
    with pytest.raises(EncoderError, match="is missing") as caught:
        weights.numbers(found.tensors[WO])
    assert "pip install gguf" in caught.value.remedy


def test_plain_types_need_no_package(state, tmp_path, monkeypatch):
    file = gguf_files.write(tmp_path / "t5.gguf", state, "F16")
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert torch.equal(weights.numbers(opened(file).tensors[WO]), state[WO].half())


def test_umt5(state, tmp_path):
    bias = {"enc.blk.1.attn_rel_b.weight": state[identity.BIAS]}
    error = refusal(gguf_files.write(tmp_path / "umt5-xxl-encoder-Q8_0.gguf", state, more=bias))
    assert error.id == "identity.umt5"


def test_what_is_smaller_is_refused_without_the_mark(state, tmp_path):
    assert "d_model 128" in refusal(gguf_files.write(tmp_path / "t5.gguf", state, marked=False)).message


def test_a_tensor_that_nobody_knows(state, tmp_path):
    error = refusal(gguf_files.write(tmp_path / "t5.gguf", state, more={"enc.blk.0.attn_x.weight": torch.zeros(3)}))
    assert "enc.blk.0.attn_x.weight" in error.message


# Damaged


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def made(*, version=3, tensors=(), keys=(), data=b"", count=None, align=32) -> bytes:
    """tensors: name, sides, type, offset. keys: the bytes of each."""
    header = b"GGUF" + struct.pack("<IQQ", version, len(tensors) if count is None else count, len(keys)) + b"".join(keys)
    for name, sides, kind, offset in tensors:
        header += text(name) + struct.pack("<I", len(sides)) + struct.pack(f"<{len(sides)}Q", *sides) + struct.pack("<IQ", kind, offset)
    return header + bytes(-len(header) % align) + data


def key(name: str, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


ONE = ("a", (8,), 0, 0)  # 32 bytes of float32
DAMAGED = {
    "overlap": made(tensors=[ONE, ("b", (8,), 0, 0)], data=bytes(64)),
    "a gap": made(tensors=[ONE, ("b", (8,), 0, 64)], data=bytes(96)),
    "out of line": made(tensors=[("a", (8,), 0, 4)], data=bytes(36)),
    "behind the end": made(tensors=[("a", (8,), 0, 2**63)], data=bytes(32)),
    "cut": made(tensors=[ONE], data=bytes(31)),
    "more behind it": made(tensors=[ONE], data=bytes(65)),
    "twice": made(tensors=[ONE, ("a", (8,), 0, 32)], data=bytes(64)),
    "two names of one": made(tensors=[("token_embd.weight", (8,), 0, 0), ("shared.weight", (8,), 0, 32)], data=bytes(64)),
    "half a block": made(tensors=[("a", (8,), 8, 0)], data=bytes(34)),
    "five sides": made(tensors=[("a", (1, 1, 1, 1, 8), 0, 0)], data=bytes(32)),
    "sides beyond all": made(tensors=[("a", (2**63, 2**63), 0, 0)]),
    "a name that is no text": made(tensors=[ONE], data=bytes(32)).replace(b"\x01\0\0\0\0\0\0\0a", b"\x01\0\0\0\0\0\0\0\xff"),
    "tensors without end": made(count=2**60),
    "keys twice": made(keys=[key("a", 0, b"1"), key("a", 0, b"1")]),
    "a key of an unknown type": made(keys=[key("a", 99, b"1")]),
    "lists in lists": made(keys=[key("a", 9, struct.pack("<IQ", 9, 1) * 60)]),
    "a list without end": made(keys=[key("a", 9, struct.pack("<IQ", 8, 2**60))]),
    "numbers without end": made(keys=[key("a", 9, struct.pack("<IQ", 4, 2**60))]),
    "a text without end": made(keys=[key("a", 8, struct.pack("<Q", 2**60))]),
    "an alignment of nothing": made(keys=[key("general.alignment", 4, struct.pack("<I", 0))]),
    "an alignment of three": made(keys=[key("general.alignment", 4, struct.pack("<I", 3))]),
    "an alignment in words": made(keys=[key("general.alignment", 8, text("32"))]),
    "a magic alone": b"GGUF",
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_header(tmp_path, case):
    file = tmp_path / "t5.gguf"
    file.write_bytes(DAMAGED[case])
    with pytest.raises(EncoderError) as caught:
        open_content(LocalFile(file))
    assert caught.value.id == "source.file-damaged"


@pytest.mark.parametrize(
    ("content", "id", "says"),
    [
        (made(version=1), "gguf.version", "version 1"),
        (made(version=3 << 24), "gguf.big-endian", "order of bytes"),
        (made(keys=[key("split.count", 2, struct.pack("<H", 3))]), "gguf.split", "3 parts"),
        (made(tensors=[("a", (32,), 9, 0)]), "gguf.type", "Q8_1"),
        (made(tensors=[("a", (256,), 15, 0)]), "gguf.type", "Q8_K"),
        (made(tensors=[("a", (256,), 77, 0)]), "gguf.type", "77"),
    ],
)
def test_what_can_not_be_used_is_named(tmp_path, content, id, says):
    file = tmp_path / "t5.gguf"
    file.write_bytes(content)
    with pytest.raises(EncoderError, match=says) as caught:
        open_content(LocalFile(file))
    assert (caught.value.id, bool(caught.value.remedy)) == (id, True)


def test_a_whole_one_by_hand_is_read(tmp_path):
    """So that the cases above differ from it by their fault alone; with a list, a list in a list, and another alignment."""
    lists = key("l", 9, struct.pack("<IQ", 9, 1) + struct.pack("<IQ", 8, 2) + text("ä") + text(""))
    keys = [lists, key("n", 9, struct.pack("<IQ", 4, 3) + bytes(12)), key("t", 8, text("x"))]
    keys.append(key("general.alignment", 4, struct.pack("<I", 8)))
    file = tmp_path / "t5.gguf"
    file.write_bytes(made(keys=keys, tensors=[ONE, ("b", (32, 2), 8, 32)], data=bytes(32 + 68), align=8))
    found = open_content(LocalFile(file))
    assert found.metadata == {"general.alignment": 8, "t": "x"}
    assert {name: (one.shape, one.dtype, one.size) for name, one in found.tensors.items()} == {
        "a": ((8,), "F32", 32),
        "b": ((2, 32), "Q8_0", 68),
    }


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_cut_or_changed_it_is_an_error_or_the_same(small, tmp_path, data):
    content = bytearray(small.read_bytes())
    header = min(one.stored.offset for one in opened(small).tensors.values())
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    else:
        for _ in range(data.draw(st.integers(1, 3))):
            content[data.draw(st.integers(0, header - 1))] = data.draw(st.integers(0, 255))
    file = tmp_path / "t5.gguf"
    file.write_bytes(content)
    try:
        found = opened(file)
    except EncoderError:
        return
    assert {name: weight.shape for name, weight in found.tensors.items()} == {
        name: weight.shape for name, weight in opened(small).tensors.items()
    }
    assert found.size <= len(content)


def test_a_tokenizer_is_passed_over(state, tmp_path):
    file = gguf_files.write(tmp_path / "t5.gguf", state, tokens=gguf_files.TOKENS)
    found = open_content(LocalFile(file))
    assert not [name for name in found.metadata if name.startswith("tokenizer.ggml.tok")]
    assert opened(file).tensors.keys() == state.keys()


def test_what_reading_them_needs_is_installed_with_what_the_choice_needs(small, model, tmp_path):
    """The groups of pyproject.toml."""

    class Host:
        def facts(self):
            return source.Facts("")

    making = Making(Host(), Events(), Placed())  # pyright: ignore[reportArgumentType]

    def groups(choice, file, kind="Local file"):
        return making._groups(Wanted(choices.find(choice), kind, str(file)), Undertaking(Events()))

    assert groups("nf4", small) == ("bitsandbytes", "gguf")
    assert groups("bf16", small) == ("gguf",)
    assert groups("nf4", model / "t5.safetensors") == ("bitsandbytes",)
    with pytest.raises(EncoderError):  # nothing is installed for what can not be read
        groups("nf4", tmp_path / "none")
    assert groups("none", small) == groups("default", small) == ()
    assert groups("bf16", small, "Automatic") == ()
    assert {"gguf"} <= set(deps.groups())
