"""Scripts of extensions: how they are found and loaded, their panels, and the calls of their hooks."""

import os
import re
import sys
from typing import Any, NamedTuple

import gradio as gr
from installer import control_extensions

from modules import errors, extensions, paths, script_callbacks, script_loading
from modules.logger import log

AlwaysVisible = object()
scripts_data = []
scripts_txt2img = scripts_img2img = scripts_control = scripts_current = None
current_basedir = paths.script_path


class PostprocessImageArgs:
    def __init__(self, image):
        self.image = image


class PostprocessBatchListArgs:
    def __init__(self, images):
        self.images = images


class Script:
    """An extension derives from it. Hooks are called only for scripts that show AlwaysVisible and whose ui() returned something."""

    parent = name = filename = api_info = group = infotext_fields = paste_field_names = section = None
    args_from = args_to = 0
    alwayson = is_txt2img = is_img2img = standalone = external = False

    def title(self):
        raise NotImplementedError

    def ui(self, is_img2img): ...

    def show(self, is_img2img):
        return True

    def run(self, p, *args): ...

    def setup(self, p, *args): ...

    def before_process(self, p, *args): ...

    def process(self, p, *args): ...

    def process_images(self, p, *args): ...

    def before_process_batch(self, p, *args, **kwargs): ...

    def process_batch(self, p, *args, **kwargs): ...

    def postprocess_batch(self, p, *args, **kwargs): ...

    def postprocess_image(self, p, pp, *args): ...

    def postprocess_batch_list(self, p, pp, *args, **kwargs): ...

    def postprocess(self, p, processed, *args): ...

    def describe(self):
        return ""

    def elem_id(self, item_id):
        title = re.sub(r"[^a-z_0-9]", "", re.sub(r"\s", "_", self.title().lower()))
        return f"script_{self.parent}_{title}_{item_id}"


class ScriptFile(NamedTuple):
    basedir: str
    filename: str
    path: str
    priority: str


class ScriptClassData(NamedTuple):
    script_class: type
    path: str
    basedir: str
    module: Any


def basedir():
    return current_basedir


def list_scripts(folder, extension):
    """All files of the active extensions; those in a data folder of its own come last, as in the host."""
    found = [file for one in extensions.active() for file in one.list_files(folder, extension)]
    inside = os.path.join(paths.script_path, "extensions")
    found = [file._replace(priority=("3" if file.basedir.startswith(inside) else "9") + file.priority) for file in found]
    return sorted(found, key=lambda file: file.priority + file.path.lower())


def list_files_with_name(filename):
    return [path for one in extensions.active() if os.path.isfile(path := os.path.join(one.path, filename))]


def load_scripts():
    """Each file sees its extension's folder first in sys.path, only while it is being loaded."""
    global current_basedir, scripts_txt2img, scripts_img2img, scripts_control
    scripts_data.clear()
    script_callbacks.clear_callbacks()
    syspath = sys.path
    for file in list_scripts("scripts", ".py"):
        try:
            sys.path = [file.basedir, *sys.path]
            current_basedir = file.basedir
            module = script_loading.load_module(file.path)
            for member in module.__dict__.values():
                if type(member) is type and issubclass(member, Script):  # a class with a metaclass is not seen
                    scripts_data.append(ScriptClassData(member, file.path, file.basedir, module))
        except Exception as e:
            errors.display(e, f"Load script: {file.filename}")
        finally:
            current_basedir = paths.script_path
            sys.path = syspath
    scripts_txt2img, scripts_img2img, scripts_control = ScriptRunner("txt2img"), ScriptRunner("img2img"), ScriptRunner("control")


