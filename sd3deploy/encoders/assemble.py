"""A T5 encoder around tensors that are quantized already, whether they were just made or come from the disk."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sd3deploy.device import cpu_has_bfloat16
from sd3deploy.encoders.recipe import EMBEDDING, Recipe
from sd3deploy.encoders.storage import BITSANDBYTES, STORAGES
from sd3deploy.encoders.t5 import feed_forwards, product_type, t5_encoder_class

if TYPE_CHECKING:
    import torch
    import transformers

    from sd3deploy.encoders.encoded import Encoded

__all__ = ["assemble", "layers", "quantization_config", "shapes"]


def assemble(encoded: Encoded, device: str = "cpu") -> transformers.T5EncoderModel:
    """The encoder, in evaluation mode. The tensors go to `device` one by one; on the CPU they are used as they are, mapped or not."""
    import torch

    recipe = encoded.recipe
    encoder = _skeleton(recipe, encoded.config)
    parts: dict[str, dict[str, torch.Tensor]] = {}
    ways = layers(encoder, recipe)
    for name, tensor in encoded.tensors.items():
        layer, _, rest = name.partition(".weight")
        if layer not in ways and not rest:
            layer, _, rest = name.rpartition(".")
        parts.setdefault(layer, {})[name[len(layer) + 1 :]] = tensor.to(device)
    for layer, tensors in parts.items():
        STORAGES[ways.get(layer, "wide")].put(encoder.get_submodule(layer), tensors)
    encoder.set_input_embeddings(encoder.shared)  # the stack's own is the same
    _mark(encoder, recipe)
    wider: Iterable[Any] = ()
    if product_type(getattr(torch, recipe.compute), torch.device(device)) is torch.float32:
        wider = encoder.modules()
    elif recipe.compute == "float16":
        wider = [module.wo for module in feed_forwards(encoder)]  # T5-XXL leaves float16's range there (huggingface/diffusers#8604)
    for module in wider:
        if hasattr(module, "compute_dtype"):  # of bitsandbytes' 4 bit; all other layers go by their input
            module.compute_dtype = torch.float32
    return encoder.eval().requires_grad_(False)


def layers(encoder: torch.nn.Module, recipe: Recipe) -> dict[str, str]:
    """Name of the embedding and of each linear layer → how it is stored."""
    found = [EMBEDDING, *(name for name, module in encoder.named_modules() if hasattr(module, "in_features"))]
    return {name: recipe.stored(name) for name in found}


def shapes(config: Mapping[str, Any]) -> tuple[dict[str, tuple[int, ...]], torch.nn.Module]:
    """Name of each tensor of such an encoder → its shape; and the encoder, without memory."""
    import transformers

    with _empty():
        encoder = _built(transformers.T5EncoderModel, config)
    found = {name: tuple(parameter.shape) for name, parameter in encoder.named_parameters()}
    found.pop("encoder.embed_tokens.weight", None)
    return found, encoder


def quantization_config(recipe: Recipe) -> transformers.BitsAndBytesConfig | None:
    """What transformers has to know of it, where bitsandbytes' modules are in it."""
    import transformers

    kind = recipe.choice.stored
    if kind not in BITSANDBYTES:
        return None
    skipped = ["wo"] if recipe.stored_wo != kind else None
    if kind == "int8":
        return transformers.BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skipped)
    return transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        llm_int8_skip_modules=skipped,
        bnb_4bit_quant_type=kind,
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=recipe.compute,
    )


def _skeleton(recipe: Recipe, config: Mapping[str, Any]) -> Any:
    """The encoder with modules of the right kinds and no memory."""
    import transformers

    stock = recipe.stored_wo == "wide" and recipe.compute != "float16" and cpu_has_bfloat16()
    cls = transformers.T5EncoderModel if stock else t5_encoder_class()
    with _empty():
        encoder = _built(cls, config)
        for name, way in layers(encoder, recipe).items():
            linear: Any = encoder.get_submodule(name)
            layer: Any = STORAGES[way].layer(linear, recipe.compute, way)
            if way in BITSANDBYTES:
                layer.source_cls = type(linear)  # transformers' mark of what it replaced
            parent, _, attribute = name.rpartition(".")
            setattr(encoder.get_submodule(parent), attribute, layer)
    return encoder


def _mark(encoder: Any, recipe: Recipe) -> None:
    """Say on the encoder, where it holds bitsandbytes' modules, what transformers' own loader would have said.

    transformers refuses `.to(dtype)` and `.half()` by these marks and writes its quantization_config when it saves; diffusers' `.to()`,
    accelerate's hooks, peft and the host's offload look at is_loaded_in_4bit, is_loaded_in_8bit and quantization_method. Nobody is asked
    whether bitsandbytes is there: what transformers answers to that may be from before it was installed.
    """
    from transformers.quantizers import AutoHfQuantizer

    found = quantization_config(recipe)
    if found is None:
        return
    quantizer: Any = AutoHfQuantizer.from_config(found, pre_quantized=True)
    quantizer.modules_to_not_convert = found.llm_int8_skip_modules or []  # read by transformers 4 where it dequantizes
    encoder.is_quantized, encoder.quantization_method = True, found.quant_method
    encoder.hf_quantizer = quantizer
    encoder.config.quantization_config = found
    quantizer.postprocess_model(encoder)  # is_loaded_in_…, is_…_serializable


@contextmanager
def _empty() -> Iterator[None]:
    """Modules without memory, and without drawing the values that they begin with, which takes a tenth of the time of a cached load."""
    import torch
    from torch.overrides import TorchFunctionMode

    class WithoutValues(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if getattr(func, "__module__", "") == "torch.nn.init":
                return args[0] if args else (kwargs or {})["tensor"]
            return func(*args, **kwargs or {})

    with torch.device("meta"), WithoutValues():
        yield


def _built(cls: type[transformers.T5EncoderModel], config: Mapping[str, Any]) -> transformers.T5EncoderModel:
    """transformers 4 refuses a T5 without blocks, in which it misses the layers that it keeps in float32: one is made, and goes again."""
    import transformers

    made = transformers.T5Config(**{key: value for key, value in config.items() if key != "quantization_config"})
    blocks = made.num_layers
    made.num_layers = max(1, blocks)
    encoder: Any = cls(made)
    del encoder.encoder.block[blocks:]
    encoder.config.num_layers = encoder.encoder.config.num_layers = blocks
    return encoder
