"""The points at which the host asks us: while it loads an SD3 model, when it has loaded one, when it has installed packages, when it
sets attention processors, when it takes another VAE, when it reports an error, and around each job.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any

from sd3deploy import packages
from sd3deploy.deployment import Deployment
from sd3deploy.webui.host import offload, prompts
from sd3deploy.webui.host.adapter import SdNext
from sd3deploy.webui.host.patch import Patch
from sd3deploy.webui.jobs.guarding import Guarding
from sd3deploy.webui.jobs.watching import Watching

__all__ = ["Hooks"]


class Hooks:
    """All patches of the host. `apply` returns the names of those that found something else than they expect."""

    def __init__(self, deployment: Deployment, guarding: Guarding, watching: Watching, host: SdNext) -> None:
        from modules import errors, processing, processing_diffusers, sd_models, sd_vae
        from pipelines import generic, model_sd3

        try:
            from modules import attention
        except ImportError:  # before 2025-11
            attention = sd_models

        self._deployment, self._guarding, self._watching, self._host = deployment, guarding, watching, host
        self._inside = threading.local()  # set while this thread is inside load_sd3: other models have a text_encoder_3 of T5 too
        self._patches = [
            Patch(sd_models, "load_diffuser", self._load_diffuser),
            Patch(model_sd3, "load_sd3", self._load_sd3, ("checkpoint_info",)),
            Patch(generic, "load_text_encoder", self._load_text_encoder, ("repo_id", "cls_name", "subfolder")),
            Patch(attention, "set_diffusers_attention", self._set_attention, ("pipe",)),
            Patch(processing, "process_images_inner", self._inner, ("p",)),
            Patch(processing_diffusers, "process_diffusers", self._process_diffusers, ("p",)),
            Patch(errors, "display", self._display, ("e",)),
            Patch(sd_vae, "reload_vae_weights", self._reload_vae),
        ]
        host.load_default = self._patches[2].original
        if installer := sys.modules.get("installer"):
            self._patches.append(Patch(installer, "pip", self._pip, ("arg",)))

    def apply(self) -> list[str]:
        return [f"{patch.module.__name__}.{patch.name}" for patch in self._patches if not patch.apply()]

    def undo(self) -> None:
        for patch in self._patches:
            patch.undo()

    def _load_diffuser(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        with self._deployment.busy, self._watching.loading(self._host.selected()):
            result = original(*args, **kwargs)
            self._deployment.reconcile()  # whatever way the model came in, and whatever load_sd3 could not do
            return result

    def _load_sd3(self, original: Callable[..., Any], checkpoint_info: Any, *args: Any, **kwargs: Any) -> Any:
        from modules import sd_models

        self._host.loading = sd_models.path_to_repo(checkpoint_info)
        self._watching.foresee(str(self._host.loading))
        self._inside.sd3 = True
        try:
            return original(checkpoint_info, *args, **kwargs)
        except Exception as error:
            self._watching.note(error)  # the host may do no more than log it
            raise
        finally:
            self._host.loading = None
            self._inside.sd3 = False

    def _load_text_encoder(self, original: Callable[..., Any], repo_id: Any, cls_name: Any, *args: Any, **kwargs: Any) -> Any:
        is_t5 = getattr(cls_name, "__name__", "") == "T5EncoderModel" and kwargs.get("subfolder") == "text_encoder_3"
        if is_t5 and getattr(self._inside, "sd3", False):
            ours, encoder = self._deployment.encoder_for_load()
            if ours:
                offload.leave_room(encoder)
                return encoder
        return original(repo_id, cls_name, *args, **kwargs)

    def _set_attention(self, original: Callable[..., Any], pipe: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(pipe, *args, **kwargs)
        self._guarding.attention_set(pipe)
        return result

    def _process_diffusers(self, original: Callable[..., Any], p: Any) -> Any:
        self._guarding.last_look()
        return self._watching.run(lambda: original(p), p, lambda: original(p))

    def _inner(self, original: Callable[..., Any], p: Any) -> Any:
        return self._watching.inner(lambda: self._guarding.inner(lambda: original(p), p), p)

    def _display(self, original: Callable[..., Any], e: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(e, BaseException):
            self._watching.note(e)  # an error that the host has caught
        return original(e, *args, **kwargs)

    def _reload_vae(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        with prompts.kept(self._host.pipeline()):
            return original(*args, **kwargs)

    def _pip(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        before = packages.snapshot()
        result = original(*args, **kwargs)
        after = packages.snapshot()
        self._deployment.installed([name for name in after if after[name] != before.get(name)])
        return result
