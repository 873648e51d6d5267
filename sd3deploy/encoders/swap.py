"""Put a text encoder into an SD3 pipeline, and take the old one out for good."""

from __future__ import annotations

from typing import Any

from sd3deploy.encoders.source import Source
from sd3deploy.errors import EncoderError

__all__ = ["is_sd3", "replace", "tokenizer"]


def is_sd3(pipeline: object) -> bool:
    """Whether this is a Stable Diffusion 3 pipeline of any task, with a place for T5."""
    return "StableDiffusion3" in type(pipeline).__name__ and hasattr(pipeline, "text_encoder_3")


def replace(pipeline: Any, encoder: Any, t5_tokenizer: Any = None) -> None:
    """Set `text_encoder_3` (None: CLIP only), and the tokenizer where the pipeline has none.

    accelerate's hooks on the old encoder are removed first: they hold it, and model offload keeps it in its chain.
    """
    old = pipeline.text_encoder_3
    if old is not None and hasattr(old, "_hf_hook"):
        from accelerate.hooks import remove_hook_from_module

        remove_hook_from_module(old, recurse=True)
    pipeline.text_encoder_3 = encoder
    if encoder is not None and t5_tokenizer is not None:
        pipeline.tokenizer_3 = t5_tokenizer


def tokenizer(pipeline: Any, model: str, source: Source) -> Any:
    """The T5 tokenizer to go with an encoder, or None when the pipeline has one already.

    It is read from the model, else from the source of the weights. Raises EncoderError when neither has one.
    """
    if getattr(pipeline, "tokenizer_3", None) is not None:
        return None
    import transformers

    places = [(model, {"subfolder": "tokenizer_3"})]
    if source.place:
        hub = {key: value for key, value in source.arguments.items() if key in ("cache_dir", "local_files_only")}
        places += [(source.place, {"subfolder": "tokenizer_3", **hub}), (source.place, hub)]
    for place, arguments in places:
        try:
            return transformers.AutoTokenizer.from_pretrained(place, **arguments)
        except (OSError, ValueError):  # not in this place: what transformers raises for a missing folder or file
            continue
    raise EncoderError("encoder.no-tokenizer")
