"""SD.Next as the core sees it. What it has under which name is in contract.py, and how that is reached in reach.py."""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from sd3deploy import deps, guards, messages, units
from sd3deploy.deployment import locks
from sd3deploy.device import Device, detect_device
from sd3deploy.encoders.cache import DEFAULT_LIMIT, Cache, folder_for, limit_for
from sd3deploy.encoders.hub import spec
from sd3deploy.encoders.source import Facts
from sd3deploy.errors import Sd3Error, SettingError
from sd3deploy.events import Event
from sd3deploy.guards.number import number
from sd3deploy.memory import capacity, heap
from sd3deploy.memory.verdict import TILE
from sd3deploy.model_files import find_model
from sd3deploy.webui.host import offload, reach
from sd3deploy.webui.host.reach import sdnext, state

__all__ = ["ProgressDisplay", "SdNext", "log", "rejection"]

log = logging.getLogger("sd")  # the host's own, wherever it keeps it
_DEFAULTS = {
    "sd3_text_encoder": "Host default",
    "sd3_weights": "Automatic",
    "sd3_weights_file": "",
    "sd3_weights_repository": spec.DEFAULT,
    "sd3_weights_keep": False,
    "sd3_auto_install": True,
    "sd3_cache": True,
    "sd3_cache_folder": "",
    "sd3_cache_limit": DEFAULT_LIMIT,
    "sd3_memory": "warn",
    "sd3_memory_retry": False,
    **{f"sd3_guard_{name}": guards.DEFAULT_MODE for name in guards.GUARDS},
}

_SHARED = "pipelines.generic_text_encoder:get_shared"
_STEPS = 100  # of a job whose progress is told in bytes


class ProgressDisplay:
    """A job of the host's own progress display."""

    def __init__(self, about: str) -> None:
        self._about = about

    def report(self, done: int, total: int) -> None:
        """So many bytes of those in all."""
        sdnext.shared.state.sampling_step = int(_STEPS * done / total) if total else 0
        sdnext.shared.state.textinfo = f"{self._about}: {units.size(done, total)} / {units.size(total)}"

    def stopped(self) -> bool:
        """Whether the host's Stop was pressed since it began."""
        return bool(sdnext.shared.state.interrupted)


