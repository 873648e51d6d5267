"""Lets a real SD.Next of 2026-07 load as one of 2026-08: its modules are edited in memory while they are imported, on disk nothing changes.

An extension whose preload the host runs before anything heavy is imported. Each edit is a change that the changelog of 2026-08 names and
that an extension can meet; demo/host/modules/like.py has the list. An edit of a module that finds nothing to change is an error; `edits`
says how often each was made.
"""

import os
import re
import sys
import threading
import time
from importlib.abc import MetaPathFinder
from importlib.machinery import SourceFileLoader
from pathlib import Path

ROOT = Path(sys.modules["installer"].__file__).parent
SELF = "sd3_contract_august"
ME = f"__import__('sys').modules['{SELF}']"
EVERYWHERE = (
    (r"\bmodules\.sdnq\b", "sdnq"),
    (r"\bfrom modules import sdnq\b", "import sdnq"),
    (r"\b[\w.]*(?:cmd_opts|args)\.use_directml\b", "False"),
)
EDITS = {
    "webui": (
        (r"\bshared\.demo\.launch\(", f"{ME}.application(shared.demo, "),
        (r"(?m)^( +)modules\.script_callbacks\.app_started_callback\(.*$", r"\g<0>\n\1shared.demo.server.start()"),
        (r"(?m)^( +)timer\.startup\.record\(\"onchange\"\)$", rf"\1{ME}.apply_at_once(shared.opts, wrap_queued_call)\n\g<0>"),
    ),
    "modules.devices": (
        (r"return torch\.device\(get_optimal_device_name\(\)\)",
         "return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device(get_optimal_device_name())"),
    ),
    "modules.ui_definitions": tuple(
        (rf'(?m)^( +)"offload_{mode}_sep": OptionInfo.*\n',
         rf"    }}))\n    options_templates.update(options_section(('offload_{mode}', '{mode.title()} Offload'), {{\n")
        for mode in ("balanced", "group")
    ),
}  # fmt: skip
edits = {}
get_code = SourceFileLoader.get_code


def code_of(loader, name):
    """As the import system reads a module, after the edits."""
    path = Path(loader.path).resolve()
    if ROOT not in path.parents or "extensions" in path.relative_to(ROOT).parts[0]:
        return get_code(loader, name)
    source = before = path.read_text("utf-8")
    for pattern, replacement in (*EVERYWHERE, *EDITS.get(name, ())):
        source, times = re.subn(pattern, replacement, source)
        edits[pattern] = edits.get(pattern, 0) + times
        if not times and name in EDITS and (pattern, replacement) not in EVERYWHERE:
            raise ImportError(f"{name}: nothing to edit for {pattern}")
    return get_code(loader, name) if source == before else compile(source, str(path), "exec", dont_inherit=True)


class Gone(MetaPathFinder):
    """modules.sdnq is no more."""

    def find_spec(self, name, path=None, target=None):
        if name == "modules.sdnq":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return None


def preload(parser):
    sys.modules[SELF] = _module()
    SourceFileLoader.get_code = code_of
    sys.meta_path.insert(0, Gone())
    for name in ("HF_HUB_DISABLE_TELEMETRY", "HF_HUB_DISABLE_IMPLICIT_TOKEN"):
        os.environ.setdefault(name, "1")
    directml = parser._option_string_actions.pop("--use-directml", None)
    if directml is not None:
        parser._remove_action(directml)


def _module():
    """This file as a module: the host runs it without entering it into sys.modules."""
    import types

    made = types.ModuleType(SELF)
    made.__dict__.update(application=application, apply_at_once=apply_at_once, edits=edits)
    return made


def application(demo, *, auth, max_threads, show_api, allowed_paths, app_kwargs, favicon_path, server_name, server_port, **others):
    """In place of gradio's launch: the application and a server that has not been started."""
    import uvicorn
    from gradio.routes import App

    demo.auth, demo.auth_message, demo.show_api, demo.allowed_paths, demo.blocked_paths = auth, None, show_api, allowed_paths, []
    demo.favicon_path, demo.root_path, demo.show_error = favicon_path, "", False
    demo.validate_queue_settings()
    demo.config = demo.get_config_file()
    demo.max_threads = max(demo._queue.max_thread_count, max_threads)
    app = App.create_app(demo, app_kwargs=app_kwargs)
    demo._queue.set_server_app(app)
    app.add_event_handler("startup", demo.startup_events)

    class Server(uvicorn.Server):
        def install_signal_handlers(self):
            pass

        def start(self):
            self.thread.start()
            while not self.started and self.thread.is_alive():
                time.sleep(0.01)

        def close(self):
            self.should_exit = self.force_exit = True
            self.thread.join()

    demo.server = Server(uvicorn.Config(app, host=server_name or "127.0.0.1", port=server_port, log_level="warning", ws_max_size=2**30))
    demo.server.thread = threading.Thread(target=demo.server.run, daemon=True)
    return app, f"http://127.0.0.1:{server_port}/", None


def apply_at_once(opts, queued):
    """Every setting of offload is applied to the loaded model at once."""
    from modules import modeldata, sd_offload

    def apply():
        sd_model = modeldata.model_data.sd_model
        if sd_model is not None:
            sd_offload.disable_offload(sd_model)
            sd_model.remove_all_hooks()
            sd_offload.offload_hook_instance = None
            sd_offload.set_diffuser_offload(sd_model, force=True)

    for key in opts.data_labels:
        if key.startswith(("diffusers_offload_", "group_offload_")):
            opts.onchange(key, queued(apply), call=False)
