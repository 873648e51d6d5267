"""From files to quantized tensors, against what transformers and bitsandbytes make of the same files."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import bitsandbytes
import pytest
import torch
import transformers
from bitsandbytes import functional
from safetensors.torch import load_file, save_file

from sd3deploy.device import Device
from sd3deploy.encoders import choices, quantize, source
from sd3deploy.encoders.assemble import assemble
from sd3deploy.encoders.recipe import Recipe
from sd3deploy.encoders.storage import STORAGES
from sd3deploy.encoders.t5 import t5_encoder_class
from sd3deploy.encoders.weights import open_weights
from sd3deploy.errors import EncoderError
from tests import t5

ROOT = Path(__file__).parent.parent
CPU = Device("cpu", "cpu", "CPU")
QUANTIZED = [choice for choice in choices.CHOICES if choice.quantized]
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Type → a model folder with T5 in that type, in several files, and in one file of its own."""
    folders = {}
    for name, dtype in DTYPES.items():
        folders[name] = folder = tmp_path_factory.mktemp(name)
        encoder = t5.make(folder)
        encoder.to(dtype).save_pretrained(folder / "text_encoder_3", max_shard_size="200KB")
        state = {name: tensor for name, tensor in encoder.state_dict().items() if name != "encoder.embed_tokens.weight"}
        save_file(state, folder / "t5.safetensors", t5.MARKED)
        (folder / "text_encoder_3" / "model.safetensors").unlink(missing_ok=True)
        assert len(list((folder / "text_encoder_3").glob("model-*.safetensors"))) > 2
    return folders


def opened(folder, file=None):
    kind = "Local file" if file else "Model"
    return open_weights(source.find(kind, source.Facts(str(folder)), str(file or "")))


def make(weights, choice="fp4", **values):
    return quantize.quantize(weights, Recipe(choices.find(choice), **values), CPU)


def same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype is b[name].dtype, name
        assert torch.equal(a[name].view(torch.uint8), b[name].view(torch.uint8)), name


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("choice", ["fp4", "nf4", "int8"])
def test_bit_for_bit_what_transformers_and_bitsandbytes_make(models, dtype, choice):
    """With bitsandbytes' own scale, computed in the type of the source: transformers casts to that before it quantizes."""
    config = {"int8": {"load_in_8bit": True}}.get(
        choice,
        {
            "load_in_4bit": True,
            "bnb_4bit_quant_type": choice,
            "bnb_4bit_use_double_quant": True,
            "bnb_4bit_compute_dtype": DTYPES[dtype],
        },
    )
    cls = transformers.T5EncoderModel if choice == "int8" else t5_encoder_class()
    expected = cls.from_pretrained(
        models[dtype] / "text_encoder_3",
        dtype=DTYPES[dtype],
        quantization_config=transformers.BitsAndBytesConfig(**config),
        device_map={"": "cpu"},
    )
    state = {name: tensor for name, tensor in expected.state_dict().items() if name != "encoder.embed_tokens.weight"}
    encoded = make(opened(models[dtype]), choice, compute=dtype, scale="absmax")
    same(dict(encoded.tensors), state)
    if dtype != "float16":  # there we compute `wo` in float32
        with torch.no_grad():
            assert torch.equal(assemble(encoded)(t5.tokens())[0], expected(t5.tokens())[0])


@pytest.mark.parametrize("choice", QUANTIZED, ids=lambda choice: choice.id)
def test_files_and_the_size_of_pieces_make_no_difference(models, tmp_path, monkeypatch, choice):
    folder = models["float16"]
    expected = dict(make(opened(folder), choice).tensors)
    same(dict(make(opened(folder, folder / "t5.safetensors"), choice).tensors), expected)
    whole = {f"text_encoders.t5xxl.transformer.{name}": tensor for name, tensor in load_file(folder / "t5.safetensors").items()}
    save_file(whole | {"model.diffusion_model.x": torch.zeros(3)}, tmp_path / "sd3.safetensors", t5.MARKED)
    monkeypatch.setattr(quantize, "_PIECE", 3000)  # bytes: less than some rows
    same(dict(make(opened(folder, tmp_path / "sd3.safetensors"), choice).tensors), expected)


