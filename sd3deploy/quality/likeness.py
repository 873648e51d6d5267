"""How like two pictures are: PSNR and SSIM, and where their packages and weights are on this disk LPIPS and the cosine of CLIP."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import mean as arithmetic_mean
from typing import TYPE_CHECKING

from sd3deploy import messages

if TYPE_CHECKING:
    import torch

__all__ = ["Measure", "mean", "measures", "worst"]

Measure = Callable[["torch.Tensor", "torch.Tensor"], float]  # of two pictures [1, 3, height, width], 0 to 1

_CLIP = ("ViT-B-32", "laion/CLIP-ViT-B-32-laion2B-s34B-b79K")  # the architecture as open_clip names it, and where its weights are from
_CLIP_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")


def measures() -> tuple[dict[str, Measure], list[str]]:
    """Those that can be computed here: name → measure; psnr in dB, infinite where the pictures are the same; ssim and clip, at most 1;
    lpips, 0 where they are the same. And why not the others, as sentences; lpips and open_clip are not missed. Nothing is downloaded.
    """
    found: dict[str, Measure] = {}
    notes = []
    for package, names, opened in (("torchmetrics", "PSNR, SSIM", _metrics), ("lpips", "LPIPS", _lpips), ("open_clip", "CLIP", _clip)):
        try:
            if importlib.util.find_spec(package) is not None:
                found |= opened()
            elif package == "torchmetrics":
                notes.append(messages.text("quality.likeness.no-package", names=names, package=package))
        except FileNotFoundError as missing:
            notes.append(messages.text("quality.likeness.no-weights", names=names, file=missing))
        except Exception as error:  # its text may hold a path, and the page is to be posted
            notes.append(messages.text("quality.likeness.failed", names=names, package=package, error=type(error).__name__))
    return found, notes


def mean(name: str, values: Iterable[float]) -> float:
    """Of one measure over several pictures; of PSNR that of the mean squared error over all of them, so that one that is the same does not
    make it infinite.
    """
    if name != "psnr":
        return arithmetic_mean(values)
    squared = arithmetic_mean(10 ** (-value / 10) for value in values)
    return -10 * math.log10(squared) if squared else math.inf


def worst(name: str, values: Iterable[float]) -> float:
    """Of the picture that is least like."""
    return max(values) if name == "lpips" else min(values)


def _metrics() -> dict[str, Measure]:
    from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

    def psnr(one: torch.Tensor, other: torch.Tensor) -> float:
        return float(peak_signal_noise_ratio(one, other, data_range=1.0))

    def ssim(one: torch.Tensor, other: torch.Tensor) -> float:
        found = structural_similarity_index_measure(one, other, data_range=1.0)
        assert not isinstance(found, tuple)  # as it is where the whole map is asked for
        return float(found)

    return {"psnr": psnr, "ssim": ssim}


def _lpips() -> dict[str, Measure]:
    import lpips
    import torch
    from torchvision.models import AlexNet_Weights

    file = AlexNet_Weights.IMAGENET1K_V1.url.rpartition("/")[2]
    if not Path(torch.hub.get_dir(), "checkpoints", file).is_file():  # lpips would download it
        raise FileNotFoundError(file)
    network = lpips.LPIPS(net="alex", verbose=False).eval()
    return {"lpips": lambda one, other: float(network(one * 2 - 1, other * 2 - 1))}


def _clip() -> dict[str, Measure]:
    import open_clip
    import torch
    from huggingface_hub import try_to_load_from_cache
    from PIL import Image

    name, repository = _CLIP
    files = (try_to_load_from_cache(repository, file) for file in _CLIP_FILES)
    file = next((file for file in files if isinstance(file, str)), None)
    if file is None:
        raise FileNotFoundError(repository)
    network, _, prepared = open_clip.create_model_and_transforms(name, pretrained=file)
    network.eval()

    def embedded(picture: torch.Tensor) -> torch.Tensor:
        pixels = (picture[0].permute(1, 2, 0) * 255).round().byte().numpy()
        return network.encode_image(prepared(Image.fromarray(pixels))[None])

    return {"clip": lambda one, other: float(torch.nn.functional.cosine_similarity(embedded(one), embedded(other)))}
