"""Rules about the installed packages: asked too early, mixed, too old, too new, of another platform; and about pip.

Versions in `needs` are where the upstream change was released; the source says which.
"""

from __future__ import annotations

from sd3deploy.diagnosis import advice
from sd3deploy.diagnosis.rule import Rule

__all__ = ["RULES"]

_BNB = "https://github.com/bitsandbytes-foundation/bitsandbytes/"
_DIFFUSERS = "https://github.com/huggingface/diffusers/"
_FORGE = "https://github.com/lllyasviel/stable-diffusion-webui-forge/issues/"
_SDNEXT = "https://github.com/vladmandic/sdnext/"

_QUANTIZATION = (
    Rule("bnb-unavailable", "missing-package", "install", f"{_SDNEXT}issues/3281", "bitsandbytes",
         match=r"Using .?bitsandbytes.? (?P<bits>[48])-bit quantization requires", advise=advice.quantization),
    Rule("bnb-triton", "version-too-old", "install", f"{_BNB}issues/1583", "bitsandbytes",
         match=r"No module named ['\"]triton\.ops", advise=advice.needs("bitsandbytes", ">=0.45.1", by="triton")),
    Rule("bnb-transformers-5", "version-too-old", "install", f"{_BNB}pull/1900", "bitsandbytes",
         match=r"(?:Int8Params|Params4bit)\S*__new__\(\) got an unexpected keyword argument ['\"]_is_hf_initialized",
         advise=advice.needs("bitsandbytes", ">=0.50", by="transformers")),
    Rule("bnb-frozenset", "version-too-old", "install", "https://github.com/huggingface/transformers/issues/36949", "transformers",
         match=r"['\"]frozenset['\"] object has no attribute ['\"]discard",
         advise=advice.needs("transformers", ">=4.51", by="bitsandbytes")),
    Rule("bnb-no-gpu", "platform-unsupported", "setting",
         f"{_DIFFUSERS}blob/main/src/diffusers/quantizers/bitsandbytes/bnb_quantizer.py", "bitsandbytes",
         match=r"No GPU found\. A GPU is needed for quantization"),
    Rule("bnb-no-device", "platform-unsupported", "setting", f"{_BNB}issues/1627", "bitsandbytes",
         match=r"None of the available devices .available_devices = (?P<devices>[^`]{1,80}). are supported by the bitsandbytes version"),
    Rule("bnb-zluda", "platform-unsupported", "setting", f"{_SDNEXT}issues/3609", "bitsandbytes",
         match=r"bitsandbytes", also=(r"zluda", r"Error|Exception|Traceback|failed")),
)  # fmt: skip

_NUMPY = (
    Rule("numpy-mixed", "mixed-package-files", "install", f"{_SDNEXT}issues/3281", "numpy",
         match=r"cannot import name ['\"]broadcast_to['\"] from ['\"]numpy\.lib\.stride_tricks", advise=advice.whole("numpy")),
    Rule("numpy-broken", "mixed-package-files", "install", "https://numpy.org/doc/stable/user/troubleshooting-importerror.html", "numpy",
         match=r"Importing the numpy C-extensions failed|Error importing numpy: you should not try to import numpy from"
         r"|No module named ['\"]numpy\.(?:core|_core)\._multiarray_umath", advise=advice.whole("numpy")),
    Rule("numpy-replaced", "mixed-package-files", "restart", "https://github.com/numpy/numpy/pull/27877", "numpy",
         match=r"expected np\.ndarray \(got numpy\.ndarray\)|['\"]numpy\.ufunc['\"] object has no attribute ['\"]__qualname__"
         r"|cannot load module more than once per process", advise=advice.whole("numpy")),
    Rule("numpy-binary", "foreign-downgrade", "install", f"{_SDNEXT}issues/3843", "numpy",
         match=r"numpy\.(?:dtype|ufunc|ndarray) size changed, may indicate binary incompatibility", advise=advice.back_to_host("numpy")),
    Rule("numpy-2", "version-too-new", "install", f"{_FORGE}2969", "numpy",
         match=r"compiled using NumPy 1\.x cannot be run in|_ARRAY_API not found|numpy\.core\.multiarray failed to import"
         r"|was removed in the NumPy 2\.0 release|Numpy is not available", advise=advice.numpy_two),
)  # fmt: skip

