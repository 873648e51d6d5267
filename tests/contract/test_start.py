"""The extension is started in a host that is not as it should be: what it can not do without ends it as a whole, with one sentence; every
other part fails alone. First in the running host, in which one thing at a time is missing; then in a stand-in that has really changed.
"""

from __future__ import annotations

import html
import re
import shutil
import textwrap

import pytest

from demo import environment, server
from demo.server import ROOT
from sd3deploy import messages

BEGIN = f"""
import importlib.util, sys
from modules import script_callbacks, shared
import installer, modules
import gradio as gr

TITLE = "SD3 Deploy"
SOURCE = {str(ROOT / "extension.py")!r}
if {str(ROOT)!r} not in sys.path:
    sys.path.insert(0, {str(ROOT)!r})
for name in [name for name in sys.modules if name.split(".")[0] == "sd3deploy"]:
    del sys.modules[name]

undo = sd3probe.undo = []

def hide(owner, name):
    value = vars(owner)[name]
    delattr(owner, name)
    undo.append(lambda: setattr(owner, name, value))

def replace(owner, name, value):
    before = vars(owner)[name]
    setattr(owner, name, value)
    undo.append(lambda: setattr(owner, name, before))

def move(name):
    "As if there was no such module."
    package, _, last = name.rpartition(".")
    known, sys.modules[name] = sys.modules[name], None
    undo.append(lambda: sys.modules.__setitem__(name, known))
    if hasattr(sys.modules[package], last):
        hide(sys.modules[package], last)

callbacks = {{name: list(entries) for name, entries in script_callbacks.callback_map.items()}}

def restore():
    while undo:
        undo.pop()()
    for name, entries in callbacks.items():
        script_callbacks.callback_map[name][:] = entries
    while TITLE in installer.control_extensions:
        installer.control_extensions.remove(TITLE)
    for key in [key for key in shared.opts.data_labels if key.startswith("sd3_")]:
        del shared.opts.data_labels[key]

sd3probe.restore = restore

def extension():
    spec = importlib.util.spec_from_file_location("sd3deploy_extension", SOURCE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

def build(script):
    "The texts of a panel, as functions or values."
    with gr.Blocks() as blocks:
        one = script()
        one.parent = "txt2img"
        one.ui(False)
        return [part for part in blocks.blocks.values() if isinstance(part, gr.HTML)]

def shown(built):
    "The sentence as a panel shows it; a function is asked, as gradio does when a page is opened."
    values = [part.load_event_to_attach[0]() if getattr(part, "load_event_to_attach", None) else part.value for part in built]
    return [value for value in values if value and "sd3-notice" in value]

def panel(script):
    return shown(build(script))

from modules import errors, processing, processing_diffusers, sd_models, sd_vae
from pipelines import generic, model_sd3
attention = sys.modules.get("modules.attention") or sd_models
TARGETS = [(sd_models, "load_diffuser"), (model_sd3, "load_sd3"), (generic, "load_text_encoder"), (sd_vae, "reload_vae_weights"),
           (attention, "set_diffusers_attention"), (processing, "process_images_inner"), (processing_diffusers, "process_diffusers"),
           (errors, "display"), (installer, "pip")]

def patched():
    return [name for module, name in TARGETS if hasattr(getattr(module, name, None), "__sd3deploy_original__")]

def ours():
    "Callbacks of ours by the lists of the host that they are in."
    return sorted(name.removeprefix("callbacks_") for name, entries in script_callbacks.callback_map.items()
                  for entry in entries if entry not in callbacks[name])

def begin():
    import pathlib
    return extension().start(pathlib.Path(SOURCE).parent)
"""


@pytest.fixture
def started(host):
    """`started(code)` breaks the host, starts the extension in it, and returns what `report` in the code has gathered, and what the log got
    meanwhile. Everything is put back at the end of the test.
    """

    def run(break_it: str, report: str = ""):
        file = host.data / "sdnext.log"
        before = len(file.read_bytes())
        code = f"{BEGIN}\n{textwrap.dedent(break_it)}\nscript = begin()\nresult = {{}}\n{textwrap.dedent(report)}"
        return host.run(code), file.read_bytes()[before:].decode()

    yield run
    host.run("sd3probe.restore()")
    assert len(host.txt2img()["images"]) == 1


def told(log, id):
    """How often the sentence was told."""
    return len(re.findall(rf"\| (?:ERROR|WARNING) \|.*\| SD3 Deploy: id={re.escape(id)} ", log))


