"""SD.Next as the core sees it. Everything that is read from or asked of the host goes through here; versions are told apart by
what is there, never by a version string. The versions that this was written against: 2025-08-20 (pipelines.generic) to 2026-07.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from modules import call_queue, devices, modeldata, sd_models, shared

from sd3deploy import deps, guards
from sd3deploy.device import Device, look
from sd3deploy.encoders.source import Facts
from sd3deploy.errors import Sd3Error
from sd3deploy.events import Event
from sd3deploy.webui import offload

__all__ = ["SdNext", "log", "rejection"]

log = shared.log
_DEFAULTS = {
    "sd3_text_encoder": "Host default",
    "sd3_weights": "Automatic",
    "sd3_weights_file": "",
    "sd3_auto_install": True,
    **{f"sd3_guard_{name}": guards.DEFAULT_MODE for name in guards.GUARDS},
}


class SdNext:
    """The running webui. `load_default` is the host's own loader of text encoders, set by the hook that wraps it."""

    def __init__(self) -> None:
        self.load_default: Callable[..., Any] | None = None
        self.loading: str | None = None  # the repository or folder of the model that is being loaded right now

    def option(self, key: str) -> Any:
        # Before the settings are registered, and for values of a wrong type, opts.<key> raises or lies: read the stored data.
        return shared.opts.data.get(key, _DEFAULTS[key])

    def pipeline(self) -> Any:
        # Never shared.sd_model: reading that loads a model.
        return modeldata.model_data.sd_model

    def model_name(self) -> str | None:
        checkpoint = getattr(self.pipeline(), "sd_checkpoint_info", None)
        return getattr(checkpoint, "name", None)

    def facts(self) -> Facts:
        checkpoint = getattr(self.pipeline(), "sd_checkpoint_info", None)
        model = self.loading or (sd_models.path_to_repo(checkpoint) if checkpoint is not None else "")
        caches = tuple(dict.fromkeys([shared.opts.hfcache_dir, shared.opts.diffusers_dir]))
        return Facts(str(model), self._shared_t5(str(model)), caches, bool(shared.opts.offline_mode))

    def _shared_t5(self, model: str) -> tuple[str, dict[str, Any]] | None:
        if not (getattr(shared.opts, "te_shared_te", False) or getattr(shared.opts, "te_shared_t5", False)):
            return None
        import transformers

        try:
            from pipelines.generic_text_encoder import get_shared  # since 2026-06
        except ImportError:
            config = self._root() / "configs" / "flux" / "text_encoder_2" / "config.json"
            return "Disty0/t5-xxl", {"config": transformers.T5Config.from_json_file(config)}
        place, arguments = get_shared(transformers.T5EncoderModel, model, subfolder="text_encoder_3")
        return None if place == model else (place, arguments)

    def _root(self) -> Path:
        return Path(sys.modules["modules"].__path__[0]).parent

    def device(self) -> Device:
        return look(devices.device, str(devices.backend))

    def sdnq_config(self) -> Any:
        from modules import model_quant

        make = getattr(model_quant, "create_sdnq_config", None)
        return make(kwargs=None, allow=True, module="any", weights_dtype="uint4") if make else None

    def default_encoder(self) -> Any:
        """What the host itself would have loaded, by its own loader and its own settings."""
        if self.load_default is None or getattr(shared.opts, "model_sd3_disable_te5", False):
            return None
        from transformers import T5EncoderModel

        return self.load_default(self.facts().model, cls_name=T5EncoderModel, load_config={}, subfolder="text_encoder_3")

    def swapped(self, pipeline: Any) -> None:
        """After a swap: forget what was computed with the old encoder, and apply the offload mode to the new one."""
        from modules import processing_diffusers

        inner = getattr(pipeline, "pipe", None)  # wrappers such as control keep a second pipeline with the same parts
        if inner is not None and hasattr(inner, "text_encoder_3"):
            inner.text_encoder_3 = pipeline.text_encoder_3
        if hasattr(processing_diffusers, "orig_pipeline"):
            processing_diffusers.orig_pipeline = None  # after img2img it holds the pipeline as it was, with the old encoder
        sd_models.clear_caches(full=True)
        prompts = getattr(sys.modules.get("modules.sd_hijack_te"), "prompt_cache", None)
        if prompts is not None:
            prompts.cache.clear()  # clear_caches leaves it: the same prompt would reuse the old encoder's embeddings
        offload.apply(pipeline, shared.opts.diffusers_offload_mode)

    def free(self) -> None:
        """Give the memory of what is no longer used back to the device and the system."""
        gc.collect()
        devices.torch_gc(force=True)

    def queue(self) -> Any:
        return call_queue.queue_lock

    def queue_is_busy(self) -> bool:
        return call_queue.queue_lock.locked()

    @contextmanager
    def job(self, title: str, steps: int) -> Iterator[Callable[[], None]]:
        """A job of the host's progress display; call what it gives after each step."""
        job = shared.state.begin(title, api=shared.state.api)
        shared.state.sampling_steps = steps
        try:
            yield shared.state.step
        finally:
            shared.state.end(job)

    def install_options(self) -> deps.Options:
        installer = sys.modules.get("installer")
        arguments = getattr(installer, "args", None)
        return deps.Options(
            uv=bool(getattr(arguments, "uv", False)),
            offline=bool(shared.opts.offline_mode),
            allow=bool(self.option("sd3_auto_install")) and not getattr(shared.cmd_opts, "sd3_no_install", False),
            extra_args=os.environ.get("PIP_EXTRA_ARGS", ""),
            host_root=self._root(),
        )

    def listen(self, event: Event) -> None:
        """Events go to the host's log with their id, so that a screenshot in any language can be searched."""
        level = {"error": log.error, "warning": log.warning}.get(event.severity, log.info)
        level(f'SD3 Deploy: id={event.id} {event.message} {event.remedy}'.rstrip())


def rejection(error: Exception) -> Exception:
    """The error to raise out of a setting's onchange: the host puts the old value back, and shows no traceback for its own kind."""
    from modules import errors

    kind = getattr(errors, "ValidationError", None)
    return kind(str(error)) if kind and isinstance(error, Sd3Error) else error
