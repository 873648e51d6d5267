"""A folder of pictures in one press: one object for all of them, its size and picture set anew for each."""

import os

from PIL import Image

from modules import errors, processing, scripts_manager, shared
from modules.logger import log


def process_batch(p, input_files, input_dir, output_dir, inpaint_mask_dir, args):
    files = [file.name for file in input_files or []] or [os.path.join(input_dir, name) for name in sorted(os.listdir(input_dir))]
    p.do_not_save_grid = p.do_not_save_samples = True
    p.n_iter = 1
    for number, file in enumerate(files):
        if shared.state.interrupted:
            break
        image = Image.open(file)
        p.width, p.height = int(image.width * p.scale_by), int(image.height * p.scale_by)
        p.all_prompts = p.all_negative_prompts = p.all_seeds = p.all_subseeds = None
        p.init_images = [image]
        try:
            processed = scripts_manager.scripts_img2img.run(p, *args) or processing.process_images(p)
        except Exception as e:
            log.error(f"Process batch: {e}")
            errors.display(e, "batch")
            processed = None
        if processed is None or not processed.images:
            log.warning(f"Process batch: i={number + 1}/{len(files)} no images processed")
            continue
        os.makedirs(output_dir, exist_ok=True)
        for index, made in enumerate(processed.images):
            made.save(os.path.join(output_dir, f"{number:05}-{index}.png"))
