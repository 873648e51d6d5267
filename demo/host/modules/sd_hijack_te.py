"""encode_prompt of a loaded pipeline goes through here. Its cache knows a prompt and a pipeline, not the text encoder in it."""

from modules import errors, sd_models, shared
from modules.logger import log


class PromptCache:
    def __init__(self):
        self.cache = {}
        self.id = None
        self.max = 16

    @staticmethod
    def _key(prompt):
        if isinstance(prompt, list) and len(prompt) == 1:
            prompt = prompt[0]
        return prompt if isinstance(prompt, str) else None

    def get(self, prompt):
        if self.id != id(shared.sd_model):
            self.cache.clear()
            self.id = id(shared.sd_model)
        return self.cache.get(self._key(prompt))

    def set(self, prompt, encoded):
        if self._key(prompt) is None:
            return
        while len(self.cache) >= self.max:
            del self.cache[next(iter(self.cache))]
        self.cache[self._key(prompt)] = encoded


prompt_cache = PromptCache()


def hijack_encode_prompt(*args, **kwargs):
    """What fails while encoding is logged; the pipeline then gets None."""
    job = shared.state.begin("TE Encode")
    prompt = kwargs.get("prompt", args[0] if args else None)
    res = None
    try:
        res = prompt_cache.get(prompt)
        if res is None:
            res = shared.sd_model.orig_encode_prompt(*args, **kwargs)
            prompt_cache.set(prompt, res)
    except Exception as e:
        log.error(f"Encode prompt: {e}")
        errors.display(e, "Encode prompt")
    sd_models.apply_balanced_offload(shared.sd_model)
    shared.state.end(job)
    return res


def init_hijack(pipe):
    if pipe is not None and not hasattr(pipe, "orig_encode_prompt"):
        pipe.orig_encode_prompt = pipe.encode_prompt
        pipe.encode_prompt = hijack_encode_prompt
