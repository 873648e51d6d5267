"""What every part of the host and every extension shares. `shared.sd_model` is a property that loads the model when asked."""

import sys
import time

import gradio as gr  # noqa: F401

from modules import cmd_args, devices, memstats, paths, shared_items, shared_state, ui_definitions  # noqa: F401
from modules.logger import log
from modules.options import OptionInfo, options_section  # noqa: F401
from modules.options_handler import Options

cmd_opts = cmd_args.parse_args()
state = shared_state.State()
opts = Options(ui_definitions.create_settings(cmd_opts))
if cmd_opts.locale is not None:
    opts.data["ui_locale"] = cmd_opts.locale
demo = None
api = None
native = True
device = devices.device
settings_components = {}
tab_names = []
models_path, script_path, data_path = paths.models_path, paths.script_path, paths.data_path
_memory = memstats.memory_stats()
cpu_memory = round(_memory["ram"]["total"])
gpu_memory = round(_memory["gpu"]["total"]) or cpu_memory  # without a GPU this is the memory of the machine
mem_mon = memstats.MemUsageMonitor("MemMon", devices.device)
devices.opts = opts


def restart_server(restart=True):
    if demo is None:
        return
    log.critical("Server shutdown requested")
    demo.server.wants_restart = restart
    demo.server.should_exit = demo.server.force_exit = True
    demo.close(verbose=False)
    time.sleep(1)


from modules.modeldata import Shared  # noqa: E402  it needs what is above

sys.modules[__name__].__class__ = Shared
