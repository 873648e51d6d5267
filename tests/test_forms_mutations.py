"""One tensor of a file is lost, renamed, of another shape or of another type: it is refused, or nothing changes. Never other numbers.

Every case of tests/forms.py is damaged, so a new form is damaged without another line here.
"""

from __future__ import annotations

import math
import operator
import os
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from sd3deploy.encoders import header, identity, source
from sd3deploy.encoders.containers.gguf import BLOCKS
from sd3deploy.encoders.weights import numbers, open_weights
from sd3deploy.errors import EncoderError
from tests import forms, gguf_files, t5
from tests.forms import Raw
from tests.test_forms import made

LAYERS = ("encoder.block.1.layer.0.SelfAttention.q", "encoder.block.0.layer.1.DenseReluDense.wo")  # a square one, and one that is not
NAMES = (
    "weight", "weightx", "bias", "comfy_quant", "scale", "scales", "scale_weight", "weight_scale", "weight_scale_2", "weight_scale_inv",
    "input_scale", "scale_input", "output_scale", "pre_quant_scale", "scaled_fp8", "logit_scale", "SCB", "weight_format", "qweight",
    "scaled_zeros", "qzeros", "biases", "weight.absmax", "weight.quant_map", "weight.nested_absmax", "weight.nested_quant_map",
    "weight.quant_state.bitsandbytes__nf4", "weight.quant_state.bitsandbytes__fp4", "W_q", "weight._data", "weight_packed",
)  # fmt: skip
READ = ("U8", "I8", "I16", "F8_E4M3", "F8_E5M2", "F16", "BF16", "F32")  # types of which some form reads numbers or codes
SMALL = 4096  # numbers: more than any scales have here
ROOM = 1 << 15  # bytes of a header


class Rewritten:
    """A file that is written again and again: each time its header, which is always as long, and of the tensors' bytes what lies elsewhere
    than before. header: tensors → its bytes.
    """

    def __init__(self, file, header):
        self.file, self._header, self._there, self._times = file, header, [], 0
        file.touch()

    def write(self, tensors):
        found, data = self._header(tensors), [one.data for one in tensors.values()]
        assert len(found) == ROOM
        with open(self.file, "r+b") as content:
            content.write(found)
            if not alike(data, self._there):
                content.write(b"".join(data))
                content.truncate()
                self._there = data
        # The time of a file has steps of some milliseconds, and a header is not read again where it is the same.
        self._times += 1
        os.utime(self.file, ns=(self._times, self._times))


class Judge:
    """Whether a file is read as it was when it was whole. It lies there whole when this is made."""

    def __init__(self, rewritten, tensors, choices=("bf16",)):
        self._rewritten = rewritten
        rewritten.write(tensors)
        self._data = [one.data for one in tensors.values()]
        self._source = source.find("Local file", source.Facts("x"), str(rewritten.file))
        self._weights = open_weights(self._source)
        # Copies: what lies in the file as it is wanted is mapped, and would change with it.
        self._numbers = {choice: copies(made(self._weights, choice).tensors) for choice in choices}

    def verdicts(self, tensors):
        """For each choice "refused", "refused without a remedy", "the same" or "other numbers"; one alone where it can not be opened."""
        self._rewritten.write(tensors)
        in_place = alike(self._data, [one.data for one in tensors.values()])
        try:
            weights = open_weights(self._source)
        except EncoderError as error:
            return [refusal(error)]
        if in_place and weights == self._weights:  # the same bytes, read in the same way
            return ["the same"] * len(self._numbers)
        return [self._verdict(weights, choice, in_place) for choice in self._numbers]

    def _verdict(self, weights, choice, in_place):
        try:
            if in_place and choice == "bf16" and self._as_it_was(weights):
                return "the same"
            found = made(weights, choice).tensors
        except EncoderError as error:
            return refusal(error)
        return "the same" if same(found, self._numbers[choice]) else "other numbers"

    def _as_it_was(self, weights):
        """Whether what is described in another way is decoded to the same numbers; the rest need not be decoded once more."""
        before, now = self._weights.tensors, weights.tensors
        if before.keys() != now.keys() or weights.config != self._weights.config:
            return False
        changed = [name for name in before if before[name] != now[name]]
        return same({name: numbers(now[name]).float() for name in changed}, {name: self._numbers["bf16"][name] for name in changed})


def refusal(error):
    return "refused" if error.remedy else "refused without a remedy"


def alike(data, other):
    return len(data) == len(other) and all(map(operator.is_, data, other))


def copies(tensors):
    return {name: tensor.clone() for name, tensor in tensors.items()}


