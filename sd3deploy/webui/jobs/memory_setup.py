"""`memory_setup` and `free_memory` read the host's settings, its loaded model and a job into the core's Setup and Capacity."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from sd3deploy.encoders.choices import HOST_DEFAULT, Choice
from sd3deploy.encoders.measure import tensors
from sd3deploy.encoders.swap import is_sd3
from sd3deploy.errors import Sd3Error
from sd3deploy.guards.number import number
from sd3deploy.memory import capacity, sizes
from sd3deploy.memory.estimate import Setup
from sd3deploy.memory.t5_shape import DTYPES, T5_XXL
from sd3deploy.webui.host.adapter import SdNext
from sd3deploy.webui.host.reach import sdnext, state

__all__ = ["free_memory", "guided", "memory_setup", "size"]

_bytes: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()  # module → its bytes: they do not change while it lives


def memory_setup(host: SdNext, placed: Choice | None, factors: Mapping[str, float], model: str = "", **given: Any) -> Setup | None:
    """Return all that decides about memory, with the loaded SD3 model, else with the selected one, or with `model` where it is named.

    placed: the encoder in the loaded pipeline. given: fields of the setup that a job or a question brings, such as encoder, width,
    height, batch, guided, offload, tiling. None when there is no SD3 model to talk about. Raises SettingError for a `model`
    that there is not. None too where the host no longer tells what an estimate needs.
    """
    if state.lacks("forecast"):
        return None
    encoder = given.get("encoder") or placed or HOST_DEFAULT
    pipeline = host.pipeline()
    loaded = is_sd3(pipeline) and model in ("", host.model_name())
    weights = _loaded(host, pipeline, encoder is placed) if loaded else _named(host, model)
    if weights is None:
        return None
    opts, device = sdnext.shared.opts, host.device()
    place = free_memory(host)
    tile = int(number(opts.diffusers_vae_tile_size) or 0)
    upcast = pipeline.vae.config.get("force_upcast", True) if loaded else True
    dtype = str(sdnext.devices.dtype).removeprefix("torch.")
    fields = {
        "kind": "cpu" if place.kind == "cpu" else "cuda",
        "dtype": dtype if dtype in DTYPES else "float32",
        "compute": device.compute_dtype,
        "product": device.product_dtype,
        "offload": opts.diffusers_offload_mode,
        "tiling": opts.diffusers_vae_tiling,
        "wide_vae": opts.no_half_vae or (dtype == "float16" and bool(upcast)),
        "watermark": int(place.total * (number(opts.diffusers_offload_min_gpu_memory) or 0)),
        "ceiling": int(place.total * (number(opts.diffusers_offload_max_gpu_memory) or 0)),
        "never": _never(opts.diffusers_offload_never, pipeline) if loaded else (),
        "factors": factors,
    }
    if tile > 0:
        weights = replace(weights, tile=tile)
    return Setup(weights, **{**fields, **given, "encoder": encoder})


def guided(scale: Any) -> bool:
    """Return whether the batch is doubled: above 1, and where the host leaves the scale to the pipeline (-1; its default is 7)."""
    value = number(scale)
    return value is None or value <= -1 or value > 1


def free_memory(host: SdNext) -> capacity.Capacity:
    """Return the memory of this machine as it is now."""
    pipeline = host.pipeline()
    in_ram = sum(size(part) for part in _parts(pipeline).values() if _on_cpu(part)) if is_sd3(pipeline) else 0
    fraction = number(sdnext.shared.opts.cuda_mem_fraction) or 0.0
    return capacity.read_capacity(host.device(), fraction=fraction, in_ram=in_ram)


def size(module: Any) -> int:
    """Return the bytes of a module as it is, on whatever device."""
    if module not in _bytes:
        _bytes[module] = sum(tensor.numel() * tensor.element_size() for tensor in tensors(module))
    return _bytes[module]


def _parts(pipeline: Any) -> dict[str, Any]:
    return {name: part for name in sizes.PARTS if (part := getattr(pipeline, name, None)) is not None}


def _on_cpu(module: Any) -> bool:
    parameter = next(module.parameters(), None)
    return parameter is None or parameter.device.type in ("cpu", "meta")


def _loaded(host: SdNext, pipeline: Any, with_encoder: bool) -> sizes.Weights:
    """Measure the loaded model; its T5 only where that is the encoder in question."""
    measured = {part: size(module) for part, module in _parts(pipeline).items() if with_encoder or part != "text_encoder_3"}
    on_disk = _on_disk(host.place_of(pipeline.sd_checkpoint_info))
    return sizes.measure_pipeline(pipeline, host.model_name() or "", measured, on_disk.t5 if on_disk else T5_XXL)


def _named(host: SdNext, model: str) -> sizes.Weights | None:
    """Return the model of that name, else the one that is selected in the settings: what lies on the disk, else the published one."""
    if model:
        return sizes.known(model)
    title = host.selected()
    place = host.place_of_listed(title)
    return (_on_disk(place) if place else None) or sizes.guess(title)


@lru_cache(maxsize=8)
def _on_disk(place: str) -> sizes.Weights | None:
    """Read the headers of a model's files, once: a model does not change under its name."""
    path = Path(place)
    index = path / "model_index.json"
    if not (index.is_file() and "StableDiffusion3" in index.read_text("utf-8", "replace")) and path.suffix != ".safetensors":
        return None
    try:
        return sizes.read_model(path)
    except Sd3Error:  # not a whole SD3 model, or not readable: whoever loads it will say so
        return None


def _never(setting: str, pipeline: Any) -> tuple[str, ...]:
    """Return the parts whose class is in the host's list of modules that balanced offload leaves on the device."""
    classes = {name.strip() for name in setting.replace(";", ",").split(",")}
    return tuple(name for name, part in _parts(pipeline).items() if type(part).__name__ in classes)
