"""Rules about the installed packages: asked too early, mixed, too old, too new, of another platform; and about pip.

Versions in `needs` are where the upstream change was released; the source says which.
"""

from __future__ import annotations

from sd3deploy.diagnosis import advice
from sd3deploy.diagnosis.rule import Rule

__all__ = ["RULES"]

_LIBRARY_FILE = r"libbitsandbytes_\w+\.(?:so|dll|dylib)"

_QUANTIZATION = (
    Rule(
        id="bnb-unavailable",
        cause="missing-package",
        match=r"Using .?bitsandbytes.? (?P<bits>[48])-bit quantization requires",
        action="install",
        source="https://github.com/vladmandic/sdnext/issues/3281",
        package="bitsandbytes",
        advise=advice.quantization,
    ),
    Rule(
        id="bnb-triton",
        cause="version-too-old",
        match=r"No module named ['\"]triton\.ops",
        action="install",
        source="https://github.com/bitsandbytes-foundation/bitsandbytes/issues/1583",
        package="bitsandbytes",
        advise=advice.needs("bitsandbytes", ">=0.45.1", by="triton"),
    ),
    Rule(
        id="bnb-transformers-5",
        cause="version-too-old",
        match=r"(?:Int8Params|Params4bit)\S*__new__\(\) got an unexpected keyword argument ['\"]_is_hf_initialized",
        action="install",
        source="https://github.com/bitsandbytes-foundation/bitsandbytes/pull/1900",
        package="bitsandbytes",
        advise=advice.needs("bitsandbytes", ">=0.50", by="transformers"),
    ),
    Rule(
        id="bnb-frozenset",
        cause="version-too-old",
        match=r"['\"]frozenset['\"] object has no attribute ['\"]discard",
        action="install",
        source="https://github.com/huggingface/transformers/issues/36949",
        package="transformers",
        advise=advice.needs("transformers", ">=4.51", by="bitsandbytes"),
    ),
    Rule(
        id="bnb-no-gpu",
        cause="platform-unsupported",
        match=r"No GPU found\. A GPU is needed for quantization",
        action="setting",
        source="https://github.com/huggingface/diffusers/blob/main/src/diffusers/quantizers/bitsandbytes/bnb_quantizer.py",
        package="bitsandbytes",
    ),
    Rule(
        id="bnb-no-device",
        cause="platform-unsupported",
        match=r"None of the available devices .available_devices = (?P<devices>[^`]{1,80}). are supported by the bitsandbytes version",
        action="setting",
        source="https://github.com/bitsandbytes-foundation/bitsandbytes/issues/1627",
        package="bitsandbytes",
    ),
    Rule(
        id="bnb-symbol",
        cause="platform-unsupported",
        match=r"Error (?P<error>named symbol not found|no kernel image is available[\w ]*|invalid device function) at line \d+"
        r" in file \S*ops\.(?:cu|hip)",
        action="setting",
        source="https://github.com/lllyasviel/stable-diffusion-webui-forge/issues/1065",
        package="bitsandbytes",
        advise=advice.native_library,
    ),
    Rule(
        id="bnb-cuda-setup",
        cause="platform-unsupported",
        match=r"CUDA Setup failed despite (?:GPU|CUDA) being available",
        action="setting",
        source="https://github.com/bitsandbytes-foundation/bitsandbytes/issues/837",
        package="bitsandbytes",
        advise=advice.native_library,
    ),
    Rule(
        id="bnb-without-gpu-support",
        cause="platform-unsupported",
        match=r"installed version of bitsandbytes was compiled without GPU support|['\"]NoneType['\"] object has no attribute"
        r" ['\"]cadam32bit_grad_fp32",
        action="setting",
        source="https://github.com/bitsandbytes-foundation/bitsandbytes/issues/112",
        package="bitsandbytes",
        advise=advice.native_library,
    ),
    Rule(
        id="bnb-zluda",
        cause="platform-unsupported",
        match=r"bitsandbytes",
        also=(r"zluda", r"Error|Exception|Traceback|failed"),
        action="setting",
        source="https://github.com/vladmandic/sdnext/issues/3609",
        package="bitsandbytes",
    ),
)

