"""The stand-in, imported once, and a fork of it for each case: a child changes one thing, starts the extension, and lives a short life.

Nothing is served: the page is built, the API gets an application of FastAPI, and the functions of the host make the pictures.
A child writes what it has seen as one JSON object and ends. Run as `python -m tests.drift.rig DATA JOBS < cases.json > results.jsonl`.
"""

from __future__ import annotations

import functools
import gc
import json
import logging
import os
import selectors
import shutil
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PROMPT = "a (photo:1.3) of a cat <lora:none:0.5> that holds a sign which says hello world, " + "very " * 12 + "sharp"
JOB = {"prompt": PROMPT, "width": 72, "height": 64, "steps": 1, "seed": 3, "sampler_name": "Euler", "cfg_scale": 6.0}
LOADED, CHOSEN = "T5 Q8", "T5 Q4"
HOST = ("modules", "pipelines", "installer")


def prepare(data: Path) -> None:
    """Import the host with all that it needs, up to the moment at which it would load the scripts of extensions."""
    host = ROOT / "demo" / "host"
    os.chdir(host)
    sys.path.insert(0, str(host))
    sys.argv = ["launch.py", "--skip-all", "--data-dir", str(data), "--port", "1", "--theme", "standard/black-teal"]
    os.environ.update(SD_LOG=str(data / "sdnext.log"), HF_HUB_OFFLINE="1", HF_HOME=str(data / "hf"), GRADIO_ANALYTICS_ENABLED="False",
                      TOKENIZERS_PARALLELISM="false", SDNQ_USE_TORCH_COMPILE="0")  # fmt: skip
    import torch

    torch.set_num_threads(1)
    import installer
    from modules import cmd_args

    installer.args, _ = cmd_args.parser.parse_known_args()
    installer.read_options()
    installer.extensions_preload(cmd_args.parser)
    installer.args = installer.parse_args(cmd_args.parser)
    import launch

    launch.args, launch.parser = installer.args, cmd_args.parser
    import asyncio

    import webui

    asyncio.set_event_loop_policy(webui.AnyThreadEventLoopPolicy())
    import pipelines.generic
    import pipelines.model_sd3  # noqa: F401


def warm() -> None:
    """Bring in what the first load, the first picture and the extension import; nothing of the host's state remains. What the extension
    looks up in the host it looks up when it starts, which is in the child.
    """
    import gradio
    from modules import modeldata, sd_checkpoint, sd_models, shared

    gradio.routes.App.create_app = staticmethod(lambda *args, **kwargs: None)  # gradio makes one for each page, and none is served here
    sd_checkpoint.setup_model()
    modeldata.model_data.locked = False
    assert shared.sd_model is not None
    sd_models.unload_model_weights()
    modeldata.model_data.locked = True
    import starlette.testclient  # noqa: F401

    import sd3deploy.encoders.grouped
    import sd3deploy.encoders.load
    import sd3deploy.report  # noqa: F401
    from sd3deploy.webui import api, notice  # noqa: F401
    from sd3deploy.webui.host import hooks
    from sd3deploy.webui.page import panel, settings  # noqa: F401
    from sd3deploy.webui.services import installing, measuring, reporting, verifying  # noqa: F401

    assert hooks.reach.state.checked == 0
    from sd3deploy.diagnosis import installed
    from sd3deploy.redact import Redactor

    installed.read_installed(ROOT / "demo" / "host")  # it keeps what it has read of the disk
    Redactor.of_this_machine()
    import matplotlib.pyplot

    figure = matplotlib.pyplot.figure()
    figure.text(0.5, 0.5, "0123456789")
    figure.savefig(os.devnull, format="png")
    matplotlib.pyplot.close(figure)
    api_of_host()
    gc.collect()
    gc.freeze()


def api_of_host() -> None:
    """The host's own API, as webui.start_ui makes it."""
    import fastapi
    import webui
    from modules import call_queue, shared

    shared.api = webui.modules.api.api.Api(fastapi.FastAPI(), call_queue.queue_lock)
    shared.api.register()


# One life


