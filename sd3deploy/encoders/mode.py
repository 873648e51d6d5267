"""In which of torch's modes encoders are made. A web UI makes pictures under no_grad or under inference_mode, as the user has set it, and
asks for encoders there, too: a tensor of inference_mode may be written to by no other thread, and by nobody afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["ordinary"]


@contextmanager
def ordinary() -> Iterator[None]:
    """What this thread makes inside are ordinary tensors without gradients, whatever the mode of the caller: usable in every mode."""
    import torch

    with torch.inference_mode(False), torch.no_grad():  # the first alone would record gradients
        yield
