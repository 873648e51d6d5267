"""Arguments for loading one part: where it goes and how it is quantized. SDNQ is the host's own quantization."""

import os

from modules import devices
from modules.like import AUGUST
from modules.logger import log


def dont_quant():
    from modules import shared

    return shared.sd_model_type in [kind.strip() for kind in shared.opts.models_not_to_quant.split(",")]


def create_sdnq_config(kwargs=None, allow=True, module="Model", weights_dtype=None, quantized_matmul_dtype=None,
                       modules_to_not_convert=None, modules_dtype_dict=None):  # fmt: skip
    from modules import shared

    opts = shared.opts
    if not allow or opts.sdnq_quantize_mode == "post" or (module != "any" and module not in opts.sdnq_quantize_weights):
        return kwargs
    if weights_dtype is None:
        of_encoder = opts.sdnq_quantize_weights_mode_te
        own = module in ("TE", "LLM") and of_encoder not in ("Same as model", "default")
        weights_dtype = of_encoder if own else opts.sdnq_quantize_weights_mode
    if devices.backend == "cpu":
        os.environ.setdefault("SDNQ_USE_TORCH_COMPILE", "0")  # or its import compiles a kernel to see whether that works
    if AUGUST:
        from sdnq import SDNQConfig
    else:
        from modules.sdnq import SDNQConfig

    config = SDNQConfig(weights_dtype=weights_dtype, dequantize_fp32=opts.sdnq_dequantize_fp32,
                        modules_to_not_convert=modules_to_not_convert or [], modules_dtype_dict=dict(modules_dtype_dict or {}))  # fmt: skip
    log.debug(f'Quantization: module="{module}" type=sdnq mode=pre dtype={weights_dtype}')
    return config if kwargs is None else {**kwargs, "quantization_config": config}


def create_config(kwargs=None, allow=True, module="Model", modules_to_not_convert=None, modules_dtype_dict=None):
    kwargs = {} if kwargs is None else kwargs
    if module == "Model" and dont_quant():
        return kwargs
    return create_sdnq_config(kwargs, allow, module, modules_to_not_convert=modules_to_not_convert, modules_dtype_dict=modules_dtype_dict)


def get_quant_type(args):
    return args["quantization_config"].__class__.__name__ if args and "quantization_config" in args else None


def get_dit_args(load_config=None, module=None, device_map=False, allow_quant=True, modules_to_not_convert=None, modules_dtype_dict=None):
    """(arguments for from_pretrained, arguments about quantization)."""
    from modules import shared

    config = dict(load_config or {})
    config.setdefault("torch_dtype", devices.dtype)
    for name in ("load_connected_pipeline", "safety_checker", "requires_safety_checker"):
        config.pop(name, None)
    if device_map:
        if shared.opts.device_map == "gpu":
            config["device_map"] = devices.device
        elif shared.opts.device_map == "cpu" or (config.get("low_cpu_mem_usage") and module in ("Model", "TE", "LLM")):
            config["device_map"] = "cpu"
    quant = create_config(module=module, modules_to_not_convert=modules_to_not_convert, modules_dtype_dict=modules_dtype_dict)
    return config, quant if allow_quant else {}


def do_post_load_quant(sd_model, allow=True):
    return sd_model
