"""Control: all frames of a video in one press, one object for all. Without a control model each is made as in txt2img or img2img."""

from PIL import Image, ImageSequence

from modules import devices, errors, processing, scripts_manager, shared
from modules.api import script
from modules.logger import log


def control_run(
    state="", units=None, inputs=None, inits=None, mask=None, unit_type=None, is_generator=True, input_type=0, prompt="",
    negative_prompt="", styles=None, steps=20, sampler_index=None, seed=-1, cfg_scale=6.0, denoising_strength=0.3, width_before=1024,
    height_before=1024, batch_count=1, batch_size=1, *input_script_args, **ignored,
):  # fmt: skip
    p = processing.StableDiffusionProcessingControl(
        prompt=prompt, negative_prompt=negative_prompt, styles=styles, steps=steps, seed=seed, cfg_scale=cfg_scale,
        denoising_strength=denoising_strength, width=width_before, height=height_before, n_iter=batch_count, batch_size=batch_size,
        outpath_samples=shared.opts.outdir_control_samples,
    )  # fmt: skip
    output = []
    try:
        with devices.inference_context():
            frames = isinstance(inputs, str)  # a path
            for image in [frame.convert("RGB") for frame in ImageSequence.Iterator(Image.open(inputs))] if frames else inputs or [None]:
                if shared.state.interrupted:
                    break
                if image is not None:
                    p.width, p.height, p.init_images = image.width, image.height, [image]
                    p.ops.append("img2img")
                p.scripts = scripts_manager.scripts_control
                p.script_args = input_script_args or tuple(script.init_default_script_args(p.scripts))
                processed = p.scripts.run(p, *p.script_args) or processing.process_images(p)
                processed = p.scripts.after(p, processed, *p.script_args)
                made = (processed.images if processed is not None else None) or []
                output += made
                yield None, None, ""
                if made and not frames:  # the pipeline is used up: of several pictures only the first one is made
                    break
    except Exception as e:
        log.error(f"Control: {e}")
        errors.display(e, "Control")
    p.close()
    yield output or None, None, f"<p>Ready | Images {len(output) or None}</p>", None
