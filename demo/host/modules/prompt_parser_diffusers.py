"""Encoded prompts of the native parser, kept between jobs. clear_caches() empties this cache."""

from collections import OrderedDict

import torch

from modules import devices, prompt_parser, sd_models, shared

cache = OrderedDict()


def encode(pipe, prompts, negatives, parser):
    """Prompt embeddings for the pipeline. Every text encoder is forced onto the device first, T5 too."""
    size = shared.opts.sd_textencoder_cache_size
    key = str([prompts, negatives])  # and nothing of the encoders
    if not size:
        cache.clear()
    if key not in cache:
        for encoder in (pipe.text_encoder, pipe.text_encoder_2, pipe.text_encoder_3):
            sd_models.move_model(encoder, devices.device, force=True)
        if parser == "xhinker" and pipe.text_encoder_3.device != devices.device:  # fails without T5, as in the host
            sd_models.move_model(pipe.text_encoder_3, devices.device, force=True)
        embeds, pooled = _encode(pipe, prompts)
        negative_embeds, negative_pooled = _encode(pipe, negatives)
        length = max(embeds.shape[1], negative_embeds.shape[1])
        cache[key] = {
            "prompt_embeds": _pad(embeds, length),
            "negative_prompt_embeds": _pad(negative_embeds, length),
            "pooled_prompt_embeds": pooled,
            "negative_pooled_prompt_embeds": negative_pooled,
        }
        while len(cache) > max(1, size):
            cache.popitem(last=False)
    cache.move_to_end(key)
    return dict(cache[key])


def _encode(pipe, texts):
    """CLIP reads a long prompt in pieces, of which the first gives the pooled embeddings; T5 reads what the pipeline lets it."""
    texts = [" ".join(words for words, weight in prompt_parser.parse_prompt_attention(text) if weight != -1) for text in texts]
    found, pooled = [], []
    for index, tokenizer in enumerate((pipe.tokenizer, pipe.tokenizer_2)):
        tokens = [tokenizer(text, add_special_tokens=False, verbose=False).input_ids for text in texts]
        pieces = range(0, max(1, *map(len, tokens)), 75)
        parts = [[tokenizer.decode(ids[start : start + 75]) for ids in tokens] for start in pieces]
        encoded = [pipe._get_clip_prompt_embeds(part, device=devices.device, clip_model_index=index) for part in parts]
        found.append(torch.cat([embeds for embeds, _ in encoded], dim=1))
        pooled.append(encoded[0][1])
    t5 = pipe._get_t5_prompt_embeds(texts, device=devices.device)
    clip = torch.cat([_pad(one, max(part.shape[1] for part in found)) for one in found], dim=-1)
    clip = torch.nn.functional.pad(clip, (0, t5.shape[-1] - clip.shape[-1]))
    return torch.cat([clip, t5], dim=1), torch.cat(pooled, dim=-1)


def _pad(embeds, length):
    return torch.nn.functional.pad(embeds, (0, 0, 0, length - embeds.shape[1]))
