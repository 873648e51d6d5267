"""ours.py MODEL REQUIREMENT: bitsandbytes comes while the process runs; our text encoders need Python to see it, and nobody else."""

from __future__ import annotations

import sys
from pathlib import Path

import process


def main(model: Path, requirement: str) -> None:
    process.boot()
    import torch
    from transformers.utils import is_bitsandbytes_available

    from sd3deploy.device import Device
    from sd3deploy.encoders import choices, load, source
    from sd3deploy.refresh import finders

    assert not is_bitsandbytes_available()
    found = source.find("Model", source.Facts(str(model)))
    device = Device("cpu", "cpu", "CPU")
    process.fails(lambda: load.load(choices.find("nf4"), found, device), "bitsandbytes")
    process.pip(requirement)
    finders.invalidate()
    for choice in ("fp4", "nf4", "int8"):
        encoder = load.load(choices.find(choice), found, device)
        with torch.no_grad():
            assert torch.isfinite(encoder(torch.tensor([[5, 6, 1]])).last_hidden_state).all()
        layer = encoder.encoder.block[0].layer[0].SelfAttention.q
        assert type(layer).__name__ == ("Linear8bitLt" if choice == "int8" else "Linear4bit")
    assert not is_bitsandbytes_available(), "transformers knows nothing of it yet"


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