_NUMPY = (
    Rule(
        id="numpy-mixed",
        cause="mixed-package-files",
        match=r"cannot import name ['\"]broadcast_to['\"] from ['\"]numpy\.lib\.stride_tricks",
        action="install",
        source="https://github.com/vladmandic/sdnext/issues/3281",
        package="numpy",
        advise=advice.whole("numpy"),
    ),
    Rule(
        id="numpy-broken",
        cause="mixed-package-files",
        match=r"Importing the numpy C-extensions failed|Error importing numpy: you should not try to import numpy from"
        r"|No module named ['\"]numpy\.(?:core|_core)\._multiarray_umath",
        action="install",
        source="https://numpy.org/doc/stable/user/troubleshooting-importerror.html",
        package="numpy",
        advise=advice.whole("numpy"),
    ),
    Rule(
        id="numpy-replaced",
        cause="mixed-package-files",
        match=r"expected np\.ndarray \(got numpy\.ndarray\)|['\"]numpy\.ufunc['\"] object has no attribute ['\"]__qualname__"
        r"|cannot load module more than once per process",
        action="restart",
        source="https://github.com/numpy/numpy/pull/27877",
        package="numpy",
        advise=advice.whole("numpy"),
    ),
    Rule(
        id="numpy-binary",
        cause="foreign-downgrade",
        match=r"numpy\.(?:dtype|ufunc|ndarray) size changed, may indicate binary incompatibility",
        action="install",
        source="https://github.com/vladmandic/sdnext/issues/3843",
        package="numpy",
        advise=advice.back_to_host("numpy"),
    ),
    Rule(
        id="numpy-2",
        cause="version-too-new",
        match=r"compiled using NumPy 1\.x cannot be run in|_ARRAY_API not found|numpy\.core\.multiarray failed to import"
        r"|was removed in the NumPy 2\.0 release|Numpy is not available",
        action="install",
        source="https://github.com/lllyasviel/stable-diffusion-webui-forge/issues/2969",
        package="numpy",
        advise=advice.numpy_two,
    ),
)

_TORCH = (
    Rule(
        id="torchvision-mismatch",
        cause="foreign-downgrade",
        match=r"operator torchvision::nms does not exist|module ['\"]torchvision['\"] has no attribute ['\"]extension|Couldn't"
        r" load custom C\+\+ ops",
        action="restart",
        source="https://github.com/vladmandic/sdnext/issues/3531",
        package="torchvision",
        advise=advice.whole("torchvision"),
    ),
    Rule(
        id="torch-schema",
        cause="version-too-old",
        match=r"infer_schema\(func\): Parameter (?P<name>\w+) has unsupported type",
        action="restart",
        source="https://github.com/vladmandic/sdnext/issues/4878",
        package="torch",
        advise=advice.whole("torch"),
    ),
    Rule(
        id="xformers-built",
        cause="platform-unsupported",
        match=r"xFormers can't load C\+\+/CUDA extensions\. xFormers was built for: ?PyTorch (?P<built>[\w.+]+)[^(]*\(you have"
        r" (?P<found>[\w.+]+)",
        action="setting",
        source="https://github.com/invoke-ai/InvokeAI/issues/6590",
        package="xformers",
    ),
    Rule(
        id="flash-attention-version",
        cause="version-too-new",
        match=r"Requires Flash-Attention version (?P<versions>[<>=!~\d.,a-z]+\w) but got (?P<found>[\w.+]*\w)",
        action="none",
        source="https://github.com/huggingface/diffusers/issues/11805",
        package="flash-attn",
    ),
)

_LIBRARIES = (
    Rule(
        id="pydantic-2",
        cause="foreign-downgrade",
        match=r"cannot import name ['\"](?:Undefined|ModelField|ErrorWrapper)['\"] from ['\"]pydantic",
        action="install",
        source="https://github.com/AUTOMATIC1111/stable-diffusion-webui/issues/15564",
        package="pydantic",
        advise=advice.pydantic,
    ),
    Rule(
        id="hf-transfer",
        cause="missing-package",
        match=r"['\"]?hf_transfer['\"]? package is not available",
        action="setting",
        source="https://github.com/huggingface/huggingface_hub/blob/main/src/huggingface_hub/file_download.py",
        package="hf-transfer",
    ),
    Rule(
        id="tokenizer-libraries",
        cause="missing-package",
        match=r".?tiktoken.? is required to read a .?tiktoken.? file|Cannot instantiate this tokenizer from a slow version"
        r"|Couldn't instantiate the backend tokenizer",
        action="install",
        source="https://github.com/huggingface/diffusers/issues/9443",
        package="sentencepiece",
        advise=advice.tokenizer,
    ),
    Rule(
        id="protobuf-generated",
        cause="version-too-new",
        match=r"Descriptors cannot (?:not )?be created directly",
        action="install",
        source="https://github.com/google/sentencepiece/issues/889",
        package="protobuf",
        advise=advice.protobuf,
    ),
)

_INSTALLING = (
    Rule(
        id="host-wrong-version",
        cause="foreign-downgrade",
        match=r"Package(?:: | version mismatch: | wrong version(?: found)?: )(?P<needed>[\w.\-]+)"
        r" (?:installed=)?(?P<found>\d[\w.+]*) required[ =](?P<pin>\d[\w.+]*)"
        r"(?! allowing)",
        action="install",
        source="https://github.com/vladmandic/sdnext/issues/756",
        advise=advice.wrong_version,
    ),
    Rule(
        id="host-version-mismatch",
        cause="foreign-downgrade",
        match=r"Install: package=['\"]?(?P<needed>[\w.\-]+)['\"]? installed=(?P<found>\d[\w.+]*) required=(?P<pin>\d[\w.+]*)"
        r" version mismatch",
        action="install",
        source="https://github.com/vladmandic/sdnext/blob/master/installer.py",
        advise=advice.wrong_version,
    ),
)

RULES = (*_QUANTIZATION, *_NUMPY, *_TORCH, *_LIBRARIES, *_INSTALLING)
