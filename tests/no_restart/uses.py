"""The uses of optional packages that an SD3 user meets, each as a function that raises while the package is absent."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch


def t5_device_map(model: Path) -> None:
    from transformers import T5EncoderModel

    encoder = T5EncoderModel.from_pretrained(model / "text_encoder_3", device_map={"": "cpu"})
    encoder(torch.tensor([[5, 6, 1]]))


def t5_on_disk(model: Path) -> None:
    from transformers import T5EncoderModel

    with tempfile.TemporaryDirectory() as folder:
        places = {
            "shared": "cpu",
            "encoder.embed_tokens": "cpu",
            "encoder.block": "disk",
            "encoder.final_layer_norm": "cpu",
            "encoder.dropout": "cpu",
        }
        encoder = T5EncoderModel.from_pretrained(model / "text_encoder_3", device_map=places, offload_folder=folder)
        assert encoder(torch.tensor([[5, 6, 1]])).last_hidden_state.shape == (1, 3, 128)


def transformer_device_map(model: Path) -> None:
    from diffusers import SD3Transformer2DModel

    SD3Transformer2DModel.from_pretrained(model / "transformer", device_map={"": "cpu"})


def pipeline_offload(model: Path) -> None:
    """On a machine without accelerator diffusers refuses the CPU, but only after it has seen accelerate."""
    from diffusers import StableDiffusion3Pipeline

    pipe = StableDiffusion3Pipeline.from_pretrained(model, low_cpu_mem_usage=False)
    for name in ("enable_model_cpu_offload", "enable_sequential_cpu_offload"):
        try:
            getattr(pipe, name)(device="cpu")
        except RuntimeError as error:
            if "accelerator" not in str(error):
                raise


def lora(model: Path) -> None:
    from diffusers import StableDiffusion3Pipeline

    pipe = StableDiffusion3Pipeline.from_pretrained(model)
    layer = "transformer.transformer_blocks.0.attn.to_q"
    pipe.load_lora_weights({f"{layer}.lora_A.weight": torch.ones(4, 64), f"{layer}.lora_B.weight": torch.ones(64, 4)})
    assert "Linear" in type(pipe.transformer.transformer_blocks[0].attn.to_q).__name__


def slow_tokenizer(model: Path) -> None:
    """From spiece.model alone, as in a folder without tokenizer.json."""
    import shutil

    from transformers import T5Tokenizer

    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(model / "tokenizer_3" / "spiece.model", folder)
        tokenizer = T5Tokenizer.from_pretrained(folder)
        assert tokenizer("a cat")["input_ids"][-1] == tokenizer.eos_token_id
        assert tokenizer.decode(tokenizer("a cat")["input_ids"], skip_special_tokens=True) == "a cat"


def auto_slow_tokenizer(model: Path) -> None:
    import shutil

    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory() as folder:
        for name in ("spiece.model", "tokenizer_config.json", "special_tokens_map.json"):
            shutil.copy(model / "tokenizer_3" / name, folder)
        tokenizer = AutoTokenizer.from_pretrained(folder, use_fast=False)
        assert tokenizer.decode(tokenizer("a cat")["input_ids"], skip_special_tokens=True) == "a cat"


def sentencepiece_class(model: Path) -> None:
    """A class that transformers replaces by a placeholder while sentencepiece is absent."""
    import transformers

    assert "vocab_file" in transformers.SpeechT5Tokenizer.vocab_files_names  # a placeholder raises here


def t5_4bit(model: Path) -> None:
    from transformers import BitsAndBytesConfig, T5EncoderModel

    quantization = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    encoder = T5EncoderModel.from_pretrained(model / "text_encoder_3", quantization_config=quantization, device_map={"": "cpu"})
    layer = encoder.encoder.block[0].layer[0].SelfAttention.q
    assert type(layer).__name__ == "Linear4bit", type(layer)
    assert torch.isfinite(encoder(torch.tensor([[5, 6, 1]])).last_hidden_state).all()


def t5_8bit(model: Path) -> None:
    from transformers import BitsAndBytesConfig, T5EncoderModel

    quantization = BitsAndBytesConfig(load_in_8bit=True)
    encoder = T5EncoderModel.from_pretrained(model / "text_encoder_3", quantization_config=quantization, device_map={"": "cpu"})
    assert type(encoder.encoder.block[0].layer[0].SelfAttention.q).__name__ == "Linear8bitLt"


def diffusers_bitsandbytes(model: Path) -> None:
    """Without a GPU diffusers quantizes nothing; this is what it checks and uses before."""
    import diffusers
    import diffusers.utils.import_utils as checks
    from diffusers.quantizers.bitsandbytes import utils
    from diffusers.quantizers.bitsandbytes.bnb_quantizer import BnB4BitDiffusersQuantizer

    config = diffusers.BitsAndBytesConfig(load_in_4bit=True)
    try:
        BnB4BitDiffusersQuantizer(config).validate_environment()
    except RuntimeError as error:
        if "No GPU found" not in str(error):
            raise
    assert checks.is_bitsandbytes_available()
    assert checks.is_bitsandbytes_version(">=", "0.43.3")
    assert utils.bnb.nn.Linear4bit
    linear = torch.nn.Sequential(torch.nn.Linear(64, 64))
    replaced = utils.replace_with_bnb_linear(linear, [], quantization_config=config)
    assert type(replaced[0]).__name__ == "Linear4bit"


def peft_4bit(model: Path) -> None:
    """Without its caches cleared peft says nothing and puts a plain LoRA layer on a 4-bit one."""
    import peft

    peft.get_peft_model(torch.nn.Sequential(torch.nn.Linear(64, 64)), peft.LoraConfig(r=4, target_modules=["0"]))
    import bitsandbytes

    holder = torch.nn.Sequential(bitsandbytes.nn.Linear4bit(64, 64))
    holder.is_loaded_in_4bit = True  # as transformers marks it
    adapted = peft.get_peft_model(holder, peft.LoraConfig(r=4, target_modules=["0"]))
    kind = type(adapted.base_model.model[0])
    assert kind.__module__ == "peft.tuners.lora.bnb", kind


def gguf_transformers(model: Path) -> None:
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    path = gguf_file(model)
    try:
        load_gguf_checkpoint(path)
    except ValueError as error:  # it was read, then: the file's architecture is not one that transformers knows
        if "not supported" not in str(error):
            raise


def gguf_diffusers(model: Path) -> None:
    from diffusers import GGUFQuantizationConfig
    from diffusers.models.model_loading_utils import load_gguf_checkpoint
    from diffusers.quantizers.gguf.gguf_quantizer import GGUFQuantizer

    GGUFQuantizer(GGUFQuantizationConfig(compute_dtype=torch.float32)).validate_environment()
    state = load_gguf_checkpoint(gguf_file(model))
    assert type(state["weight"]).__name__ == "GGUFParameter"
    from diffusers.quantizers.gguf import gguf_quantizer

    assert gguf_quantizer._replace_with_gguf_linear


def gguf_file(model: Path) -> str:
    """A GGUF file with one Q8_0 tensor; written by the package itself where it is there, else an empty file."""
    path = Path(tempfile.gettempdir()) / "sd3deploy-tiny.gguf"
    try:
        import gguf
        import numpy
    except ImportError:
        path.write_bytes(b"GGUF")
        return str(path)
    writer = gguf.GGUFWriter(path, "sd3")
    data = gguf.quants.quantize(numpy.ones((64, 64), dtype=numpy.float32), gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("weight", data, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return str(path)
