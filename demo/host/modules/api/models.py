"""Bodies of requests and answers."""

from typing import Any

from pydantic import BaseModel, Field


class ReqTxt2Img(BaseModel):
    prompt: str | None = ""
    negative_prompt: str | None = ""
    seed: int = -1
    steps: int = 20
    width: int | None = 1024
    height: int | None = 1024
    cfg_scale: float = 6.0
    sampler_name: str | None = "Default"
    batch_size: int = 1
    n_iter: int = 1
    denoising_strength: float = 0.3
    enable_hr: bool = False
    hr_scale: float = 2.0
    hr_resize_x: int = 0
    hr_resize_y: int = 0
    hr_force: bool = False
    hr_resize_mode: int = 0
    hr_upscaler: str = "None"
    hr_denoising_strength: float = 0.0
    hr_sampler_name: str | None = None
    prompt_attention: str | None = None
    resize_mode: int = 0
    scale_by: float = 1.0
    detailer_enabled: bool = False
    detailer_steps: int = 10
    detailer_strength: float = 0.3
    detailer_resolution: int = 1024
    override_settings: dict[str, Any] = Field(default_factory=dict)
    override_settings_restore_afterwards: bool = True
    script_name: str | None = ""
    script_args: list = Field(default_factory=list)
    send_images: bool = True
    save_images: bool = False
    alwayson_scripts: dict[str, Any] = Field(default_factory=dict)


class ReqImg2Img(ReqTxt2Img):
    init_images: list[str] | None = None
    denoising_strength: float = 0.5


class ResTxt2Img(BaseModel):
    images: list[str] | None
    parameters: dict
    info: str


class ReqPostLog(BaseModel):
    message: str | None = None
    debug: str | None = None
    error: str | None = None
