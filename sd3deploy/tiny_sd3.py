"""A Stable Diffusion 3 small enough to make on the spot: the real classes, the real folder format, invented weights.

`python -m sd3deploy.tiny_sd3 TARGET` writes it. Everything is derived from one seed, so that two machines make the same file.
Shapes keep what matters to quantization and size checks: patch size 2, 16 latent channels, a VAE scale of 8,
pos_embed_max_size 192 as in SD3 medium, a gated-gelu T5 with its `wo`, and linear layers divisible by 64, the block of 4-bit.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from sd3deploy import tiny_tokenizers

__all__ = ["TRANSFORMER", "VAE", "cached", "ensure", "make"]

RECIPE = 3  # raise it when the recipe changes: a model that an older recipe made is made again

CLIP_L, CLIP_G, T5 = 32, 64, 128  # widths; joint attention sees CLIP_L + CLIP_G padded to T5, as in the real model
TRANSFORMER: dict[str, Any] = {
    "sample_size": 128,  # latents: 128 px / 8, so that the default image is 1024 px, as in SD3
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 16,
    "num_layers": 2,
    "attention_head_dim": 32,
    "num_attention_heads": 2,
    "caption_projection_dim": 64,
    "joint_attention_dim": T5,
    "pooled_projection_dim": CLIP_L + CLIP_G,
    "pos_embed_max_size": 192,
}
VAE: dict[str, Any] = {
    "block_out_channels": (8, 8, 16, 16),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "latent_channels": 16,
    "scaling_factor": 1.5305,
    "shift_factor": 0.0609,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}


def cached() -> Path:
    """Where the tiny model is kept: in this folder, or where that may not be written to in the user's cache, or where there is none
    in the folder for temporary files."""
    ours = Path(__file__).resolve().parent.parent
    if os.access(ours, os.W_OK):
        return ours / ".cache" / "tiny-sd3"
    home = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    nearest = next(folder for folder in (home, *home.parents) if folder.is_dir())
    return (home / "sd3deploy" if os.access(nearest, os.W_OK) else Path(tempfile.gettempdir(), "sd3deploy")) / "tiny-sd3"


def ensure(path: str | Path | None = None) -> Path:
    """The folder of the tiny model; made when it is missing or comes from an older recipe. Safe to call from several processes."""
    path = cached() if path is None else Path(path)
    stamp = path / "recipe.json"
    if stamp.is_file() and json.loads(stamp.read_text()) == RECIPE:
        return path
    scratch = path.with_name(f"{path.name}.{os.getpid()}")
    make(scratch)
    shutil.rmtree(path, ignore_errors=True)
    try:
        scratch.rename(path)
    except OSError:  # another process was faster: its model is the same
        shutil.rmtree(scratch, ignore_errors=True)
    return path


def make(target: str | Path, *, seed: int = 3) -> Path:
    """Write the model to the folder `target`, in 16-bit safetensors, in the layout that every diffusers-based program reads."""
    import torch
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel

    target = Path(target)
    shutil.rmtree(target, ignore_errors=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parts = {
            "transformer": SD3Transformer2DModel(**TRANSFORMER),
            "text_encoder": CLIPTextModelWithProjection(_clip(CLIPTextConfig, CLIP_L)),
            "text_encoder_2": CLIPTextModelWithProjection(_clip(CLIPTextConfig, CLIP_G)),
            "text_encoder_3": T5EncoderModel(_t5(T5Config)),
            "vae": AutoencoderKL(**VAE),
        }
    for name, part in parts.items():
        part.half().save_pretrained(target / name)
    FlowMatchEulerDiscreteScheduler(shift=3.0).save_pretrained(target / "scheduler")
    tiny_tokenizers.clip(target / "tokenizer", pad="<|endoftext|>")
    tiny_tokenizers.clip(target / "tokenizer_2", pad="!")
    tiny_tokenizers.t5(target / "tokenizer_3")
    index = {
        "_class_name": "StableDiffusion3Pipeline",
        "_diffusers_version": "0.29.0",
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "CLIPTextModelWithProjection"],
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "text_encoder_3": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
        "tokenizer_3": ["transformers", "T5TokenizerFast"],
        "transformer": ["diffusers", "SD3Transformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (target / "model_index.json").write_text(json.dumps(index, indent=2))
    (target / "recipe.json").write_text(json.dumps(RECIPE))
    return target


def _clip(config_class, width: int):
    return config_class(
        vocab_size=tiny_tokenizers.CLIP_VOCABULARY,
        bos_token_id=tiny_tokenizers.CLIP_VOCABULARY - 2,
        eos_token_id=tiny_tokenizers.CLIP_VOCABULARY - 1,
        pad_token_id=1,
        hidden_size=width,
        projection_dim=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=77,
    )


def _t5(config_class):
    return config_class(
        vocab_size=tiny_tokenizers.T5_VOCABULARY,
        d_model=T5,
        d_kv=64,
        d_ff=256,
        num_layers=3,
        num_heads=2,
        feed_forward_proj="gated-gelu",
        relative_attention_num_buckets=32,
        relative_attention_max_distance=128,
        tie_word_embeddings=False,
        is_encoder_decoder=False,
        use_cache=False,
        sd3deploy_small_t5=True,  # encoders/identity.py: else only T5-XXL is taken for a text encoder
    )


if __name__ == "__main__":
    print(make(sys.argv[1]) if len(sys.argv) > 1 else ensure())
