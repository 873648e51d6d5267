"""Jobs as the host makes them: one press of Generate with whatever is in it, and jobs inside of jobs. They run on the thread that calls."""

import contextlib
import itertools
import os
import tempfile

import torch
from modules import call_queue, img2img, modeldata, processing, progress, scripts_manager, shared
from modules.api import script
from modules.control import run
from PIL import Image

import sd3probe
from sd3probe import limit

_numbers = itertools.count()


def job(kind=processing.StableDiffusionProcessingTxt2Img, runner=None, **given):
    """An object of the host that describes a small job, with the scripts of its tab."""
    values = {"prompt": "a cat", "steps": 2, "seed": 1, "width": 128, "height": 128}
    values |= {"do_not_save_samples": True, "do_not_save_grid": True} | given
    p = kind(sd_model=shared.sd_model, **values)
    p.scripts = runner or scripts_manager.scripts_txt2img
    p.script_args = tuple(script.init_default_script_args(p.scripts))
    return p


def press(work):
    """Do `work` as the host does what a press of Generate asks for, and give what it gives."""
    given = []
    call_queue.wrap_gradio_gpu_call(lambda task: given.append(work()) or [""], extra_outputs=[""])(f"task({next(_numbers)})")
    return given[0]


def generate(**values):
    """How many pictures come of a press in txt2img, and what stands below them."""
    processed = press(lambda: processing.process_images(job(**values)))
    return [len(processed.images), processed.comments]


def folder(sizes):
    """How many pictures come of a press with a folder of files in img2img."""
    with tempfile.TemporaryDirectory() as inputs, tempfile.TemporaryDirectory() as outputs:
        for number, size in enumerate(sizes):
            Image.new("RGB", tuple(size), "teal").save(os.path.join(inputs, f"{number}.png"))
        p = job(processing.StableDiffusionProcessingImg2Img, scripts_manager.scripts_img2img, steps=4, denoising_strength=0.5)
        press(lambda: img2img.process_batch(p, None, inputs, outputs, "", list(p.script_args)))
        return len(os.listdir(outputs))


def control(inputs=None, **words):
    """How many pictures come of a press in Control."""
    task = f"task({next(_numbers)})"
    for one in scripts_manager.scripts_control.scripts:
        if not one.args_to:  # it is not shown in Control: before 2026-03 its values would stand before those of all others
            one.ui = lambda is_img2img: None
    words |= {"units": [], "inputs": inputs, "inits": None, "unit_type": "controlnet"}
    words |= {"prompt": "a cat", "steps": 4, "seed": 1, "denoising_strength": 0.5}
    with call_queue.queue_lock:
        begun = shared.state.begin("Control")
        progress.start_task(task)
        try:
            *_, last = run.control_run(**words)
        finally:
            progress.finish_task(task)
            shared.state.end(begun)
    return len(last[0] or [])


def count(number):
    """How many pictures come of a press in Control with so many batches."""
    return control(batch_count=number, width_before=128, height_before=128)


def images(sizes):
    """How many pictures come of a press in Control with several inputs. SD.Next since 2026-04 takes the first one that it can make."""
    return control([Image.new("RGB", tuple(size), "teal") for size in sizes])


def video(frames, size):
    """How many frames come of a press in Control with a video."""
    first, *others = [Image.new("RGB", tuple(size), (40 * number % 256, 80, 120)) for number in range(frames)]
    with tempfile.TemporaryDirectory() as inputs:
        path = os.path.join(inputs, "video.gif")
        first.save(path, save_all=True, append_images=others, duration=100)
        return control(path)


class Bare:
    """A job of a host that has no place in it for the prompt parser."""

    def __init__(self, p):
        self.task_args = {}


@contextlib.contextmanager
def detailing():
    """The host's detailer finds the middle of each picture."""

    try:
        from modules.detailer import DetailerResult
    except ImportError:  # before 2026
        from modules.postprocess.yolo import YoloResult as DetailerResult

    def predict(*values, **words):
        image = next(value for value in values if isinstance(value, Image.Image))  # SD.Next of 2026 has the name of the model before it
        width, height = image.size
        box = [width // 4, height // 4, 3 * width // 4, 3 * height // 4]
        mask = Image.new("L", image.size)
        mask.paste(255, tuple(box))
        return [DetailerResult(0, "middle", 1.0, box, mask, image.crop(box), width // 2, height // 2)]

    detailer = getattr(shared, "detailer", None) or shared.yolo  # before 2026
    detailer.load = lambda name=None: (name or "middle", object())
    detailer.predict = predict
    try:
        yield
    finally:
        del detailer.load, detailer.predict


@contextlib.contextmanager
def measured():
    """A device on which decoding a picture takes exactly what is estimated for its size, with the estimates as published, and on which
    nothing is too little to learn from.
    """
    from sd3deploy.memory import correction
    from sd3deploy.memory.estimate import estimate
    from sd3deploy.memory.monitor import Reading

    watching = limit.watching()
    watching.forecast.corrections.forget()
    watching._prepare()
    level, kept, least = [2**30], watching.monitor.read, correction.LEAST
    correction.LEAST = 0
    watching.monitor.read = lambda: Reading(ram=level[0])

    def grow(module, arguments):
        height, width = (8 * side for side in arguments[0].shape[-2:])
        setup = watching.forecast.setup(width=width, height=height, batch=1, guided=True)
        activation = estimate(setup).phases["decode"].activation / setup.factors.get("decode", 1.0)
        level[0] = int(2**30 + activation)
        watching.monitor.mark("decode", 1)  # takes a reading
        sd3probe.note("decoded", size=[width, height])

    def shrink(module, arguments, output):
        watching.monitor.mark("decode", 2)
        level[0] = 2**30

    decoder = modeldata.model_data.sd_model.vae.decoder
    handles = [decoder.mid_block.register_forward_pre_hook(grow), decoder.register_forward_hook(shrink)]
    try:
        yield watching.forecast.corrections
    finally:
        for handle in handles:
            handle.remove()
        watching.monitor.read, correction.LEAST = kept, least
        watching.forecast.corrections.forget()


def factors(**values):
    """What runs have taught after one job, phase → factor: 1.0 where the estimate was right."""
    device = limit.watching().host.device().name
    with measured() as corrections, torch.inference_mode():
        processing.process_images(job(**values))
        return corrections.of(device)
