"""Load, unload, move and offload the model. All callers reach these functions as attributes of this module."""

import copy
import inspect
import json
import os
from enum import Enum

import diffusers
import torch

from modules import attention, devices, errors, model_quant, script_callbacks, sd_offload, shared
from modules.logger import log
from modules.modeldata import model_data
from modules.sd_checkpoint import (  # noqa: F401
    CheckpointInfo,
    checkpoint_titles,
    get_closest_checkpoint_match,
    list_models,
    select_checkpoint,
)
from modules.sd_offload import apply_balanced_offload, disable_offload, set_diffuser_offload

loaded_te = None
allow_post_quant = True
HARMLESS = ("Params4bit", "Params8bit", "already been set to the correct devices", "Casting a quantized model to", "enable_sequential")


def path_to_repo(checkpoint_info):
    return checkpoint_info.path if isinstance(checkpoint_info, CheckpointInfo) else checkpoint_info


def hf_auth_check(checkpoint_info, force=False):
    return os.path.isdir(checkpoint_info.path)


def get_signature(cls):
    return inspect.signature(cls.__init__).parameters


def move_model(model, device=None, force=False):
    """Move, and never raise: a quantized part that can not move stays where it is, sometimes without a word."""
    if model is None or device is None:
        return
    if hasattr(model, "pipe"):
        move_model(model.pipe, device, force)
    if not force and (getattr(model, "has_accelerate", False) or devices.same_device(getattr(model, "device", "meta"), device)):
        return
    try:
        model.to(device)
    except Exception as e:
        if not any(words in str(e) for words in HARMLESS):
            log.warning(f"Model move: device={device} {e}")


def _detect(folder):
    with open(os.path.join(folder, "model_index.json"), encoding="utf-8") as file:
        return json.load(file)["_class_name"]


def load_diffuser(checkpoint_info=None, op="model", revision=None):
    """Load a folder. Any failure is logged and leaves no model; nothing is raised."""
    global allow_post_quant
    allow_post_quant = True
    config = {"low_cpu_mem_usage": True, "torch_dtype": devices.dtype, "load_connected_pipeline": True,
              "safety_checker": None, "requires_safety_checker": False}  # fmt: skip
    sd_model = None
    try:
        checkpoint_info = checkpoint_info or select_checkpoint(op=op)
        if checkpoint_info is None:
            unload_model_weights(op=op)
            return
        if shared.opts.offline_mode:
            config["local_files_only"] = True
            os.environ["HF_HUB_OFFLINE"] = "1"
        else:
            os.environ.pop("HF_HUB_OFFLINE", None)
        unload_model_weights(op=op)
        kind = _detect(checkpoint_info.path)
        log.info(f'Load {op}: select="{checkpoint_info.title}" class={kind}')
        if "StableDiffusion3" not in kind:
            log.error(f"Load {op}: the stand-in knows only Stable Diffusion 3")
            return
        from pipelines.model_sd3 import load_sd3  # imported at every load, so that an extension can replace it

        sd_model = load_sd3(checkpoint_info, config)
        allow_post_quant = False
        if sd_model is None:
            log.error(f'Load {op}: name="{checkpoint_info.name}" not loaded')
            return
        sd_model.sd_model_hash = checkpoint_info.calculate_shorthash()
        sd_model.sd_checkpoint_info = checkpoint_info
        sd_model.sd_model_checkpoint = checkpoint_info.filename
        sd_model.default_scheduler = copy.deepcopy(sd_model.scheduler)
        sd_model.set_progress_bar_config(disable=True)
        model_data.sd_model = sd_model
        reload_text_encoder(initial=True)
        sd_model = model_quant.do_post_load_quant(sd_model, allow=allow_post_quant)
        attention.set_diffusers_attention(sd_model)
        set_diffuser_offload(sd_model, op)
        move_model(sd_model, devices.device)
    except Exception as e:
        log.error(f"Load {op}: {e}")
        errors.display(e, "Model")
    devices.torch_gc(force=True, reason="load")
    if sd_model is not None:
        script_callbacks.model_loaded_callback(sd_model)
        log.info(f"Load {op}: family=sd3 class={sd_model.__class__.__name__} offload={shared.opts.diffusers_offload_mode}")
    shared.opts.save(silent=True)


def set_diffuser_options(sd_model, vae=None, op="model", offload=True, quiet=False):
    """Everything of a model that is set by settings, with another VAE where one is given. Encoded prompts are forgotten."""
    clear_caches()
    if vae is not None:
        sd_model.vae = vae
    set_vae_options(sd_model, vae, op, quiet)
    attention.set_diffusers_attention(sd_model, quiet)
    if offload:
        set_diffuser_offload(sd_model, op, quiet)


