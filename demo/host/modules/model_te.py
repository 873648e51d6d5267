"""Text encoders from single files. This version of the host knows no quantized T5 by name."""

import os

from modules import devices, shared
from modules.logger import log

te_dict = {}
loaded_te = None


def load_t5(name=None, cache_dir=None):
    """The encoder from a file of `te_dict` or a path; None when there is no such file, for 'Default' and 'None' alike."""
    if name is None:
        return None
    path = name if os.path.exists(name) else te_dict.get(name)
    if path is None:
        return None
    from safetensors.torch import load_file
    from transformers import T5Config, T5EncoderModel

    repo = shared.sd_model.sd_checkpoint_info.path  # the host has the configuration of T5-XXL at hand; here it is the model's
    encoder = T5EncoderModel(T5Config.from_pretrained(repo, subfolder="text_encoder_3"))
    encoder.load_state_dict(load_file(path), strict=False)
    return encoder.to(devices.dtype).eval()


def set_t5(pipe, module, t5=None, cache_dir=None):
    """Put it into the pipeline; with nothing to put in, the old one stays."""
    global loaded_te
    if loaded_te == shared.opts.sd_text_encoder or pipe is None or not hasattr(pipe, module):
        return pipe
    try:
        t5 = load_t5(name=t5, cache_dir=cache_dir)
    except Exception as e:
        log.error(f'Load module: type={module} class="T5" file="{shared.opts.sd_text_encoder}" {e}')
        t5 = None
    if t5 is None:
        return pipe
    loaded_te = shared.opts.sd_text_encoder
    setattr(pipe, module, t5)
    pipe.maybe_free_model_hooks()
    devices.torch_gc()
    return pipe


def refresh_te_list():
    te_dict.clear()
    folder = shared.opts.te_dir
    for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else []:
        if name.endswith((".safetensors", ".gguf")):
            te_dict[name.removesuffix(".safetensors")] = os.path.join(folder, name)
    log.info(f'Available TEs: path="{folder}" items={len(te_dict)}')
