"""The loaded model. Before the end of start-up it is locked: asking for it loads nothing."""

import threading
from types import ModuleType

from modules import errors, shared
from modules.logger import log


class ModelData:
    def __init__(self):
        self.sd_model = None
        self.sd_refiner = None
        self.initial = True
        self.locked = True
        self.lock = threading.Lock()

    def get_sd_model(self):
        if not self.locked and self.sd_model is None and shared.opts.sd_model_checkpoint != "None" and not self.lock.locked():
            with self.lock:
                try:
                    from modules.sd_models import reload_model_weights

                    self.sd_model = reload_model_weights(op="model")
                    self.initial = False
                except Exception as err:
                    log.error("Failed to load stable diffusion model")
                    errors.display(err, "loading stable diffusion model")
                    self.sd_model = None
        return self.sd_model

    def set_sd_model(self, value):
        if not self.locked:
            self.sd_model = value


model_data = ModelData()


class Shared(ModuleType):
    @property
    def sd_loaded(self):
        return model_data.sd_model is not None

    @property
    def sd_model(self):
        return model_data.get_sd_model()

    @sd_model.setter
    def sd_model(self, value):
        model_data.set_sd_model(value)

    @property
    def sd_refiner(self):
        return None

    @property
    def sd_model_type(self):
        if model_data.sd_model is None:
            return "none"
        name = model_data.sd_model.__class__.__name__
        return "sd3" if "StableDiffusion3" in name else name