def loud(log):
    """What whoever reads the errors in the log sees beside the sentences: a traceback, as a rule."""
    return [line for line in log.splitlines() if re.search(r"\| (ERROR|CRITICAL) \|", line) and "SD3 Deploy: id=" not in line]


ALL = """
result = {"patched": patched(), "callbacks": ours(), "control": TITLE in installer.control_extensions, "panel": panel(script)}
"""
LEFT = {"patched": [], "callbacks": ["ui_settings"], "control": False}

GONE = {
    "on_ui_settings": "hide(script_callbacks, 'on_ui_settings')",
    "on_app_started": "hide(script_callbacks, 'on_app_started')",
    "modeldata": "move('modules.modeldata')",
    "call_queue": "move('modules.call_queue')",
    "a file of ours": "sys.modules['sd3deploy.webui.services.installing'] = None",
    "the class of scripts": "from modules import scripts_manager; hide(scripts_manager, 'AlwaysVisible'); hide(scripts_manager, 'Script')",
}


@pytest.mark.parametrize("what", GONE)
def test_what_it_can_not_do_without_ends_it_with_one_sentence(started, what):
    shown = "" if what == "the class of scripts" else ', "panel": panel(script)'  # else the host has no such panel
    result, log = started(GONE[what], ALL.replace(', "panel": panel(script)', shown))
    panel = result.pop("panel", None)
    assert result == (LEFT if what != "on_ui_settings" else LEFT | {"callbacks": []})
    if panel is not None:
        assert len(panel) == 1
        assert "Update the extension" in panel[0]
    assert told(log, "host.failed") == 1
    assert loud(log) == []


def test_a_patch_that_can_not_be_put_in_takes_the_others_out_again(started):
    result, log = started("""
        from modules import errors, sd_vae
        class Fixed(type(sd_vae)):
            def __setattr__(self, name, value):
                if name == "reload_vae_weights":
                    raise TypeError("read only")
                super().__setattr__(name, value)
        kind = type(sd_vae)
        sd_vae.__class__ = Fixed
        undo.append(lambda: setattr(sd_vae, "__class__", kind))
    """, ALL)
    assert len(result.pop("panel")) == 1
    assert result == LEFT
    assert told(log, "host.failed") == 1


def test_a_host_that_is_too_old_is_told_so_on_the_page(started):
    result, log = started("""
        from pipelines import generic
        hide(generic, "load_text_encoder")
        # The marks of newer versions, as far as this one has them
        marks = {"errors": "ValidationError", "sd_models": "loaded_te", "logger": "log", "sd_hijack_te": "prompt_cache"}
        for place, name in marks.items():
            owner = sys.modules.get(f"modules.{place}")
            if hasattr(owner, name):
                hide(owner, name)
        for name in ("modules.attention", "modules.api.validate", "pipelines.generic_text_encoder"):
            if name in sys.modules:
                move(name)
        hide(shared.opts, "data_labels")
        newer = ("te_shared_te", "schedulers_fallback")
        vars(shared.opts)["data_labels"] = {key: info for key, info in undo_labels.items() if key not in newer}
    """.replace("hide(shared.opts", "undo_labels = shared.opts.data_labels; hide(shared.opts"), """
        result = {"callbacks": ours(), "control": TITLE in installer.control_extensions, "panel": panel(script)}
    """)
    (panel,) = result.pop("panel")
    assert "too old" in panel
    assert "tag 2025-12-26" in panel
    assert result == {"callbacks": ["ui_settings"], "control": False}
    assert told(log, "host.unsupported") == 1


def test_the_sentence_is_a_section_of_the_settings(started):
    result, _ = started("move('modules.modeldata')", """
        callback = script_callbacks.callback_map["callbacks_ui_settings"][-1].callback
        callback()
        found = {key: info for key, info in shared.opts.data_labels.items() if key.startswith("sd3_")}
        result = [[key, info.section[1], info.default] for key, info in found.items()]
    """)
    ((key, section, shown),) = result
    assert (key, section) == ("sd3_notice", "SD3 Deploy")
    assert "modules.modeldata" in html.unescape(shown)


PATCHES = 9
GONE_ALONE = {"errors": 8, "sd_offload": 9, "processing_diffusers": 8, "sd_vae": 8}  # module → how many patches remain


