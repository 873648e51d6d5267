"""The parameters of one job, as hooks of extensions see and change them."""

import inspect
from dataclasses import dataclass

from modules import sd_models, shared


@dataclass(repr=False)  # so that two of one class are equal, and none can be a key
class StableDiffusionProcessing:
    def __init__(
        self, sd_model=None, prompt="", negative_prompt="", seed=-1, subseed=-1, steps=20, width=1024, height=1024, cfg_scale=6.0,
        sampler_name="Default", batch_size=1, n_iter=1, styles=None, clip_skip=1, denoising_strength=0.3, do_not_save_samples=False,
        do_not_save_grid=False, outpath_samples="", override_settings=None, override_settings_restore_afterwards=True,
        enable_hr=False, hr_scale=2.0, hr_resize_x=0, hr_resize_y=0, hr_denoising_strength=0.0, hr_upscaler="None", hr_force=False,
        hr_resize_mode=0, hr_sampler_name=None, hr_second_pass_steps=0, resize_mode=0, scale_by=1.0, image_mask=None,
        inpaint_full_res=False, detailer_enabled=False, detailer_steps=10, detailer_strength=0.3, detailer_resolution=1024,
        refiner_prompt="", init_images=None, extra_generation_params=None, prompt_attention=None, **ignored,
    ):  # fmt: skip
        self.sd_model = sd_model
        self.prompt, self.negative_prompt, self.seed, self.subseed, self.steps = prompt, negative_prompt, seed, subseed, steps
        self.width, self.height, self.cfg_scale, self.sampler_name = width, height, cfg_scale, sampler_name
        self.batch_size, self.n_iter, self.styles, self.clip_skip = batch_size, n_iter, styles or [], clip_skip
        self.denoising_strength = denoising_strength
        self.do_not_save_samples, self.do_not_save_grid = do_not_save_samples, do_not_save_grid
        self.outpath_samples = outpath_samples or shared.opts.outdir_txt2img_samples
        self.override_settings = dict(override_settings or {})
        self.override_settings_restore_afterwards = override_settings_restore_afterwards
        self.enable_hr, self.hr_scale, self.hr_resize_x, self.hr_resize_y = enable_hr, hr_scale, hr_resize_x, hr_resize_y
        self.hr_denoising_strength, self.hr_upscaler, self.hr_force = hr_denoising_strength, hr_upscaler, hr_force
        self.hr_resize_mode, self.hr_sampler_name, self.hr_second_pass_steps = hr_resize_mode, hr_sampler_name, hr_second_pass_steps
        self.hr_upscale_to_x = self.hr_upscale_to_y = 0
        self.resize_mode, self.scale_by, self.image_mask, self.inpaint_full_res = resize_mode, scale_by, image_mask, inpaint_full_res
        self.detailer_enabled, self.detailer_steps = detailer_enabled, detailer_steps
        self.detailer_strength, self.detailer_resolution = detailer_strength, detailer_resolution
        self.refiner_prompt = refiner_prompt
        self.prompt_attention = prompt_attention
        self.init_images = init_images
        self.extra_generation_params = dict(extra_generation_params or {})
        self.abort = False
        self.is_control = False
        self.xyz = False
        self.ops = []
        self.scripts = None
        self.script_args = ()
        self.per_script_args = {}
        self.iteration = self.batch_index = 0
        self.prompts, self.negative_prompts, self.seeds = [], [], []
        self.all_prompts, self.all_negative_prompts, self.all_seeds, self.all_subseeds = [], [], [], []
        self.task_args = {}

    def init(self, all_prompts=None, all_seeds=None, all_subseeds=None):
        self.width, self.height = self.width or 1024, self.height or 1024

    def init_hr(self):
        """The size of the second pass: a factor, or one or both of its sides."""
        x, y = self.hr_resize_x, self.hr_resize_y
        if not x and not y:
            x, y = self.width * self.hr_scale, self.height * self.hr_scale
        self.hr_upscale_to_x, self.hr_upscale_to_y = int(x or y * self.width // self.height), int(y or x * self.height // self.width)

    def close(self):
        self.scripts = None


class StableDiffusionProcessingTxt2Img(StableDiffusionProcessing):
    def init(self, all_prompts=None, all_seeds=None, all_subseeds=None):
        StableDiffusionProcessing.init(self, all_prompts, all_seeds, all_subseeds)
        self.ops.append("txt2img")
        shared.sd_model = sd_models.set_diffuser_pipe(shared.sd_model, sd_models.DiffusersTaskType.TEXT_2_IMAGE)


class StableDiffusionProcessingImg2Img(StableDiffusionProcessing):
    def init(self, all_prompts=None, all_seeds=None, all_subseeds=None):
        if self.init_images:
            self.width = self.width or int(16 * (self.init_images[0].width * self.scale_by // 16))
            self.height = self.height or int(16 * (self.init_images[0].height * self.scale_by // 16))
        StableDiffusionProcessing.init(self, all_prompts, all_seeds, all_subseeds)
        self.ops.append("img2img")
        shared.sd_model = sd_models.set_diffuser_pipe(shared.sd_model, sd_models.DiffusersTaskType.IMAGE_2_IMAGE)
        self.init_images = [image.convert("RGB") for image in self.init_images or []]
        self.image_mask = self.image_mask[0] if isinstance(self.image_mask, list) else self.image_mask
        if self.resize_mode > 0:
            self.init_images = [image.resize((self.width, self.height)) for image in self.init_images]


class StableDiffusionProcessingControl(StableDiffusionProcessingImg2Img):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.is_control = True

    def init(self, all_prompts=None, all_seeds=None, all_subseeds=None):
        kind = StableDiffusionProcessingImg2Img if self.init_images else StableDiffusionProcessingTxt2Img
        kind.init(self, all_prompts, all_seeds, all_subseeds)


def switch_class(p, new_class, dct=None):
    """Make a job one of another class: the same object, initialized anew from what is in it, then changed as `dct` says."""
    values = vars(p).copy()
    p.__class__ = new_class
    p.__init__(**{name: value for name, value in values.items() if name in inspect.signature(StableDiffusionProcessing).parameters})
    for name, value in (dct or {}).items():
        if hasattr(p, name):
            setattr(p, name, value)
    return p
