"""The start-up sequence, in the order on which extensions rely: scripts, interface, API, callbacks, and the model last."""

import asyncio
import contextlib
import io
import signal
import sys
from threading import Thread

import modules.loader  # first: it imports the libraries and freezes what is available  # isort: skip
import modules.api.api
import modules.api.middleware
import modules.detailer
import modules.extensions
import modules.model_te
import modules.modeldata
import modules.processing
import modules.script_callbacks
import modules.scripts
import modules.scripts_manager
import modules.sd_checkpoint
import modules.sd_models
import modules.sd_offload
import modules.sd_vae
import modules.server
import modules.ui
from modules import paths, shared
from modules.call_queue import queue_lock, wrap_queued_call
from modules.like import AUGUST
from modules.logger import log

modules.loader.initialized = True


class AnyThreadEventLoopPolicy(asyncio.DefaultEventLoopPolicy):
    """gradio 3 asks for an event loop in threads that have none."""

    def get_event_loop(self):
        try:
            return super().get_event_loop()
        except RuntimeError:
            loop = self.new_event_loop()
            self.set_event_loop(loop)
            return loop


def initialize():
    modules.model_te.refresh_te_list()
    modules.sd_checkpoint.setup_model()
    modules.sd_vae.refresh_vae_list()
    modules.detailer.initialize()
    modules.extensions.list_extensions()
    log.info("Load extensions")
    modules.scripts_manager.load_scripts()
    modules.scripts.register_runners()
    signal.signal(signal.SIGINT, lambda *_: sys.exit(0))


def start_ui():
    modules.script_callbacks.before_ui_callback()
    shared.demo = modules.ui.create_ui(None)
    shared.demo.queue(concurrency_count=64)
    users = [tuple(pair.strip().split(":", 1)) for pair in (shared.cmd_opts.auth or "").split(",") if ":" in pair]
    served = {
        "auth": users or None,
        "max_threads": 64,
        "show_api": False,
        "allowed_paths": [paths.script_path, paths.data_path, paths.models_path],
        "app_kwargs": {"openapi_url": "/openapi.json" if shared.cmd_opts.docs else None},
    }
    host, port = shared.cmd_opts.server_name, shared.cmd_opts.port
    if AUGUST:
        app = modules.server.application(shared.demo, **served)
        shared.demo.server = modules.server.Server(app, host, port)
    else:
        with contextlib.redirect_stdout(io.StringIO()):
            app, local_url, _ = shared.demo.launch(server_name=host, server_port=port, prevent_thread_lock=True, quiet=True, **served)
        log.info(f"Local URL: {local_url}")
    shared.demo.server.wants_restart = False
    modules.api.middleware.setup_middleware(app)
    shared.api = modules.api.api.Api(app, queue_lock)
    shared.api.register()
    modules.script_callbacks.app_started_callback(shared.demo, app)
    if AUGUST:
        shared.demo.server.start()  # nobody answers before: a callback that asks its own server waits in vain


def load_model():
    """Autoload in a plain thread that does not hold the queue lock; the host's own onchange handlers come after it."""
    modules.modeldata.model_data.locked = False
    if shared.opts.sd_checkpoint_autoload:
        job = shared.state.begin("Load model")
        thread = Thread(target=lambda: shared.sd_model)
        thread.start()
        thread.join()
        shared.state.end(job)
    shared.opts.onchange("sd_model_checkpoint", wrap_queued_call(lambda: modules.sd_models.reload_model_weights(op="model")), call=False)
    shared.opts.onchange("sd_vae", wrap_queued_call(lambda: modules.sd_vae.reload_vae_weights()), call=False)
    shared.opts.onchange("sd_text_encoder", wrap_queued_call(lambda: modules.sd_models.reload_text_encoder()), call=False)
    if AUGUST:
        offload = modules.sd_offload
        keys = [f"diffusers_offload_{key}" for key in offload.OPTIONS] + [f"group_offload_{key}" for key in offload.GROUP_OPTIONS]
        for key in keys:
            shared.opts.onchange(key, wrap_queued_call(offload.options_changed), call=False)


def webui():
    asyncio.set_event_loop_policy(AnyThreadEventLoopPolicy())
    initialize()
    start_ui()
    modules.script_callbacks.after_ui_callback()
    load_model()
    shared.opts.save()
    log.info("Startup time: complete")
    return shared.demo.server
