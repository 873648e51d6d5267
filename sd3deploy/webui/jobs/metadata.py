"""What stands in the metadata of a picture about the text encoder that it was made with."""

from __future__ import annotations

from typing import Any

from sd3deploy.deployment import Deployment
from sd3deploy.encoders.choices import HOST_DEFAULT

__all__ = ["record_encoder"]

_KEYS = ("T5", "T5 state")


def record_encoder(p: Any, deployment: Deployment) -> None:
    """Let the pictures that `p` makes next name the encoder that is in the loaded SD3 model now, and none where that is the host's own.
    Called on the thread of the job, which holds the host's queue, whenever the encoder may have changed.
    """
    placed, fields = deployment.placed(deployment.host.pipeline()), p.extra_generation_params
    if placed.choice is HOST_DEFAULT:
        for key in _KEYS:
            fields.pop(key, None)
    else:
        fields.update(zip(_KEYS, (placed.choice.name, deployment.t5_state()), strict=True))
