"""Another VAE for the loaded model. It costs all encoded prompts, though they have nothing to do with it."""

import os

from modules import devices, paths, sd_models, shared
from modules.logger import log

vae_dict = {}
loaded_vae_file = None
unspecified = object()


def refresh_vae_list():
    """Folders with a config.json below models/VAE."""
    folder = os.path.join(paths.models_path, "VAE")
    vae_dict.clear()
    for name in sorted(os.listdir(folder) if os.path.isdir(folder) else ()):
        if os.path.exists(os.path.join(folder, name, "config.json")):
            vae_dict[name] = os.path.join(folder, name)
    return vae_dict


def load_vae(vae_file):
    global loaded_vae_file
    vae = type(shared.sd_model.vae).from_pretrained(vae_file, torch_dtype=devices.dtype)
    loaded_vae_file = os.path.basename(vae_file)
    return vae


def reload_vae_weights(sd_model=None, vae_file=unspecified):
    """The VAE of the setting. The one of the model is kept, and comes back with “Automatic”."""
    sd_model = sd_model or shared.sd_model
    if sd_model is None:
        return None
    path = vae_dict.get(shared.opts.sd_vae) if vae_file is unspecified else vae_file
    if path is None:
        if hasattr(sd_model, "original_vae"):
            sd_models.set_diffuser_options(sd_model, vae=sd_model.original_vae, op="vae")
            log.info("VAE restored")
        return None
    if loaded_vae_file == path:
        return None
    vae = load_vae(path)
    if not hasattr(sd_model, "original_vae"):
        sd_model.original_vae = sd_model.vae
        sd_models.move_model(sd_model.original_vae, devices.cpu)
    sd_models.set_diffuser_options(sd_model, vae=vae, op="vae")
    sd_models.move_model(sd_model, devices.device)
    return sd_model