@pytest.mark.parametrize("choice", ["fp4", "nf4", "fp8", "int8"])
def test_rows_that_are_no_multiple_of_a_block(tmp_path, choice):
    sides = {"vocab_size": 60, "d_model": 36, "d_kv": 6, "d_ff": 50, "num_layers": 2, "num_heads": 6}
    config = transformers.T5Config(**sides, feed_forward_proj="gated-gelu", **t5.MARKED)
    encoder = transformers.T5EncoderModel(config).eval()
    encoder.save_pretrained(tmp_path / "text_encoder_3")
    encoded = make(opened(tmp_path), choice, compute="float32", scale="absmax")
    if choice in ("fp8", "int8"):
        with torch.no_grad():
            tokens = torch.randint(1, 60, (1, 20))
            assert t5.cosine(assemble(encoded)(tokens)[0], encoder(tokens)[0]) > 0.98
        return
    for name, module in encoder.named_modules():  # bitsandbytes has no kernel for such rows on some processors: the codes are compared
        if isinstance(module, torch.nn.Linear):
            codes, state = functional.quantize_4bit(module.weight.data, quant_type=choice, compress_statistics=True)
            assert torch.equal(encoded.tensors[f"{name}.weight"], codes)
            assert torch.equal(encoded.tensors[f"{name}.weight.absmax"], state.absmax)


@pytest.mark.parametrize("kind", STORAGES)
def test_threads_that_begin_a_tensor_together(kind):
    """Each of the pieces arrives, whichever thread is first; what one alone makes is what many make."""
    choice = next(choice for choice in choices.CHOICES if kind in (choice.stored, choice.stored_wo))
    weights = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))

    def added(pool):
        made = STORAGES[kind]("x.weight", (64, 256), Recipe(choice, "float32"), kind)
        start = threading.Barrier(4)

        def part(number):
            if pool:
                start.wait()
            made.add(number * 16, weights[number * 16 : number * 16 + 16])

        list((pool.map if pool else map)(part, range(4)))
        return made.tensors()

    expected = added(None)
    with ThreadPoolExecutor(4) as pool:
        for _ in range(50):
            same(added(pool), expected)


def test_it_is_what_transformers_takes_for_quantized(models, tmp_path):
    encoder = assemble(make(opened(models["float16"]), "nf4"))
    assert encoder.is_quantized
    assert encoder.is_loaded_in_4bit
    assert encoder.quantization_method == "bitsandbytes"
    assert not encoder.training
    assert encoder.dtype is torch.bfloat16
    with pytest.raises(ValueError, match=r"can ?not cast"):
        encoder.to(torch.float16)
    encoder.save_pretrained(tmp_path)
    again = t5_encoder_class().from_pretrained(tmp_path, device_map={"": "cpu"})
    with torch.no_grad():
        assert torch.equal(again(t5.tokens())[0], encoder(t5.tokens())[0])


def test_progress_counts_the_bytes_and_ends_with_all_of_them(models):
    weights = opened(models["float16"])
    seen = []
    quantize.quantize(weights, Recipe(choices.find("fp4")), CPU, lambda done, total: seen.append((done, total)))
    done = [one for one, _ in seen]
    assert done == sorted(set(done))
    assert {total for _, total in seen} == {weights.size} == {done[-1]}


def test_cancelled_in_the_middle(models):
    weights, seen = opened(models["float16"]), []
    with pytest.raises(quantize.Stopped):
        quantize.quantize(weights, Recipe(choices.find("fp4")), CPU, lambda done, total: seen.append(done), lambda: len(seen) >= 5)
    assert len(seen) == 5
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("sd3-quantize")]


def damaged(folder, target, change):
    state = load_file(folder / "t5.safetensors")
    change(state)
    save_file(state, target, t5.MARKED)
    return target


