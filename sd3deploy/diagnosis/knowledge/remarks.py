"""What looks like a failure and is none: programs say it on machines on which everything works."""

from __future__ import annotations

from sd3deploy.lazy import lazy

__all__ = ["REMARKS"]

REMARKS = tuple(
    lazy(pattern)
    for pattern in (
        r"A matching Triton is not available|Error caught was: No module named 'triton'",  # https://github.com/facebookresearch/xformers/issues/982
        # SD.Next, on every start without the packages of an upscaler that nobody has chosen: https://github.com/vladmandic/sdnext/issues/3281
        r"Upscaler: <class '[\w.]+'> No module named",
        # Quotes the prompt: https://github.com/huggingface/diffusers/blob/main/src/diffusers/pipelines/stable_diffusion_3/pipeline_stable_diffusion_3.py
        r"input was truncated because CLIP can only handle",
        r"fatal: not a git repository",  # of a program that was unpacked and not cloned: https://git-scm.com/docs/git-rev-parse
        # Who stops a program gets a traceback: https://docs.python.org/3/library/exceptions.html#KeyboardInterrupt
        r"^Exception ignored in[: ]",  # https://docs.python.org/3/library/sys.html#sys.unraisablehook
        r"_ProactorBasePipeTransport\._call_connection_lost",  # a browser that has gone: https://github.com/python/cpython/issues/83413
        r"(?:^|\s)(?:KeyboardInterrupt|asyncio\.exceptions\.CancelledError|SystemExit: 0)\s*$",
    )
)
