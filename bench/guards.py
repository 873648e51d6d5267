"""Guards: what they cost with each image, on the shapes of SD3 medium and SD3.5 medium, and with a model that is none."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

__all__ = ["run"]

ROOT = Path(__file__).resolve().parent.parent

# In a process that has the stand-in's modules: the very calls that the host makes for a job.
CHILD = """
import json, sys, time
from types import SimpleNamespace

sys.path[:0] = [{root!r}, {root!r} + "/demo/host"]
sys.argv = ["launch.py", "--data-dir", {data!r}]
import torch
from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline
import modules.shared
from modules import modeldata, processing
from sd3deploy import tiny_sd3
from sd3deploy import guards, hints
from sd3deploy.events import Events
from sd3deploy.guards import attention, request
from sd3deploy.guards.job import MODELS
from sd3deploy.memory.verdict import Verdict
from sd3deploy.webui.jobs.guarding import Guarding
from sd3deploy.webui.host.adapter import SdNext

MEDIUM = dict(num_layers=24, num_attention_heads=24, attention_head_dim=64, joint_attention_dim=4096, caption_projection_dim=1536,
              pooled_projection_dim=2048, pos_embed_max_size=192)
SHAPES = {{"sd3_medium": MEDIUM, "sd3.5_medium": MEDIUM | dict(pos_embed_max_size=384, qk_norm="rms_norm",
                                                               dual_attention_layers=tuple(range(13)))}}
LONG = "a cat holding a sign that says hello, " * 20
host = SdNext()
guarding = Guarding(host, Events())


def times(work):
    found = []
    for _ in range({times}):
        started = time.perf_counter()
        work()
        found.append((time.perf_counter() - started) * 1e6)
    return found


def job(prompt, size):
    p = processing.StableDiffusionProcessingTxt2Img(prompt=prompt, negative_prompt=prompt, width=size, height=size)
    p.all_prompts, p.all_negative_prompts = [prompt], [prompt]

    def work():
        p.width = p.height = size
        guarding.note(p)
        guarding.guard(p)
        guarding.last_look()

    return work


result = {{}}
for name, shape in SHAPES.items():
    with torch.device("meta"):
        transformer = SD3Transformer2DModel(**shape)
    pipeline = StableDiffusion3Pipeline.from_pretrained(tiny_sd3.ensure(), transformer=transformer)
    pipeline.default_scheduler = pipeline.scheduler
    modeldata.model_data.sd_model = pipeline
    result[name] = {{
        "attention_layers": len(list(attention.layers(pipeline))),
        "attention_processors_us": times(lambda: attention.find_misfits(pipeline)),
        "all_guards_short_prompt_us": times(job("a cat", 1024)),
        "all_guards_long_prompts_us": times(job(LONG, 1024)),
        "all_guards_with_a_change_us": times(job("a cat", 1000)),
    }}
modeldata.model_data.sd_model = SimpleNamespace(unet=None)
typed = request.job(MODELS["sd3.5-large"], "1000", "1000", sampler="DDIM", steps="x")
outcome, judged = guards.check(typed), Verdict("no", "denoise", "gpu", 2, 1)
result["hints_of_one_key_us"] = times(lambda: hints.hints(typed, outcome, judged))
result["no_sd3_us"] = times(job("a cat", 1000))
print("RESULT", json.dumps(result))
"""


def run(small: bool) -> dict:
    """Medians in µs of `times` jobs: looking at the attention processors alone (once of the two looks at each image), all that is done
    for an image, the hints beside the controls after a key, and all that is done when the model is none of Stable Diffusion 3.
    """
    times = 50 if small else 500
    with tempfile.TemporaryDirectory() as folder:
        child = CHILD.format(root=str(ROOT), data=folder, times=times)
        done = subprocess.run([sys.executable, "-c", child], capture_output=True, text=True, cwd=folder)
    if done.returncode != 0:
        raise RuntimeError(f"the measured process failed: {done.stderr.strip()[-2000:]}")
    return {"times": times, **medians(json.loads(done.stdout.rpartition("RESULT")[2]))}


def medians(found: dict) -> dict:
    """Each list of times as its median."""
    return {
        key: medians(value) if isinstance(value, dict) else statistics.median(value) if isinstance(value, list) else value
        for key, value in found.items()
    }


if __name__ == "__main__":
    from bench.__main__ import main

    sys.exit(main())