Q = "encoder.block.1.layer.0.SelfAttention.q.weight"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda state: state.pop(Q), "are not complete"),
        (lambda state: state.update({Q: state[Q][:-1].clone()}), "has another shape"),
        (lambda state: state.update({Q: state[Q].to(torch.int16)}), r"is of type I16"),
        (lambda state: state[Q].fill_(float("nan")), "no numbers"),
        (lambda state: state.pop("shared.weight"), "no T5"),
    ],
)
def test_a_source_that_is_no_good(models, tmp_path, change, says):
    file = damaged(models["float16"], tmp_path / "t5.safetensors", change)
    with pytest.raises(EncoderError, match=says) as caught:
        make(opened(tmp_path, file))
    assert caught.value.remedy


@pytest.mark.parametrize("choice", QUANTIZED, ids=lambda choice: choice.id)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("value", "at"), [("nan", 5), ("-inf", -1), ("inf", 0)])
@pytest.mark.parametrize(
    "name", [Q, Q.replace("0.SelfAttention.q", "1.DenseReluDense.wo"), "shared.weight", "encoder.final_layer_norm.weight"]
)
def test_one_value_that_is_no_number(models, tmp_path, choice, dtype, name, value, at):
    """Quantized or wide, made anew or taken as it lies, in the first number or in the last."""
    file = damaged(models[dtype], tmp_path / "t5.safetensors", lambda state: state[name].view(-1).__setitem__(at, float(value)))
    for stock in {False, "bitsandbytes" in choice.groups}:
        with pytest.raises(EncoderError, match="no numbers") as caught:
            make(opened(tmp_path, file), choice, stock=stock)
        assert f"“{name}” in “t5.safetensors”" in caught.value.message
        assert caught.value.remedy


def test_one_value_that_is_no_number_in_float8(models, tmp_path):
    def change(state):
        state[Q] = state[Q].to(torch.float8_e4m3fn)
        state[Q].view(torch.uint8)[3, 5] = 0x7F  # NaN: this type has no infinity

    with pytest.raises(EncoderError, match=f"no numbers.*“{Q}”"):
        make(opened(tmp_path, damaged(models["float16"], tmp_path / "t5.safetensors", change)), "bf16")


def test_a_scale_that_is_no_number(models, tmp_path):
    def change(state):
        state[Q] = state[Q].to(torch.float8_e4m3fn)
        state[Q.replace("weight", "scale_weight")] = torch.tensor(float("nan"))

    with pytest.raises(EncoderError, match=f"no numbers.*“{Q}”"):
        make(opened(tmp_path, damaged(models["float16"], tmp_path / "t5.safetensors", change)), "fp4")


def test_a_number_that_float16_can_not_hold(models, tmp_path):
    file = damaged(models["bfloat16"], tmp_path / "t5.safetensors", lambda state: state["shared.weight"][3].__setitem__(5, 1e6))
    with pytest.raises(EncoderError, match="too large for the type"):
        make(opened(tmp_path, file), "bf16", compute="float16")
    assert make(opened(tmp_path, file), "bf16").tensors["shared.weight"].max() > 9e5


def test_what_lies_in_the_file_as_it_is_wanted_is_not_copied(models):
    weights = opened(models["bfloat16"], models["bfloat16"] / "t5.safetensors")
    seen = []
    made = quantize.quantize(weights, Recipe(choices.find("bf16")), CPU, lambda done, total: seen.append((done, total)))
    assert seen[-1] == (weights.size, weights.size)  # it is read once, to be looked at
    if sys.platform == "linux":
        lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if "t5.safetensors" in line]
        spans = [[int(end, 16) for end in line[0].split("-")] for line in lines]
        assert all(any(first <= tensor.data_ptr() < last for first, last in spans) for tensor in made.tensors.values())


@pytest.mark.parametrize("keep", [4, 200, 0.5, 0.999])
def test_a_file_that_was_cut_off(models, tmp_path, keep):
    content = (models["float16"] / "t5.safetensors").read_bytes()
    (tmp_path / "t5.safetensors").write_bytes(content[: keep if isinstance(keep, int) else int(len(content) * keep)])
    with pytest.raises(EncoderError, match="download it again"):
        make(opened(tmp_path, tmp_path / "t5.safetensors"))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process's own memory from the files that it has mapped")