class SdNext:
    """The running webui. `load_default` is the host's own loader of text encoders, set by the hook that wraps it; `watch` is what
    surrounds the load of an encoder, given its title.
    """

    def __init__(self) -> None:
        self.watch: Callable[[str], AbstractContextManager[Any]] = lambda title: nullcontext()
        self.load_default: Callable[..., Any] | None = None
        self.loading: str | None = None  # the repository or folder of the model that is being loaded right now

    def option(self, key: str) -> Any:
        # Before the settings are registered, and for values of a wrong type, opts.<key> raises or lies: read the stored data.
        return sdnext.shared.opts.data.get(key, _DEFAULTS[key])

    def settings(self) -> dict[str, Any]:
        """Everything that is not as the host has it by default, and all of ours."""
        return dict(sdnext.shared.opts.data) | {key: self.option(key) for key in _DEFAULTS}

    def pipeline(self) -> Any:
        # Never shared.sd_model: reading that loads a model.
        return sdnext.modeldata.model_data.sd_model

    def model_name(self) -> str | None:
        checkpoint = getattr(self.pipeline(), "sd_checkpoint_info", None)
        return getattr(checkpoint, "name", None)

    def selected(self) -> str:
        """The model of the settings, loaded or not."""
        return str(sdnext.shared.opts.sd_model_checkpoint)

    def place_of(self, checkpoint: Any) -> str:
        """The folder, file or repository of a model that the host knows; "" where it does not tell any more."""
        try:
            return sdnext.sd_models.path_to_repo(checkpoint)
        except reach.HostChanged:  # what goes by it is off from here on
            return ""

    def model_folders(self) -> tuple[Path, ...]:
        """Where models may lie: folders in diffusers' layout, single files, repositories that were downloaded."""
        opts = sdnext.shared.opts
        folders = [opts.diffusers_dir, opts.ckpt_dir, opts.hfcache_dir]
        return tuple(Path(folder) for folder in dict.fromkeys(folders) if folder)

    def find_model(self, asked: str, anywhere: bool) -> Path | None:
        """The model that a request names, by the name that SD.Next lists or by a path. anywhere, and what None says: see model_files."""
        place = self.place_of_listed(asked)
        if place and Path(place).exists():
            return Path(place)
        return find_model(asked, self.model_folders(), anywhere)

    def place_of_listed(self, name: str) -> str:
        """The place of the model that SD.Next lists by that name; "" where it lists none."""
        listed = sdnext.sd_checkpoint.checkpoint_aliases.get(name)
        return self.place_of(listed) if listed is not None else ""

    def facts(self) -> Facts:
        model = self.loading or self._place()
        caches = tuple(dict.fromkeys([sdnext.shared.opts.hfcache_dir, sdnext.shared.opts.diffusers_dir]))
        shipped = self._root() / "configs" / "sd3"
        tokenizer = str(shipped) if (shipped / "tokenizer_3").is_dir() else ""
        return Facts(model, self._shared_t5(model), caches, bool(sdnext.shared.opts.offline_mode), tokenizer)

    def _place(self) -> str:
        checkpoint = getattr(self.pipeline(), "sd_checkpoint_info", None)
        return self.place_of(checkpoint) if checkpoint is not None else ""

    def _shared_t5(self, model: str) -> tuple[str, dict[str, Any]] | None:
        if not sdnext.shared.opts.te_shared_te:
            return None
        import transformers

        shared = sdnext.generic_text_encoder.get_shared(transformers.T5EncoderModel, model, subfolder="text_encoder_3")
        if shared is None and _SHARED in state.unmet:
            return None
        if shared is None:  # before 2026-06
            config = self._root() / "configs" / "flux" / "text_encoder_2" / "config.json"
            return "Disty0/t5-xxl", {"config": transformers.T5Config.from_json_file(config)}
        place, arguments = shared
        return None if place == model else (place, arguments)

    def _root(self) -> Path:
        return Path(sdnext.paths.script_path)

    def device(self) -> Device:
        return detect_device(sdnext.devices.device, sdnext.devices.backend)

    def capacity(self) -> capacity.Capacity:
        """The memory of this machine now, within the host's own limit."""
        return capacity.read_capacity(self.device(), fraction=number(sdnext.shared.opts.cuda_mem_fraction) or 0.0)

    def cache(self) -> Cache | None:
        """Where quantized encoders are kept; None where the user wants none."""
        return self.kept() if self.option("sd3_cache") else None

    def kept(self) -> Cache:
        """Where they would be kept; what was measured of them lies there in any case."""
        folder = folder_for(Path(sdnext.paths.models_path), str(self.option("sd3_cache_folder") or ""))
        return Cache(folder, limit_for(self.option("sd3_cache_limit")))

    def default_encoder(self) -> Any:
        """What the host itself would have loaded, by its own loader and its own settings."""
        if self.load_default is None or sdnext.shared.opts.model_sd3_disable_te5:
            return None
        from transformers import T5EncoderModel

        return self.load_default(self.facts().model, cls_name=T5EncoderModel, load_config={}, subfolder="text_encoder_3")

    def swapped(self, pipeline: Any) -> None:
        """After a swap: forget what was computed with the old encoder, and apply the offload mode to the new one. Raises what the host's
        functions raise; then the swap is undone. That needs nothing of it: the encoder of before is where it was, with what it computed.
        """
        if state.lacks("swap"):
            return
        sdnext.sd_models.clear_caches(full=True)
        prompts = sdnext.sd_hijack_te.prompt_cache
        if prompts is not None:
            prompts.cache.clear()  # clear_caches leaves it: the same prompt would reuse the old encoder's embeddings
        offload.apply(pipeline, sdnext.shared.opts.diffusers_offload_mode)

    def require_swap(self) -> None:
        """Raise HostChanged where the host lacks what `swapped` needs."""
        reach.require("swap")

    def free(self) -> None:
        """Give the memory of what is no longer used back to the device and the system."""
        gc.collect()
        sdnext.devices.torch_gc(force=True)
        heap.trim()

    def queue(self) -> Any:
        """The lock of the host's queue, for deployment/locks.py alone to take."""
        return sdnext.call_queue.queue_lock

    @contextmanager
    def job(self, title: str, about: str) -> Iterator[ProgressDisplay]:
        """A job of the host's progress display, in which `about` is loaded."""
        job = sdnext.shared.state.begin(title, api=sdnext.shared.state.api)
        sdnext.shared.state.sampling_steps = _STEPS
        try:
            with self.watch(about):
                yield ProgressDisplay(about)
        finally:
            sdnext.shared.state.interrupted = False  # it was meant for this job: the host would leave out parts of a model that come next
            sdnext.shared.state.end(job)

    def apply(self, fields: Mapping[str, Any], cancelled: Callable[[], bool] = lambda: False) -> bool:
        """Make a change of the core's memory.verdict a setting. Whether it is one: sizes and batches are the job's. Called with neither
        lock held; `cancelled` ends the wait for the running job. Raises Sd3Error; then nothing has changed.
        """
        state.retry()
        reach.require("apply")
        values = _settings(fields)
        if not values:
            return False
        if (mode := values.pop("diffusers_offload_mode", None)) is not None:
            with locks.taken(self.queue(), cancelled) as mine:
                if not mine:
                    raise SettingError("memory.cancelled", value=mode)
                offload.switch(self.pipeline(), mode)
        for key, value in values.items():
            if not sdnext.shared.opts.set(key, value) and getattr(sdnext.shared.opts, key) != value:
                raise SettingError("memory.not-applied", value=value)
        sdnext.shared.opts.save()
        return True

    @contextmanager
    def changed(self, fields: Mapping[str, Any], instead: Callable[[Any], AbstractContextManager[bool]]) -> Iterator[bool]:
        """For the time inside, with the queue held: settings as a change wants them. Gives whether they are, which they can not be where a
        part of the change is the job's own or its encoder can not be loaded.

        instead: called with the name of an encoder; puts it into the loaded model for the time inside, and gives whether it is there.
        """
        values = {} if state.lacks("apply") else _settings(fields)
        before = {key: getattr(sdnext.shared.opts, key) for key in values}
        mode = values.pop("diffusers_offload_mode", None)
        name = values.pop("sd3_text_encoder", None)
        with instead(name) if name is not None else nullcontext(bool(before)) as possible:
            if not possible:
                yield False
                return
            try:
                if mode is not None:
                    offload.switch(self.pipeline(), mode)
                sdnext.shared.opts.data.update(values)
                sdnext.shared.state.interrupted = False  # set by the host because of the failure
                yield True
            finally:
                if mode is not None:
                    offload.switch(self.pipeline(), str(before["diffusers_offload_mode"]))
                sdnext.shared.opts.data.update({key: before[key] for key in values})

    def install_options(self) -> deps.Options:
        return deps.Options(
            uv=bool(sdnext.installer.args.uv),
            offline=bool(sdnext.shared.opts.offline_mode),
            refusal=self._refusal(),
            extra_args=os.environ.get("PIP_EXTRA_ARGS", ""),
            host_root=self._root(),
        )

    def _refusal(self) -> str:
        """Why nothing may be installed, as deps.Options has it: the host's rule for its extensions first, then the settings of this one."""
        if sdnext.shared.cmd_opts.disable_extension_access:  # others reach this server
            return "deps.forbidden"
        switched_off = not self.option("sd3_auto_install") or getattr(sdnext.shared.cmd_opts, "sd3_no_install", False)
        return "deps.not_allowed" if switched_off else ""

    def listen(self, event: Event) -> None:
        """Events go to the host's log with their id, so that a screenshot in any language can be searched."""
        level = {"error": log.error, "warning": log.warning}.get(event.severity, log.info)
        level(f"SD3 Deploy: id={event.id} {messages.joined(event.message, event.remedy)}")


def _settings(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that stand for a change; empty where a part of it is the job's own, such as its size."""
    found: dict[str, Any] = {}
    if fields.keys() & {"width", "height", "batch"}:
        return found
    if "encoder" in fields:
        found["sd3_text_encoder"] = fields["encoder"]
    if "offload" in fields:
        found["diffusers_offload_mode"] = fields["offload"]
    if "tiling" in fields:
        found |= {"diffusers_vae_tiling": True, "diffusers_vae_tile_size": TILE}
    return found


def rejection(error: Exception) -> Exception:
    """The error to raise out of a setting's onchange: the host puts the old value back, and shows no traceback for its own kind."""
    kind = sdnext.errors.ValidationError
    return kind(str(error)) if kind and isinstance(error, Sd3Error) else error
