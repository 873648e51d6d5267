"""A device with a limit, as far as the pipeline can tell: tensors that a job makes are counted, and one too many gets torch's own error."""

import contextlib
import gc
import sys
import weakref

import torch
from modules import modeldata, processing_diffusers, prompt_parser_diffusers
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

MESSAGE = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 7.79 GiB of which 1.10 GiB is free. "
    "Including non-PyTorch memory, this process has 6.60 GiB memory in use."
)
limit = None
_original = processing_diffusers.process_diffusers


class Limit(TorchDispatchMode):
    """Fails `times` times, in `phase` of sd3deploy's own watch, with the first tensor beyond `size` bytes. large: weak references to the
    tensors of at least 64 KB, to see afterwards which of them are still alive.
    """

    def __init__(self, phase, size, times):
        super().__init__()
        self.phase, self.size, self.times, self.live, self.large = phase, size, times, 0, []
        self.message = MESSAGE

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                size = tensor.untyped_storage().nbytes()
                self.live += size
                weakref.finalize(tensor, self.gone, size)
                if size >= 2**16:
                    self.large.append(weakref.ref(tensor))
                if self.times > 0 and self.live > self.size and phase() == self.phase:
                    self.times -= 1
                    raise torch.OutOfMemoryError(self.message)
        return made

    def gone(self, size):
        self.live -= size

    def alive(self):
        """How many of the large tensors are still there, but for the model's own and the encoded prompts that the host keeps."""
        prompt_parser_diffusers.cache.clear()
        if prompts := getattr(sys.modules.get("modules.sd_hijack_te"), "prompt_cache", None):
            prompts.cache.clear()
        gc.collect()
        parts = [part for part in modeldata.model_data.sd_model.components.values() if isinstance(part, torch.nn.Module)]
        own = {tensor.data_ptr() for part in parts for tensor in (*part.parameters(), *part.buffers())}
        return sum(tensor() is not None and tensor().data_ptr() not in own for tensor in self.large)


def watching():
    """The extension's service that watches jobs."""
    return next(one for one in gc.get_objects() if type(one).__name__ == "Watching")


def phase():
    running = watching_service.monitor.running
    return running.marks[-1][1] if running and running.marks else ""


watching_service = None


def put(phase, size=0, times=1, after=0):
    """Limit the jobs that follow. after: how many batches pass without."""
    global limit, watching_service, _original
    watching_service = watching()
    limit = Limit(phase, size, times)
    _original = processing_diffusers.process_diffusers

    batches = []

    def limited(p):
        batches.append(1)
        with limit if len(batches) > after else contextlib.nullcontext():
            return _original(p)

    processing_diffusers.process_diffusers = limited


def lift():
    processing_diffusers.process_diffusers = _original
