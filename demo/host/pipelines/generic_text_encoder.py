"""Where the host takes text encoders from that many models share, unless the setting te_shared_te is off."""

import transformers

SHARED = {transformers.T5EncoderModel: "Disty0/t5-xxl"}


def get_shared(cls, repo_id, subfolder=None, variant=None):
    """(repository, further arguments of from_pretrained) for an encoder of that class."""
    extra = {"variant": variant} if variant is not None else {}
    if cls in SHARED:
        return SHARED[cls], extra
    return repo_id, extra | ({"subfolder": subfolder} if subfolder is not None else {})
