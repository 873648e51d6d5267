"""The points at which the host asks us: while it loads an SD3 model, when it has loaded one, when it has installed packages, when it
sets attention processors, when it takes another VAE, when it reports an error, and around each job.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Any

from sd3deploy import installed
from sd3deploy.deployment import Deployment
from sd3deploy.errors import JobRefused
from sd3deploy.webui.host import offload, prompts, reach
from sd3deploy.webui.host.adapter import SdNext
from sd3deploy.webui.host.contract import BY_NAME
from sd3deploy.webui.host.feature import Features
from sd3deploy.webui.host.patch import Call, Patch
from sd3deploy.webui.jobs.guarding import Guarding
from sd3deploy.webui.jobs.watching import Watching

__all__ = ["Hooks"]

_BATCH = "modules.processing_diffusers:process_diffusers"
_JOB = "modules.processing:process_images_inner"
_ENCODER = "pipelines.generic:load_text_encoder"


class Hooks:
    """All patches of the host, each a feature of its own. One whose function is not as the contract has it is left out: that was told.

    A wrapper hands on whatever it was given and looks at the arguments by name: one more argument of the host costs nothing. What it
    does beside the host's function may fail at any point (see Patch).
    """

    def __init__(self, deployment: Deployment, guarding: Guarding, watching: Watching, host: SdNext, features: Features) -> None:
        self._deployment, self._guarding, self._watching, self._host = deployment, guarding, watching, host
        self._inside = threading.local()  # set while this thread is inside load_sd3: other models have a text_encoder_3 of T5 too
        self._leave_room = features.shield("leave-room", offload.leave_room)
        self._foresee = features.shield("foresee", watching.foresee)
        self._last_look = features.shield("last-look", guarding.last_look)
        self._reconcile = features.shield("swap", lambda: deployment.reconcile())
        self.patches: list[Patch] = []

        def patch(id: str, name: str, wrapper: Callable[..., Any]) -> None:
            need, feature = BY_NAME[name], features.get(id)

            def switched(original: Call, *args: Any, **kwargs: Any) -> Any:
                return wrapper(original, *args, **kwargs) if feature.active else original(*args, **kwargs)

            with contextlib.suppress(reach.HostChanged):
                module, attribute = reach.module_of(need)
                if feature.active:
                    self.patches.append(Patch(module, attribute, switched, tuple(need.call.split()), feature.fail))

        patch("load", "modules.sd_models:load_diffuser", self._load_diffuser)
        patch("load-sd3", "pipelines.model_sd3:load_sd3", self._load_sd3)
        patch("encoder", _ENCODER, self._load_text_encoder)
        patch("attention", "modules.attention:set_diffusers_attention", self._set_attention)
        patch("job", _JOB, self._inner)
        patch("batch", _BATCH, self._process_diffusers)
        patch("errors", "modules.errors:display", self._display)
        patch("vae", "modules.sd_vae:reload_vae_weights", self._reload_vae)
        patch("packages", "installer:pip", self._pip)
        host.load_default = next((one.original for one in self.patches if one.name == "load_text_encoder"), None)

    def apply(self) -> None:
        """Put all of them in place. Called once, after everything else has been registered with the host."""
        for patch in self.patches:
            patch.apply()

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
        reach.state.retry()
        with self._deployment.busy, self._watching.loading(self._host.selected()):
            result = original(*args, **kwargs)
            self._reconcile()  # whatever way the model came in, and whatever load_sd3 could not do
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
        result = self._watching.run(lambda: original(*args, **kwargs), p, lambda: original.again(*args, **kwargs))
        reach.check_result(BY_NAME[_BATCH], result)
        return result

    def _inner(self, original: Call, *args: Any, **kwargs: Any) -> Any:
        p = original.argument("p")
        result = self._watching.inner(lambda: self._guarding.inner(lambda: original(*args, **kwargs), p), p)
        reach.check_result(BY_NAME[_JOB], result)
        return result

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
