"""Disks, rights and damaged files: by the number that the system gives, where the path is one of models, caches or packages."""

from __future__ import annotations

import re

from sd3deploy.diagnosis import advice
from sd3deploy.diagnosis.failure import Failure
from sd3deploy.diagnosis.rule import Advice, Kind, Seen, Verdict, kinds
from sd3deploy.lazy import lazy

__all__ = ["KINDS", "judge"]

KINDS = kinds(
    Kind("disk-full", "disk-full", "none", "https://github.com/huggingface/huggingface_hub/issues/2742"),
    Kind("disk-quota", "disk-full", "none", "https://github.com/ayaanzhaque/instruct-nerf2nerf/issues/86"),
    Kind("read-only", "permission", "setting", "https://github.com/Comfy-Org/ComfyUI/issues/5660"),
    Kind("path-too-long", "permission", "setting", "https://github.com/Fannovel16/comfyui_controlnet_aux/issues/246"),
    Kind("symlink-right", "permission", "restart", "https://github.com/docling-project/docling/issues/961"),
    Kind("file-in-use", "permission", "restart", "https://github.com/cocktailpeanut/fluxgym/issues/159"),
    Kind("virus-scanner", "permission", "none", "https://github.com/easydiffusion/easydiffusion/issues/944"),
    Kind("files-open", "platform-unsupported", "restart", "https://github.com/QwenLM/Qwen2.5-Omni/issues/88"),
    Kind("permission", "permission", "none", "https://github.com/bmaltais/kohya_ss/issues/859"),
    Kind("pip-not-allowed", "permission", "none", "https://pip.pypa.io/en/stable/cli/pip_install/"),
    Kind("pip-locked", "mixed-package-files", "restart", "https://github.com/vladmandic/sdnext/issues/2565"),
    Kind("file-missing", "network", "none", "https://github.com/kijai/ComfyUI-HunyuanVideoWrapper/issues/81"),
    Kind("file-not-weights", "network", "none", "https://github.com/huggingface/diffusers/issues/5520"),
    Kind("file-truncated", "network", "none", "https://github.com/invoke-ai/InvokeAI/issues/7009"),
    Kind("folder-incomplete", "network", "none", "https://github.com/huggingface/diffusers/blob/main/src/diffusers/configuration_utils.py"),
    Kind("file-unreadable", "network", "none", "https://docs.python.org/3/library/exceptions.html#os-exceptions"),
    Kind("encoding", "platform-unsupported", "restart", "https://docs.python.org/3/library/os.html#python-utf-8-mode"),
)

# errno of Linux and macOS, GetLastError of Windows.
_POSIX = {28: "disk-full", 122: "disk-quota", 69: "disk-quota", 30: "read-only", 36: "path-too-long", 63: "path-too-long", 13: "permission",
          1: "permission", 16: "file-in-use", 26: "file-in-use", 2: "file-missing"}  # fmt: skip
_WINDOWS = {112: "disk-full", 39: "disk-full", 19: "read-only", 206: "path-too-long", 1314: "symlink-right", 32: "file-in-use",
            33: "file-in-use", 5: "permission", 2: "file-missing", 3: "file-missing", 225: "virus-scanner"}  # fmt: skip
_SAID = (
    ("disk-full", lazy(r"No space left on device|not enough (?:free disk )?space (?:on the disk|to download)", re.IGNORECASE)),
    ("disk-quota", lazy(r"Disk quota exceeded", re.IGNORECASE)),
    ("read-only", lazy(r"Read-only file system", re.IGNORECASE)),
    ("file-in-use", lazy(r"being used by another process", re.IGNORECASE)),
    ("files-open", lazy(r"Too many open files", re.IGNORECASE)),
    ("file-missing", lazy(r"FileNotFoundError|No such file or directory", re.IGNORECASE)),
    ("permission", lazy(r"PermissionError|Permission denied:|Access is denied", re.IGNORECASE)),
)
_NEEDED = lazy(r"expected file size is: (?P<needed>[\d.]+ MB)")
_OURS = lazy(
    r"(?i)models?\b|models--|cache|hugging|\bhub\b|site-packages|venv|stable[-_ ]?diffusion|sdnext|diffusers|text_encoder|transformer"
    r"|tokenizer|\bvae"
    r"|comfy|webui|extensions|outputs?\b|\.(?:safetensors|gguf|ckpt|pth|pt|bin|incomplete|lock)\b|-\d{5}-of-\d{5}"
)
_OF_MODEL = lazy(
    r"(?i)(?:text_encoder|transformer|tokenizer|\bvae|models--|-\d{5}-of-\d{5}).*\.(?:safetensors|json|model)\b"
    r"|models[\\/].*\.(?:safetensors|sft|gguf)\b"
)
_NO_WEIGHTS = lazy(
    r"(?i)Header ?Too ?(?:Large|Small)|InvalidHeader\w*|invalid header\b|invalid load key|having git-lfs|is not a (?:valid )?(?:zip"
    r"|safetensors|checkpoint) file"
)
_CUT = lazy(
    r"(?i)MetadataIncompleteBuffer|incomplete metadata|InvalidOffset|invalid offset|not fully covered|PytorchStreamReader failed"
    r"|unexpected EOF|Ran out of input|central directory|file is (?:truncated|corrupt)|storage has wrong (?:byte )?size|Truncated File Read"
)
_WEIGHTS = frozenset(("SafetensorError", "UnpicklingError", "BadZipFile", "EOFError", "RuntimeError", "OSError", "ValueError"))
_OS_ERRORS = frozenset(
    ("OSError", "EnvironmentError", "IOError", "FileNotFoundError", "NotADirectoryError", "IsADirectoryError", "FileExistsError")
)
_UNNAMED = {"read-only": "that folder", "virus-scanner": "a file"}
_LOADERS = ("diffusers", "transformers", "huggingface_hub", "safetensors", "accelerate", "peft", "tokenizers")
_PYTHON_CODE = lazy(r"\.pyd['\"]|\.dll['\"]|attempting to bind", re.IGNORECASE)
_LACKS = lazy(
    r"(?i)no file named (?P<file>[\w.-]{1,100})(?:(?:, or |, "
    r"| or )[\w.-]{1,100}){0,9},? found in directory(?: (?P<folder>.{1,300}?)\.?(?=['\")]|\s*$|\. ))?"
    r"|(?<![\w./\\:-])(?P<folder2>[\w./\\:-]{1,300}) does not appear to have a file named (?P<file2>[\w./-]*\w)"
)
_WEIGHTS_FILE = lazy(r"SafetensorError|checkpoint file|\.(?:safetensors|sft|gguf|ckpt|pth?|bin)\b", re.IGNORECASE)
_CODEC = lazy(r"['\"](?P<codec>[\w-]+)['\"] codec can't (?:de|en)code")