def same(found, expected):
    if found.keys() != expected.keys() or any(one.shape != expected[name].shape for name, one in found.items()):
        return False
    return all(torch.equal(one.reshape(-1).view(torch.uint8), expected[name].reshape(-1).view(torch.uint8)) for name, one in found.items())


def instead(tensors, key, name, one):
    """A tensor under another name or as another one, at its place."""
    return {name if other == key else other: one if other == key else value for other, value in tensors.items()}


def verdicts(judge, damages):
    """How often each was refused and the same, when nothing else has come of any damage."""
    found = {}
    for what, tensors in damages:
        for verdict in judge.verdicts(tensors):
            found.setdefault(verdict, []).append(what)
    counts = [len(found.pop(verdict, ())) for verdict in ("refused", "the same")]
    assert found == {}
    return counts


@pytest.fixture(scope="module")
def state(tmp_path_factory):
    """Two blocks: what is damaged in one of them is whole in the other."""
    folder = tmp_path_factory.mktemp("t5")
    t5.make(folder)
    return {name: tensor for name, tensor in load_file(folder / "t5.safetensors").items() if "block.2." not in name}


def shapes(shape):
    """Others with as many numbers. Of a weight there are many: those with the fewest rows and the most, and those near its own."""
    count = math.prod(shape)
    rows = [side for side in range(1, count + 1) if count % side == 0]
    if count > SMALL:
        rows = sorted({1, count, *(side for side in rows if shape[0] / 4 <= side <= shape[0] * 4)})
    pairs = [(side, count // side) for side in rows]
    behind = [(*pair, 1) for pair in (pairs if count <= SMALL else [shape, (count,)])]
    found = {(count,), *pairs, *behind, shape[::-1], *([()] if count == 1 else [])}
    return sorted(found - {shape}, key=lambda one: (len(one), one))


def types(one):
    """Others whose numbers have as many bits."""
    return [replace(one, dtype=dtype) for dtype, bits in header._BITS.items() if dtype != one.dtype and bits == header._BITS[one.dtype]]


def wider(one):
    """Types of which each number takes more bytes, or fewer, in a shape for that."""
    bits = header._BITS[one.dtype]
    for dtype, other in header._BITS.items():
        if other >= 8 and one.shape and other != bits and one.shape[-1] * bits % other == 0:
            yield replace(one, dtype=dtype, shape=(*one.shape[:-1], one.shape[-1] * bits // other))


def own(case, tensors):
    """Keys of what is damaged."""
    return [key for layer in LAYERS for key in tensors if key.startswith(f"{case.prefix}{layer}.")]


def damages(case, tensors):
    """What is done → the tensors afterwards. A name or a type means the same in every layer, so they are changed once; what a shape means
    depends on that of the weight.
    """
    seen = set()
    for key in own(case, tensors):
        one = tensors[key]
        path = next(case.prefix + layer for layer in LAYERS if key.startswith(f"{case.prefix}{layer}."))
        kind = key.removeprefix(path), one.dtype, len(one.shape)
        yield f"{key} is lost", {name: other for name, other in tensors.items() if name != key}
        reshaped = [replace(one, shape=shape) for shape in shapes(one.shape)]
        retyped = [other for other in wider(one) if other.dtype in READ] if kind in seen else [*types(one), *wider(one)]
        for other in reshaped + retyped:
            yield f"{key} {other.dtype} {other.shape}", instead(tensors, key, key, other)
        for name in () if kind in seen else NAMES:
            if f"{path}.{name}" not in tensors:
                yield f"{key} → {name}", instead(tensors, key, f"{path}.{name}", one)
        seen.add(kind)


@pytest.mark.parametrize("case", forms.CASES, ids=lambda case: case.name)
def test_no_damage_goes_unseen(state, tmp_path, case):
    tensors, metadata, _ = forms.written(case, state)
    tensors = {key: tensors[key] for key in (*own(case, tensors), *tensors)}  # what is damaged is read first, and refused the sooner
    choices = {"bnb nf4": ("bf16", "nf4"), "bnb fp4": ("bf16", "fp4"), "bnb int8": ("bf16", "int8")}.get(case.name, ("bf16",))
    file = Rewritten(tmp_path / "t5.safetensors", lambda tensors: forms.header(tensors, metadata, ROOM))
    refused, unchanged = verdicts(Judge(file, tensors, choices), damages(case, tensors))
    assert refused > max(60, unchanged)


def test_the_test_sees_what_it_is_to_see(state, tmp_path):
    """A file that lies about itself in every block alike can not be told from an honest one: the numbers differ, and that is noticed."""
    case = next(case for case in forms.CASES if case.name == "f16")
    tensors, _, _ = forms.written(case, state)
    judge = Judge(Rewritten(tmp_path / "t5.safetensors", lambda tensors: forms.header(tensors, room=ROOM)), tensors)
    lies = {name: Raw("BF16", one.shape, one.data) if "SelfAttention.q" in name else one for name, one in tensors.items()}
    key = f"{LAYERS[0]}.weight"
    turned = instead(tensors, key, key, replace(tensors[key], data=b"\x01" + tensors[key].data[1:]))
    found = [judge.verdicts(one) for one in (tensors, lies, turned, lies, tensors)]
    assert found == [["the same"], ["other numbers"], ["other numbers"], ["other numbers"], ["the same"]]


# GGUF

GGUF = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q5_1", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "Q4_K and Q6_K")
SINGLE = ("shared", "encoder.final_layer_norm", identity.BIAS.removesuffix(".weight"))


def in_gguf(kind, state):
    """The T5 twice as wide, so that a row fills the largest blocks, by the names of transformers. Its bytes are numbers in each type: none
    is found out by what is no number. kind: of what has rows for it; of two, the second is that of `wo` in one block.
    """
    chance = torch.Generator().manual_seed(0)
    kind, _, other = kind.partition(" and ")
    found = {}
    for name, tensor in state.items():
        shape = tuple(side * 2 if side in (128, 256) else side for side in tensor.shape)
        wanted = other if other and name == f"{LAYERS[1]}.weight" else kind
        dtype = wanted if len(shape) == 2 and shape[1] % BLOCKS[wanted][0] == 0 else "F32"
        block, size = BLOCKS[dtype]
        data = torch.randint(1, 48, (math.prod(shape) // block * size,), dtype=torch.uint8, generator=chance)
        found[name] = Raw(dtype, shape, data.numpy().tobytes())
    return found


def gguf_types(one):
    """Others in the same shape, whether they fill its bytes or not, and in a shape that fills them."""
    row = len(one.data) // math.prod(one.shape[:-1])
    for dtype, (block, size) in BLOCKS.items():
        if dtype != one.dtype:
            width = row // size * block
            widths = {one.shape[-1], *([width] if row % size == 0 else [])}
            yield from (replace(one, dtype=dtype, shape=(*one.shape[:-1], width)) for width in sorted(widths) if width % block == 0)


def gguf_names(path):
    key = gguf_files.llama(f"{path}.weight")
    stem = key.removesuffix(".weight")
    blocks = [key.replace("blk.1.", f"blk.{other}.") for other in ("2", "01", "-1", "")]
    return [*(f"{stem}.{name}" for name in NAMES), *(f"{prefix}{path}.weight" for prefix in identity.PREFIXES),
            f"dec.{key}", f"x{key}", key.upper(), *blocks]  # fmt: skip


def shows(path, one, other):
    """Whether a tensor shows that it is another one. Of some there is one alone, so there is none to compare it with where only its type
    is another; and a small T5 has as many buckets and heads as its bias says, while T5-XXL's are known.
    """
    if path not in SINGLE:
        return True
    if other.shape == one.shape:
        return BLOCKS[other.dtype][1] * BLOCKS[one.dtype][0] != BLOCKS[one.dtype][1] * BLOCKS[other.dtype][0]
    return f"{path}.weight" != identity.BIAS or len(other.shape) != 2


def gguf_damages(tensors):
    """As `damages`; tensors: by the names of transformers."""
    there = {gguf_files.llama(name): one for name, one in tensors.items()}
    for path in (*LAYERS, "encoder.block.1.layer.0.layer_norm", *SINGLE):
        one, key = tensors[f"{path}.weight"], gguf_files.llama(f"{path}.weight")
        yield f"{key} is lost", {name: other for name, other in there.items() if name != key}
        for name in gguf_names(path):
            if name not in there:
                yield f"{key} → {name}", instead(there, key, name, one)
        reshaped = [replace(one, shape=shape) for shape in shapes(one.shape) if shape and shape[-1] % BLOCKS[one.dtype][0] == 0]
        for other in (*reshaped, *gguf_types(one)):
            if shows(path, one, other):
                yield f"{key} {other.dtype} {other.shape}", instead(there, key, key, other)


@pytest.mark.parametrize("kind", GGUF)
def test_no_damage_of_gguf_goes_unseen(state, tmp_path, kind):
    tensors = in_gguf(kind, state)
    file = Rewritten(tmp_path / "t5.gguf", lambda tensors: gguf_files.header(tensors, ROOM))
    judge = Judge(file, {gguf_files.llama(name): one for name, one in tensors.items()})
    refused, unchanged = verdicts(judge, gguf_damages(tensors))
    assert refused > max(60, unchanged)