class Log(logging.Handler):
    """What is said in a child from WARNING up, and by the extension at any level."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.lines: list[tuple[str, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.levelno >= logging.WARNING or text.startswith("SD3 Deploy:"):
            self.lines.append((record.levelname, text))


def live(broken: Any, short: bool = False) -> dict[str, Any]:
    """A short life of the host from the load of its scripts on. broken: a change (views.py), put in place before and while it starts.
    short: without what comes up less often.
    """
    log, seen = Log(), {}
    logging.getLogger("sd").addHandler(log)
    from modules import modeldata, script_callbacks, scripts_manager, shared

    step = "start"
    try:
        broken.before_scripts()
        import webui

        webui.initialize()
        shared.demo = webui.modules.ui.create_ui(None)
        app = shared.api.app
        broken.before_callbacks(shared.demo, app)
        script_callbacks.app_started_callback(shared.demo, app)
        script_callbacks.after_ui_callback()
        runner = scripts_manager.scripts_txt2img  # as the first request does
        shared.api.generate.defaults[runner.name] = webui.modules.api.generate.script.init_default_script_args(runner)
        step = "load"
        webui.load_model()
        seen["model"] = type(modeldata.model_data.sd_model).__name__
        seen["encoder after the load"] = encoder()
        step = "pictures"
        seen["picture"] = picture()
        step = "settings"
        seen["settings"] = settings(sd3_text_encoder=CHOSEN, samples_format="webp", sd3_memory="off")
        seen["encoder after the change"] = encoder()
        step = "pictures"
        seen["picture after the change"] = picture()
        step = "other model"
        model = modeldata.model_data.sd_model
        kind, model.__class__ = type(model), type("AnotherPipeline", (type(model),), {})
        seen["picture of another model"] = picture()
        model.__class__ = kind
        if not short:
            rest(seen)
        step = "end"
        for entry in script_callbacks.callback_map["callbacks_script_unloaded"]:
            entry.callback()
        seen["patched at the end"] = patched()
    except Exception as error:
        seen["failed"] = f"{step}: {''.join(traceback.format_exception(error))[-1500:]}"
    seen["met"] = broken.met
    seen["log"] = [(level, text) for level, text in log.lines]
    reach = sys.modules.get("sd3deploy.webui.host.reach")
    seen["off"] = sorted(reach.state.off) if reach else []
    seen["moved"] = sorted(reach.state.unmet) if reach else []
    return seen


def rest(seen: dict[str, Any]) -> None:
    """What comes up less often: a refused picture, too little memory, the API, and the button beside a recommendation."""
    from modules import shared
    from starlette.testclient import TestClient

    seen["refused"] = refused()
    seen["too little memory"] = exhausted()
    client = TestClient(shared.api.app, raise_server_exceptions=False)
    for path in ("status", "memory", "check?width=72", "report"):
        seen[f"GET {path.partition('?')[0]}"] = client.get(f"/sdapi/v1/sd3/{path}").status_code
    shared.opts.te_shared_te = True
    seen["POST sources"] = client.post("/sdapi/v1/sd3/sources", json={"ask": False}).status_code
    shared.opts.te_shared_te = False
    seen["apply"] = apply()


def encoder() -> str:
    """What T5 is in the model, read off its layers."""
    from modules import modeldata

    te = getattr(modeldata.model_data.sd_model, "text_encoder_3", None)
    return "none" if te is None else type(te.encoder.block[0].layer[0].SelfAttention.q).__name__


def picture(**words: Any) -> list[Any]:
    """A picture by the host's own API: how many, their size, and what their metadata say of ours."""
    from modules import shared
    from modules.api import models

    answer = shared.api.generate.post_text2img(models.ReqTxt2Img(**(JOB | words)))
    info = json.loads(answer.info)
    ours = {key: value for key, value in info["extra_generation_params"].items() if key.startswith(("SD3", "T5"))}
    return [len(answer.images), info["width"], info["height"], ours]


def refused() -> list[Any]:
    """A picture of the page that the settings refuse: how many there are, and whether it is said why."""
    from modules import call_queue, processing, scripts_manager, shared

    p = processing.StableDiffusionProcessingTxt2Img(**JOB, override_settings={"sd3_guard_size": "block"}, do_not_save_samples=True)
    p.scripts = scripts_manager.scripts_txt2img
    p.script_args = tuple(shared.api.generate.defaults[p.scripts.name])
    with call_queue.queue_lock:
        job = shared.state.begin("Text")
        try:
            found = processing.process_images(p)
        except Exception as error:  # the page shows the text of one
            return [0, type(error).__name__]
        finally:
            shared.state.end(job)
    return [len(found.images), "16" in found.comments]


