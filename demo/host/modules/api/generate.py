"""Images for requests. The lock is held for the whole job."""

import base64
import io

from fastapi import HTTPException
from PIL import Image

from modules import processing, scripts_manager, sd_samplers, shared
from modules.api import models, script


def decode_image(text):
    return Image.open(io.BytesIO(base64.b64decode(text.split(",", 1)[-1])))


def encode_image(image):
    buffer = io.BytesIO()
    processing.write_image(image, buffer, image.info.get("parameters", ""))
    return base64.b64encode(buffer.getvalue()).decode()


class APIGenerate:
    def __init__(self, queue_lock):
        self.queue_lock = queue_lock
        self.defaults = {}

    def post_text2img(self, request: models.ReqTxt2Img):
        return self._run(request, scripts_manager.scripts_txt2img, processing.StableDiffusionProcessingTxt2Img, "API-TXT")

    def post_img2img(self, request: models.ReqImg2Img):
        if request.init_images is None:
            raise HTTPException(status_code=400, detail="Init image is none")
        return self._run(request, scripts_manager.scripts_img2img, processing.StableDiffusionProcessingImg2Img, "API-IMG")

    def _run(self, request, runner, kind, title):
        if runner.name not in self.defaults:
            self.defaults[runner.name] = script.init_default_script_args(runner)
        selected = script.find(request.script_name, runner.selectable_scripts)
        if request.sampler_name not in sd_samplers.all_samplers_map:
            raise HTTPException(status_code=404, detail="Sampler not found")
        args = request.model_dump(exclude={"script_name", "script_args", "alwayson_scripts", "send_images", "save_images"})
        with self.queue_lock:
            p = kind(sd_model=shared.sd_model, do_not_save_samples=not request.save_images, **args)
            if args.get("init_images"):
                p.init_images = [decode_image(image) for image in args["init_images"]]
            p.scripts = runner
            job = shared.state.begin(title, api=True)
            script_args = script.init_script_args(p, request, self.defaults[runner.name], selected, runner)
            p.script_args = tuple(script_args)
            processed = runner.run(p, *script_args) if selected is not None else processing.process_images(p)
            processed = runner.after(p, processed, *script_args)
            p.close()
            shared.state.end(job, api=False)
        images = [encode_image(image) for image in processed.images] if processed is not None and request.send_images else []
        parameters = request.model_dump(exclude={"init_images"})
        return models.ResTxt2Img(images=images, parameters=parameters, info=processed.js() if processed is not None else "")