_TORCH = (
    Rule("torchvision-mismatch", "foreign-downgrade", "restart", f"{_SDNEXT}issues/3531", "torchvision",
         match=r"operator torchvision::nms does not exist|module ['\"]torchvision['\"] has no attribute ['\"]extension|Couldn't"
         r" load custom C\+\+ ops", advise=advice.whole("torchvision")),
    Rule("torch-schema", "version-too-old", "restart", f"{_SDNEXT}issues/4878", "torch",
         match=r"infer_schema\(func\): Parameter (?P<name>\w+) has unsupported type", advise=advice.whole("torch")),
    Rule("xformers-built", "platform-unsupported", "setting", "https://github.com/invoke-ai/InvokeAI/issues/6590", "xformers",
         match=r"xFormers can't load C\+\+/CUDA extensions\. xFormers was built for: ?PyTorch (?P<built>[\w.+]+)[^(]*\(you have"
         r" (?P<found>[\w.+]+)"),
    Rule("flash-attention-version", "version-too-new", "none", f"{_DIFFUSERS}issues/11805", "flash-attn",
         match=r"Requires Flash-Attention version (?P<versions>[<>=!~\d.,a-z]+\w) but got (?P<found>[\w.+]*\w)"),
)  # fmt: skip

_LIBRARIES = (
    Rule("pydantic-2", "foreign-downgrade", "install", "https://github.com/AUTOMATIC1111/stable-diffusion-webui/issues/15564", "pydantic",
         match=r"cannot import name ['\"](?:Undefined|ModelField|ErrorWrapper)['\"] from ['\"]pydantic", advise=advice.pydantic),
    Rule("hf-transfer", "missing-package", "setting",
         "https://github.com/huggingface/huggingface_hub/blob/main/src/huggingface_hub/file_download.py", "hf-transfer",
         match=r"['\"]?hf_transfer['\"]? package is not available"),
    Rule("tokenizer-libraries", "missing-package", "install", f"{_DIFFUSERS}issues/9443", "sentencepiece",
         match=r".?tiktoken.? is required to read a .?tiktoken.? file|Cannot instantiate this tokenizer from a slow version"
         r"|Couldn't instantiate the backend tokenizer", advise=advice.tokenizer),
    Rule("protobuf-generated", "version-too-new", "install", "https://github.com/google/sentencepiece/issues/889", "protobuf",
         match=r"Descriptors cannot (?:not )?be created directly", advise=advice.protobuf),
)  # fmt: skip

_INSTALLING = (
    Rule("host-wrong-version", "foreign-downgrade", "install", f"{_SDNEXT}issues/756",
         match=r"Package(?:: | version mismatch: | wrong version(?: found)?: )(?P<needed>[\w.\-]+)"
         r" (?:installed=)?(?P<found>\d[\w.+]*) required[ =](?P<pin>\d[\w.+]*)"
         r"(?! allowing)", advise=advice.wrong_version),
    Rule("host-version-mismatch", "foreign-downgrade", "install", f"{_SDNEXT}blob/master/installer.py",
         match=r"Install: package=['\"]?(?P<needed>[\w.\-]+)['\"]? installed=(?P<found>\d[\w.+]*) required=(?P<pin>\d[\w.+]*)"
         r" version mismatch", advise=advice.wrong_version),
)  # fmt: skip

RULES = (*_QUANTIZATION, *_NUMPY, *_TORCH, *_LIBRARIES, *_INSTALLING)
