"""The models on disk: folders in diffusers' format under models/Diffusers."""

import hashlib
import os

from modules import shared
from modules.logger import log

checkpoints_list = {}
checkpoint_aliases = {}


class CheckpointInfo:
    def __init__(self, filename, name=None):
        self.filename = self.path = filename
        self.name = name or os.path.join(os.path.basename(shared.opts.diffusers_dir), os.path.basename(filename))
        self.type = "diffusers"
        self.hash = self.sha256 = hashlib.sha256(os.path.abspath(filename).encode()).hexdigest()
        self.shorthash = self.sha256[:10]
        self.title = f"{self.name} [{self.shorthash}]"
        self.model_name = os.path.basename(self.name)
        self.metadata = {}
        self.subfolder = None

    def calculate_shorthash(self):
        return self.shorthash

    def register(self):
        checkpoints_list[self.title] = self
        checkpoint_aliases.update(dict.fromkeys((self.name, self.filename, self.shorthash, self.title, self.model_name), self))


def list_models():
    checkpoints_list.clear()
    checkpoint_aliases.clear()
    folder = shared.opts.diffusers_dir
    for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else []:
        if os.path.isfile(os.path.join(folder, name, "model_index.json")):
            CheckpointInfo(os.path.join(folder, name)).register()
    log.info(f'Available models: path="{folder}" items={len(checkpoints_list)}')


def setup_model():
    list_models()


def checkpoint_titles():
    return sorted(checkpoints_list, key=str.lower)


def get_closest_checkpoint_match(name):
    if name in checkpoint_aliases:
        return checkpoint_aliases[name]
    return next((info for title, info in checkpoints_list.items() if title.startswith(name)), None)


def select_checkpoint(op="model"):
    wanted = shared.opts.sd_model_checkpoint
    if wanted == "None":
        return None
    info = get_closest_checkpoint_match(wanted)
    if info is None:
        log.error(f'Load {op}: model="{wanted}" not found')
    return info