def judge(failure: Failure, seen: Seen) -> Verdict | None:
    """Which of them, and which file."""
    said = failure.said
    if not failure.failed and not _NEEDED.search(said):
        return None
    if lacks := _LACKS.search(said):
        return _lacking(lacks["file"] or lacks["file2"], lacks["folder"] or lacks["folder2"] or "of the model")
    codec = _CODEC.search(said)
    if not codec or _WEIGHTS_FILE.search(said):  # who can not read weights looks whether they are text
        if _NO_WEIGHTS.search(said):
            return Verdict(KINDS["file-not-weights"])
        if _CUT.search(said):
            return Verdict(KINDS["file-truncated"])
    ours = failure.tops[-1:] and failure.tops[-1] in _LOADERS
    if codec and codec["codec"].lower() in ("utf-8", "utf8") and ours and failure.last:  # was read as it should be: it is damaged
        return Verdict(KINDS["file-unreadable"], {"error": failure.last.text[:300]})
    if codec:
        return Verdict(KINDS["encoding"], {"codec": codec["codec"]})
    kind = (_WINDOWS if failure.windows else _POSIX).get(failure.errno, "") or next((kind for kind, one in _SAID if one.search(said)), "")
    if failure.errno and "os error" in said:  # of Rust, which says neither whose it is
        kind = {**_WINDOWS, **_POSIX}.get(failure.errno, "") if failure.errno < 32 else _WINDOWS.get(failure.errno, kind)
        kind = "" if failure.errno == 19 and not failure.windows else kind  # a disk that can not be mapped, elsewhere
    if kind:
        return _placed("path-too-long" if "Long Path support" in said else kind, failure, seen)
    if failure.types & _OS_ERRORS and failure.last and (ours or any(map(_OURS.search, failure.paths))):
        return Verdict(KINDS["file-unreadable"], {"error": failure.last.text[:300]})
    return None


def _lacking(file: str, folder: str) -> Verdict:
    """What transformers calls its weights is that of a text encoder; the transformer and the VAE have diffusion_pytorch_model."""
    encoder = re.match(r"(?:model|pytorch_model)\b", file)
    said = Advice(cause="missing-text-encoder", sentence="rule.folder-incomplete.encoder") if encoder else Advice()
    return Verdict(KINDS["folder-incomplete"], {"file": file, "folder": folder}, said)


def _placed(kind: str, failure: Failure, seen: Seen) -> Verdict | None:
    """The path decides whether it is any of ours: what was being installed, a model, a cache; another program's is not."""
    path = next((one for one in failure.paths if _OURS.search(one)), next(iter(failure.paths), ""))
    values = {"path": path or _UNNAMED.get(kind, "a file of the model"), "file": path, "needed": ""}
    held = "site-packages" in path and failure.windows and kind in ("permission", "file-in-use")
    if held or "Could not install packages" in failure.said:
        if held:
            locked = advice.locked({"file": path}, seen)
            return Verdict(KINDS["pip-locked"], {}, locked) if locked else None
        return Verdict(KINDS["pip-not-allowed" if kind == "permission" else kind], values)
    if kind == "files-open":
        return Verdict(KINDS[kind])
    if kind == "file-missing":
        return Verdict(KINDS[kind], values) if _OF_MODEL.search(path) else None
    if (path and not _OURS.search(path)) or (kind in ("permission", "file-in-use") and _PYTHON_CODE.search(failure.said)):
        return None
    needed = _NEEDED.search(failure.said)
    sentence = Advice(sentence="rule.disk-full.needed") if kind == "disk-full" and needed else Advice()
    return Verdict(KINDS[kind], {**values, "needed": needed["needed"] if needed else ""}, sentence)
