"""One job: the parameters, the order of hooks, the result."""

import json
import os
import random

import numpy as np
from PIL import Image, PngImagePlugin

from modules import devices, paths, script_callbacks, sd_models, shared
from modules.logger import log
from modules.processing_class import (  # noqa: F401
    StableDiffusionProcessing,
    StableDiffusionProcessingControl,
    StableDiffusionProcessingImg2Img,
    StableDiffusionProcessingTxt2Img,
)
from modules.processing_info import create_infotext
from modules.scripts_manager import PostprocessBatchListArgs, PostprocessImageArgs

VAE_SCALE = 16  # 8 of the VAE times the patch size 2 of SD3


class Processed:
    def __init__(self, p, images_list, seed=-1, info=None, infotexts=None, comments="", **ignored):
        self.images, self.info, self.infotexts, self.comments = images_list, info or "", infotexts or [], comments
        self.prompt, self.negative_prompt, self.seed = p.prompt, p.negative_prompt, seed
        self.width, self.height, self.steps, self.cfg_scale = p.width, p.height, p.steps, p.cfg_scale
        self.sampler_name, self.extra_generation_params = p.sampler_name, p.extra_generation_params
        self.sd_model_hash = getattr(shared.sd_model, "sd_model_hash", "")
        self.job_timestamp = shared.state.job_timestamp

    def js(self):
        return json.dumps({name: value for name, value in vars(self).items() if name not in ("images", "info", "comments")}, default=str)


def process_images(p):
    """Run a job under the lock that the caller holds. Settings given with the job are set without their callbacks."""
    if shared.sd_model is None or not hasattr(shared.sd_model, "sd_checkpoint_info"):
        log.warning("Aborted: op=process model not loaded")
        return None
    if p.abort:
        log.debug("Processing: aborted")
        return None
    if p.scripts is not None:
        p.scripts.before_process(p)
    for key, value in list(p.override_settings.items()):
        if (key in shared.opts.data or key in shared.opts.data_labels) and getattr(shared.opts, key, None) == value:
            p.override_settings.pop(key)
    stored = {key: getattr(shared.opts, key, None) for key in p.override_settings}
    try:
        for key, value in p.override_settings.items():
            setattr(shared.opts, key, value)
            if key == "sd_model_checkpoint":
                sd_models.reload_model_weights()
        for side in ("width", "height"):
            if getattr(p, side) is not None:
                setattr(p, side, VAE_SCALE * int(getattr(p, side) / VAE_SCALE))
        script_callbacks.before_process_callback(p)
        return process_images_inner(p)
    finally:
        script_callbacks.after_process_callback(p)
        if p.override_settings_restore_afterwards:
            for key, value in stored.items():
                setattr(shared.opts, key, value)
                if key == "sd_model_checkpoint":
                    sd_models.reload_model_weights()


def process_init(p):
    count = p.batch_size * p.n_iter
    seed = int(p.seed) if p.seed is not None and int(p.seed) >= 0 else random.randrange(2**32)
    p.all_prompts = p.all_prompts or [p.prompt] * count
    p.all_negative_prompts = p.all_negative_prompts or [p.negative_prompt] * count
    p.all_seeds = p.all_seeds or [seed + number for number in range(count)]
    p.all_subseeds = p.all_subseeds or list(p.all_seeds)


def process_images_inner(p):
    infotexts, output = [], []
    process_init(p)
    scripts = p.scripts
    if scripts is not None:
        scripts.process(p)
    job = shared.state.begin("Process")
    with devices.inference_context():
        p.init(p.all_prompts, p.all_seeds, p.all_subseeds)
        for n in range(p.n_iter):
            p.iteration = n
            if shared.state.interrupted:
                break
            part = slice(n * p.batch_size, (n + 1) * p.batch_size)
            p.prompts, p.negative_prompts, p.seeds = p.all_prompts[part], p.all_negative_prompts[part], p.all_seeds[part]
            batch = {"batch_number": n, "prompts": p.prompts, "seeds": p.seeds, "subseeds": p.all_subseeds[part]}
            samples = None
            if scripts is not None:
                scripts.before_process_batch(p, **batch)
                scripts.process_batch(p, **batch)
                replaced = scripts.process_images(p)
                samples = replaced.images if replaced is not None else None
            if samples is None:
                from modules.processing_diffusers import process_diffusers

                samples = process_diffusers(p)
            if shared.state.interrupted:
                break
            if scripts is not None:
                scripts.postprocess_batch(p, samples, batch_number=n)
                listed = PostprocessBatchListArgs(list(samples))
                scripts.postprocess_batch_list(p, listed, batch_number=n)
                samples = listed.images
            for index, image in enumerate(samples):
                p.batch_index = index
                if p.detailer_enabled:
                    image = Image.fromarray(shared.detailer.restore(np.array(image), p))
                if scripts is not None:
                    holder = PostprocessImageArgs(image)
                    scripts.postprocess_image(p, holder)
                    image = holder.image if holder.image is not None else image
                infotexts.append(create_infotext(p, index=n * p.batch_size + index))
                image.info["parameters"] = infotexts[-1]
                save_image(image, p, infotexts[-1])
                output.append(image)
            if shared.state.interrupted:  # by a job inside of this one
                break
        shared.sd_model = sd_models.set_diffuser_pipe(shared.sd_model, sd_models.DiffusersTaskType.TEXT_2_IMAGE)
    results = Processed(p, output, seed=p.all_seeds[0], info=infotexts[0] if infotexts else "", infotexts=infotexts)
    if scripts is not None and not (shared.state.interrupted or shared.state.skipped):
        scripts.postprocess(p, results)
    log.info(f"Processed: images={len(output)} ops={p.ops}")
    shared.state.end(job)
    return results


def write_image(image, target, text):
    """Encode in the format of the setting; the parameters go into a PNG's text or into the EXIF comment of the others."""
    kind = {"jpg": "JPEG"}.get(shared.opts.samples_format, shared.opts.samples_format.upper())
    if kind == "PNG":
        info = PngImagePlugin.PngInfo()
        info.add_text("parameters", text)
        image.save(target, kind, pnginfo=info)
    else:
        exif = Image.Exif()
        exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + text.encode("utf-16-be")  # Exif IFD, UserComment
        image.convert("RGB").save(target, kind, quality=90, exif=exif)


def save_image(image, p, text):
    if p.do_not_save_samples or not shared.opts.samples_save:
        return
    folder = paths.resolve_output_path(shared.opts.outdir_samples, p.outpath_samples)
    os.makedirs(folder, exist_ok=True)
    number = len(os.listdir(folder))
    write_image(image, os.path.join(folder, f"{number:05}-{p.seeds[p.batch_index]}.{shared.opts.samples_format}"), text)
