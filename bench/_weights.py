"""Random weights of T5, made on the spot, and the plain encoder that reads them block by block to compare others with."""

from __future__ import annotations

import json
import os
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["FULL", "KINDS", "SMALL", "T5", "make", "orderly", "prompts", "streamed", "weights"]

FULL = {"vocab_size": 32128, "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64}
SMALL = {"vocab_size": 2048, "d_model": 256, "d_kv": 64, "d_ff": 640, "num_layers": 4, "num_heads": 4}
T5 = "SD3DEPLOY_BENCH_T5"  # names a model folder that is there already: nothing is made, and nothing in it is changed
# outliers: normal, with channels four times as large as trained models have them. student-t: five degrees of freedom, single large weights.
KINDS = ("outliers", "student-t")
TOKENS = 256  # what SD3 pads to


@contextmanager
def weights(shape: dict[str, Any], kind: str = "outliers") -> Iterator[Path]:
    """A model folder with such a T5 in `text_encoder_3`, gone afterwards whatever happens; for full shapes of the first kind the folder
    that the environment variable names, if it does."""
    there = os.environ.get(T5)
    if there and shape == FULL and kind == "outliers":
        yield Path(there)
        return
    with orderly(), tempfile.TemporaryDirectory(prefix="sd3deploy-bench-") as folder:
        make(Path(folder), shape, kind)
        yield Path(folder)


@contextmanager
def orderly() -> Iterator[None]:
    """A polite end of the process (SIGTERM) is an exception inside, as Ctrl-C is: temporary folders of 10 GB may not stay."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, _frame: Any) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def make(folder: Path, shape: dict[str, Any], kind: str = "outliers") -> None:
    """A T5 encoder of that shape as sharded float16 safetensors, with T5-like scales."""
    import torch
    import transformers
    from safetensors.torch import save_file

    from sd3deploy.encoders import identity

    config = transformers.T5Config(**shape, feed_forward_proj="gated-gelu", architectures=["T5EncoderModel"])
    if shape != FULL:
        setattr(config, identity.MARK, True)  # else only T5-XXL is read
    target = folder / "text_encoder_3"
    target.mkdir(parents=True)
    config.save_pretrained(target)
    with torch.device("meta"):
        names = {name: tensor.shape for name, tensor in transformers.T5EncoderModel(config).state_dict().items()}
    names.pop("encoder.embed_tokens.weight", None)
    on = "cuda" if torch.cuda.is_available() else "cpu"  # minutes of random numbers on a CPU, a second on a GPU
    generator = torch.Generator(on).manual_seed(0)
    shards: list[dict[str, torch.Tensor]] = [{}]
    for name, size in names.items():
        if len(size) == 1:
            tensor = torch.ones(size)
        else:
            scale = 1.0 if "shared" in name else (size[1] * (config.d_kv if ".q." in name else 1)) ** -0.5
            tensor = torch.empty(size, device=on).normal_(0, scale, generator=generator)
            if kind == "student-t":
                _heavy_tailed(tensor, generator)
            else:
                tensor[:, torch.randint(0, size[1], (max(1, size[1] // 256),), generator=generator, device=on)] *= 4
        shards[-1][name] = tensor.half().cpu()
        if sum(part.numel() * 2 for part in shards[-1].values()) > 2e9:
            shards.append({})
    index = {}
    for number, shard in enumerate(shard for shard in shards if shard):
        file = f"model-{number:05d}.safetensors"
        save_file(shard, target / file, metadata={"format": "pt"})
        index |= dict.fromkeys(shard, file)
        shard.clear()
    (target / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


def _heavy_tailed(normal: Any, generator: Any) -> None:
    """Student's t with five degrees of freedom and the same variance, in place: z / sqrt(chi²(5) / 5), whose variance is 5/3."""
    import torch

    for row in normal.split(1024):
        chi = torch.stack([torch.empty_like(row).normal_(generator=generator).square_() for _ in range(5)]).sum(dim=0)
        row.mul_((3 / chi).sqrt_())


def prompts(vocabulary: int) -> Any:
    """Three prompts as token ids (3, 256), short, long and full, ended and padded as T5's tokenizer does."""
    import torch

    ids = torch.randint(3, vocabulary, (3, TOKENS), generator=torch.Generator().manual_seed(1))
    for row, length in zip(ids, (24, 100, TOKENS), strict=True):
        row[length - 1] = 1
        row[length:] = 0
    return ids


def streamed(folder: Path, dtype: Any, device: Any, blocks: int = 0) -> Any:
    """transformers' own encoder in `dtype`, read from the files. blocks: so many of the first, which stay in memory; 0: all of them, each
    read when it is called and let go after it, so that float32 on full shapes takes 1.4 GB."""
    import torch
    import transformers
    from safetensors import safe_open

    place = folder / "text_encoder_3"
    config = transformers.T5Config.from_pretrained(place)
    if blocks:
        config.num_layers = blocks
    with torch.device("meta"):
        model: Any = transformers.T5EncoderModel(config)
    index = json.loads((place / "model.safetensors.index.json").read_text())["weight_map"]

    def tensor(name: str) -> Any:
        with safe_open(place / index[name], "pt") as file:
            return torch.nn.Parameter(file.get_tensor(name).to(device, dtype), requires_grad=False)

    def fill(module: Any, prefix: str) -> None:
        for name, _ in list(module.named_parameters()):
            parent, _, attribute = name.rpartition(".")
            setattr(module.get_submodule(parent), attribute, tensor(f"{prefix}.{name}"))

    model.shared.weight = model.encoder.embed_tokens.weight = tensor("shared.weight")
    fill(model.encoder.final_layer_norm, "encoder.final_layer_norm")
    for number, block in enumerate(model.encoder.block):
        prefix = f"encoder.block.{number}"
        if blocks:
            fill(block, prefix)
        else:
            block.register_forward_pre_hook(lambda block, _, prefix=prefix: fill(block, prefix))
            block.register_forward_hook(lambda block, _, __: (block.to("meta"), None)[1])  # anything else would be its output
    return model.eval()
