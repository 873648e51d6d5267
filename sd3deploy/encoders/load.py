"""One loader for each kind of choice: from a source to an encoder that is ready to go into a pipeline."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sd3deploy.device import Device
from sd3deploy.encoders.choices import Choice, require
from sd3deploy.encoders.source import Source, read_file
from sd3deploy.encoders.t5 import feed_forwards, scaled_fp8_linear, t5_encoder_class
from sd3deploy.errors import EncoderError
from sd3deploy.memory import exhausted

if TYPE_CHECKING:
    import transformers

__all__ = ["load", "too_large"]


def load(choice: Choice, source: Source, device: Device, sdnq_config: Callable[[], Any] | None = None) -> transformers.T5EncoderModel:
    """Read T5 from `source` and quantize it as `choice` says, in evaluation mode.

    sdnq_config: makes the configuration of the host's own quantizer. Raises EncoderError with a remedy when the device
    can not run the choice, the weights can not be read, or do not fit into memory.
    """
    require(choice, device)
    _quiet()
    try:
        encoder = _LOADERS[choice.id](choice, source, device, sdnq_config)
    except EncoderError:
        raise
    except OSError as error:  # what transformers raises for a missing folder, file or repository, and the network's own errors
        if exhausted.read(error):  # Windows has one of its own for that
            raise too_large(choice) from error
        raise EncoderError("encoder.unreadable", source=source.name, error=_first_line(error)) from error
    except Exception as error:
        if exhausted.read(error):
            raise too_large(choice) from error
        raise EncoderError("encoder.failed", name=choice.name, error=f"{type(error).__name__}: {_first_line(error)}") from error
    return encoder.eval().requires_grad_(False)


def _read(cls: type, source: Source, device: Device, **arguments: Any) -> Any:
    """from_pretrained of `cls` with the device's compute type, from a file's tensors or a folder or repository."""
    import torch

    arguments["dtype"] = getattr(torch, device.compute_dtype)
    if source.file is None:
        return cls.from_pretrained(source.place, use_safetensors=True, **source.arguments, **arguments)
    config, state = read_file(source.file)
    return cls.from_pretrained(None, config=config, state_dict=state, **arguments)


def _four_bit(choice: Choice, source: Source, device: Device, _sdnq: Any) -> Any:
    import torch
    import transformers

    compute = getattr(torch, device.compute_dtype)
    config = transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=choice.id,
        bnb_4bit_use_double_quant=True,  # costs nothing measurable, saves 8 % (bench/encoders.py)
        bnb_4bit_compute_dtype=compute,
    )
    encoder = _read(t5_encoder_class(), source, device, quantization_config=config, device_map={"": device.torch})
    if compute is torch.float16:  # T5-XXL leaves float16's range in wo (huggingface/diffusers#8604)
        for module in feed_forwards(encoder):
            module.wo.compute_dtype = torch.float32
    return encoder


def _eight_bit(_choice: Choice, source: Source, device: Device, _sdnq: Any) -> Any:
    # The stock class keeps wo in 16 or 32 bit: bitsandbytes computes INT8 through float16, whose range wo's input can leave.
    import transformers

    config = transformers.BitsAndBytesConfig(load_in_8bit=True)
    return _read(transformers.T5EncoderModel, source, device, quantization_config=config, device_map={"": device.torch})


def _fp8(_choice: Choice, source: Source, device: Device, _sdnq: Any) -> Any:
    import torch

    encoder = _read(t5_encoder_class(), source, device)
    # Names alone: a list of the layers would keep each of them in 16 bit until all are done.
    for name in [name for name, module in encoder.named_modules() if isinstance(module, torch.nn.Linear)]:
        parent, _, attribute = name.rpartition(".")
        setattr(encoder.get_submodule(parent), attribute, scaled_fp8_linear()(encoder.get_submodule(name)))
    return encoder


def _sixteen_bit(_choice: Choice, source: Source, device: Device, _sdnq: Any) -> Any:
    import transformers

    return _read(transformers.T5EncoderModel, source, device)


def _sdnq(choice: Choice, source: Source, device: Device, sdnq_config: Callable[[], Any] | None) -> Any:
    import transformers

    config = sdnq_config() if sdnq_config else None
    if config is None:
        raise EncoderError("encoder.no-sdnq", name=choice.name)
    return _read(transformers.T5EncoderModel, source, device, quantization_config=config)


_LOADERS: dict[str, Callable[..., Any]] = {
    "fp4": _four_bit,
    "nf4": _four_bit,
    "uint4": _sdnq,
    "fp8": _fp8,
    "int8": _eight_bit,
    "bf16": _sixteen_bit,
}


def _quiet() -> None:
    """Keep two harmless messages of bitsandbytes out of the log; it repeats one of them for every layer of every prompt."""
    for logger in ("bitsandbytes.autograd._functions", "bitsandbytes.backends.cpu.ops"):
        logging.getLogger(logger).addFilter(_not_noise)


def _not_noise(record: logging.LogRecord) -> bool:
    return not record.msg.startswith(("MatMul8bitLt: inputs will be cast", "Failed to load CPU gemm_4bit_forward"))


def too_large(choice: Choice) -> EncoderError:
    """The error for a choice that did not fit into memory."""
    return EncoderError("encoder.out-of-memory", name=choice.name, size=f"{(choice.bytes or 0) / 1e9:.1f}")


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
