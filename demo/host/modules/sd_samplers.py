"""Samplers by the names that users see. SD3 needs one that matches flows; the host redirects or falls back, and says so in the log."""

import copy

import diffusers

from modules.logger import log

CLASSES = {
    "Default": None,
    "Euler": "EulerDiscreteScheduler",
    "Euler a": "EulerAncestralDiscreteScheduler",
    "Euler FlowMatch": "FlowMatchEulerDiscreteScheduler",
    "Heun FlowMatch": "FlowMatchHeunDiscreteScheduler",
    "UniPC": "UniPCMultistepScheduler",
    "DPM++ 2M": "DPMSolverMultistepScheduler",
    "DDIM": "DDIMScheduler",
}


def create_sampler(name, model):
    """Give the model the scheduler of that name. Returns the name that it really got."""
    if "Flow" not in name and f"{name} FlowMatch" in CLASSES:
        log.warning(f'Sampler: requested="{name}" redirected="{name} FlowMatch"')
        name = f"{name} FlowMatch"
    if "FlowMatch" in name and name in CLASSES:
        model.scheduler = getattr(diffusers, CLASSES[name]).from_config(model.default_scheduler.config)
        return name
    if name != "Default":
        log.error(f'Sampler: "{name}" pipe={model.__class__.__name__} model requires sampler with flow prediction')
    model.scheduler = copy.deepcopy(model.default_scheduler)
    return "Default"