@pytest.mark.parametrize("module", GONE_ALONE)
def test_a_module_that_is_gone_costs_what_needs_it(started, module):
    result, log = started(f"move('modules.{module}')", """
        result = [len(patched()), ours()]
        for entry in script_callbacks.callback_map["callbacks_script_unloaded"]:
            if entry not in callbacks["callbacks_script_unloaded"]:
                entry.callback()
    """)
    assert result == [GONE_ALONE[module], ["app_started", "script_unloaded", "ui_settings"]]
    assert told(log, "host.changed") == 1
    assert f"modules.{module}:" in log
    assert loud(log) == []


ALONE = {
    "on_script_unloaded": ("hide(script_callbacks, 'on_script_unloaded')", "unload"),
    "control_extensions": ("hide(installer, 'control_extensions')", "control"),
}


@pytest.mark.parametrize("what", ALONE)
def test_an_optional_part_fails_alone(started, what):
    code, part = ALONE[what]
    result, log = started(code, 'result = {"patched": len(patched()), "callbacks": ours(), "ui": type(script).__name__}')
    lost = {"unload": "script_unloaded"}.get(part)
    assert result["patched"] == PATCHES
    assert result["callbacks"] == [one for one in ("app_started", "script_unloaded", "ui_settings") if one != lost]
    assert told(log, "host.changed") == 1
    assert messages.text(f"feature.{part}") in log
    assert loud(log) == []


def test_it_starts_and_unloads_without_a_word(started):
    result, log = started("", """
        result = [len(patched()), ours(), TITLE in installer.control_extensions]
        for entry in script_callbacks.callback_map["callbacks_script_unloaded"]:
            if entry not in callbacks["callbacks_script_unloaded"]:
                entry.callback()
        result += [patched(), panel(script)]
    """)
    assert result == [PATCHES, ["app_started", "script_unloaded", "ui_settings"], True, [], []]
    assert "SD3 Deploy: id=" not in log


LATER = """
called = "callbacks_{called}"
callback = script_callbacks.callback_map[called][-1].callback
built = build(script)
{broken}
callback({arguments})
while undo:
    undo.pop()()
for entry in [*script_callbacks.callback_map["callbacks_app_started"], *script_callbacks.callback_map["callbacks_ui_settings"]]:
    if not any(entry in entries for entries in callbacks.values()):
        entry.callback(*([None, None] if entry in script_callbacks.callback_map["callbacks_app_started"] else []))  # nothing any more
result = {{"patched": patched(), "control": TITLE in installer.control_extensions, "panel": shown(built) + panel(script),
          "settings": [key for key in shared.opts.data_labels if key.startswith("sd3_") and key != "sd3_notice"]}}
"""
BROKEN_LATER = {
    "add_option": ("ui_settings", "", "hide(type(shared.opts), 'add_option')"),
    "add_option with other arguments": ("ui_settings", "", "replace(type(shared.opts), 'add_option', lambda self, *, option: None)"),
    "OptionInfo": ("ui_settings", "", "hide(shared, 'OptionInfo')"),
    "OptionInfo with other arguments": ("ui_settings", "", "replace(shared, 'OptionInfo', lambda one: one)"),
    "add_api_route": ("app_started", "None, None", "hide(type(shared.api), 'add_api_route')"),
    "add_api_route with other arguments": (
        "app_started", "None, None", "replace(type(shared.api), 'add_api_route', lambda self, route: 0)"),
}  # fmt: skip


@pytest.mark.parametrize("what", BROKEN_LATER)
def test_what_fails_when_the_host_calls_later_ends_it_as_well(started, what):
    called, arguments, broken = BROKEN_LATER[what]
    result, log = started("", LATER.format(called=called, arguments=arguments, broken=broken))
    before, after = result.pop("panel")  # of the panel that was there, and of one that is built since
    assert before == after
    assert result == {"patched": [], "control": False, "settings": []}
    assert told(log, "host.failed") == 1
    assert loud(log) == []


def test_a_panel_that_can_not_be_built_says_so_and_jobs_are_looked_at_all_the_same(started):
    result, log = started("", """
        from sd3deploy.webui.jobs import override
        override.modes = None
        made = script()
        made.parent = "txt2img"
        with gr.Blocks():
            components = made.ui(False)
        result = [[one.value for one in components], panel(script), len(patched())]
    """)
    values, sentence, count = result
    assert values == ["As in Settings"] * 4 + [""]
    assert messages.text("feature.panel.lost") in html.unescape(sentence[0])
    assert count == PATCHES
    assert told(log, "host.feature-off") == 1


