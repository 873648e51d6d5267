"""The Settings page and the quick settings above all tabs."""

import gradio as gr

from modules import call_queue, script_callbacks, sd_models, shared
from modules.logger import log

THEME = gr.themes.Soft(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])  # gradio's own come over the network
text_settings = None
dummy_component = None  # stands for every setting that the page does not show
components = []
quicksettings_list = []
model_keys_validated = {"sd_model_checkpoint", "sd_vae", "sd_unet", "sd_text_encoder"}


def get_value_for_setting(key):
    args = shared.opts.data_labels[key].args()
    shown = {name: value for name, value in args.items() if name not in ("precision", "multiselect", "visible")}
    return gr.update(value=getattr(shared.opts, key), **shown)


def create_setting_component(key, is_quicksettings=False):
    info = shared.opts.data_labels[key]
    kinds = {str: gr.Textbox, int: gr.Number, float: gr.Number, bool: gr.Checkbox}
    component = info.component or kinds[type(info.default)]
    with gr.Row():
        try:
            made = component(label=info.label, value=getattr(shared.opts, key), elem_id=f"setting_{key}", **info.args())
        except Exception as e:  # a stored value that the widget can not show; what then uses the missing widget fails
            log.error(f"Error creating setting: {key} {e}")
            return None
        if info.refresh is not None:
            button = gr.Button("↻", elem_id=f"settings_{key}_refresh", elem_classes="tool")
            button.click(fn=lambda: _refresh(info), outputs=[made])
    return made


def _refresh(info):
    info.refresh()
    return gr.update(**info.args())


def run_settings(*args):
    """Apply the page: each value that changed is set, with its callback; a refused one is not counted."""
    changed = []
    for key, value, component in zip(shared.opts.data_labels, args, components, strict=False):
        if component is dummy_component or value == "dummy":
            continue
        if not shared.opts.same_type(value, shared.opts.data_labels[key].default):
            log.error(f"Setting bad value: {key}={value} expecting={type(shared.opts.data_labels[key].default).__name__}")
            continue
        if shared.opts.set(key, value):
            changed.append(key)
    if changed:
        shared.opts.save()
        log.info(f"Settings: changed={len(changed)} {changed}")
    return shared.opts.dumpjson(), f"{len(changed)} Settings changed{': ' if changed else ''}{', '.join(changed)}"


def run_settings_single(value, key, progress=False, force=False):
    """One quick setting. Names of models must be among the choices or look like a repository or a file."""
    if not shared.opts.same_type(value, shared.opts.data_labels[key].default):
        return gr.update(visible=True), shared.opts.dumpjson()
    if key in model_keys_validated and not force and isinstance(value, str):
        known = value in shared.opts.data_labels[key].args().get("choices", [])
        custom = value.endswith(".safetensors") or (" " not in value and value.count("/") in (1, 2))
        if not known and not custom:
            return gr.update(value=getattr(shared.opts, key)), shared.opts.dumpjson()
    if not shared.opts.set(key, value, force):
        return gr.update(value=getattr(shared.opts, key)), shared.opts.dumpjson()
    shared.opts.save(silent=True)
    if key == "sd_text_encoder":
        sd_models.reload_text_encoder()
    return get_value_for_setting(key), shared.opts.dumpjson()


def create_ui():
    global text_settings, dummy_component
    dummy_component = gr.Textbox(visible=False, value="dummy")
    text_settings = gr.Textbox(elem_id="settings_json", value=lambda: shared.opts.dumpjson(), visible=False)
    components.clear()
    quicksettings_list.clear()
    with gr.Row(elem_id="system_row"):
        unload = gr.Button("Unload model", elem_id="sett_unload_sd_model")
        reload = gr.Button("Reload model", elem_id="sett_reload_sd_model")
        restart = gr.Button("Restart server", elem_id="restart_submit")
    unload.click(fn=lambda: sd_models.unload_model_weights(op="model"))
    reload.click(fn=lambda: sd_models.reload_model_weights(force=True) and None)
    restart.click(fn=lambda: shared.restart_server(restart=True), _js="() => { restartReload(); }")
    with gr.Tabs(elem_id="system"), gr.TabItem("Settings", id="system_settings", elem_id="tab_settings"):
        submit = gr.Button("Apply settings", variant="primary", elem_id="settings_submit")
        result = gr.HTML(elem_id="settings_result")
        script_callbacks.ui_settings_callback()
        shared.opts.reorder()
        sections = dict.fromkeys(info.section[:2] for info in shared.opts.data_labels.values())
        with gr.Tabs(elem_id="settings"):
            for section_id, title in sections:
                keys = [key for key, info in shared.opts.data_labels.items() if info.section[0] == section_id]
                _section(section_id, title, keys)
    apply = call_queue.wrap_gradio_call(run_settings, extra_outputs=[gr.update()])
    submit.click(fn=apply, inputs=components, outputs=[text_settings, result])


def _section(section_id, title, keys):
    if section_id is None or "hidden" in f"{section_id} {title}".lower():
        components.extend(dummy_component for _ in keys)
        return
    with gr.TabItem(elem_id=f"settings_section_tab_{section_id}", label=title):
        for key in keys:
            if key in shared.opts.quicksettings_list:
                quicksettings_list.append(key)
                components.append(dummy_component)
            else:
                with gr.Row(elem_id=f"settings_section_row_{section_id}"):
                    components.append(create_setting_component(key))
                shared.settings_components[key] = components[-1]


def create_quicksettings(interfaces):
    """The whole page: quick settings, then one tab for each interface."""
    with gr.Blocks(analytics_enabled=False, title="SD.Next stand-in", theme=THEME) as page:
        with gr.Row(elem_id="quicksettings"):
            made = {key: create_setting_component(key, is_quicksettings=True) for key in quicksettings_list}
            shared.settings_components.update(made)
        with gr.Tabs(elem_id="tabs"):
            for interface, label, name in interfaces:
                with gr.TabItem(label, id=name, elem_id=f"tab_{name}"):
                    interface.render()
        for key, component in made.items():
            event = component.blur if getattr(component, "allow_custom_value", False) else component.change
            event(fn=lambda value, key=key: run_settings_single(value, key), inputs=[component], outputs=[component, text_settings])
    return page
