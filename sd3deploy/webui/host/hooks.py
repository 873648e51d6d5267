"""The points at which the host asks us: while it loads an SD3 model, when it has loaded one, when it has installed packages, when it
sets attention processors, when it takes another VAE, when it reports an error, and around each job.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any

from sd3deploy import installed
from sd3deploy.deployment import Deployment
from sd3deploy.errors import JobRefused
from sd3deploy.webui.host import offload, prompts
from sd3deploy.webui.host.adapter import SdNext
from sd3deploy.webui.host.feature import Features
from sd3deploy.webui.host.patch import Call, Patch
from sd3deploy.webui.jobs.guarding import Guarding
from sd3deploy.webui.jobs.watching import Watching

__all__ = ["Hooks"]


class Hooks:
    """All patches of the host, each a feature of its own. `apply` returns the names of those that found something else than they expect.

    A wrapper hands on whatever it was given and looks at the arguments by name: one more argument of the host costs nothing. What it
    does beside the host's function may fail at any point (see Patch).
    """

    def __init__(self, deployment: Deployment, guarding: Guarding, watching: Watching, host: SdNext, features: Features) -> None:
        from modules import errors, processing, processing_diffusers, sd_models, sd_vae
        from pipelines import generic, model_sd3

        try:
            from modules import attention
        except ImportError:  # before 2025-11
            attention = sd_models

        self._deployment, self._guarding, self._watching, self._host = deployment, guarding, watching, host
        self._inside = threading.local()  # set while this thread is inside load_sd3: other models have a text_encoder_3 of T5 too
        self._leave_room = features.shield("leave-room", offload.leave_room)
        self._foresee = features.shield("foresee", watching.foresee)
        self._last_look = features.shield("last-look", guarding.last_look)

        def patch(id: str, module: ModuleType, name: str, wrapper: Callable[..., Any], *expects: str) -> Patch:
            return Patch(module, name, wrapper, expects, features.get(id).fail)

        encoder = patch("encoder", generic, "load_text_encoder", self._load_text_encoder, "repo_id", "cls_name", "subfolder")
        host.load_default = encoder.original
        self.patches = [
            patch("load", sd_models, "load_diffuser", self._load_diffuser),
            patch("load-sd3", model_sd3, "load_sd3", self._load_sd3, "checkpoint_info"),
            encoder,
            patch("attention", attention, "set_diffusers_attention", self._set_attention, "pipe"),
            patch("job", processing, "process_images_inner", self._inner, "p"),
            patch("batch", processing_diffusers, "process_diffusers", self._process_diffusers, "p"),
            patch("errors", errors, "display", self._display, "e"),
            patch("vae", sd_vae, "reload_vae_weights", self._reload_vae),
        ]
        if installer := sys.modules.get("installer"):
            self.patches.append(patch("packages", installer, "pip", self._pip, "arg"))

    def apply(self) -> list[str]:
        """Put all of them in place. Called once, after everything else has been registered with the host."""
        return [f"{patch.module.__name__}.{patch.name}" for patch in self.patches if not patch.apply()]

    def keep(self) -> None:
        """Put back what somebody has taken out: an extension that ends leaves what it found at its own start, which may be older than ours.
        Called at the begin of each job, with the host's queue held. A wrapper that lies there twice runs once (see Patch).
        """
        for patch in self.patches:
            if patch.active and not patch.in_place:
                patch.apply()

    def undo(self) -> None:
        """Take all of them out of the host."""
        for patch in self.patches:
            patch.undo()

    def _load_diffuser(self, original: Call, *args: Any, **kwargs: Any) -> Any:
        with self._deployment.busy, self._watching.loading(self._host.selected()):
            result = original(*args, **kwargs)
            self._deployment.reconcile()  # whatever way the model came in, and whatever load_sd3 could not do
            return result

    def _load_sd3(self, original: Call, *args: Any, **kwargs: Any) -> Any:
        place = self._host.place_of(original.argument("checkpoint_info"))
        self._host.loading = place
        try:
            self._foresee(place)
            self._inside.sd3 = True
            return original(*args, **kwargs)
        except Exception as error:
            self._watching.note(error)  # the host may do no more than log it
            raise
        finally:
            self._host.loading = None
            self._inside.sd3 = False

    def _load_text_encoder(self, original: Call, *args: Any, **kwargs: Any) -> Any:
        kind, folder = original.argument("cls_name"), original.argument("subfolder", None)
        if getattr(self._inside, "sd3", False) and getattr(kind, "__name__", "") == "T5EncoderModel" and folder == "text_encoder_3":
            ours, encoder = self._deployment.encoder_for_load()
            if ours:
                self._leave_room(encoder)
                return encoder
        return original(*args, **kwargs)

    def _set_attention(self, original: Call, *args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        with contextlib.suppress(JobRefused):  # there is no job here to refuse: the look before the next one does that
            self._guarding.attention_set(original.argument("pipe"))
        return result

    def _process_diffusers(self, original: Call, *args: Any, **kwargs: Any) -> Any:
        p = original.argument("p")
        self._last_look()
        return self._watching.run(lambda: original(*args, **kwargs), p, lambda: original.again(*args, **kwargs))

    def _inner(self, original: Call, *args: Any, **kwargs: Any) -> Any:
        p = original.argument("p")
        return self._watching.inner(lambda: self._guarding.inner(lambda: original(*args, **kwargs), p), p)

    def _display(self, original: Call, *args: Any, **kwargs: Any) -> Any:
        error = original.argument("e")
        if isinstance(error, BaseException):
            self._watching.note(error)  # an error that the host has caught
        return original(*args, **kwargs)

    def _reload_vae(self, original: Call, *args: Any, **kwargs: Any) -> Any:
        with prompts.kept(self._host.pipeline()):
            return original(*args, **kwargs)

    def _pip(self, original: Call, *args: Any, **kwargs: Any) -> Any:
        before = installed.snapshot()
        result = original(*args, **kwargs)
        after = installed.snapshot()
        self._deployment.installed([name for name in after if after[name] != before.get(name)])
        return result
