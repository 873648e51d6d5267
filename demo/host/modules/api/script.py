"""Arguments of scripts for a request of the API."""

import gradio as gr
from fastapi import HTTPException


def find(name, scripts):
    """A script by its title, or by what stands before a colon in it, in any case of letters."""
    titles = [script.title().lower() for script in scripts]
    for candidates in (titles, [title.split(":")[0] for title in titles]):
        if name and name.lower() in candidates:
            return scripts[candidates.index(name.lower())]
    return None


def init_default_script_args(runner):
    """Default values of all panels. ui() is called twice more for it, in the thread of the request."""
    args = [None] * max([1, *(script.args_to for script in runner.scripts)])
    args[0] = 0
    with gr.Blocks():
        for script in runner.scripts:
            if script.ui(script.is_img2img):
                args[script.args_from : script.args_to] = [control.value for control in script.ui(script.is_img2img)]
    return args


def init_script_args(p, request, defaults, selected, runner):
    args = list(defaults)
    if selected is not None:
        args[selected.args_from : selected.args_from + len(request.script_args)] = request.script_args
        args[0] = runner.selectable_scripts.index(selected) + 1
    for name, values in request.alwayson_scripts.items():
        script = find(name, runner.scripts)
        if script is None:
            raise HTTPException(status_code=422, detail=f"Always on script not found: {name}")
        if not script.alwayson:
            raise HTTPException(status_code=422, detail=f"Selectable script cannot be in always on params: {name}")
        if "args" in values:
            p.per_script_args[script.title()] = values["args"]
    return args
