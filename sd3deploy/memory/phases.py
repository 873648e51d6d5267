"""What a pipeline is at, seen from its own modules: hooks on the text encoders, the transformer and the VAE's decoder, for one job."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["watched"]


@contextmanager
def watched(pipeline: Any, mark: Callable[[str, int], None], failed: Callable[[BaseException, str], None]) -> Iterator[None]:
    """While inside, `mark(phase, step)` is called when a phase begins or the transformer makes another step, and
    `failed(error, phase)` with an error that ends a module. No host and no pipeline has to know of it.
    """
    handles = []
    at = {"phase": "encode", "step": 0}

    def begin(phase: str) -> Callable[..., None]:
        def hook(module: Any, arguments: Any) -> None:
            at["step"] = at["step"] + 1 if phase == "denoise" else 0
            at["phase"] = phase
            mark(phase, at["step"])

        return hook

    def end(phase: str) -> Callable[..., None]:
        def hook(module: Any, arguments: Any, output: Any) -> None:
            error = sys.exc_info()[1]  # torch calls hooks with always_call while it handles an error
            if output is None and error is not None:
                failed(error, phase)

        return hook

    for phase, module in _modules(pipeline):
        handles.append(module.register_forward_pre_hook(begin(phase)))
        handles.append(module.register_forward_hook(end(phase), always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _modules(pipeline: Any) -> Iterator[tuple[str, Any]]:
    for name in ("text_encoder", "text_encoder_2", "text_encoder_3"):
        if (module := getattr(pipeline, name, None)) is not None:
            yield "encode", module
    yield "denoise", pipeline.transformer
    if (decoder := getattr(pipeline.vae, "decoder", None)) is not None:
        yield "decode", decoder