def test_memory_is_that_of_the_result(tmp_path):
    """240 MB in float16, of which the old way held all and more; a process of its own, because a heap remembers. And it is the result: each
    piece of each weight is its own, in a size that takes several at a time.
    """
    config = transformers.T5Config(
        vocab_size=2000, d_model=1024, d_kv=64, d_ff=2816, num_layers=9, num_heads=16, feed_forward_proj="gated-gelu", **t5.MARKED
    )
    transformers.T5EncoderModel(config).half().save_pretrained(tmp_path / "text_encoder_3", max_shard_size="60MB")
    code = f"""
import json
import bitsandbytes, transformers; transformers.T5EncoderModel
from bench._memory import Peak
from tests.test_encoders_quantize import make, opened, worst
make(opened({str(tmp_path)!r}), "fp4")  # the libraries' own parts, which come with the first use
with Peak() as peak:
    encoded = make(opened({str(tmp_path)!r}), "fp4")
print(json.dumps({{"size": encoded.size, "more": peak.anonymous, "worst": worst(encoded, {str(tmp_path)!r})}}))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["size"] > 60e6
    assert 0.5 * found["size"] < found["more"] < found["size"] + 100e6
    assert 0.1 < found["worst"] < 0.16  # FP4 loses 0.13 of a normal distribution; of another weight, 1.4


def worst(encoded, folder):
    """The largest relative error of a thousand blocks of any linear weight, made wide again by the modules that use it."""
    source = {}
    for file in (Path(folder) / "text_encoder_3").glob("*.safetensors"):
        source |= load_file(file)
    found = []
    for name, module in assemble(encoded).named_modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            weight = functional.dequantize_4bit(module.weight.data, module.weight.quant_state).float()
            wanted = source[f"{name}.weight"].float()
            errors, sizes = ((one**2).reshape(-1).split(1000 * 64) for one in (weight - wanted, wanted))
            found += [float((error.sum() / size.sum()).sqrt()) for error, size in zip(errors, sizes, strict=True)]
    assert len(found) > 9 * 7
    return max(found)


@pytest.mark.parametrize("choice", ["fp4", "nf4", "int8"])
def test_nobody_is_asked_whether_bitsandbytes_is_there(models, monkeypatch, choice):
    """What transformers, diffusers and accelerate answer may be from before it was installed; the encoder is the same."""
    encoded = make(opened(models["float16"]), choice)
    expected = marks(assemble(encoded))
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] in ("transformers", "diffusers", "accelerate", "peft"):
            for key in list(vars(module)):
                if key.startswith("is_b") and key.endswith("_available"):
                    monkeypatch.setattr(module, key, lambda *_: False)
    monkeypatch.delattr("transformers.integrations.bitsandbytes.bnb", raising=False)
    monkeypatch.delattr("transformers.integrations.bitsandbytes.accelerate", raising=False)
    assert marks(assemble(encoded)) == expected


def marks(encoder):
    """The kinds of an encoder's modules, what its tensors hold, and what transformers has noted on it and writes into its files."""
    kinds = [(name, type(module), getattr(module, "compute_dtype", None)) for name, module in encoder.named_modules()]
    tensors = [(name, tensor.dtype, tensor.float().double().sum().item()) for name, tensor in encoder.state_dict().items()]
    names = ("is_quantized", "quantization_method", "is_loaded_in_4bit", "is_loaded_in_8bit", "is_4bit_serializable")
    return kinds, tensors, [getattr(encoder, name, None) for name in names], encoder.config.to_json_string(), type(encoder.hf_quantizer)


