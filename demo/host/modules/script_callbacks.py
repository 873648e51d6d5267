"""Callbacks of extensions. What one of them raises is logged and does not stop the others."""

import sys
from typing import Any, NamedTuple

from modules import errors


class ScriptCallback(NamedTuple):
    script: str
    callback: Any


NAMES = ("app_started", "before_process", "after_process", "on_reload", "model_loaded", "ui_settings", "ui_tabs", "image_saved",
         "infotext_pasted", "script_unloaded", "before_ui", "after_ui")  # fmt: skip
LAST_FIRST = ("script_unloaded", "before_ui", "after_ui")  # these run in the reverse order of registration
callback_map = {f"callbacks_{name}": [] for name in NAMES}


def _adder(name):
    def register(callback):
        callback_map[f"callbacks_{name}"].append(ScriptCallback(sys._getframe(1).f_code.co_filename, callback))

    return register


def _caller(name):
    def call(*args):
        results = []
        callbacks = list(callback_map[f"callbacks_{name}"])
        for entry in reversed(callbacks) if name in LAST_FIRST else callbacks:
            try:
                results += entry.callback(*args) or [] if name == "ui_tabs" else [entry.callback(*args)]
            except Exception as e:
                errors.display(e, f"Error executing callback {name} for {entry.script}")
        return results

    return call


on_app_started, app_started_callback = _adder("app_started"), _caller("app_started")
on_before_process, before_process_callback = _adder("before_process"), _caller("before_process")
on_after_process, after_process_callback = _adder("after_process"), _caller("after_process")
on_before_reload, app_reload_callback = _adder("on_reload"), _caller("on_reload")
on_model_loaded, model_loaded_callback = _adder("model_loaded"), _caller("model_loaded")
on_ui_settings, ui_settings_callback = _adder("ui_settings"), _caller("ui_settings")
on_ui_tabs, ui_tabs_callback = _adder("ui_tabs"), _caller("ui_tabs")
on_image_saved, image_saved_callback = _adder("image_saved"), _caller("image_saved")
on_infotext_pasted, infotext_pasted_callback = _adder("infotext_pasted"), _caller("infotext_pasted")
on_script_unloaded, script_unloaded_callback = _adder("script_unloaded"), _caller("script_unloaded")
on_before_ui, before_ui_callback = _adder("before_ui"), _caller("before_ui")
on_after_ui, after_ui_callback = _adder("after_ui"), _caller("after_ui")


def clear_callbacks():
    for callbacks in callback_map.values():
        callbacks.clear()


def remove_callbacks_for_function(callback_func):
    for callbacks in callback_map.values():
        callbacks[:] = [entry for entry in callbacks if entry.callback != callback_func]


def remove_current_script_callbacks():
    script = sys._getframe(1).f_code.co_filename
    for callbacks in callback_map.values():
        callbacks[:] = [entry for entry in callbacks if entry.script != script]
