"""What a check can find: failures that are seen on this machine, not read from a text, so that there is nothing to match."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from sd3deploy.diagnosis.finding import Finding, finding
from sd3deploy.diagnosis.rule import Advice, Kind

__all__ = ["SEEN", "rule", "seen"]


_PIP = "https://pip.pypa.io/en/stable/cli/pip_install/"
_SAFETENSORS = "https://huggingface.co/docs/safetensors/index#format"
_HUB = "https://huggingface.co/docs/huggingface_hub/guides/manage-cache"
_SDNEXT = "https://github.com/vladmandic/sdnext/issues/"

_RULES = (
    # environment
    Kind("python-unsupported", "version-too-old", "none", "https://vladmandic.github.io/sdnext-docs/Installation/"),
    Kind("no-virtual-environment", "wrong-interpreter", "none", "https://docs.python.org/3/library/venv.html"),
    Kind("disk-low", "disk-full", "none", "https://huggingface.co/stabilityai/stable-diffusion-3-medium-diffusers/tree/main"),
    Kind("no-permission", "permission", "none", "https://docs.python.org/3/library/os.html#os.access"),
    # packages
    Kind("package-missing", "missing-package", "install", _PIP),
    Kind("package-too-old", "version-too-old", "install", _PIP),
    Kind("package-too-new", "version-too-new", "install", _PIP),
    Kind("package-mixed", "mixed-package-files", "install", f"{_SDNEXT}3281"),
    Kind("package-stale", "stale-availability", "restart", f"{_SDNEXT}3281"),
    Kind("package-clash", "version-too-old", "install", "https://packaging.python.org/en/latest/specifications/dependency-specifiers/"),
    Kind("foreign-version", "foreign-downgrade", "install", f"{_SDNEXT}756"),
    # imports
    Kind("import-crash", "unknown", "none", "https://docs.python.org/3/library/faulthandler.html"),
    # device
    Kind("torch-without-gpu", "device-mismatch", "none", "https://pytorch.org/get-started/locally/"),
    Kind("driver-unusable", "device-mismatch", "none", "https://docs.nvidia.com/deploy/cuda-compatibility/"),
    Kind("device-broken", "device-mismatch", "none", "https://docs.nvidia.com/deploy/cuda-compatibility/"),
    Kind("bitsandbytes-native", "platform-unsupported", "setting", "https://huggingface.co/docs/bitsandbytes/installation"),
    Kind("encoder-unsuitable", "platform-unsupported", "setting", "https://huggingface.co/docs/bitsandbytes/installation"),
    # files
    Kind("file-truncated", "disk-full", "none", _SAFETENSORS),
    Kind("file-pointer", "network", "none", "https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md"),
    Kind("file-missing", "network", "none", _HUB),
    Kind("download-unfinished", "network", "none", _HUB),
    Kind("model-gated", "gated-access", "none", f"{_SDNEXT}3293"),
    Kind("encoder-missing", "missing-text-encoder", "none", f"{_SDNEXT}3260"),
    Kind("not-sd3", "unknown", "setting", "https://huggingface.co/docs/diffusers/api/pipelines/stable_diffusion/stable_diffusion_3"),
    Kind("memory-too-small", "out-of-memory", "setting", f"{_SDNEXT}3572"),
    # rehearsal
    Kind("image-black", "float16-overflow", "setting", "https://github.com/huggingface/diffusers/issues/8604"),
    Kind("process-ended", "unknown", "none", "https://docs.python.org/3/library/subprocess.html#subprocess.Popen.returncode"),
    Kind("process-killed", "out-of-memory", "none", "https://www.kernel.org/doc/gorman/html/understand/understand016.html"),
)
SEEN = {one.id: one for one in _RULES}


def rule(id: str) -> Kind:
    """The rule of that id. Raises KeyError for one that there is not: that is our bug."""
    return SEEN[id]


def seen(id: str, values: Mapping[str, object], advice: Advice | None = None, evidence: tuple[str, ...] = ()) -> Finding:
    """A finding of that id. Its words are `checks.rule.<id>`, unless the advice says which: some failures can be read in a log as well,
    which knows less of them.
    """
    advice = advice or Advice()
    return finding(rule(id), values, replace(advice, sentence=advice.sentence or f"checks.rule.{id}"), evidence)