def set_vae_options(sd_model, vae=None, op="model", quiet=False):
    """How the VAE works, as the settings say now. Without a size of its own a tile is as large as the pictures of the VAE's training."""
    decoder, opts = sd_model.vae, shared.opts
    decoder.enable_slicing() if opts.diffusers_vae_slicing else decoder.disable_slicing()
    if not opts.diffusers_vae_tiling:
        decoder.disable_tiling()
        return
    edge = int(opts.diffusers_vae_tile_size) or decoder.config.sample_size
    decoder.tile_sample_min_size, decoder.tile_latent_min_size = edge, edge // 2 ** (len(decoder.config.block_out_channels) - 1)
    decoder.enable_tiling()


def reload_text_encoder(initial=False):
    """Put the encoder named by the setting into the loaded model; 'Default' can not bring the original one back."""
    global loaded_te
    te = shared.opts.sd_text_encoder
    if (initial and te in (None, "Default")) or shared.sd_model is None:
        loaded_te = te
        return
    if not initial and te == loaded_te:
        return
    module = next((name for name, kind in get_signature(shared.sd_model).items() if "T5EncoderModel" in str(kind)), None)
    if module is not None:
        from modules.model_te import set_t5

        log.debug(f'Load module: type=t5 path="{te}" module="{module}"')
        set_t5(pipe=shared.sd_model, module=module, t5=te, cache_dir=shared.opts.hfcache_dir)
    loaded_te = te
    clear_caches(full=True)
    apply_balanced_offload(shared.sd_model)


def reload_model_weights(sd_model=None, info=None, op="model", force=False, revision=None):
    """Load what the setting names unless it is loaded already. Returns the model, or None when there was nothing to do."""
    checkpoint_info = info or select_checkpoint(op=op)
    if checkpoint_info is None:
        unload_model_weights(op=op)
        return None
    job = shared.state.begin("Load model")
    sd_model = sd_model or model_data.sd_model
    if sd_model is not None:
        if sd_model.sd_checkpoint_info.filename == checkpoint_info.filename and not force:
            shared.state.end(job)
            return None
        move_model(sd_model, devices.cpu)
        unload_model_weights(op=op)
        sd_model = None
    load_diffuser(checkpoint_info, op=op, revision=revision)
    shared.state.end(job)
    shared.opts.data["sd_model_checkpoint"] = checkpoint_info.title
    return model_data.sd_model


def clear_caches(full=False):
    """Forget encoded prompts of the native parser; `full` also the offload hooks. sd_hijack_te.prompt_cache is not cleared."""
    from modules import memstats, prompt_parser_diffusers

    prompt_parser_diffusers.cache.clear()
    memstats.reset_stats()
    if full:
        sd_offload.offload_hook_instance = None


def unload_model_weights(op="model"):
    clear_caches(full=True)
    if model_data.sd_model is not None:
        disable_offload(model_data.sd_model)
        move_model(model_data.sd_model, torch.device("meta"))
        model_data.sd_model = None
        devices.torch_gc(force=True, reason="unload")


class DiffusersTaskType(Enum):
    TEXT_2_IMAGE = 1
    IMAGE_2_IMAGE = 2


def get_diffusers_task(pipe):
    return DiffusersTaskType.IMAGE_2_IMAGE if "Img2Img" in pipe.__class__.__name__ else DiffusersTaskType.TEXT_2_IMAGE


def set_diffuser_pipe(pipe, new_pipe_type):
    """The same parts in the pipeline class of another task. The pipeline before it may stay referenced elsewhere."""
    from modules import sd_hijack_te

    if get_diffusers_task(pipe) is new_pipe_type:
        return pipe
    image = new_pipe_type is DiffusersTaskType.IMAGE_2_IMAGE
    kind = diffusers.StableDiffusion3Img2ImgPipeline if image else diffusers.StableDiffusion3Pipeline
    new = kind(**{name: part for name, part in pipe.components.items() if name not in ("image_encoder", "feature_extractor")})
    for name in ("sd_checkpoint_info", "sd_model_hash", "sd_model_checkpoint", "default_scheduler", "has_accelerate"):
        setattr(new, name, getattr(pipe, name, None))
    new.set_progress_bar_config(disable=True)
    sd_hijack_te.init_hijack(new)
    return new
