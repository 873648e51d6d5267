"""What is found in a finished picture is made once more, larger: a job inside of the job, of a copy of its object in another class."""

from copy import copy

import numpy as np
from PIL import Image

from modules import processing, processing_class, shared
from modules.logger import log


class DetailerResult:
    def __init__(self, cls, label, score, box, mask=None, item=None, width=0, height=0, args=None):
        self.cls, self.label, self.score, self.box, self.mask = cls, label, score, box, mask
        self.item, self.width, self.height, self.args = item, width, height, args or {}


class Detailer:
    """A model that finds something is loaded by `load` and asked by `predict`; the stand-in has none."""

    def load(self, model_name=None):
        return model_name, None

    def predict(self, name, model, image, **kwargs):
        return []

    def restore(self, np_image, p=None):
        if shared.state.interrupted or shared.state.skipped or hasattr(p, "recursion"):
            return np_image
        name, model = self.load("face-yolo8n")
        if model is None:
            log.warning(f'Detailer: model="{name}" not loaded')
            return np_image
        image = Image.fromarray(np_image)
        items = self.predict(name, model, image, p=p)
        if not items:
            return np_image
        before, kind = p.__dict__.copy(), p.__class__
        size = p.detailer_resolution
        args = {"batch_size": 1, "n_iter": 1, "denoising_strength": p.detailer_strength, "steps": p.detailer_steps, "width": size,
                "height": size, "inpaint_full_res": True}  # fmt: skip
        p = processing_class.switch_class(p, processing.StableDiffusionProcessingImg2Img, args)
        pc = copy(p)
        for item in items:
            pc.init_images, pc.image_mask = [image.crop(item.box).resize((size, size))], [item.mask]
            pc.enable_hr = pc.detailer_enabled = False
            pc.do_not_save_samples = pc.do_not_save_grid = True
            pc.recursion = True
            job = shared.state.begin("Detailer")
            made = processing.process_images_inner(pc)
            shared.state.end(job)
            del pc.recursion
            if made is not None and made.images:
                image = image.copy()
                image.paste(made.images[0].resize((item.box[2] - item.box[0], item.box[3] - item.box[1])), item.box[:2])
        p = processing_class.switch_class(p, kind, before)
        return np.array(image)


def initialize():
    shared.detailer = Detailer()
