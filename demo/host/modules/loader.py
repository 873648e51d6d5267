"""The heavy imports, in the host's order. bitsandbytes is tried once, here; what comes of it is frozen into diffusers."""

import logging
import warnings

from modules.logger import log

initialized = False
warnings.filterwarnings("ignore", category=UserWarning)
warnings.filterwarnings("ignore", category=FutureWarning)
warnings.filterwarnings("ignore", category=DeprecationWarning)

import torch  # noqa: E402

try:
    import bitsandbytes  # noqa: F401

    _bnb = True
except Exception:
    _bnb = False

import accelerate  # noqa: E402
import huggingface_hub  # noqa: E402
import pydantic  # noqa: E402
import tokenizers  # noqa: E402
import transformers  # noqa: E402

transformers.logging.set_verbosity_error()

import gradio  # noqa: E402

import diffusers.utils.import_utils  # noqa: E402  # isort: skip

diffusers.utils.import_utils._bitsandbytes_available = _bnb
import diffusers  # noqa: E402

logging.getLogger("diffusers").setLevel(logging.ERROR)
transformers.utils.logging.disable_progress_bar()
diffusers.utils.logging.disable_progress_bar()


def get_packages():
    libraries = (torch, diffusers, transformers, tokenizers, accelerate, huggingface_hub, pydantic, gradio)
    return {library.__name__: str(library.__version__) for library in libraries}


log.info("Packages: " + " ".join(f"{name}=={version}" for name, version in get_packages().items()))
