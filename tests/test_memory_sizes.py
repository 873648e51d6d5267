"""What is told about sizes without loading anything is compared, byte for byte, with what the real libraries load."""

from __future__ import annotations

import json
import shutil
import struct
from dataclasses import replace

import psutil
import pytest
import torch
import transformers
from diffusers import AutoencoderKL, SD3Transformer2DModel, StableDiffusion3Pipeline
from safetensors.torch import load_file, save_file

from sd3deploy import tiny_sd3
from sd3deploy.device import Device
from sd3deploy.encoders import choices, source
from sd3deploy.encoders.load import load
from sd3deploy.encoders.measure import measure, tensors
from sd3deploy.errors import SettingError
from sd3deploy.memory import sizes
from sd3deploy.memory.sizes import MODELS, PARTS, Part
from sd3deploy.memory.t5_shape import DTYPES, T5_XXL, T5Shape
from tests import t5

CPU = Device("cpu", "cpu", "CPU")
HALF = replace(CPU, bf16=False)  # a device on which float16 is the only 16-bit type
LOADABLE = [choice for choice in choices.CHOICES if choice.bytes]
# Every linear layer has the 16384 numbers below which SDNQ leaves one alone (minimum_allowed_numel), as all of T5-XXL's have by far.
SHAPES = {
    "odd": T5Shape(64, 131, 131, 197, 1, 1),  # neither half a byte nor a block of 64 comes out even
    "no multiples of 64": T5Shape(101, 130, 26, 254, 2, 5, buckets=16),  # no group divides the row: one group
    "fewer groups": T5Shape(90, 200, 50, 520, 1, 4),  # rows of 200: two groups of 100; of 520: eight of 65
    "narrow and long": T5Shape(64, 192, 32, 2880, 2, 6),  # q k v o are no squares
}


