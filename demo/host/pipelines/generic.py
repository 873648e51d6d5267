"""Load one part of a model. Callers reach these functions as attributes of this module."""

import os

import transformers
from modules import devices, errors, model_quant, sd_models, shared
from modules.logger import log
from pipelines.generic_text_encoder import get_shared


def load_transformer(repo_id, cls_name, load_config=None, subfolder="transformer", allow_quant=True, variant=None, dtype=None, **kwargs):
    args, quant = model_quant.get_dit_args(load_config or {}, module="Model", device_map=True, allow_quant=allow_quant)
    log.debug(f'Load model: transformer="{repo_id}" cls={cls_name.__name__} quant="{model_quant.get_quant_type(quant)}"')
    part = cls_name.from_pretrained(repo_id, subfolder=subfolder, cache_dir=shared.opts.hfcache_dir, use_safetensors=True, **args, **quant)
    sd_models.allow_post_quant = False
    if shared.opts.diffusers_offload_mode != "none":
        sd_models.move_model(part, devices.cpu)
    return part


def load_text_encoder(repo_id, cls_name, load_config=None, subfolder="text_encoder", allow_quant=True, allow_shared=True, variant=None,
                      dtype=None, modules_to_not_convert=None, modules_dtype_dict=None, use_safetensors=True, **kwargs):  # fmt: skip
    """A file named by the setting, else a repository named by it, else the shared T5, else the model's own folder. Raises what fails."""
    if shared.state.interrupted:
        return None
    if repo_id is None or repo_id.lower() == "none":
        return None
    job = shared.state.begin("Load TE")
    encoder = None
    try:
        args, quant = model_quant.get_dit_args(load_config or {}, module="TE", device_map=True, allow_quant=allow_quant,
                                               modules_to_not_convert=modules_to_not_convert or [],
                                               modules_dtype_dict=modules_dtype_dict or {})  # fmt: skip
        args.pop("torch_dtype", None)
        args["dtype"] = dtype or devices.dtype
        args["use_safetensors"] = use_safetensors
        cache = {"cache_dir": shared.opts.hfcache_dir}
        wanted = shared.opts.sd_text_encoder
        if wanted not in (None, "Default"):
            from modules import model_te

            path = model_te.te_dict.get(wanted)
            if path is None:
                log.error(f'Load module: type=te file="{wanted}" not found')
                encoder = transformers.AutoModel.from_pretrained(wanted, **cache, **args, **quant)  # a value that is no repository raises
            elif os.path.exists(path):
                encoder = model_te.load_t5(path)
        if encoder is None and allow_shared and shared.opts.te_shared_te and cls_name is transformers.T5EncoderModel:
            place, extra = get_shared(cls_name, repo_id, subfolder=subfolder, variant=variant)
            log.debug(f'Load model: text_encoder="{repo_id}" target="{place}" shared')
            encoder = cls_name.from_pretrained(place, **cache, **args, **quant, **extra)
        if encoder is None:
            encoder = cls_name.from_pretrained(repo_id, subfolder=subfolder, **cache, **args, **quant, **kwargs)
        sd_models.allow_post_quant = False
        if shared.opts.diffusers_offload_mode != "none":
            sd_models.move_model(encoder, devices.cpu)
        if not hasattr(encoder, "quantization_config") and quant.get("quantization_config") is not None:
            encoder.quantization_config = quant["quantization_config"]
    except Exception as e:
        log.error(f'Load model: text_encoder="{repo_id}" cls={cls_name.__name__} {e}')
        errors.display(e, "Load")
        raise
    devices.torch_gc()
    shared.state.end(job)
    return encoder