@pytest.mark.parametrize("choice", ["nf4", "int8"])
def test_the_modules_and_marks_are_those_of_transformers_own_loader(models, tmp_path, choice):
    """Those on which the host, diffusers' `.to()`, accelerate's hooks, peft and saving lean."""
    encoder = assemble(make(opened(models["float16"]), choice))
    encoder.save_pretrained(tmp_path)
    cls = type(encoder)
    loaded = cls.from_pretrained(tmp_path, device_map={"": "cpu"})
    ours, theirs = dict(encoder.named_modules()), dict(loaded.named_modules())
    assert theirs.keys() - ours.keys() == {"encoder.embed_tokens"}  # a second one of the same weight; ours has one
    for name, module in ((name, module) for name, module in theirs.items() if name in ours):
        assert type(ours[name]) is type(module), name
        if isinstance(module, torch.nn.Linear):
            kept = {key for key, value in vars(module).items() if isinstance(value, (bool, int, str, type, torch.dtype))}
            kept -= {"_is_hf_initialized"}
            assert {key: vars(ours[name]).get(key) for key in kept} == {key: vars(module)[key] for key in kept}, name
            if hasattr(module, "state"):
                assert ours[name].state.threshold == module.state.threshold == 6.0
    noted = {key for key in vars(loaded) if key.startswith(("is_", "quantization"))}
    assert {key: getattr(encoder, key) for key in noted} == {key: getattr(loaded, key) for key in noted}
    assert {"is_quantized", "quantization_method"} <= noted
    assert encoder.hf_quantizer.quantization_config.to_dict() == loaded.hf_quantizer.quantization_config.to_dict()
    assert encoder.config.to_diff_dict() == loaded.config.to_diff_dict()


@pytest.mark.parametrize("choice", ["nf4", "int8"])
def test_pipelines_hooks_and_casts_treat_it_as_bitsandbytes(models, choice):
    import accelerate
    from diffusers.quantizers.bitsandbytes.utils import _check_bnb_status

    encoder = assemble(make(opened(models["float16"]), choice))
    assert _check_bnb_status(encoder) == (True, choice == "nf4", choice == "int8")
    with torch.no_grad():
        expected = encoder(t5.tokens())[0]
        assert torch.equal(encoder.to("cpu")(t5.tokens())[0], expected)
    for cast in (encoder.half, encoder.float, lambda: encoder.to(torch.float16)):
        with pytest.raises(ValueError, match=r"not supported|can ?not cast"):
            cast()
    sizes = accelerate.utils.compute_module_sizes(encoder)
    assert sizes[""] < encoder.get_memory_footprint() * 1.1
    accelerate.dispatch_model(encoder, {"": "cpu"}, force_hooks=True)  # what the host's balanced offload does
    with torch.no_grad():
        assert t5.cosine(encoder(t5.tokens())[0], expected) > 0.999  # another kernel than before on some processors
    accelerate.hooks.remove_hook_from_module(encoder, recurse=True)
    wide = encoder.dequantize()
    assert {type(module) for module in wide.modules() if hasattr(module, "in_features")} == {torch.nn.Linear}


def test_threads_that_are_not_ours_keep_their_number_of_torchs_threads_while_encoders_are_made_and_afterwards(models):
    def of_a_new_thread():
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(torch.get_num_threads).result()

    before, seen, meet = torch.get_num_threads(), [], threading.Barrier(2, timeout=60)

    def load():
        begun = []

        def progress(done, total):
            if len(begun) == 3:  # ours have begun, in both loads at once
                meet.wait()
                seen.extend([of_a_new_thread(), torch.get_num_threads()])
                meet.wait()
            begun.append(done)

        quantize.quantize(opened(models["float16"]), Recipe(choices.find("q8")), CPU, progress)

    torch.set_num_threads(3)
    try:
        threads = [threading.Thread(target=load) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [*seen, of_a_new_thread(), torch.get_num_threads()] == [3] * 6
    finally:
        torch.set_num_threads(before)


def test_a_thread_that_quantizes_has_none_of_torchs_beside_it():
    with ThreadPoolExecutor(2, initializer=quantize._alone) as pool:
        assert {pool.submit(torch.get_num_threads).result() for _ in range(4)} == {1}
