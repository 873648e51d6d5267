"""Samplers by the names that users see. SD3 needs one that matches flows; the host redirects or falls back, and says so in the log."""

import copy
import inspect
from typing import Any, NamedTuple

import diffusers

from modules.logger import log


class SamplerData(NamedTuple):
    name: str
    constructor: Any
    aliases: list
    options: dict


class DiffusionSampler:
    """`sampler` is None for a scheduler that does not take the sigmas which a model for flows hands over."""

    def __init__(self, name, constructor, model):
        self.name = name
        scheduler = getattr(diffusers, constructor).from_config(model.default_scheduler.config)
        self.sampler = scheduler if "sigmas" in inspect.signature(scheduler.set_timesteps).parameters else None


CLASSES = {
    "Default": None,
    "Euler": "EulerDiscreteScheduler",
    "Euler a": "EulerAncestralDiscreteScheduler",
    "Euler FlowMatch": "FlowMatchEulerDiscreteScheduler",
    "Heun FlowMatch": "FlowMatchHeunDiscreteScheduler",
    "DPM++ 2M": "DPMSolverMultistepScheduler",
    "DDIM": "DDIMScheduler",
}


def _data(name, constructor):
    return SamplerData(name, constructor and (lambda model: DiffusionSampler(name, constructor, model)), [], {})


all_samplers = [_data(name, constructor) for name, constructor in CLASSES.items()]
all_samplers_map = {sampler.name: sampler for sampler in all_samplers}


def find_sampler_config(name):
    return all_samplers_map.get(name) if name not in (None, "None") else all_samplers[0]


def create_sampler(name, model):
    """Give the model the scheduler of that name, or its own."""
    if "Flow" not in name and (redirected := find_sampler_config(f"{name} FlowMatch")) is not None:
        log.warning(f'Sampler: requested="{name}" redirected="{redirected.name}"')
        name = redirected.name
    config = find_sampler_config(name)
    sampler = config.constructor(model).sampler if config is not None and config.constructor else None
    if sampler is None and name != "Default":
        log.warning(f'Sampler: requested="{name}" set="Default" cls={model.default_scheduler.__class__.__name__}')
    model.scheduler = sampler or copy.deepcopy(model.default_scheduler)
    return model.scheduler
