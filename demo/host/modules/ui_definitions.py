"""The host's own settings: those that decide how SD3 is loaded, placed and generated, with the host's defaults."""

import os

import gradio as gr

from modules import devices, paths, shared_items, theme
from modules.like import AUGUST
from modules.memstats import memory_stats
from modules.options import OptionInfo, options_section
from modules.ui_components import DropdownEditable

KERNELS = ["Flash", "Memory", "Math"]
OFFLOAD_MODES = ["none", "balanced", "group", "model", "sequential"]


def create_settings(cmd_opts):
    def models():
        from modules import sd_checkpoint

        return {"choices": sd_checkpoint.checkpoint_titles()}

    def refresh_models():
        from modules import sd_checkpoint

        return sd_checkpoint.list_models()

    on_gpu = devices.backend != "cpu"
    vram = memory_stats()["gpu"]["total"]
    always = "T5EncoderModel, UMT5EncoderModel" if vram <= 12 or vram >= 24 else ""
    slider = {"minimum": 0, "maximum": 1, "step": 0.01}
    return {
        **options_section(("sd", "Model Loading"), {
            "sd_model_checkpoint": OptionInfo("None", "Base model", DropdownEditable, models, refresh=refresh_models),
            "sd_checkpoint_autoload": OptionInfo(True, "Model auto-load on start"),
            "device_map": OptionInfo("default", "Model load device map", gr.Radio, {"choices": ["default", "gpu", "cpu"]}),
            "diffusers_model_load_variant": OptionInfo("default", "Preferred Model variant"),
            "force_dtype": OptionInfo(False, "Force dtype on load"),
            "offline_mode": OptionInfo(False, "Force offline mode", gr.Checkbox),
        }),
        **options_section(("model_options", "Model Options"), {
            "model_sd3_disable_te5": OptionInfo(False, "Disable T5 text encoder"),
        }),
        **options_section(("offload", "Model Offloading"), {
            "diffusers_offload_mode": OptionInfo("balanced" if on_gpu else "none", "Model offload mode", gr.Radio,
                                                 {"choices": OFFLOAD_MODES}),
            "diffusers_offload_nonblocking": OptionInfo(False, "Non-blocking move operations"),
            "diffusers_offload_never": OptionInfo("CLIPTextModel, CLIPTextModelWithProjection, AutoencoderKL", "Modules to never offload"),
            "cuda_mem_fraction": OptionInfo(0.0, "Memory limit", gr.Slider, {"minimum": 0, "maximum": 2.0, "step": 0.05}),
        }),
        **options_section(("offload_balanced", "Balanced Offload") if AUGUST else ("offload", "Model Offloading"), {
            "diffusers_offload_pre": OptionInfo(True, "Offload during pre-forward"),
            "diffusers_offload_min_gpu_memory": OptionInfo(0.2, "Offload low watermark", gr.Slider, slider),
            "diffusers_offload_max_gpu_memory": OptionInfo(0.6, "Offload GPU high watermark", gr.Slider, slider),
            "diffusers_offload_max_cpu_memory": OptionInfo(0.9, "Offload CPU high watermark", gr.Slider, slider),
            "diffusers_offload_always": OptionInfo(always, "Modules to always offload"),
        }),
        **options_section(("offload_group", "Group Offload") if AUGUST else ("offload", "Model Offloading"), {
            "group_offload_type": OptionInfo("leaf_level", "Group offload type", gr.Radio, {"choices": ["leaf_level", "block_level"]}),
            "group_offload_stream": OptionInfo(False, "Use torch streams", gr.Checkbox),
            "group_offload_record": OptionInfo(False, "Record torch streams", gr.Checkbox),
            "group_offload_blocks": OptionInfo(1, "Offload blocks", gr.Number),
        }),
        **options_section(("quantization", "Model Quantization"), {
            "sdnq_quantize_weights": OptionInfo([], "Quantization enabled", gr.CheckboxGroup, {"choices": ["Model", "TE", "LLM", "VAE"]}),
            "sdnq_quantize_mode": OptionInfo("auto", "Quantization mode", gr.Dropdown, {"choices": ["auto", "pre", "post"]}),
            "sdnq_quantize_weights_mode": OptionInfo("int8", "Quantization type", gr.Dropdown, {"choices": shared_items.sdnq_quant_modes}),
            "sdnq_quantize_weights_mode_te": OptionInfo("Same as model", "Quantization type for Text Encoders", gr.Dropdown,
                                                        {"choices": ["Same as model", *shared_items.sdnq_quant_modes]}),
            "sdnq_dequantize_fp32": OptionInfo(True, "Dequantize using full precision", gr.Checkbox),
            "models_not_to_quant": OptionInfo("", "Model types not to quantize"),
        }),
        **options_section(("text_encoder", "Text Encoder"), {
            "sd_text_encoder": OptionInfo("Default", "Text encoder model", DropdownEditable,
                                          lambda: {"choices": shared_items.sd_te_items()}, refresh=shared_items.refresh_te_list),
            "prompt_attention": OptionInfo("native", "Prompt attention parser", gr.Radio,
                                           {"choices": ["native", "compel", "xhinker", "a1111", "fixed"]}),
            "sd_textencoder_cache_size": OptionInfo(4, "Text encoder cache size", gr.Slider, {"minimum": 0, "maximum": 16, "step": 1}),
            "te_shared_te": OptionInfo(True, "Use shared instance of text encoder"),
        }),
        **options_section(("vae_encoder", "Variational Auto Encoder"), {
            "sd_vae": OptionInfo("Automatic", "VAE model", gr.Dropdown,
                                 lambda: {"choices": shared_items.sd_vae_items()}, refresh=shared_items.refresh_vae_list),
            "diffusers_vae_upcast": OptionInfo("default", "VAE upcasting", gr.Radio, {"choices": ["default", "true", "false"]}),
            "no_half_vae": OptionInfo(False, "Full precision", gr.Checkbox),
            "diffusers_vae_slicing": OptionInfo(True, "VAE slicing", gr.Checkbox),
            "diffusers_vae_tiling": OptionInfo(False, "VAE tiling", gr.Checkbox),
            "diffusers_vae_tile_size": OptionInfo(0, "VAE tile size", gr.Slider, {"minimum": 0, "maximum": 4096, "step": 8}),
        }),
        **options_section(("cuda", "Compute Settings"), {
            "cross_attention_optimization": OptionInfo("Scaled-Dot-Product", "Attention method", gr.Radio,
                                                       {"choices": ["Disabled", "Scaled-Dot-Product", "xFormers", "Batch matrix-matrix"]}),
            "sdp_options": OptionInfo(KERNELS, "SDP kernels", gr.CheckboxGroup, {"choices": KERNELS}),
            "sdp_overrides": OptionInfo([], "SDP overrides", gr.CheckboxGroup, {"choices": ["Sage attention", "Flash attention"]}),
        }),
        **options_section(("sampler-params", "Sampler Settings"), {
            "schedulers_prediction_type": OptionInfo("default", "Override model prediction type", gr.Radio,
                                                     {"choices": ["default", "epsilon", "flow_prediction"], "visible": False}),
            "schedulers_fallback": OptionInfo(True, "Fallback to default when a sampler does not suit the model"),
        }),
        **options_section(("system-paths", "System Paths"), {
            "ckpt_dir": OptionInfo(os.path.join(paths.models_path, "Stable-diffusion"), "Folder with single files of models", folder=True),
            "diffusers_dir": OptionInfo(os.path.join(paths.models_path, "Diffusers"), "Folder with Huggingface models", folder=True),
            "hfcache_dir": OptionInfo(os.path.join(paths.models_path, "huggingface"), "Folder for Huggingface cache", folder=True),
            "te_dir": OptionInfo(os.path.join(paths.models_path, "Text-encoder"), "Folder with Text encoder files", folder=True),
        }),
        **options_section(("saving-images", "Image Options"), {
            "samples_save": OptionInfo(True, "Save all generated images"),
            "samples_format": OptionInfo("jpg", "File format", gr.Dropdown, {"choices": ["jpg", "png", "webp"]}),
            "outdir_samples": OptionInfo("", "Base images folder", folder=True),
            "outdir_txt2img_samples": OptionInfo("outputs/text", "Folder for text generate", folder=True),
            "outdir_img2img_samples": OptionInfo("outputs/image", "Folder for image generate", folder=True),
            "outdir_control_samples": OptionInfo("outputs/control", "Folder for control generate", folder=True),
        }),
        **options_section(("ui", "User Interface"), {
            "quicksettings_list": OptionInfo(["sd_model_checkpoint"], "Quicksettings list", gr.Dropdown,
                                            {"multiselect": True, "choices": []}),
            "theme_type": OptionInfo("Standard", "Theme type", gr.Radio, {"choices": ["Modern", "Standard", "None"]}),
            "ui_locale": OptionInfo("Auto", "UI locale", gr.Dropdown, lambda: {"choices": theme.list_locales()}),
            "subpath": OptionInfo("", "Mount URL subpath"),
            "server_rate_limit": OptionInfo(300, "Server rate limit", gr.Slider, {"minimum": 0, "maximum": 10000, "step": 1}),
        }),
        **options_section((None, "Hidden"), {
            "disable_all_extensions": OptionInfo("none", "Disable all extensions", gr.Radio, {"choices": ["none", "user", "all"]}),
            "disabled_extensions": OptionInfo([], "Disable these extensions", gr.Textbox, {"visible": False}),
            "sd_checkpoint_hash": OptionInfo("", "SHA256 hash of the current checkpoint"),
        }),
    }  # fmt: skip
