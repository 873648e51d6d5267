"""Headers of safetensors files: what the safetensors library refuses is refused, with a sentence, wherever a header is read."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from sd3deploy.diagnosis.checks import weights as diagnosed
from sd3deploy.encoders.containers import open_content
from sd3deploy.encoders.files import LocalFile
from sd3deploy.encoders.header import read_header
from sd3deploy.errors import EncoderError, SettingError
from sd3deploy.memory import sizes

TYPES = {"BOOL": 8, "F4": 4, "F6_E2M3": 6, "U8": 8, "F8_E4M3": 8, "BF16": 16, "F16": 16, "F32": 32, "C64": 64, "I64": 64}


def content(header: bytes, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header + data


def entry(dtype="U8", shape=(1,), offsets=(0, 1)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def refused_by_safetensors(file: Path) -> bool:
    try:
        with safe_open(file, "np") as opened:
            opened.keys()
    except Exception:
        return True
    return False


def readers(file: Path) -> dict[str, str]:
    """Reader → the sentence with which it refuses the file. Anything raw fails the test."""
    refusals = {}
    for name, read in {"loader": lambda file: open_content(LocalFile(file)), "estimate": sizes.read_model}.items():
        try:
            read(file)
        except (EncoderError, SettingError) as error:
            refusals[name] = error.id if error.remedy else "no remedy"
    if (found := diagnosed.read_header(file)).state != "whole":
        refusals["diagnosis"] = found.state
    return refusals


DAMAGED = {"loader": "source.file-damaged", "estimate": "memory.unreadable", "diagnosis": "truncated"}
DEEP = b'{"a":' * 100_000 + b"1" + b"}" * 100_000
CASES = {
    "a deeply nested one": content(DEEP),
    "brackets that never end": content(b"[" * 1_000_000),
    "a nested field that nobody knows": content(json.dumps({"a": entry() | {"x": json.loads("[" * 200 + "]" * 200)}}).encode(), b"0"),
    "tensors that overlap": content(json.dumps({"a": entry("U8", [2], [0, 2]), "b": entry("U8", [2], [1, 3])}).encode(), b"000"),
    "the same bytes twice": content(json.dumps({"a": entry(), "b": entry()}).encode(), b"0"),
    "a hole": content(json.dumps({"a": entry(), "b": entry(offsets=[2, 3])}).encode(), b"000"),
    "a hole at the beginning": content(json.dumps({"a": entry(offsets=[1, 2])}).encode(), b"00"),
    "bytes behind the last": content(json.dumps({"a": entry()}).encode(), b"00"),
    "bytes that are missing": content(json.dumps({"a": entry(shape=[2], offsets=[0, 2])}).encode(), b"0"),
    "UTF-16": content(json.dumps({"a": entry()}).encode("utf-16"), b"0"),
    "UTF-32": content(json.dumps({"a": entry()}).encode("utf-32"), b"0"),
    "a byte order mark": content(b"\xef\xbb\xbf" + json.dumps({"a": entry()}).encode(), b"0"),
    "half a character": content(b'{"\\ud800":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', b"0"),
    "a shape of truth values": content(b'{"a":{"dtype":"U8","shape":[true],"data_offsets":[0,1]}}', b"0"),
    "a minus zero": content(b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[-0,1]}}', b"0"),
    "a place with a fraction": content(b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0.0,1]}}', b"0"),
    "a number beyond all": content(b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"x":1e999}}', b"0"),
    "NaN": content(b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"x":NaN}}', b"0"),
    "a size beyond 64 bits": content(b'{"a":{"dtype":"U8","shape":[18446744073709551615,4,0],"data_offsets":[0,0]}}'),
    "too few bytes for its shape": content(json.dumps({"a": entry("F32")}).encode(), b"0"),
    "half a byte": content(json.dumps({"a": entry("F4", [1], [0, 0])}).encode()),
    "a type that nobody knows": content(json.dumps({"a": entry("F7")}).encode(), b"0"),
    "metadata of numbers": content(json.dumps({"__metadata__": {"a": 1}, "a": entry()}).encode(), b"0"),
    "metadata twice": content(b'{"__metadata__":{},"__metadata__":{},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', b"0"),
    "three offsets": content(json.dumps({"a": entry(offsets=[0, 1, 2])}).encode(), b"0"),
    "zeros behind the header": content(json.dumps({"a": entry()}).encode() + b"\0\0", b"0"),
    "a list": content(b"[]"),
    "nothing": b"",
    "a length alone": struct.pack("<Q", 100),
    "a length of everything": struct.pack("<Q", 2**64 - 1) + b"{}",
}


@pytest.mark.parametrize("case", CASES)
def test_what_safetensors_refuses_is_refused_by_every_reader(tmp_path, case):
    file = tmp_path / "t5.safetensors"
    file.write_bytes(CASES[case])
    assert refused_by_safetensors(file)
    assert readers(file) == DAMAGED | ({} if CASES[case] else {"loader": "foreign.empty"})


def test_a_file_as_safetensors_writes_it_is_read(tmp_path):
    import torch
    from safetensors.torch import save_file

    tensors = {f"{kind}": torch.zeros(3, 4, dtype=getattr(torch, kind)) for kind in ("float32", "bfloat16", "float16", "int64", "bool")}
    tensors |= {"empty": torch.zeros(0, 3), "scalar": torch.tensor(1.0), "fp8": torch.zeros(5).to(torch.float8_e4m3fn)}
    file = tmp_path / "some.safetensors"
    save_file(tensors, file, {"format": "pt", "note": "ä\u2028\U0001f600"})
    found = read_header(file)
    assert found.size == file.stat().st_size
    with safe_open(file, "pt") as opened:
        assert {name: (one.dtype, one.shape) for name, one in found.tensors.items()} == {
            name: (opened.get_slice(name).get_dtype(), tuple(opened.get_slice(name).get_shape()))
            for name in opened.keys()  # noqa: SIM118
        }
    scalar = found.tensors["scalar"]
    assert struct.unpack("<f", file.read_bytes()[scalar.offset : scalar.offset + scalar.size]) == (1.0,)


def test_every_type_of_safetensors_is_known(tmp_path):
    from sd3deploy.encoders import header

    for dtype, bits in header._BITS.items():
        file = tmp_path / f"{dtype}.safetensors"
        file.write_bytes(content(json.dumps({"a": entry(dtype, [8], [0, bits])}).encode(), b"0" * bits))
        assert not refused_by_safetensors(file), dtype
        assert read_header(file).tensors["a"].size == bits


def test_a_changed_file_is_read_again(tmp_path):
    file = tmp_path / "some.safetensors"
    file.write_bytes(content(json.dumps({"a": entry()}).encode(), b"0"))
    assert read_header(file).tensors.keys() == {"a"}
    other = tmp_path / "other"
    other.write_bytes(content(json.dumps({"b": entry()}).encode(), b"0"))
    os.utime(other, ns=(file.stat().st_atime_ns, file.stat().st_mtime_ns))
    os.replace(other, file)
    assert read_header(file).tensors.keys() == {"b"}


# Mutations: of the meaning, and of the bytes

_numbers = st.one_of(st.integers(0, 9), st.sampled_from([-1, 2**63, 2**64 - 1, 2**64, 10**30, 1.0, 1e300, True, None, "1", [], {}]))
_entries = st.fixed_dictionaries(
    {
        "dtype": st.one_of(st.sampled_from(list(TYPES)), st.sampled_from(["F7", "", None, 5, "f32"])),
        "shape": st.one_of(st.lists(st.integers(0, 4), max_size=3), st.lists(_numbers, max_size=4), _numbers),
        "data_offsets": st.one_of(st.lists(st.integers(0, 16), min_size=2, max_size=2), st.lists(_numbers, max_size=3)),
    },
    optional={"more": st.recursive(_numbers, lambda inner: st.lists(inner, max_size=2), max_leaves=4)},
)


@st.composite
def _whole_files(draw) -> bytes:
    """A file that safetensors reads, as it would write it."""
    header, end = {}, 0
    for number in range(draw(st.integers(0, 4))):
        dtype = draw(st.sampled_from(list(TYPES)))
        shape = draw(st.lists(st.integers(0, 4), max_size=3))
        bits = TYPES[dtype]
        for side in shape:
            bits *= side
        if bits % 8:
            continue
        header[f"encoder.{number}"] = entry(dtype, shape, [end, end + bits // 8])
        end += bits // 8
    if draw(st.booleans()):
        header["__metadata__"] = {"format": "pt"}
    return content(json.dumps(header).encode(), bytes(end))


_SCRAPS = [b"-", b"0", b".0", b"e9", b"\\ud800", b"NaN", b"\0", b" ", b"\n", b",", b"[", b'"', b"\xff"]


@st.composite
def _mutated(draw) -> bytes:
    whole = draw(_whole_files())
    length = struct.unpack("<Q", whole[:8])[0]
    header = json.loads(whole[8 : 8 + length])
    data = whole[8 + length :]
    kind = draw(st.sampled_from(["none", "entry", "field", "bytes", "encoding", "length", "data", "text"]))
    if kind == "entry":
        header[draw(st.sampled_from(["encoder.0", "new", "__metadata__", ""]))] = draw(st.one_of(_entries, _numbers))
    elif kind == "field" and (names := [name for name in header if name != "__metadata__"]):
        changed = header[draw(st.sampled_from(names))]
        changed[draw(st.sampled_from(["dtype", "shape", "data_offsets", "more"]))] = draw(
            st.one_of(_numbers, st.lists(_numbers, max_size=3), st.sampled_from(list(TYPES)))
        )
    other = draw(st.sampled_from(["utf-16", "utf-8-sig", "utf-32", "utf-16-le"]))
    raw = json.dumps(header).encode(other if kind == "encoding" else "utf-8")
    if kind == "text":
        at = draw(st.integers(0, len(raw)))
        raw = raw[:at] + draw(st.sampled_from(_SCRAPS)) + raw[at:]
    elif kind == "bytes" and raw:
        at = draw(st.integers(0, len(raw) - 1))
        raw = raw[:at] + bytes([draw(st.integers(0, 255))]) + raw[at + 1 :]
    if kind == "data":
        data = data + draw(st.binary(min_size=1, max_size=9)) if draw(st.booleans()) else data[: draw(st.integers(0, len(data)))]
    said = len(raw) + (draw(st.integers(-9, 9)) if kind == "length" else 0)
    return struct.pack("<Q", max(0, said)) + raw + data


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(made=_mutated())
@example(made=content(b'{"a":{"dtype":"U8","shape":[0,18446744073709551615,4],"data_offsets":[0,0]}}'))
def test_whatever_safetensors_refuses_we_refuse(tmp_path, made):
    file = tmp_path / "mutated.safetensors"
    file.unlink(missing_ok=True)
    file.write_bytes(made)
    refusals = readers(file)
    if refused_by_safetensors(file):
        assert refusals == DAMAGED


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(made=_whole_files())
def test_what_safetensors_writes_we_read(tmp_path, made):
    file = tmp_path / "whole.safetensors"
    file.unlink(missing_ok=True)
    file.write_bytes(made)
    assert not refused_by_safetensors(file)
    empty = {} if read_header(file).tensors else {"diagnosis": "truncated"}
    assert readers(file) == {"estimate": "memory.no-model"} | empty