class ScriptRunner:
    def __init__(self, name=""):
        self.name = name
        self.scripts, self.selectable_scripts, self.alwayson_scripts, self.infotext_fields = [], [], [], []
        self.is_img2img = False

    def initialize_scripts(self, is_img2img=False, is_control=False):
        for group in (self.scripts, self.selectable_scripts, self.alwayson_scripts, self.infotext_fields):
            group.clear()
        self.is_img2img = is_img2img
        for data in sorted(scripts_data, key=lambda data: data.script_class().title().lower()):
            try:
                self._add(data, is_img2img, is_control)
            except Exception as e:
                errors.display(e, "script")

    def _add(self, data, is_img2img, is_control):
        script = data.script_class()
        script.filename, script.is_img2img, script.is_txt2img = data.path, is_img2img, not is_img2img
        script.external = data.path.startswith(paths.extensions_dir)
        if is_control and script.external and script.title() not in control_extensions:
            log.debug(f'Script: fn="{script.filename}" type=control title="{script.title()}" skip')
            return
        if is_control:  # asked twice, because show() knows only two kinds of tabs
            answers = (script.show(script.is_txt2img), script.show(script.is_img2img))
            visibility = AlwaysVisible if AlwaysVisible in answers else any(answers)
        else:
            visibility = script.show(script.is_img2img)
        if visibility is AlwaysVisible:
            script.alwayson = True
            self.alwayson_scripts.append(script)
        elif visibility:
            self.selectable_scripts.append(script)
        else:
            return
        self.scripts.append(script)

    def setup_ui(self, parent="unknown"):
        """Draw the panels. Returns the components whose values become `script_args`; the first is the script chosen."""
        titles = ["None", *(script.title() for script in self.selectable_scripts)]
        inputs = [gr.Dropdown(label="Script", elem_id=f"{parent}_script_list", choices=titles, value="None", type="index")]
        with gr.Accordion(label="Extensions", elem_id=f"{parent}_script_alwayson"):
            for script in self.scripts:
                if script in self.selectable_scripts or (self.name == "control" and script.title() not in control_extensions):
                    continue
                elem_id = f"{parent}_script_{script.title().lower().replace(' ', '_')}"
                with gr.Group(elem_id=elem_id, elem_classes=["group-extension"]) as group:
                    self._panel(script, parent, inputs)
                script.group = group
        for script in self.selectable_scripts:
            with gr.Group(visible=False) as group:
                self._panel(script, parent, inputs)
            script.group = group
        return inputs

    def _panel(self, script, parent, inputs):
        script.parent = parent
        script.args_from = script.args_to = len(inputs)
        try:
            controls = script.ui(script.is_img2img)
        except Exception as e:
            errors.display(e, f"Calling script: {script.filename}/ui")
            controls = None
        if controls is None:
            return
        script.name = script.title().lower()
        args = [{"label": control.label or "", "value": getattr(control, "value", None)} for control in controls]
        script.api_info = {"name": script.name, "is_img2img": script.is_img2img, "is_alwayson": script.alwayson, "args": args}
        self.infotext_fields += script.infotext_fields or []
        inputs += controls
        script.args_to = len(inputs)

    def run(self, p, *args):
        if not args or not args[0]:
            return None
        script = self.selectable_scripts[args[0] - 1]
        return script.run(p, *p.per_script_args.get(script.title(), args[script.args_from : script.args_to]))

    def after(self, p, processed, *args):
        if not args or not args[0]:
            return processed
        script = self.selectable_scripts[args[0] - 1]
        return (script.after(p, processed, *args[script.args_from : script.args_to]) if hasattr(script, "after") else None) or processed

    def _call(self, hook, p, *positional, **kwargs):
        """One hook of every always-on script. What a script raises is logged, and generation goes on."""
        result = None
        for script in self.alwayson_scripts:
            try:
                if script.args_to > 0 and script.args_to >= script.args_from:
                    args = p.per_script_args.get(script.title(), p.script_args[script.args_from : script.args_to])
                    answer = getattr(script, hook)(p, *positional, *args, **kwargs)
                    result = answer if answer is not None else result
            except Exception as e:
                errors.display(e, f"Running script {hook}: {script.filename}")
        return result

    def before_process(self, p, **kwargs):
        self._call("before_process", p, **kwargs)

    def process(self, p, **kwargs):
        self._call("process", p, **kwargs)

    def process_images(self, p, **kwargs):
        return self._call("process_images", p, **kwargs)

    def before_process_batch(self, p, **kwargs):
        self._call("before_process_batch", p, **kwargs)

    def process_batch(self, p, **kwargs):
        self._call("process_batch", p, **kwargs)

    def postprocess(self, p, processed):
        self._call("postprocess", p, processed)

    def postprocess_batch(self, p, images, **kwargs):
        self._call("postprocess_batch", p, images=images, **kwargs)

    def postprocess_batch_list(self, p, pp, **kwargs):
        self._call("postprocess_batch_list", p, pp, **kwargs)

    def postprocess_image(self, p, pp):
        self._call("postprocess_image", p, pp)
