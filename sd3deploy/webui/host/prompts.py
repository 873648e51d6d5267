"""What the host remembers of prompts. It forgets all of them with another VAE and another offload mode, which they do not depend on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sd3deploy.encoders.swap import is_sd3
from sd3deploy.webui.host.reach import sdnext

__all__ = ["kept"]

_ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")


@contextmanager
def kept(pipeline: Any) -> Iterator[None]:
    """What is done inside costs no encoded prompts, unless the model or one of its encoders has become another one."""
    cache = sdnext.prompt_parser_diffusers.cache
    if not is_sd3(pipeline) or cache is None:
        yield
        return
    before, encoders = list(cache.items()), _encoders(pipeline)
    yield
    same = sdnext.modeldata.model_data.sd_model is pipeline and all(a is b for a, b in zip(encoders, _encoders(pipeline), strict=True))
    if same and not cache:
        cache.update(before)


def _encoders(pipeline: Any) -> list[Any]:
    return [getattr(pipeline, name, None) for name in _ENCODERS]
