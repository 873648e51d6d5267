"""The page: Text, Image and Control tabs with the panels of scripts, and the settings."""

import html
import os

import gradio as gr
import gradio.utils

from modules import (
    call_queue,
    processing,
    script_callbacks,
    scripts_manager,
    sd_samplers,
    shared,
    ui_extensions,
    ui_javascript,
    ui_settings,
)
from modules.generation_parameters_copypaste import connect_paste

gradio.utils.version_check = lambda: None  # it would ask the network
gradio.utils.get_local_ip_address = lambda: "127.0.0.1"


def plaintext_to_html(text):
    lines = "<br>\n".join(html.escape(line) for line in (text or "").split("\n"))
    return f"<p class='plaintext'>{lines}</p>" if text else ""


NAME_TASK = "(id, ...values) => [`task(${Math.random().toString(36).slice(2)})`, ...values]"  # each press has a name of its own


def _generate(kind, runner):
    def generate(id_task, prompt, negative, width, height, steps, cfg_scale, seed, sampler, batch_size, image, strength, *args):
        if shared.sd_model is None:
            return [], "", "Error: model not loaded"
        p = kind(sd_model=shared.sd_model, prompt=prompt, negative_prompt=negative, width=width, height=height, steps=steps,
                 cfg_scale=cfg_scale, seed=seed, sampler_name=sampler, batch_size=batch_size,
                 init_images=[image] if image is not None else None, denoising_strength=strength,
                 outpath_samples=getattr(shared.opts, f"outdir_{runner.name}_samples"))  # fmt: skip
        p.scripts, p.script_args = runner, args
        processed = runner.run(p, *args) or processing.process_images(p)
        processed = runner.after(p, processed, *args)
        p.close()
        if processed is None:
            return [], "", "Error: processing failed"
        if processed.images:
            with open(os.path.join(shared.data_path, "params.txt"), "w", encoding="utf-8") as file:
                file.write(processed.infotexts[-1])  # Restore takes it where the prompt is empty
        if runner.name == "control":  # this tab shows no comments
            return processed.images, processed.info, f"Ready | Images {len(processed.images) or None}"
        return processed.images, processed.info, plaintext_to_html(processed.comments)

    generate.__name__ = runner.name
    return generate


def _tab(name, kind, runner, with_image=False):
    runner.initialize_scripts(is_img2img=name == "img2img", is_control=name == "control")
    size = "control_before_resize" if name == "control" else name
    with gr.Blocks(analytics_enabled=False) as interface:
        id_task = gr.Textbox(visible=False)
        with gr.Row(elem_id=f"{name}_toprow"):
            prompt = gr.Textbox("a cat holding a sign", label="Prompt", elem_id=f"{name}_prompt", lines=2, elem_classes="main-prompts")
            negative = gr.Textbox(label="Negative prompt", elem_id=f"{name}_neg_prompt", lines=2)
            submit = gr.Button("Generate", variant="primary", elem_id=f"{name}_generate")
            restore = gr.Button("Restore", elem_id=f"{name}_paste", scale=0, min_width=100)
        with gr.Row(elem_id=f"{name}_interface"):
            with gr.Column(elem_id=f"{name}_settings"):
                image = gr.Image(label="Image", type="pil", elem_id=f"{name}_image", visible=with_image)
                with gr.Row():
                    width = gr.Slider(label="Width", minimum=64, maximum=4096, step=8, value=256, elem_id=f"{size}_width")
                    height = gr.Slider(label="Height", minimum=64, maximum=4096, step=8, value=256, elem_id=f"{size}_height")
                with gr.Row():
                    steps = gr.Slider(label="Steps", minimum=1, maximum=99, step=1, value=4, elem_id=f"{name}_steps")
                    cfg_scale = gr.Slider(label="Guidance scale", minimum=0, maximum=30, value=6, elem_id=f"{name}_cfg_scale")
                    strength = gr.Slider(label="Strength", minimum=0, maximum=1, value=0.5, visible=with_image)
                with gr.Row():
                    sampler = gr.Dropdown(label="Sampler", choices=list(sd_samplers.CLASSES), value="Default", elem_id=f"{name}_sampling")
                    seed = gr.Number(label="Seed", value=-1, precision=0, elem_id=f"{name}_seed")
                    batch_size = gr.Slider(label="Batch size", minimum=1, maximum=32, step=1, value=1, elem_id=f"{name}_batch_size")
                scripts = runner.setup_ui(parent=name)
            with gr.Column(elem_id=f"{name}_results"):
                gallery = gr.Gallery(label="Output", elem_id=f"{name}_gallery", columns=2)
                infotext = gr.Textbox(label="Metadata", elem_id=f"html_info_{name}", lines=3, interactive=False)
                message = gr.HTML(elem_id=f"html_log_{name}")
        inputs = [id_task, prompt, negative, width, height, steps, cfg_scale, seed, sampler, batch_size, image, strength, *scripts]
        run = call_queue.wrap_gradio_gpu_call(_generate(kind, runner), extra_outputs=[None, ""], name=name)
        submit.click(fn=run, _js=NAME_TASK, inputs=inputs, outputs=[gallery, infotext, message])
        fields = {"Prompt": prompt, "Negative prompt": negative, "Size-1": width, "Size-2": height, "Steps": steps, "Seed": seed,
                  "CFG scale": cfg_scale, "Sampler": sampler}  # fmt: skip
        pairs = [(component, key) for key, component in fields.items()] + runner.infotext_fields
        connect_paste(restore, pairs, prompt, name)
    return interface


def create_ui(startup_timer=None):
    ui_javascript.reload_javascript()
    found = scripts_manager
    interfaces = [
        (_tab("txt2img", processing.StableDiffusionProcessingTxt2Img, found.scripts_txt2img), "Text", "txt2img"),
        (_tab("img2img", processing.StableDiffusionProcessingImg2Img, found.scripts_img2img, with_image=True), "Image", "img2img"),
        (_tab("control", processing.StableDiffusionProcessingControl, found.scripts_control), "Control", "control"),
    ]
    with gr.Blocks(analytics_enabled=False) as settings:
        ui_settings.create_ui()
    interfaces.append((settings, "System", "system"))
    interfaces += script_callbacks.ui_tabs_callback()
    with gr.Blocks(analytics_enabled=False) as installed:
        ui_extensions.create_ui()
    interfaces.append((installed, "Extensions", "extensions"))
    shared.tab_names = [label for _, label, _ in interfaces]
    return ui_settings.create_quicksettings(interfaces)
