"""The loader of Stable Diffusion 3: the transformer and T5 through `generic`, the rest through diffusers."""

import diffusers
import transformers
from modules import devices, model_quant, sd_hijack_te, sd_models, shared
from modules.logger import log
from pipelines import generic


def load_sd3(checkpoint_info, diffusers_load_config=None):
    config = diffusers_load_config or {}
    repo_id = sd_models.path_to_repo(checkpoint_info)
    sd_models.hf_auth_check(checkpoint_info)
    args, _ = model_quant.get_dit_args(config, allow_quant=False)
    log.debug(f'Load model: type=SD3 repo="{repo_id}" offload={shared.opts.diffusers_offload_mode} dtype={devices.dtype}')
    transformer = generic.load_transformer(repo_id, cls_name=diffusers.SD3Transformer2DModel, load_config=config)
    if shared.opts.model_sd3_disable_te5:
        encoder = None
    else:
        encoder = generic.load_text_encoder(repo_id, cls_name=transformers.T5EncoderModel, load_config=config, subfolder="text_encoder_3")
    pipe = diffusers.StableDiffusion3Pipeline.from_pretrained(
        repo_id, transformer=transformer, text_encoder_3=encoder, cache_dir=shared.opts.diffusers_dir, **args
    )
    sd_hijack_te.init_hijack(pipe)
    devices.torch_gc(force=True, reason="load")
    return pipe
