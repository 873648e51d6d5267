"""The call of the pipeline. What the pipeline refuses with a ValueError ends the job without an image and without a message."""

import torch

from modules import attention, devices, errors, prompt_parser_diffusers, sd_models, sd_samplers, shared
from modules.logger import log

orig_pipeline = shared.sd_model


def _arguments(p, pipe):
    args = {
        "num_inference_steps": p.steps,
        "guidance_scale": p.cfg_scale,
        "generator": [torch.Generator("cpu").manual_seed(seed) for seed in p.seeds],
        "output_type": "pil",
        "callback_on_step_end": _on_step,
    }
    args |= _prompts(p, pipe)
    if sd_models.get_diffusers_task(pipe) is sd_models.DiffusersTaskType.IMAGE_2_IMAGE:
        size = p.init_images[0].size
        if "hires" not in p.ops or not p.hr_upscaler.lower().startswith("latent"):
            size = [16 * -(-side // 16) for side in size]
        pictures = [image.resize(size) for image in p.init_images]
        return args | {"image": pictures, "strength": p.denoising_strength, "width": size[0], "height": size[1]}
    return args | {"width": p.width, "height": p.height}


def _prompts(p, pipe):
    """Encoded here, in pieces, or left to the pipeline, which cuts them: by choice, or when the parser fails."""
    parser = p.prompt_attention or shared.opts.prompt_attention
    if parser != "fixed":
        try:
            return prompt_parser_diffusers.encode(pipe, p.prompts, p.negative_prompts, parser)
        except Exception as e:
            log.error(f"Prompt parser encode: {e}")
    return {"prompt": p.prompts, "negative_prompt": p.negative_prompts}


def _on_step(pipe, step, timestep, values):
    shared.state.sampling_step += 1
    if shared.state.interrupted:
        raise AssertionError("Interrupted...")
    return values


def process_diffusers(p):
    global orig_pipeline
    orig_pipeline = shared.sd_model  # kept after the job, and with it whatever is in that pipeline
    if shared.state.interrupted or shared.state.skipped:
        return []
    pipe = shared.sd_model
    sd_samplers.create_sampler(p.sampler_name or "Default", pipe)
    if getattr(pipe, "current_attn_name", None) != shared.opts.cross_attention_optimization:
        attention.set_diffusers_attention(pipe)
    sd_models.apply_balanced_offload(pipe)
    sd_models.set_vae_options(pipe, op="decode")
    shared.state.update("Base", p.steps, 1)
    try:
        args = _arguments(p, pipe)
        images = pipe(**args).images
        if p.enable_hr and p.hr_force and (p.hr_denoising_strength or p.denoising_strength) > 0:
            images = _hires(p, images)
    except AssertionError as e:
        log.info(e)
        images = []
    except (ValueError, RuntimeError) as e:
        shared.state.interrupted = True
        log.error(f"Processing: {e}")
        errors.display(e, "Processing")
        images = []
    devices.torch_gc()
    shared.state.nextjob()
    return images


def _hires(p, images):
    """The second pass, at its own size: pictures are rounded up to multiples of 16, latents are not."""
    p.ops.append("hires")
    shared.sd_model = sd_models.set_diffuser_pipe(shared.sd_model, sd_models.DiffusersTaskType.IMAGE_2_IMAGE)
    p.init_hr()
    if p.hr_resize_mode > 0 and (p.hr_upscaler != "None" or p.hr_resize_mode == 5):
        size, now = (p.hr_upscale_to_x, p.hr_upscale_to_y), images[0].size
        if p.hr_upscaler.lower().startswith("latent"):  # the host enlarges latents: both sides by one factor
            factor = max(1.0, *(wanted // 8 / (side // 8) for wanted, side in zip(size, now, strict=True)))
            size = tuple(8 * int(8 * (side // 8) * factor // 8) for side in now)
        images = [image.resize(size) for image in images]
    p.init_images = images
    return shared.sd_model(**_arguments(p, shared.sd_model) | {"strength": p.hr_denoising_strength or p.denoising_strength}).images
