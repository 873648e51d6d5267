"""The Restore button: the text of a picture in the prompt, or of the last picture where that is empty, back into the fields."""

import os

import gradio as gr

from modules import paths, script_callbacks
from modules.infotext import parse
from modules.logger import log

UPDATE = type(gr.update())


def connect_paste(button, fields, source, tabname):
    """`fields`: (component, key). A key is a name in the text, or a function of all that the text says, which gives gr.update or None."""

    def paste(text):
        if not (text or "").strip():
            text = _last()
        found = parse(text)
        script_callbacks.infotext_pasted_callback(text, found)
        return [_restored(component, key, found) for component, key in fields]

    button.click(fn=paste, inputs=[source], outputs=[component for component, _ in fields], show_progress="hidden")


def _restored(component, key, found):
    value = key(found) if callable(key) else found.get(key)
    if value is None:
        return gr.update()
    if isinstance(value, UPDATE):
        return value
    key.lower()  # to see whether the user wants it skipped: a function that gives a plain value ends the whole restoring here
    try:
        kind = float if isinstance(getattr(component, "step", None), float) else type(component.value)
        if kind is bool:
            return gr.update(value=str(value).lower() != "false")
        if kind is list:
            return gr.update(value=value if isinstance(value, list) else [one.strip() for one in value.split(",")])
        return gr.update(value=kind(value))
    except Exception as e:  # a component without a value has NoneType for its kind
        log.error(f'Paste param: key="{key}" value="{value}" error="{e}"')
        return gr.update()


def _last():
    try:
        with open(os.path.join(paths.data_path, "params.txt"), encoding="utf-8") as file:
            return file.read()
    except OSError:
        return ""
