"""The contract with SD.Next: everything of the host that this extension leans on, as one table.

The rows are data. webui/host/reach.py reads them: it looks a name up, checks all of them once at start, and is the only module that
imports the host's modules. tests/drift/ makes its cases of them. What a host of another version has under another name, or does not have
yet, is a row's `instead` and `since`; versions are told apart by what is there, never by a version string.

A name is written as entry points are: "modules.shared:opts.data" is the attribute `opts.data` of the module modules.shared. Four
places are no modules: "job" is the object p that describes a picture, "page" an id of gradio's page, "route" an address of the host's API,
"browser" a name of the page's window.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Number
from typing import Any, Literal

__all__ = ["BY_NAME", "FEATURES", "PLACES", "REQUIRED", "TABLE", "Kind", "Need"]

Kind = Literal["function", "patch", "callback", "attribute", "option", "field", "element", "route", "browser"]
PLACES = ("job", "page", "route", "browser")  # what is no module of the host


class _Required:
    def __repr__(self) -> str:
        return "REQUIRED"


REQUIRED: Any = _Required()  # the default of what has none


@dataclass(frozen=True, eq=False)  # one of each: a default may be a dictionary
class Need:
    """One row.

    name: where it is. kind: function, called by us; patch, a function of the host that we wrap; callback, a hook that the host calls or
    the function that registers one; attribute; option, a key of the host's settings; field, an attribute of the job; element, an id of
    the page; route, an address of the host's API; browser, a name of the page's window. use: what for.
    feature: the part of the extension that is named to the user when it is missing or has another shape, the end of "feature.<id>" in
    messages/; "" is the extension as a whole, None nothing at all. lost: what is lost then, or why nothing is.
    call: how we call it, "(name)" by position, "(full=)" by name; of a patch the parameters that are looked up by name. Those by position
    have to have the host's names too: one more before them would shift them all.
    gives: the type of the value or result, or the names of the attributes that a result has. default: what stands in for it; with one the
    feature goes on as well as it can, without one its parts are switched off. raises: whether an exception of the function is an ordinary
    outcome; else it counts as a change of the host. since: the host's version that brought it, year and month; the oldest host that is
    supported is 2025-09. instead: its name in other versions. lazy: its module is not imported for a check.
    """

    name: str
    kind: Kind
    use: str
    feature: str | None
    lost: str
    call: str = ""
    gives: type | tuple[type, ...] | tuple[str, ...] | None = None
    default: Any = REQUIRED
    raises: bool = False
    since: str = "2025-09"
    instead: str = ""
    lazy: bool = False

    @property
    def place(self) -> str:
        """The module, or one of PLACES."""
        return self.name.partition(":")[0]

    @property
    def path(self) -> tuple[str, ...]:
        """The attributes on the way to it, itself last."""
        return tuple(self.name.partition(":")[2].split("."))

    @property
    def required(self) -> bool:
        return self.default is REQUIRED


# Feature → its parts (webui/host/feature.py), which are switched off when something of it is missing that has no default. A feature that
# is not here is one part of the same name.
FEATURES: dict[str, tuple[str, ...]] = {
    "encoders": ("load-sd3", "encoder", "swap", "foresee"),
    "memory": ("forecast", "foresee", "batch", "apply"),
    "offload-mode": ("swap", "leave-room", "forecast", "foresee", "batch", "apply"),
    "pictures": ("note", "guard", "forecast", "batch", "process", "before-batch", "job"),
}

_GENERIC, _SD3, _SHARED = "pipelines.generic", "pipelines.model_sd3", "modules.shared"
_MODELS, _OFFLOAD, _SCRIPTS = "modules.sd_models", "modules.sd_offload", "modules.scripts_manager"
_HOOKS = "modules.script_callbacks"
_PLAIN = (str, Number, list, tuple, dict, type(None))  # what pages, requests and scripts put into a job, such as numbers of NumPy

TABLE: tuple[Need, ...] = (
    # Without these there is no extension
    Need(f"{_SHARED}:opts.data", "attribute", "settings as they are stored", "", "everything", gives=dict),
    Need(f"{_SHARED}:opts.add_option", "function", "our settings", "", "everything", "(key, info)"),
    Need(f"{_SHARED}:OptionInfo", "function", "our settings", "", "everything",
         "(default, label, component, component_args, onchange=, section=)"),
    Need(f"{_SHARED}:api.add_api_route", "function", "our API", "", "everything",
         "(path, fn, methods=, tags=, summary=, response_model=)", raises=True),
    Need(f"{_HOOKS}:on_ui_settings", "callback", "when settings are registered", "", "everything", "(callback)"),
    Need(f"{_HOOKS}:on_app_started", "callback", "when the API is registered", "", "everything", "(callback)"),
    Need("modules.modeldata:model_data.sd_model", "attribute", "the loaded model, without loading one", "", "everything"),
    Need("modules.devices:device", "attribute", "where the model computes", "", "everything"),
    Need("modules.devices:backend", "attribute", "CUDA, ROCm, ZLUDA…: torch calls them all cuda", "", "everything", gives=str),
    Need("modules.call_queue:queue_lock", "attribute", "one job at a time", "", "everything", gives=("acquire", "release", "locked")),
    Need("modules.paths:data_path", "attribute", "the folder for what we keep", "", "everything", gives=str),
    Need("modules.paths:script_path", "attribute", "the folder of SD.Next", "", "everything", gives=str),
    Need("modules.paths:models_path", "attribute", "the folder for quantized encoders", "", "everything", gives=str),
    Need(f"{_SCRIPTS}:Script", "attribute", "the kind of our panel", "", "everything", gives=type, instead="modules.scripts:Script"),
    Need(f"{_SCRIPTS}:AlwaysVisible", "attribute", "a panel on each tab", "", "everything", instead="modules.scripts:AlwaysVisible"),
    Need(f"{_SCRIPTS}:Script.title", "callback", "the name of the panel", "", "everything", "(self)"),
    Need(f"{_SCRIPTS}:Script.show", "callback", "on which tabs it is", "", "everything", "(self, is_img2img)"),
    Need(f"{_SCRIPTS}:Script.ui", "callback", "the panel", "", "everything", "(self, is_img2img)"),
    # Text encoders
    Need(f"{_SD3}:load_sd3", "patch", "an SD3 model is being loaded", "encoders", "the host's own T5 is taken", "checkpoint_info"),
    Need(f"{_GENERIC}:load_text_encoder", "patch", "T5 as it is loaded; the host's own T5", "encoder",
         "ours replaces the host's afterwards", "repo_id cls_name load_config subfolder", raises=True),
    Need(f"{_MODELS}:path_to_repo", "function", "folder or repository of a model", "encoders", "its weights are not found",
         "(checkpoint_info)", gives=str),
    Need(f"{_MODELS}:load_diffuser", "patch", "a model of any kind is being loaded", "load", "its failure is not explained"),
    Need(f"{_MODELS}:clear_caches", "function", "prompts encoded with another T5", "swap", "pictures would be of the old T5", "(full=)"),
    Need(f"{_OFFLOAD}:set_diffuser_offload", "function", "a new T5 follows the offload mode", "swap", "T5 would stay where it is",
         "(sd_model, op=)"),
    Need(f"{_SHARED}:opts.diffusers_offload_mode", "option", "where parts wait", "offload-mode", "a new T5 would stay where it is",
         gives=str),
    Need(f"{_MODELS}:move_model", "function", "a new T5 makes way", "leave-room", "it stays on the device", "(model, device)",
         default=None),
    Need(f"{_OFFLOAD}:apply_balanced_offload", "function", "parts go back after too little memory", "free", "they stay half-way",
         "(sd_model, force=)", default=None),
    Need(f"{_OFFLOAD}:disable_offload", "function", "another offload mode", "apply", "the button changes no mode", "(sd_model)"),
    Need(f"{_SHARED}:opts.set", "function", "a setting with its callback", "apply", "the button changes nothing", "(key, value)"),
    Need(f"{_SHARED}:opts.save", "function", "what was changed for the user is kept", "save", "until the next start", "()", default=None),
    Need("modules.devices:torch_gc", "function", "memory goes back to the device", "free", "until the host does it", "(force=)",
         default=None),
    Need(f"{_SHARED}:opts.model_sd3_disable_te5", "option", "the host loads no T5", "host-t5", "it is loaded all the same", gives=bool,
         default=False),
    Need(f"{_SHARED}:opts.te_shared_te", "option", "T5 for all models of a kind", "host-t5", "that of the model is taken", gives=bool,
         default=False, since="2026-06", instead=f"{_SHARED}:opts.te_shared_t5"),
    Need("pipelines.generic_text_encoder:get_shared", "function", "which T5 that is", "host-t5", "Disty0/t5-xxl is taken",
         "(cls, repo_id, subfolder=)", gives=tuple, default=None, since="2026-06"),
    Need(f"{_SHARED}:opts.data_labels", "attribute", "a line in the section of the host's own text encoder", None, "no line there",
         gives=dict, default={}),
    Need(f"{_SHARED}:opts.offline_mode", "option", "nothing is fetched", "offline", "the network is asked", gives=bool, default=False),
    Need(f"{_SHARED}:opts.diffusers_dir", "option", "where models lie", "folders", "it is not searched", gives=str, default=""),
    Need(f"{_SHARED}:opts.ckpt_dir", "option", "where models lie", "folders", "it is not searched", gives=str, default=""),
    Need(f"{_SHARED}:opts.hfcache_dir", "option", "where models lie", "folders", "it is not searched", gives=str, default=""),
    Need("modules.sd_checkpoint:checkpoint_aliases", "attribute", "models by the names that are listed", "folders", "a path is needed",
         gives=dict, default={}),
    Need("modules.sd_hijack_te:prompt_cache", "attribute", "prompts encoded with another T5", "swap", "pictures would be of the old T5",
         gives=("cache",), default=None, since="2026-07", lazy=True),
    Need("modules.prompt_parser_diffusers:cache", "attribute", "prompts outlive another VAE", "vae", "they are encoded anew",
         gives=("items", "update"), default=None, lazy=True),
    Need("modules.sd_vae:reload_vae_weights", "patch", "prompts outlive another VAE", "vae", "they are encoded anew"),
    # Memory
    Need(f"{_SHARED}:opts.sd_model_checkpoint", "option", "the selected model", "estimate", "none is foreseen", gives=(str, type(None)),
         default=""),
    Need("modules.devices:dtype", "attribute", "bytes of a number", "memory", "no estimate"),
    Need(f"{_SHARED}:opts.diffusers_offload_min_gpu_memory", "option", "what stays on the device", "memory", "no estimate",
         gives=(int, float)),
    Need(f"{_SHARED}:opts.diffusers_offload_max_gpu_memory", "option", "what may go there", "memory", "no estimate", gives=(int, float)),
    Need(f"{_SHARED}:opts.diffusers_offload_never", "option", "parts that stay there", "estimate", "taken for none", gives=str, default=""),
    Need(f"{_SHARED}:opts.group_offload_type", "option", "how T5 is offloaded in groups", "estimate", "leaf by leaf", gives=str,
         default="leaf_level"),
    Need(f"{_SHARED}:opts.group_offload_blocks", "option", "blocks of a group", "estimate", "one", gives=int, default=1),
    Need(f"{_SHARED}:opts.group_offload_stream", "option", "groups beside the computation", "estimate", "taken for off", gives=bool,
         default=False),
    Need(f"{_SHARED}:opts.group_offload_record", "option", "groups beside the computation", "estimate", "taken for off", gives=bool,
         default=False),
    Need(f"{_SHARED}:opts.diffusers_offload_nonblocking", "option", "groups beside the computation", "estimate", "taken for off",
         gives=bool, default=False),
    Need(f"{_SHARED}:opts.diffusers_vae_tiling", "option", "the VAE in tiles", "estimate", "taken for off", gives=bool, default=False),
    Need(f"{_SHARED}:opts.diffusers_vae_tile_size", "option", "their size", "estimate", "taken for the model's", gives=(int, float),
         default=0),
    Need(f"{_SHARED}:opts.no_half_vae", "option", "the VAE in 32 bit", "estimate", "taken for off", gives=bool, default=False),
    Need(f"{_SHARED}:opts.cuda_mem_fraction", "option", "a limit for the server", "estimate", "taken for none", gives=(int, float),
         default=0),
    # Pictures
    Need("modules.processing:process_images_inner", "patch", "the state and the answer of a job", "job", "the host's own words", "p",
         gives=("images", "comments")),
    Need("modules.processing_diffusers:process_diffusers", "patch", "a batch", "batch", "memory that ran out is not explained", "p",
         gives=("__len__",)),
    Need("modules.processing:Processed", "function", "the answer of a refused job", "job", "the host's own words",
         "(p, images_list, infotexts=, comments=)", gives=("images", "comments")),
    Need(f"{_SCRIPTS}:Script.before_process", "callback", "the size that is asked for", "note", "sizes are the host's", "(self, p)"),
    Need(f"{_SCRIPTS}:Script.process", "callback", "guards, forecast, encoder of the job", "pictures", "jobs go as they are", "(self, p)"),
    Need(f"{_SCRIPTS}:Script.before_process_batch", "callback", "a job whose encoder was cancelled", "before-batch", "it goes on",
         "(self, p)"),
    Need(f"{_SCRIPTS}:Script.elem_id", "function", "ids of our panel", "panel", "no panel", "(self, item_id)", gives=str),
    Need(f"{_SCRIPTS}:Script.infotext_fields", "attribute", "the panel from a picture's metadata", "paste", "it stays as it is",
         default=None),
    Need("modules.attention:set_diffusers_attention", "patch", "attention processors that do not suit", "attention",
         "looked at before each picture", "pipe", since="2025-11", instead=f"{_MODELS}:set_diffusers_attention"),
    Need(f"{_SHARED}:opts.cross_attention_optimization", "option", "which setting has set them", None, "the sentence does not name it",
         gives=str, default=""),
    Need(f"{_SHARED}:opts.prompt_attention", "option", "the parser of prompts", "prompts", "taken for native", gives=str, default="native"),
    Need(f"{_SHARED}:opts.schedulers_prediction_type", "option", "what a sampler is made of", "samplers", "taken for default", gives=str,
         default="default"),
    Need(f"{_SHARED}:opts.schedulers_fallback", "option", "the host takes one that suits", "samplers",
         "taken for on: nothing is mended that works", gives=bool, default=True, since="2026-06"),
    Need("modules.sd_samplers:find_sampler_config", "function", "whether a sampler suits", "samplers", "all are taken to suit", "(name)",
         gives=("constructor",), default=None),
    Need("modules.extra_networks:parse_prompt", "function", "words without networks", "prompts", "counted as they stand", "(prompt)",
         gives=tuple, default=None),
    Need("modules.prompt_parser:parse_prompt_attention", "function", "words without weights", "prompts", "counted as they stand", "(text)",
         gives=list, default=None, raises=True),
    Need("modules.progress:current_task", "attribute", "pictures of one press", "origin", "each is asked about", gives=(str, type(None)),
         default=None, lazy=True),
    Need(f"{_SHARED}:state.job", "attribute", "whether a request waits for the job", "origin", "taken for the page", gives=str, default=""),
    Need(f"{_SHARED}:state.api", "attribute", "our job is of the same kind", "progress", "taken for the page", gives=bool, default=False),
    Need(f"{_SHARED}:state.begin", "function", "a load in the host's progress", "progress", "not shown there", "(title, api=)",
         default=None),
    Need(f"{_SHARED}:state.end", "function", "its end", "progress", "not shown there", "(task_id)", default=None),
    Need(f"{_SHARED}:state.sampling_step", "attribute", "how far it is", "progress", "not shown there", gives=int, default=0),
    Need(f"{_SHARED}:state.sampling_steps", "attribute", "how far it is", "progress", "not shown there", gives=int, default=0),
    Need(f"{_SHARED}:state.textinfo", "attribute", "what it is", "progress", "not shown there", default=None),
    Need(f"{_SHARED}:state.interrupted", "attribute", "the host's Stop", "progress", "our own Cancel ends a load", gives=bool,
         default=False),
    # The page, the log, the environment
    Need(f"{_SHARED}:opts.ui_locale", "option", "in which language to speak", "language", "that of the browser", gives=str, default="Auto"),
    Need(f"{_SHARED}:cmd_opts.disable_extension_access", "attribute", "whether the page may install", "install", "it may not", gives=bool,
         default=True),
    Need(f"{_SHARED}:cmd_opts.cors_origins", "attribute", "other sites that are trusted", None, "none is, which is safe", default=None),
    Need(f"{_SHARED}:cmd_opts.cors_regex", "attribute", "other sites that are trusted", None, "none is, which is safe", default=None),
    Need("installer:args.uv", "attribute", "pip or uv", None, "pip does the same", default=False),
    Need("installer:pip", "patch", "packages that the host installs", "packages", "they may need a restart", "arg"),
    Need("installer:control_extensions", "attribute", "our panel in Control", "control", "not there", gives=list),
    Need("modules.errors:display", "patch", "errors that the host reports", "errors", "its own words", "e task"),
    Need("modules.errors:ValidationError", "attribute", "a refusal without traceback", None, "a traceback in the log, nothing else",
         gives=type, default=None, since="2026-06"),
    Need(f"{_HOOKS}:on_script_unloaded", "callback", "an end without a restart", "unload", "restart the server", "(callback)"),
    Need(f"{_HOOKS}:remove_callbacks_for_function", "function", "an end without a trace", None,
         "callbacks that remain do nothing any more", "(callback_func)", default=None),
    Need("modules.api.validate:log_cost", "attribute", "no line for each poll", "quiet", "the log names each", gives=(dict, list),
         default={}, since="2026-03", instead="modules.api.middleware:ignore_endpoints"),
    # What only tells versions apart: nothing of it is used
    Need("modules.logger:log", "attribute", "a mark of the version", None, "the version is told by others", default=None, since="2026-02"),
    Need(f"{_MODELS}:loaded_te", "attribute", "a mark of the version", None, "the version is told by others", default=None,
         since="2026-07"),
    # The job, looked at when the first one comes
    Need("job:init", "field", "where a refused job ends", "pictures", "jobs go as they are"),
    *(Need(f"job:{name}", "field", "what is asked for", "pictures", "jobs go as they are", gives=_PLAIN) for name in (
        "width", "height", "sampler_name", "steps", "cfg_scale", "prompt", "negative_prompt", "all_prompts", "all_negative_prompts",
        "batch_size", "denoising_strength", "resize_mode", "hr_resize_mode", "hr_resize_x", "hr_resize_y", "hr_scale", "hr_force",
        "extra_generation_params")),
    *(Need(f"job:{name}", "field", "the second pass", "details", "it is not looked at", gives=_PLAIN, default=None) for name in (
        "enable_hr", "hr_upscaler", "hr_denoising_strength", "hr_sampler_name")),
    *(Need(f"job:{name}", "field", "the picture that is given", "details", "the size is that of the fields", default=None)
      for name in ("init_images", "scale_by", "image_mask", "inpaint_full_res")),
    Need("job:prompt_attention", "field", "the parser of this job", "prompts", "that of the settings", gives=_PLAIN, default=None,
         since="2026-05"),
    Need("job:task_args", "field", "the size that Control hands on", "details", "Control keeps its own size", default=None),
    # The page. {tab}: txt2img, img2img and control. What comes after | is the id in Control
    *(Need(f"page:{{tab}}_{id}", "element", use, "page", "not shown beside the field", default=None) for id, use in (
        ("width|{tab}_before_resize_width", "the size as it is typed"), ("height|{tab}_before_resize_height", "the size as it is typed"),
        ("batch_size", "pictures at a time"), ("steps", "steps"), ("cfg_scale", "guidance"), ("sampling", "the sampler"),
        ("generate", "memory beside the button"))),
    Need("page:settings_submit", "element", "toasts right after Apply", "page", "within a minute", default=None),
    Need("page:quicksettings", "element", "toasts right after a quick setting", "page", "within a minute", default=None),
    Need("page:settings_section_row_sd3_deploy", "element", "settings in the browser's language", "page", "in the server's",
         default=None),
    Need("page:setting_sd3_text_encoder", "element", "sources as they are typed", "page", "not shown", default=None),
    Need("page:script_{tab}_sd3_deploy_panel", "element", "the panel that is filled in", "page", "it stays empty", default=None),
    Need("route:/sdapi/v1/restart", "route", "the button behind a message", None, "the host's own button is pressed", default=None,
         since="2026-08"),  # from the second of July's two versions on
    Need("route:/sdapi/v1/reload-checkpoint", "route", "the button behind a message", "page", "the button fails", default=None),
    # The browser's window, looked at by javascript/ itself
    *(Need(f"browser:{name}", "browser", use, None, lost, default=None, since=since) for name, use, lost, since in (
        ("api", "the address of the API", "/sdapi/v1 is taken", "2025-02"),
        ("opts", "settings as the page has them", "a dash stands for each", "2024-06"),
        ("authFetch", "the login of the page", "fetch with the cookie is taken", "2025-11"),
        ("onUiLoaded", "when the page is there", "the browser's own event is taken", "2024-06"),
        ("onAfterUiUpdate", "when the page has changed", "the hints come with the next key", "2024-06"),
        ("onOptionsChanged", "when settings were applied", "the press of Apply is heard as well", "2024-06"),
        ("restartReload", "a restart that reloads the page", "the user reloads it", "2024-06"))),
)  # fmt: skip


def _by_name() -> Mapping[str, Need]:
    found = {need.name: need for need in TABLE}
    assert len(found) == len(TABLE), "a name stands in the table twice"
    return found


BY_NAME = _by_name()
