"""Extensions that a user has beside this one, with the hooks that real ones have and nothing else. Off until a test switches one on.

Prompts: as sd-dynamic-prompts does it, `process` makes many prompts of one, with seeds of their own, and so more batches.
Details: as adetailer does it, `postprocess_image` makes the picture again by a job of its own, which is built anew and given to
`process_images`.
Around: a wrapper around process_images_inner, put in when it is loaded and taken out when a test says so.
"""

import functools

import sd3probe
from modules import modeldata, processing, scripts, sd_models, shared
from PIL import Image


def switched(name):
    return sd3probe.switches.get(name)


class Prompts(scripts.Script):
    def title(self):
        return "SD3 probe, prompts"

    def show(self, is_img2img):
        return scripts.AlwaysVisible

    def ui(self, is_img2img):
        import gradio as gr

        return [gr.Checkbox(label="Prompts", elem_id=self.elem_id("prompts"))]

    def process(self, p, *args):
        words = switched("prompts")
        if not words or getattr(p, "made_by_details", False):
            return
        count = len(words)
        p.n_iter = -(-count // p.batch_size)
        p.all_prompts = [f"{p.prompt} {word}" for word in words]
        p.all_negative_prompts = [p.negative_prompt] * count
        p.all_seeds = [int(p.seed) + number for number in range(count)]
        p.all_subseeds = list(p.all_seeds)
        p.prompt_for_display = p.prompt


class Details(scripts.Script):
    def title(self):
        return "SD3 probe, details"

    def show(self, is_img2img):
        return scripts.AlwaysVisible

    def ui(self, is_img2img):
        import gradio as gr

        return [gr.Checkbox(label="Details", elem_id=self.elem_id("details"))]

    def postprocess_image(self, p, pp, *args):
        size = switched("details")
        if not size or getattr(p, "made_by_details", False):
            return
        again = processing.StableDiffusionProcessingImg2Img(
            sd_model=shared.sd_model, init_images=[pp.image.resize((size, size))], prompt=p.prompt, negative_prompt=p.negative_prompt,
            seed=p.seed, steps=2, width=size, height=size, cfg_scale=p.cfg_scale, sampler_name=p.sampler_name, denoising_strength=0.5,
            batch_size=1, n_iter=1, do_not_save_samples=True, do_not_save_grid=True, resize_mode=1,
        )  # fmt: skip
        again.made_by_details = True
        again.scripts, again.script_args = p.scripts, p.script_args
        made = processing.process_images(again)
        if made is not None and made.images:
            pp.image = made.images[0].resize(pp.image.size, Image.Resampling.LANCZOS)
            p.extra_generation_params["Details"] = f"{size}"
        again.close()


class Meddler(scripts.Script):
    """Sets processors, and loads the model or another text encoder in the middle of a job."""

    def title(self):
        return "SD3 probe, meddler"

    def show(self, is_img2img):
        return scripts.AlwaysVisible

    def ui(self, is_img2img):
        import gradio as gr

        return [gr.Checkbox(label="Meddler", elem_id=self.elem_id("meddler"))]

    def before_process(self, p, *args):
        if switched("reload") == "before_process":
            sd_models.reload_model_weights(force=True)

    def process(self, p, *args):
        if switched("reload") == "process":
            sd_models.reload_model_weights(force=True)
        if switched("reload") == "text encoder":
            sd_models.reload_text_encoder()

    def before_process_batch(self, p, *args, **kwargs):
        kind = switched("processors")
        if kind:
            from diffusers.models import attention_processor

            modeldata.model_data.sd_model.transformer.set_attn_processor(getattr(attention_processor, kind)())


below = processing.process_images_inner  # what was there when it was loaded


@functools.wraps(below)
def around(p, *args, **kwargs):
    sd3probe.note("around")
    return below(p, *args, **kwargs)


processing.process_images_inner = around
sd3probe.take_away = lambda: setattr(processing, "process_images_inner", below)