def exhausted() -> Any:
    """A picture whose decoding runs out of memory."""
    import torch
    from fastapi import HTTPException
    from modules import modeldata

    vae = modeldata.model_data.sd_model.vae

    def decode(*args: Any, **kwargs: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    vae.decode = decode
    try:
        return picture()[0]
    except HTTPException as error:
        return error.status_code
    finally:
        del vae.decode


def settings(**values: Any) -> list[str]:
    """Change settings as the page does, and read back what is stored on the disk."""
    from modules import call_queue, shared, ui_settings

    given = [values.get(key, getattr(shared.opts, key)) for key in shared.opts.data_labels]
    call_queue.wrap_gradio_call(ui_settings.run_settings, extra_outputs=[None])(*given)
    shared.opts.save_atomic()
    stored = json.loads(Path(shared.opts.filename).read_text())
    return [f"{key}={stored.get(key)}" for key in values if key in shared.opts.data_labels]


def apply() -> Any:
    """What the button beside a recommendation does."""
    adapter = sys.modules.get("sd3deploy.webui.host.adapter")
    host = next((one for one in gc.get_objects() if adapter and type(one) is adapter.SdNext), None)
    if host is None:
        return None
    from sd3deploy.errors import Sd3Error

    try:
        return host.apply({"offload": "model", "tiling": True})
    except Sd3Error as error:
        return error.id


def patched() -> list[str]:
    """The functions of the host that are still wrapped in ours."""
    modules = [(name, vars(one)) for name, one in [*sys.modules.items()] if one and name.partition(".")[0] in HOST]
    return sorted(f"{name}.{one}" for name, names in modules for one, value in [*names.items()] if hasattr(value, "__sd3deploy_original__"))


def fork(work: Callable[[], dict[str, Any]]) -> tuple[int, int]:
    """Do `work` in a child of this process. Returns its id and the pipe on which it writes what `work` gives, as JSON."""
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        os.close(read)
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        try:
            answer = work()
        except BaseException as error:
            answer = {"failed": "".join(traceback.format_exception(error))[-1500:]}
        with os.fdopen(write, "w") as pipe:
            json.dump(answer, pipe, default=str)
        os._exit(0)
    os.close(write)
    return child, read


def each(cases: list[dict[str, Any]], work: Callable[[dict[str, Any]], dict[str, Any]], jobs: int) -> Iterator[dict[str, Any]]:
    """What `work` gives for each case, in a child for each, so many at a time; {"failed": …} for one that ends without a word."""
    waiting, running, pipes = list(reversed(cases)), {}, selectors.DefaultSelector()
    while waiting or running:
        while waiting and len(running) < jobs:
            case = waiting.pop()
            child, read = fork(functools.partial(work, case))
            running[read] = child, case, bytearray()
            pipes.register(read, selectors.EVENT_READ)
        for key, _ in pipes.select():
            child, case, text = running[key.fd]
            if part := os.read(key.fd, 1 << 16):
                text += part
                continue
            pipes.unregister(key.fd)
            os.close(key.fd)
            os.waitpid(child, 0)
            del running[key.fd]
            yield {**case, **(json.loads(text) if text else {"failed": "it ended without a word"})}


def own_data(data: Path) -> None:
    """A child writes settings: into files of its own."""
    from modules import shared

    for key, name in (("filename", "config"), ("secretsfn", "secrets")):
        vars(shared.opts)[key] = str(data / f"{name}-{os.getpid()}.json")
    shutil.copyfile(data / "config.json", shared.opts.filename)


def main() -> int:
    data, jobs = Path(sys.argv[1]), int(sys.argv[2])
    cases = json.load(sys.stdin)
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no result
    prepare(data)
    warm()
    from modules import shared

    from tests.drift import views

    def work(case: dict[str, Any]) -> dict[str, Any]:
        own_data(data)
        if case.get("without"):  # the host alone
            vars(shared.opts)["data"]["disabled_extensions"] = ["sd-extension-sd3"]
        return live(views.of(case["changes"]), case.get("short", False))

    for result in each(cases, work, jobs):
        print(json.dumps(result), file=out, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