def of(module):
    """Bytes of a loaded module: every storage once, with the scales that quantizers keep beside their weights."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors(module))


def config(shape):
    return transformers.T5Config(
        vocab_size=shape.vocab_size,
        d_model=shape.d_model,
        d_kv=shape.d_kv,
        d_ff=shape.d_ff,
        num_layers=shape.num_layers,
        num_heads=shape.num_heads,
        relative_attention_num_buckets=shape.buckets,
        feed_forward_proj="gated-gelu" if shape.gated else "relu",
        **t5.MARKED,
    )


# T5


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    """Name of a shape → a folder with such an encoder."""
    folders = {}
    for name, shape in SHAPES.items():
        folders[name] = tmp_path_factory.mktemp("t5")
        torch.manual_seed(0)
        transformers.T5EncoderModel(config(shape)).save_pretrained(folders[name] / "text_encoder_3")
    return folders


@pytest.mark.parametrize("device", [CPU, HALF], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("choice", LOADABLE, ids=lambda choice: choice.id)
@pytest.mark.parametrize("name", SHAPES)
def test_each_choice_takes_what_its_real_encoder_takes(encoders, name, choice, device):
    if choices.unsuitable(choice, device):
        with pytest.raises(choices.EncoderError):
            load(choice, source.find("Model", source.Facts(str(encoders[name]))), device)
        return
    encoder = load(choice, source.find("Model", source.Facts(str(encoders[name]))), device)
    assert SHAPES[name].bytes(choice, device.compute_dtype) == measure(encoder).bytes


@pytest.mark.parametrize("name", SHAPES)
def test_the_shape_of_a_folder_is_read_off_its_tensors(encoders, name):
    found = sizes._t5(sizes._part_tensors(encoders[name] / "text_encoder_3"))
    assert found == SHAPES[name]
    assert found.numbers == sum(tensor.numel() for tensor in transformers.T5EncoderModel(config(found)).parameters())


@pytest.mark.parametrize("choice", [choices.NONE, *LOADABLE], ids=lambda choice: choice.id)
def test_t5_xxl_takes_what_was_measured_on_full_shapes(choice):
    assert T5_XXL.bytes(choice) == choice.bytes


def test_t5_xxl_has_the_published_size():
    assert T5_XXL.numbers == 4_762_310_656
    assert round(T5_XXL.bytes(choices.find("bf16")) / 2**30, 2) == 8.87
    assert T5_XXL.bytes(choices.HOST_DEFAULT, "float32") == 4 * T5_XXL.numbers


def test_t5_keeps_wo_wide_in_float16():
    wo = T5_XXL.num_layers * T5_XXL.d_ff * T5_XXL.d_model
    assert T5_XXL.bytes(choices.HOST_DEFAULT, "float16") - T5_XXL.bytes(choices.HOST_DEFAULT, "bfloat16") == 2 * wo
    assert T5_XXL.bytes(choices.find("nf4"), "float16") == T5_XXL.bytes(choices.find("nf4"), "bfloat16")  # there it is quantized too


# The published models

_MEDIUM = {
    "sample_size": 128,
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 16,
    "num_layers": 24,
    "attention_head_dim": 64,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "caption_projection_dim": 1536,
    "pooled_projection_dim": 2048,
    "pos_embed_max_size": 192,
}
_LARGE = _MEDIUM | {"num_layers": 38, "num_attention_heads": 38, "caption_projection_dim": 2432, "qk_norm": "rms_norm"}
TRANSFORMERS = {  # transformer/config.json of stabilityai/stable-diffusion-3-medium-diffusers, -3.5-medium, -3.5-large, -3.5-large-turbo
    "sd3-medium": _MEDIUM,
    "sd3.5-medium": _MEDIUM | {"pos_embed_max_size": 384, "qk_norm": "rms_norm", "dual_attention_layers": tuple(range(13))},
    "sd3.5-large": _LARGE,
    "sd3.5-large-turbo": _LARGE,
}


def on_meta(make):
    with torch.device("meta"):
        module = make()
    # On the meta device no two tensors share an address: each counts once by what it is.
    found = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}.values()
    numbers = sum(tensor.numel() for tensor in found if tensor.is_floating_point())
    return Part(numbers, sum(tensor.numel() * tensor.element_size() for tensor in found if not tensor.is_floating_point()))


@pytest.mark.parametrize("name", MODELS)
def test_transformers_have_the_published_sizes(name):
    weights = MODELS[name]
    assert weights.parts["transformer"] == on_meta(lambda: SD3Transformer2DModel(**TRANSFORMERS[name]))
    assert weights.width == TRANSFORMERS[name]["num_attention_heads"] * TRANSFORMERS[name]["attention_head_dim"]
    assert weights.dual == ("dual_attention_layers" in TRANSFORMERS[name])


def _clip(width, layers, heads):
    return transformers.CLIPTextModelWithProjection(
        transformers.CLIPTextConfig(
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            projection_dim=width,
        )
    )


def _vae():
    return AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=16,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


@pytest.mark.parametrize(
    ("part", "make"),
    [
        ("text_encoder", lambda: _clip(768, 12, 12)),
        ("text_encoder_2", lambda: _clip(1280, 32, 20)),
        ("text_encoder_3", lambda: transformers.T5EncoderModel(config(T5_XXL))),
        ("vae", _vae),
    ],
)
def test_the_other_parts_are_the_same_in_all_models(part, make):
    assert {weights.parts[part] for weights in MODELS.values()} == {on_meta(make)}
    assert all(weights.t5 == T5_XXL and weights.channels == 256 for weights in MODELS.values())


def test_a_part_takes_the_type_in_which_it_is_loaded():
    assert [Part(10, 3).bytes(dtype) for dtype in ("bfloat16", "float16", "float32")] == [23, 23, 43]


# A folder


@pytest.fixture(scope="module")
def tiny():
    return tiny_sd3.ensure()


def pipeline_of(folder, dtype):
    pipeline = StableDiffusion3Pipeline.from_pretrained(folder, torch_dtype=getattr(torch, dtype))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def measured(pipeline):
    return {name: of(part) for name in PARTS if (part := getattr(pipeline, name)) is not None}


@pytest.fixture(scope="module")
def pipelines(tiny):
    """Type → the tiny pipeline, loaded as that."""
    return {dtype: pipeline_of(tiny, dtype) for dtype in DTYPES}


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_folder_takes_what_its_loaded_pipeline_takes(tiny, pipelines, dtype):
    assert sizes.read_model(tiny).bytes(choices.HOST_DEFAULT, dtype) == measured(pipelines[dtype])


def test_the_facts_of_a_folder(tiny):
    found = sizes.read_model(tiny)
    assert (found.width, found.dual, found.channels) == (2 * 32, False, 8)
    assert found.tile == AutoencoderKL.from_pretrained(tiny / "vae").config.sample_size
    assert found.t5 == T5Shape(384, 128, 64, 256, 3, 2)


def test_a_model_with_a_second_attention(tiny, tmp_path):
    made = SD3Transformer2DModel(**tiny_sd3.TRANSFORMER | {"qk_norm": "rms_norm", "dual_attention_layers": (0, 1)})
    made.save_pretrained(tmp_path / "model" / "transformer")
    shutil.copy(tiny / "model_index.json", tmp_path / "model")
    found = sizes.read_model(tmp_path / "model")
    assert found.dual
    assert found.parts["transformer"].bytes("float32") == of(made)


def test_parts_that_a_folder_lacks_count_as_published(tiny, tmp_path):
    shutil.copytree(tiny, tmp_path / "model", ignore=shutil.ignore_patterns("text_encoder_3", "vae"))
    found = sizes.read_model(tmp_path / "model")
    assert found.parts["text_encoder_3"] == MODELS["sd3-medium"].parts["text_encoder_3"]
    assert found.parts["vae"] == MODELS["sd3-medium"].parts["vae"]
    assert found.parts["text_encoder"] == sizes.read_model(tiny).parts["text_encoder"]
    assert found.t5 == T5_XXL


@pytest.fixture(scope="module")
def sharded(pipelines, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sharded")
    pipelines["bfloat16"].save_pretrained(folder, max_shard_size="100KB")
    assert len(list((folder / "text_encoder_3").glob("*-of-*.safetensors"))) > 3  # or this would show nothing
    return folder


def test_shards_add_up(tiny, sharded):
    assert sizes.read_model(sharded).parts == sizes.read_model(tiny).parts
    assert sizes.read_model(sharded).t5 == sizes.read_model(tiny).t5


def test_one_shard_is_not_taken_for_the_whole(tiny, sharded, tmp_path):
    """Where a download was interrupted, the configuration knows how large it will be."""
    shutil.copytree(sharded, tmp_path / "model")
    for part in ("text_encoder_3", "transformer"):
        for shard in sorted((tmp_path / "model" / part).glob("*-of-*.safetensors"))[1:]:
            shard.unlink()
    assert sizes.read_model(tmp_path / "model").parts == sizes.read_model(tiny).parts
    assert sizes.read_model(tmp_path / "model").t5 == sizes.read_model(tiny).t5


def test_of_two_variants_one_counts(tiny, pipelines, tmp_path):
    shutil.copytree(tiny, tmp_path / "model")
    pipelines["float16"].save_pretrained(tmp_path / "model", variant="fp16")
    assert (tmp_path / "model" / "vae" / "diffusion_pytorch_model.fp16.safetensors").is_file()
    assert sizes.read_model(tmp_path / "model").parts == sizes.read_model(tiny).parts


def test_a_variant_whose_index_lies_beside_that_of_absent_shards(tiny, pipelines, tmp_path):
    """As a repository has it of which the fp16 files alone were downloaded, with both indices."""
    shutil.copytree(tiny, tmp_path / "model")
    encoder = tmp_path / "model" / "text_encoder_3"
    (encoder / "model.safetensors").unlink()
    pipelines["bfloat16"].text_encoder_3.save_pretrained(encoder, variant="fp16", max_shard_size="100KB")
    names = {"weight_map": {"shared.weight": "model-00001-of-00002.safetensors"}}
    (encoder / "model.safetensors.index.json").write_text(json.dumps(names))
    (encoder / "config.json").unlink()  # which would know it too
    assert sizes.read_model(tmp_path / "model").parts == sizes.read_model(tiny).parts


@pytest.mark.parametrize("part", PARTS)
def test_a_part_without_safetensors_is_counted_from_its_configuration(tiny, tmp_path, part):
    shutil.copytree(tiny, tmp_path / "model")
    for file in (tmp_path / "model" / part).glob("*.safetensors"):
        file.unlink()
    assert sizes.read_model(tmp_path / "model").parts == sizes.read_model(tiny).parts
    assert sizes.read_model(tmp_path / "model").t5 == sizes.read_model(tiny).t5


@pytest.mark.parametrize("bits", [4, 8])
def test_a_t5_that_lies_quantized_in_the_folder_stays_as_it_is(tiny, tmp_path, bits):
    shutil.copytree(tiny, tmp_path / "model", ignore=shutil.ignore_patterns("text_encoder_3"))
    how = transformers.BitsAndBytesConfig(
        load_in_4bit=bits == 4, load_in_8bit=bits == 8, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True
    )
    encoder = transformers.T5EncoderModel.from_pretrained(
        tiny, subfolder="text_encoder_3", quantization_config=how, dtype=torch.bfloat16, device_map={"": "cpu"}
    )
    encoder.save_pretrained(tmp_path / "model" / "text_encoder_3")
    found, loaded = sizes.read_model(tmp_path / "model"), measured(pipeline_of(tmp_path / "model", "bfloat16"))
    told = found.bytes(choices.HOST_DEFAULT, "bfloat16")
    # The file describes each of 3 × 6 quantized layers in some 170 bytes of JSON, which the loaded one does not keep.
    assert 0 <= told["text_encoder_3"] - loaded["text_encoder_3"] < 18 * 200
    assert {**told, "text_encoder_3": 0} == {**loaded, "text_encoder_3": 0}
    assert found.bytes(choices.HOST_DEFAULT, "float32")["text_encoder_3"] == told["text_encoder_3"]
    assert found.t5 == sizes.read_model(tiny).t5  # from the configuration: codes have other shapes
    assert found.bytes(choices.find("fp4"), "bfloat16") == sizes.read_model(tiny).bytes(choices.find("fp4"), "bfloat16")


# A single file

_PREFIX = {  # as ComfyUI's sd3_medium_incl_clips_t5xxl has them
    "transformer": "model.diffusion_model.",
    "vae": "first_stage_model.",
    "text_encoder": "text_encoders.clip_l.transformer.",
    "text_encoder_2": "text_encoders.clip_g.transformer.",
    "text_encoder_3": "text_encoders.t5xxl.transformer.",
}


def single(tiny, file, parts=PARTS, dtype=None):
    """Write the tiny model's parts into one file under ComfyUI's names."""
    found = {}
    for part in parts:
        (weights,) = (tiny / part).glob("*.safetensors")
        for name, tensor in load_file(weights).items():
            name = name.replace("pos_embed.proj.", "x_embedder.proj.")
            found[_PREFIX[part] + name] = tensor if dtype is None else tensor.to(dtype)
    save_file(found, file)
    return file


def test_a_single_file_takes_what_the_folder_takes(tiny, tmp_path):
    whole, file = sizes.read_model(tiny), sizes.read_model(single(tiny, tmp_path / "sd3_incl_clips_t5xxl.safetensors"))
    assert file.parts == whole.parts
    assert (file.name, file.t5, file.width, file.dual) == ("sd3_incl_clips_t5xxl", whole.t5, whole.width, whole.dual)


def test_the_widest_channels_of_a_file_are_twice_its_last(tiny, tmp_path):
    vae = tmp_path / "vae"
    AutoencoderKL(**tiny_sd3.VAE | {"block_out_channels": (8, 16, 16, 16)}).save_pretrained(vae)
    single(tmp_path, tmp_path / "vae.safetensors", ["vae"])
    merged = load_file(single(tiny, tmp_path / "rest.safetensors", ["transformer"])) | load_file(tmp_path / "vae.safetensors")
    save_file(merged, tmp_path / "model.safetensors")
    assert sizes.read_model(tmp_path / "model.safetensors").channels == 16


def test_what_a_single_file_lacks_counts_as_published(tiny, tmp_path):
    found = sizes.read_model(single(tiny, tmp_path / "sd3_medium.safetensors", ["transformer", "vae"]))
    assert found.parts["transformer"] == sizes.read_model(tiny).parts["transformer"]
    assert found.parts["text_encoder_3"] == MODELS["sd3-medium"].parts["text_encoder_3"]
    assert found.t5 == T5_XXL


def test_a_tied_embedding_that_is_written_twice_counts_once(tiny, tmp_path):
    tensors_of = load_file(single(tiny, tmp_path / "once.safetensors"))
    shared = tensors_of["text_encoders.t5xxl.transformer.shared.weight"]
    tensors_of["text_encoders.t5xxl.transformer.encoder.embed_tokens.weight"] = shared.clone()
    save_file(tensors_of, tmp_path / "twice.safetensors")
    assert sizes.read_model(tmp_path / "twice.safetensors").parts == sizes.read_model(tiny).parts


def test_integers_with_their_scales_stay_as_they_are(tiny, tmp_path):
    tensors_of = load_file(single(tiny, tmp_path / "plain.safetensors", ["transformer", "vae"]))
    tensors_of["text_encoders.t5xxl.transformer.layer.weight"] = torch.zeros(64, 32, dtype=torch.int8)
    tensors_of["text_encoders.t5xxl.transformer.layer.scale"] = torch.zeros(64)
    save_file(tensors_of, tmp_path / "int8.safetensors")
    assert sizes.read_model(tmp_path / "int8.safetensors").parts["text_encoder_3"] == Part(0, 64 * 32 + 64 * 4)


def test_float8_in_a_file_is_no_quantized_part(tiny, tmp_path):
    """The host loads it as 16 bit."""
    file = single(tiny, tmp_path / "sd3_fp8.safetensors", ["transformer", "text_encoder_3"], torch.float8_e4m3fn)
    assert sizes.read_model(file).parts["text_encoder_3"] == sizes.read_model(tiny).parts["text_encoder_3"]
    assert sizes.read_model(file).t5 == sizes.read_model(tiny).t5


def test_a_second_attention_in_a_file(tiny, tmp_path):
    tensors_of = load_file(single(tiny, tmp_path / "plain.safetensors", ["transformer"]))
    tensors_of["model.diffusion_model.joint_blocks.0.x_block.attn2.qkv.weight"] = torch.zeros(2, 2)
    save_file(tensors_of, tmp_path / "dual.safetensors")
    assert not sizes.read_model(tmp_path / "plain.safetensors").dual
    assert sizes.read_model(tmp_path / "dual.safetensors").dual


def header_alone(file, shapes):
    """A safetensors file whose header promises bfloat16 tensors, and whose data is a hole in the disk."""
    described, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * torch.Size(shape).numel()
        described[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    header = json.dumps(described).encode()
    with file.open("wb") as opened:
        opened.write(struct.pack("<Q", len(header)) + header)
        opened.truncate(8 + len(header) + end)
    return file


def test_no_weight_is_read(tmp_path):
    file = header_alone(tmp_path / "large.safetensors", {"model.diffusion_model.x_embedder.proj.weight": [2**14, 2**15]})
    assert file.stat().st_size > 2**30
    before = psutil.Process().memory_info().rss
    assert sizes.read_model(file).bytes(choices.NONE, "bfloat16")["transformer"] == 2**30
    assert psutil.Process().memory_info().rss - before < 64 * 2**20


# What can not be read


def refusal(place):
    with pytest.raises(SettingError) as caught:
        sizes.known(str(place))
    return caught.value


@pytest.mark.parametrize("content", [b"", b"\0" * 4, b"\xff" * 100, struct.pack("<Q", 9) + b"{broken}!", struct.pack("<Q", 2**40) + b"{}"])
def test_a_damaged_header(tmp_path, content):
    file = tmp_path / "broken.safetensors"
    file.write_bytes(content)
    error = refusal(file)
    assert (error.id, error.values["path"]) == ("memory.unreadable", "broken.safetensors")
    assert "download it again" in error.remedy


def test_a_file_cut_short(tiny, tmp_path):
    whole = single(tiny, tmp_path / "whole.safetensors")
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(whole.read_bytes()[:-1000])
    assert refusal(cut).id == "memory.unreadable"


@pytest.mark.parametrize("broken", ["transformer/config.json", "vae/diffusion_pytorch_model.safetensors"])
def test_a_damaged_part_of_a_folder(tiny, tmp_path, broken):
    shutil.copytree(tiny, tmp_path / "model")
    (tmp_path / "model" / broken).write_text("{")
    assert refusal(tmp_path / "model").id == "memory.unreadable"


def test_a_folder_and_a_file_that_are_no_model(tmp_path):
    save_file({"weight": torch.zeros(2)}, tmp_path / "lora.safetensors")
    for place in (tmp_path, tmp_path / "lora.safetensors"):
        error = refusal(place)
        assert (error.id, error.values["path"]) == ("memory.no-model", place.name)
        assert "the name of a published model" in error.remedy


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("sd35-large", "sd3.5-large"),
        ("SD3 Medium", "sd3-medium"),
        ("sd3.5-large-trubo", "sd3.5-large-turbo"),
        ("/nowhere/sd3.5-medium", "sd3.5-medium"),
    ],
)
def test_a_name_that_does_not_exist(name, nearest):
    error = refusal(name)
    assert error.id == "setting.model-unknown"
    assert f"“{nearest}” comes nearest" in error.remedy


def test_a_name_longer_than_a_path_can_be():
    error = refusal("sd3.5-large" + "e" * 5000)
    assert error.id == "setting.model-unknown"
    assert len(str(error)) < 300


def test_names_of_published_models_and_of_places(tiny):
    assert sizes.known(" SD3.5-Large ") is MODELS["sd3.5-large"]
    assert sizes.known(str(tiny)) == sizes.read_model(tiny)


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("stabilityai/stable-diffusion-3-medium-diffusers", "sd3-medium"),
        ("Diffusers/stabilityai/stable-diffusion-3.5-large [ceddf0a7]", "sd3.5-large"),
        ("stabilityai/stable-diffusion-3.5-large-turbo", "sd3.5-large-turbo"),
        ("stabilityai/stable-diffusion-3.5-medium", "sd3.5-medium"),
        ("tensorart/stable-diffusion-3.5-medium-turbo", "sd3.5-medium"),
        ("sd3_medium_incl_clips_t5xxlfp16.safetensors", "sd3-medium"),
        ("sd3.5_large_fp8_scaled.safetensors", "sd3.5-large"),
        ("sd3_5_medium", "sd3.5-medium"),
        ("sd35-large-turbo", "sd3.5-large-turbo"),
        ("stableDiffusion35_large", "sd3.5-large"),
        ("Stable Diffusion 3.5 Large", "sd3.5-large"),
        ("Stable Diffusion 3", "sd3-medium"),
        ("stabilityai/stable-diffusion-xl-base-1.0", None),
        ("v1-5-pruned-emaonly", None),
        ("black-forest-labs/FLUX.1-dev", None),
        ("", None),
    ],
)
def test_what_a_name_is_likely_to_mean(name, model):
    assert sizes.guess(name) is (MODELS[model] if model else None)


# What is loaded


def test_a_loaded_pipeline_is_as_measured(tiny, pipelines):
    pipeline = pipelines["bfloat16"]
    found = sizes.measure_pipeline(pipeline, "tiny", measured(pipeline))
    assert found.bytes(choices.HOST_DEFAULT, "bfloat16") == measured(pipeline)
    assert found.bytes(choices.find("nf4"), "float32") == measured(pipeline)  # what it is counts before what was said
    read = sizes.read_model(tiny)
    assert (found.name, found.t5, found.width, found.dual) == ("tiny", read.t5, read.width, read.dual)
    assert (found.channels, found.tile) == (read.channels, read.tile)


def test_another_encoder_for_a_loaded_pipeline(tiny, pipelines):
    """What the host asks when it is about to load one: the other parts as measured, T5 as it will be."""
    pipeline = pipelines["bfloat16"]
    others = {name: size for name, size in measured(pipeline).items() if name != "text_encoder_3"}
    found = sizes.measure_pipeline(pipeline, "tiny", others).bytes(choices.find("fp8"), "bfloat16")
    assert found == {**others, "text_encoder_3": sizes.read_model(tiny).t5.bytes(choices.find("fp8"))}


def test_a_loaded_pipeline_without_t5(tiny):
    pipeline = StableDiffusion3Pipeline.from_pretrained(tiny, text_encoder_3=None, tokenizer_3=None, torch_dtype=torch.bfloat16)
    found = sizes.measure_pipeline(pipeline, "tiny", measured(pipeline), SHAPES["odd"])
    assert found.bytes(choices.NONE, "bfloat16") == {**measured(pipeline), "text_encoder_3": 0}
    assert found.t5 == SHAPES["odd"]
    assert sizes.measure_pipeline(pipeline, "tiny", {}).t5 == T5_XXL


def test_tiles_are_never_made_larger():
    weights = MODELS["sd3-medium"]
    assert (sizes.tiled(weights, 512).tile, sizes.tiled(weights, 2048).tile) == (512, weights.tile)
    assert sizes.tiled(weights, 512).parts is weights.parts


def test_every_model_names_its_parts_as_the_pipeline_does(pipelines):
    assert all(tuple(weights.parts) == PARTS for weights in MODELS.values())
    assert set(PARTS) <= set(pipelines["bfloat16"].components)
