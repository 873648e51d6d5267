"""The facts that the guards decide on: what is to be generated, with which model. Plain values, gathered by whoever knows the host."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sd3deploy.errors import SettingError
from sd3deploy.nearest import nearest

__all__ = ["MODELS", "Hires", "Job", "Misfit", "Model", "Prompt", "describe_model", "known"]


@dataclass(frozen=True)
class Model:
    """What decides about sizes. patch_size: latents; vae_scale: px for each latent; pos_embed_max_size: patches;
    sample_size: latents on the edge of the square that the model was trained on. All as in the configuration of the transformer.
    """

    name: str
    patch_size: int = 2
    vae_scale: int = 8
    pos_embed_max_size: int = 192
    sample_size: int = 128
    turbo: bool = False

    @property
    def grid(self) -> int:
        """Both sides are multiples of this, in px."""
        return self.patch_size * self.vae_scale

    @property
    def limit(self) -> int:
        """The longest side in px: further out there are no position embeddings."""
        return self.pos_embed_max_size * self.grid

    @property
    def trained(self) -> int:
        """The side in px of the square that the model was trained on."""
        return self.sample_size * self.vae_scale


# transformer/config.json of stabilityai/stable-diffusion-3-medium-diffusers, -3.5-medium, -3.5-large and -3.5-large-turbo. For models
# that are not loaded; the facts of a loaded one are read off it.
MODELS = {
    model.name: model
    for model in (
        Model("sd3-medium"),
        Model("sd3.5-medium", pos_embed_max_size=384),
        Model("sd3.5-large"),
        Model("sd3.5-large-turbo", turbo=True),
    )
}


def known(name: str) -> Model:
    """The published model of that name. Raises SettingError that suggests the nearest one."""
    if found := MODELS.get(name.strip().lower()):
        return found
    raise SettingError("setting.model-unknown", value=repr(name)[:60], nearest=nearest(name, MODELS), known=", ".join(MODELS))


def describe_model(pipeline: Any, name: str) -> Model:
    """The facts of a loaded SD3 pipeline. Nothing but the name tells a distilled model from its teacher."""
    config = pipeline.transformer.config
    return Model(
        name=name,
        patch_size=config.patch_size,
        vae_scale=getattr(pipeline, "vae_scale_factor", 8),
        pos_embed_max_size=config.pos_embed_max_size,
        sample_size=config.sample_size,
        turbo="turbo" in name.lower(),
    )


@dataclass(frozen=True)
class Hires:
    """A second pass at another size: `scale` times the first one, or the sides in px where they are not 0. latent: whether latents are
    enlarged, which keeps their shape, instead of pictures.
    """

    scale: float = 1.0
    width: int = 0
    height: int = 0
    latent: bool = False

    def size(self, width: int, height: int) -> tuple[int, int]:
        """The size of the pass in px, as the host computes it (its processing_class.init_hr, image/resize.py and upscaler_simple.py)."""
        if not self.width and not self.height:
            wide, high = int(width * self.scale), int(height * self.scale)
        else:
            wide, high = self.width or int(self.height * width // height), self.height or int(self.width * height // width)
        if not self.latent:
            return wide, high
        latents = width // 8, height // 8
        factor = max(1.0, wide // 8 / latents[0], high // 8 / latents[1])
        return 8 * int(8 * latents[0] * factor // 8), 8 * int(8 * latents[1] * factor // 8)


@dataclass(frozen=True)
class Prompt:
    """How many tokens each kind of text encoder makes of a prompt, its marks included (at most that many, where
    that is below the limits), and the text beyond its limit.

    negative: whether it is the negative prompt. t5: None where there is no T5.
    """

    negative: bool
    clip: int
    clip_limit: int
    clip_rest: str = ""
    t5: int | None = None
    t5_limit: int = 256
    t5_rest: str = ""


@dataclass(frozen=True)
class Misfit:
    """An attention layer with a processor that does not fit. path: of the layer in the pipeline, "transformer.transformer_blocks.0.attn".
    processor, module: name of its class and where that class comes from.
    """

    path: str
    processor: str
    module: str


@dataclass(frozen=True)
class Job:
    """What is asked for. Sizes, steps and guidance are as they came: from a request they may be anything.

    default: the sides in px that the host takes where one is 0 or None. not_flow: those of the samplers that do not match flows.
    misfits: see Misfit. attention_setting: the host's attention method, "" where that is not known.
    """

    model: Model
    width: Any = None
    height: Any = None
    default: tuple[int, int] = (1024, 1024)
    hires: Hires | None = None
    hires_width: int = 0
    hires_height: int = 0
    sampler: str = "Default"
    hires_sampler: str = "Default"
    not_flow: frozenset[str] = frozenset()
    steps: Any = 20
    guidance: Any = 6.0
    t5: bool = True
    prompts: tuple[Prompt, ...] = ()
    prompt_attention: str = "native"
    misfits: tuple[Misfit, ...] = ()
    attention_setting: str = ""