def test_a_route_fails_alone(started):
    result, log = started("", """
        real = type(shared.api).add_api_route
        added = []
        def add(self, path, fn, *rest, **more):
            if path.endswith("/verify"):
                raise TypeError("not this one")
            added.append(path)
        replace(type(shared.api), "add_api_route", add)
        script_callbacks.callback_map["callbacks_app_started"][-1].callback(None, None)
        result = [len(patched()), "/sdapi/v1/sd3/status" in added, len(set(added)) > 8]
    """)
    assert result == [PATCHES, True, True]
    assert told(log, "host.feature-off") == 1
    assert "/sdapi/v1/sd3/verify" in log


# A stand-in that has really changed


def changed(folder, *changes: tuple[str, str], moved: tuple[str, str] | None = None):
    """A copy of the stand-in with words of its source replaced, and a module under another name."""
    root = folder / "host"
    shutil.copytree(server.STAND_IN, root, ignore=shutil.ignore_patterns("__pycache__"))
    count = 0
    for path in root.rglob("*.py"):
        before = after = path.read_text("utf-8")
        for pattern, words in changes:
            after = re.sub(pattern, words, after)
        count += before != after
        path.write_text(after, "utf-8")
    assert count, changes
    if moved:
        (root / "modules" / f"{moved[0]}.py").rename(root / "modules" / f"{moved[1]}.py")
    return root


# What has changed → (what is read in its files, what stands there now), a module (name, other name), the sentence that is told.
CHANGED = {
    "a module has moved": ((r"\bmodeldata\b", "loaded_model"), ("modeldata", "loaded_model"), "host.failed"),
    "options are added in another way": (
        (r"def add_option\(self, key, info\)", "def add_option(self, info, *, name)"), None, "host.failed"),
    "routes are added in another way": (
        (r"(def add_api_route\(self, path, fn, auth=True, \*)\*kwargs\):", r"\1, methods):\n        kwargs = {'methods': methods}"),
        None, "host.failed"),
    "names have changed": ((r"\b(path_to_repo|diffusers_offload_mode)\b", r"\1_of_today"), None, "host.changed"),
    "names have changed that nothing goes without": ((r"\b(backend|model_data)\b", r"\1_of_today"), None, "host.failed"),
    "functions have one more argument": ((r"def process_(images_inner|diffusers)\(p\):", r"def process_\1(p, stage=None):"), None, None),
}  # fmt: skip


@pytest.mark.parametrize("what", CHANGED)
def test_a_host_that_has_changed_still_makes_pictures(tmp_path, what):
    change, moved, id = CHANGED[what]
    root = changed(tmp_path, change, moved=moved)
    if what.startswith("functions"):
        for name, call in (("images_inner", "stage=1"), ("diffusers", "1")):
            text = (root / "modules/processing.py").read_text("utf-8")
            text = re.sub(rf"(return |= )process_{name}\(p\)", rf"\1process_{name}(p, {call})", text)
            (root / "modules/processing.py").write_text(text, "utf-8")
    data = server.data_folder(tmp_path / "data")
    running = server.start(data, root=root, python=environment.linked(tmp_path / "venv", without=["bitsandbytes"]))
    try:
        for _ in range(2):
            assert len(running.txt2img()["images"]) == 1
        running.post("/sdapi/v1/unload-checkpoint", {})
        running.post("/sdapi/v1/reload-checkpoint")
        assert len(running.txt2img()["images"]) == 1
        log = (data / "sdnext.log").read_text("utf-8")
        assert "Error executing callback" not in log
        assert "Running script" not in log
        assert "Traceback" not in "\n".join(loud(log))
        lines = [line for line in log.splitlines() if "SD3 Deploy: id=host." in line]
        if id is None:
            assert lines == []
        elif id == "host.failed":
            assert len(lines) == 1
            assert "id=host.failed" in lines[0]
            assert any("Update the extension" in text for text in shown(running))
        else:
            assert len(lines) == 1
            assert f"id={id} " in lines[0]
    finally:
        running.stop()


def shown(running):
    """The texts of the sentence on a page that is opened now."""
    config = running.get("/config")
    parts = {part["id"]: part["props"] for part in config["components"] if part["type"] == "html"}
    values = [str(props.get("value")) for props in parts.values()]
    for index, event in enumerate(config["dependencies"]):
        if len(event["outputs"]) == 1 and event["outputs"][0] in parts and not event["inputs"]:
            answer = running.client.post("/run/predict", json={"data": [], "fn_index": index, "session_hash": "page"})
            values += [str(value) for value in answer.json().get("data", [])]
    return [html.unescape(value) for value in values if "sd3-notice" in value]
