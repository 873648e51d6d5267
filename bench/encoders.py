"""Resident size of T5-XXL for each text encoder choice, measured on full shapes with random weights, and the error of its output.

Full shapes write 9.5 GB to a temporary folder and take some minutes for each 4-bit choice on a CPU; `--small` is a T5 of a
thousandth of the size, for the run in CI. Each choice is loaded in a process of its own, so that the peak is its own.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

__all__ = ["run"]

FULL = {"vocab_size": 32128, "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64}
SMALL = {"vocab_size": 2048, "d_model": 256, "d_kv": 64, "d_ff": 640, "num_layers": 4, "num_heads": 4}
CHOICES = ("fp4", "nf4", "int8", "fp8", "uint4", "bf16")


def run(small: bool = False, choices: tuple[str, ...] = CHOICES) -> dict[str, Any]:
    """{choice: {"bytes", "bytes_16bit", "smaller_percent", "load_s", "peak_mib", "linear4bit", "output_error", …}}; errors are
    relative to bfloat16, None on full shapes."""
    results = {}
    with tempfile.TemporaryDirectory(prefix="sd3deploy-bench-") as folder:
        make(Path(folder), SMALL if small else FULL)
        for choice in choices:
            command = [sys.executable, "-m", "bench.encoders", folder, choice, *(["--error"] if small else [])]
            done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parent.parent)
            results[choice] = json.loads(done.stdout.splitlines()[-1])
    return results


def make(folder: Path, shape: dict[str, Any]) -> None:
    """A T5 encoder of that shape as sharded float16 safetensors: T5-like scales, and outlier channels as trained models have."""
    import torch
    import transformers
    from safetensors.torch import save_file

    config = transformers.T5Config(**shape, feed_forward_proj="gated-gelu", architectures=["T5EncoderModel"])
    target = folder / "text_encoder_3"
    target.mkdir(parents=True)
    config.save_pretrained(target)
    with torch.device("meta"):
        names = {name: tensor.shape for name, tensor in transformers.T5EncoderModel(config).state_dict().items()}
    names.pop("encoder.embed_tokens.weight", None)
    generator = torch.Generator().manual_seed(0)
    shards: list[dict[str, torch.Tensor]] = [{}]
    for name, size in names.items():
        if len(size) == 1:
            tensor = torch.ones(size)
        else:
            scale = 1.0 if "shared" in name else (size[1] * (config.d_kv if ".q." in name else 1)) ** -0.5
            tensor = torch.empty(size).normal_(0, scale, generator=generator)
            tensor[:, torch.randint(0, size[1], (max(1, size[1] // 256),), generator=generator)] *= 4
        shards[-1][name] = tensor.half()
        if sum(part.numel() * 2 for part in shards[-1].values()) > 2e9:
            shards.append({})
    index = {}
    for number, shard in enumerate(shard for shard in shards if shard):
        file = f"model-{number:05d}.safetensors"
        save_file(shard, target / file, metadata={"format": "pt"})
        index |= dict.fromkeys(shard, file)
        shard.clear()
    (target / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


def measured(folder: str, choice_id: str, error: bool) -> dict[str, Any]:
    """One choice, in this process."""
    import torch

    from sd3deploy.device import look
    from sd3deploy.encoders import choices, source
    from sd3deploy.encoders.load import load
    from sd3deploy.encoders.measure import measure

    device = look("cuda" if torch.cuda.is_available() else "cpu", "cuda" if torch.cuda.is_available() else "cpu")
    found = source.find("Model", source.Facts(folder))
    started = time.perf_counter()
    encoder: Any = load(choices.find(choice_id), found, device, _sdnq_config)
    seconds = time.perf_counter() - started
    size = measure(encoder)
    result = {
        "device": device.name,
        "bytes": size.bytes,
        "bytes_16bit": size.bytes_16bit,
        "smaller_percent": round(100 * (1 - size.bytes / size.bytes_16bit), 1),
        "linear4bit": size.linear4bit,
        "linears": size.linears,
        "wo_quantized": size.wo_quantized,
        "load_s": round(seconds, 2),
        "peak_mib": _peak_mib(),
    }
    if error:
        full: Any = load(choices.find("bf16"), found, device)
        tokens = torch.randint(1, 2000, (2, 128), generator=torch.Generator().manual_seed(1)).to(device.torch)
        with torch.no_grad():
            expected = full.to(device.torch)(tokens)[0].float()
            output = encoder.to(device.torch)(tokens)[0].float()
        result["output_error"] = round(math.sqrt(((output - expected) ** 2).sum() / (expected**2).sum()), 4)
    return result


def _sdnq_config() -> Any:
    from sdnq import SDNQConfig

    return SDNQConfig(weights_dtype="uint4")


def _peak_mib() -> int | None:
    """Peak resident memory of this process, with mapped files, in MiB; None on Windows."""
    if os.name == "nt":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // (1024 if sys.platform != "darwin" else 1024 * 1024)


if __name__ == "__main__":
    print(json.dumps(measured(sys.argv[1], sys.argv[2], "--error" in sys.argv)))
