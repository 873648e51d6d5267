"""Records when and how the host calls an extension, and runs what a test sends."""

import functools
import inspect
import sys

import gradio as gr
import installer
import sd3probe
from modules import call_queue, processing, script_callbacks, scripts, sd_models, shared
from pipelines import generic, model_sd3
from sd3probe import locks

sd3probe.note("import", name=__name__, path=sys.path[0], registered=__name__ in sys.modules)
installer.control_extensions.append("SD3 probe")
locks.install_in_host(call_queue)
if "sd3deploy.deployment.locks" in sys.modules:  # the extension is there too, and was loaded before
    locks.install(sys.modules["sd3deploy.deployment.locks"])


def watch(module, name, /, **describe):
    """Replace a function of the host by one that is noted; called as a module attribute, it is seen."""
    original = getattr(module, name)

    @functools.wraps(original)
    def watched(*args, **kwargs):
        bound = inspect.signature(original).bind(*args, **kwargs)
        bound.apply_defaults()
        sd3probe.note(name, **{key: show(bound.arguments) for key, show in describe.items()})
        return original(*args, **kwargs)

    setattr(module, name, watched)


watch(model_sd3, "load_sd3", path=lambda a: a["checkpoint_info"].path, name=lambda a: a["checkpoint_info"].name)
watch(generic, "load_text_encoder", repo=lambda a: a["repo_id"], kind=lambda a: a["cls_name"].__name__, subfolder=lambda a: a["subfolder"])
watch(sd_models, "reload_text_encoder", initial=lambda a: a["initial"])
watch(processing, "process_images_inner")

for event in ("before_ui", "after_ui", "model_loaded", "before_process", "after_process"):
    getattr(script_callbacks, f"on_{event}")(lambda *args, event=event: sd3probe.note(f"on_{event}"))


def on_app_started(demo, app):
    sd3probe.note("on_app_started")

    def run(body: dict):
        """Execute the code and answer with what it has named `result`."""
        names = {"sd3probe": sd3probe}
        exec(body["code"], names)
        return {"result": names.get("result")}

    shared.api.add_api_route("/sdapi/v1/sd3probe", run, methods=["POST"])
    app.add_api_route("/sd3probe-open", lambda: {"open": True}, methods=["GET"])
    app.add_api_route("/sd3probe-teapot", teapot, methods=["GET"])


def teapot():
    raise ValueError("short and stout")


script_callbacks.on_app_started(on_app_started)


def changed():
    value = shared.opts.data.get("sd3probe_choice")
    sd3probe.note("onchange", value=value)
    if value == "refused":
        raise ValueError("refused on purpose")


def on_ui_settings():
    sd3probe.note("on_ui_settings", stored=shared.opts.data.get("sd3probe_stored"))
    section = ("sd3_probe", "SD3 Probe")
    choices = {"choices": ["first", "second", "refused"]}
    info = shared.OptionInfo("first", "Probe choice", gr.Dropdown, lambda: choices, changed, section=section)
    shared.opts.add_option("sd3probe_choice", info)
    shared.opts.add_option("sd3probe_stored", shared.OptionInfo("text", "Probe text", gr.Textbox, section=section))


script_callbacks.on_ui_settings(on_ui_settings)


def restored(found):
    """A field that is restored by a function of all that the text of a picture says."""
    value = found.get("Probe number")
    return value if value is None or sd3probe.switches.get("plain") else gr.update(value=value * 2)


script_callbacks.on_infotext_pasted(lambda text, found: sd3probe.note("on_infotext_pasted", text=text, found=dict(found)))


class Probe(scripts.Script):
    def title(self):
        return "SD3 probe"

    def show(self, is_img2img):
        return scripts.AlwaysVisible

    def ui(self, is_img2img):
        sd3probe.note("ui", parent=self.parent)
        text = gr.Textbox("from the panel", label="Probe text", elem_id=self.elem_id("text"))
        tick = gr.Checkbox(False, label="Probe tick", elem_id=self.elem_id("tick"))
        number = gr.Number(1, label="Probe number", elem_id=self.elem_id("number"))
        self.infotext_fields = [(text, "Probe text"), (tick, "Probe tick"), (number, restored)]
        return [text, tick, number]

    def _hook(self, name, p, *args):
        sd3probe.note(name, args=[arg for arg in args if isinstance(arg, str)], size=[p.width, p.height], api=shared.state.api)
        if sd3probe.switches.get("raise") == name:
            raise RuntimeError("a script that fails")
        if name in sd3probe.switches.get("size", {}):
            p.width, p.height = sd3probe.switches["size"][name]

    def setup(self, p, *args):
        self._hook("setup", p, *args)

    def before_process(self, p, *args):
        self._hook("before_process", p, *args)

    def process(self, p, *args):
        self._hook("process", p, *args)
        p.extra_generation_params["Probe"] = "seen"

    def process_images(self, p, *args):
        self._hook("process_images", p, *args)
        if sd3probe.switches.get("replace"):
            return processing.Processed(p, [], infotexts=[])

    def before_process_batch(self, p, *args, **kwargs):
        self._hook("before_process_batch", p, *args)

    def process_batch(self, p, *args, **kwargs):
        self._hook("process_batch", p, *args)

    def postprocess_batch(self, p, *args, **kwargs):
        self._hook("postprocess_batch", p, *args)

    def postprocess_batch_list(self, p, pp, *args, **kwargs):
        self._hook("postprocess_batch_list", p, *args)

    def postprocess_image(self, p, pp, *args):
        self._hook("postprocess_image", p, *args)

    def postprocess(self, p, processed, *args):
        self._hook("postprocess", p, *args)


class Uninvited(scripts.Script):
    """Not in the list of scripts that the Control tab lets in."""

    def title(self):
        return "SD3 probe, uninvited"

    def show(self, is_img2img):
        return scripts.AlwaysVisible

    def ui(self, is_img2img):
        return [gr.Checkbox(label="Probe box")]


class Meta(type): ...


class WithMetaclass(scripts.Script, metaclass=Meta):
    def title(self):
        return "SD3 probe, with a metaclass"

    def show(self, is_img2img):
        return scripts.AlwaysVisible
