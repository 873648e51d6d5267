"""The attention method of the settings. SD3's transformer keeps its own processors, unless the setting is xFormers."""

from modules import shared
from modules.logger import log


def set_diffusers_attention(pipe, quiet=False):
    if not quiet:
        log.info(f'Setting model: attention="{shared.opts.cross_attention_optimization}"')
    if shared.opts.cross_attention_optimization == "xFormers":
        pipe.enable_xformers_memory_efficient_attention()
    pipe.current_attn_name = shared.opts.cross_attention_optimization
