"""Encoded prompts of the native parser, kept between jobs. clear_caches() empties this cache."""

from collections import OrderedDict

from modules import devices, sd_models

cache = OrderedDict()
NAMES = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")


def encode(pipe, prompts, negatives):
    """Prompt embeddings for the pipeline. Every text encoder is forced onto the device first, T5 too."""
    key = (*prompts, *negatives, id(pipe.text_encoder), id(pipe.text_encoder_3))
    if key not in cache:
        for encoder in (pipe.text_encoder, pipe.text_encoder_2, pipe.text_encoder_3):
            sd_models.move_model(encoder, devices.device, force=True)
        encode_prompt = getattr(pipe, "orig_encode_prompt", pipe.encode_prompt)
        cache[key] = encode_prompt(prompts, prompts, prompts, device=devices.device, negative_prompt=negatives,
                                   negative_prompt_2=negatives, negative_prompt_3=negatives, do_classifier_free_guidance=True)  # fmt: skip
    return dict(zip(NAMES, cache[key], strict=True))
