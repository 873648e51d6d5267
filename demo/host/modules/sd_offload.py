"""Where the parts of the model wait between their turns."""

import accelerate
import torch

from modules import devices, shared
from modules.like import AUGUST
from modules.logger import log

offload_hook_instance = None


class OffloadHook(accelerate.hooks.ModelHook):
    """Balanced offload: a part moves to the device before its forward; the others that may leave, leave."""

    def __init__(self, checkpoint_name):
        opts = shared.opts
        self.checkpoint_name = checkpoint_name
        self.min_watermark, self.max_watermark = opts.diffusers_offload_min_gpu_memory, opts.diffusers_offload_max_gpu_memory
        self.offload_always = [name.strip() for name in opts.diffusers_offload_always.split(",") if name.strip()]
        self.offload_never = [name.strip() for name in opts.diffusers_offload_never.split(",") if name.strip()]
        self.offload_map = {}
        self.last_pre = None
        super().__init__()

    def pre_forward(self, module, *args, **kwargs):
        if self.last_pre != id(module) and not hasattr(module, "offload_never") and shared.opts.diffusers_offload_pre:
            for name, other in get_modules(shared.sd_model).items():
                if other is not module and other.__class__.__name__ not in self.offload_never:
                    apply_balanced_offload_to_module(other, name)
        self.last_pre = id(module)
        if not devices.same_device(module.device, devices.device):
            from modules import sd_models

            sd_models.move_model(module, devices.device, force=True)
        module._hf_hook.execution_device = devices.device
        return args, kwargs


def get_modules(pipe):
    parts = getattr(pipe, "components", {}) or {}
    return {name: part for name, part in parts.items() if isinstance(part, torch.nn.Module)}


def get_module_size(module):
    """(GiB, billions of parameters)."""
    size = sum(p.numel() * p.element_size() for p in module.parameters()) / 2**30
    return size, sum(p.numel() for p in module.parameters()) / 2**30


def get_module_memory(module):
    return get_module_size(module)[0]


def apply_balanced_offload_to_module(module, name="", force=False):
    accelerate.hooks.remove_hook_from_module(module, recurse=True)
    try:
        if force or module.__class__.__name__ not in offload_hook_instance.offload_never:
            module.to(devices.cpu)
    except Exception as e:
        if "bitsandbytes" not in str(e):  # such a part stays on the device without a word
            log.error(f"Offload: type=balanced op=apply module={name} {e}")
    accelerate.hooks.add_hook_to_module(module, offload_hook_instance, append=True)
    module._hf_hook.execution_device = devices.device


def apply_balanced_offload(sd_model=None, exclude=None, force=False, silent=False):
    """Hook every part. Returns at once while the hooks of this checkpoint stand, so a part put in later gets none."""
    global offload_hook_instance
    sd_model = sd_model if sd_model is not None else shared.sd_model
    if shared.opts.diffusers_offload_mode != "balanced" or sd_model is None:
        return sd_model
    name = sd_model.sd_checkpoint_info.name
    hook = offload_hook_instance
    if not force and hook is not None and hook.checkpoint_name == name:
        return sd_model
    offload_hook_instance = OffloadHook(name)
    for part_name, part in get_modules(sd_model).items():
        if part_name not in (exclude or []):
            offload_hook_instance.offload_map[part_name] = get_module_size(part)[0]
            apply_balanced_offload_to_module(part, part_name, force)
    sd_model.has_accelerate = True
    return sd_model


def disable_offload(sd_model):
    for part in get_modules(sd_model).values():
        accelerate.hooks.remove_hook_from_module(part, recurse=True)
    sd_model.has_accelerate = False


def set_diffuser_offload(sd_model, op="model", quiet=False, force=False):
    """Apply the mode of the setting to a model that was just loaded."""
    mode = shared.opts.diffusers_offload_mode
    sd_model.has_accelerate = False
    if mode == "balanced":
        apply_balanced_offload(sd_model, force=force)
    elif mode == "model":
        sd_model.enable_model_cpu_offload(device=devices.device)
        sd_model.has_accelerate = True
    elif mode == "sequential":
        sd_model.enable_sequential_cpu_offload(device=devices.device)
        sd_model.has_accelerate = True
    elif mode == "group":
        apply_group_offload(sd_model)


def apply_group_offload(sd_model):
    """Hook each layer or block, as its own settings say; since 2026-08 the parts that are never to be offloaded stay on the device."""
    opts = shared.opts
    never = [name.strip() for name in opts.diffusers_offload_never.split(",")] if AUGUST else []
    stay = [name for name, part in get_modules(sd_model).items() if type(part).__name__ in never]
    sd_model.enable_group_offload(
        devices.device,
        offload_device=devices.cpu,
        offload_type=opts.group_offload_type,
        num_blocks_per_group=opts.group_offload_blocks,
        non_blocking=opts.diffusers_offload_nonblocking,
        use_stream=opts.group_offload_stream,
        record_stream=opts.group_offload_record,
        exclude_modules=[*stay, *(["vae"] if opts.group_offload_type == "block_level" else [])],
    )
    sd_model.has_accelerate = True


OPTIONS = ("mode", "pre", "nonblocking", "min_gpu_memory", "max_gpu_memory", "max_cpu_memory", "always", "never")
GROUP_OPTIONS = ("type", "blocks", "stream", "record")


def options_changed():
    """Since 2026-08 every setting of offload is applied to the loaded model at once, with the queue held."""
    from modules import modeldata, sd_models

    global offload_hook_instance
    sd_model = modeldata.model_data.sd_model
    if sd_model is None:
        return
    disable_offload(sd_model)
    if hasattr(sd_model, "remove_all_hooks"):
        sd_model.remove_all_hooks()
    offload_hook_instance = None
    set_diffuser_offload(sd_model, force=True)
    if shared.opts.diffusers_offload_mode == "none":
        sd_models.move_model(sd_model, devices.device, force=True)
    log.info(f"Offload: mode={shared.opts.diffusers_offload_mode} applied")
