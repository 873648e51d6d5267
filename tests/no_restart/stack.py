"""stack.py MODEL REQUIREMENT…: in one process, one package after the other, each without a restart where that can be done."""

from __future__ import annotations

import functools
import sys
import time
from pathlib import Path

import process

# package → the uses that need it, and what they say today while it is absent
ERRORS = {
    "accelerate": {
        "t5_device_map": "requires `?accelerate",
        "t5_on_disk": "requires `?accelerate",
        "transformer_device_map": "accelerate",
        "pipeline_offload": "requires `accelerate",
    },
    "peft": {"lora": "PEFT backend is required"},
    "sentencepiece": {
        "slow_tokenizer": "tiktoken|sentencepiece",
        "auto_slow_tokenizer": "tiktoken|sentencepiece",
        "sentencepiece_class": "sentencepiece",
    },
    "bitsandbytes": {
        "t5_4bit": "bitsandbytes",
        "t5_8bit": "bitsandbytes",
        "diffusers_bitsandbytes": "bitsandbytes",
        "peft_4bit": "bitsandbytes|Linear4bit|peft.tuners.lora.layer",
    },
    "gguf": {"gguf_transformers": "gguf", "gguf_diffusers": "gguf"},
}

# What diffusers decides once, in statements of its own: a new process is needed, and the verdict has to say so.
ANEW = ("peft",)


def build_without_blocks() -> None:
    """The first of the parts of a T5 has none, and every transformers has to build it."""
    from sd3deploy.encoders.assemble import shapes

    _, encoder = shapes({"num_layers": 0, "d_model": 8, "d_kv": 4, "d_ff": 8, "num_heads": 2, "vocab_size": 10})
    assert len(encoder.encoder.block) == 0


def main(model: Path, requirements: list[str]) -> None:
    started = time.perf_counter()
    process.boot()
    print(f"boot: {time.perf_counter() - started:.1f} s")
    import uses

    before = process.identities()
    for requirement in requirements:
        package = requirement.partition("=")[0]
        needs = ERRORS[package]
        test = process.anew if package in ANEW else process.hot
        test(requirement, **{use: (functools.partial(getattr(uses, use), model), error) for use, error in needs.items()})
    process.same(before)
    build_without_blocks()
    print(f"all: {time.perf_counter() - started:.1f} s")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
