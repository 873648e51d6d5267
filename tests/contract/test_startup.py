"""What happens, in which order, until the first model is loaded."""


def names(host, *wanted):
    return [name for name, _ in host.events() if name in wanted]


def facts(host, wanted):
    return next(facts for name, facts in host.events() if name == wanted)


def test_scripts_come_before_the_page_and_the_page_before_the_model(host):
    order = ("import", "on_before_ui", "on_ui_settings", "on_app_started", "on_after_ui", "load_sd3", "load_text_encoder",
             "reload_text_encoder", "on_model_loaded")  # fmt: skip
    assert names(host, *order)[: len(order)] == list(order)


def test_a_script_is_loaded_by_path_and_sees_its_extension_first(host):
    seen = facts(host, "import")
    assert seen["path"] == str(host.data / "extensions" / "sd3-probe")
    assert seen["name"] == "probe.py"
    assert not seen["registered"]


def test_sys_path_is_restored_but_loaded_packages_stay_importable(host):
    assert host.run("import sys; result = [path for path in sys.path if 'sd3-probe' in path]") == []
    assert host.run("from sd3probe import late; result = late.answer") == 42


def test_flags_of_preload_reach_the_scripts(host):
    assert host.run("from modules import shared; result = shared.cmd_opts.sd3_probe_flag") == "seen"


def test_a_script_that_can_not_be_imported_is_only_logged(host):
    assert "broken on purpose" in host.log()


def test_a_class_with_a_metaclass_is_not_registered(host):
    found = host.get("/sdapi/v1/scripts")["txt2img"]
    assert "sd3 probe" in found
    assert "sd3 probe, with a metaclass" not in found


def test_control_lets_in_only_invited_scripts(host):
    found = host.get("/sdapi/v1/scripts")
    assert "sd3 probe, uninvited" in found["txt2img"]
    assert "sd3 probe" in found["control"]
    assert "sd3 probe, uninvited" not in found["control"]


def test_a_panel_is_built_for_each_tab(host):
    before = host.events()[: [name for name, _ in host.events()].index("on_app_started")]
    assert [facts["parent"] for name, facts in before if name == "ui"] == ["txt2img", "img2img", "control"]


def test_loading_sd3_passes_by_the_functions_that_can_be_replaced(host):
    loaded = facts(host, "load_sd3")
    assert loaded["path"].endswith("tiny-sd3")
    assert "tiny-sd3" in loaded["name"]
    encoder = facts(host, "load_text_encoder")
    assert (encoder["kind"], encoder["subfolder"]) == ("T5EncoderModel", "text_encoder_3")
    assert encoder["repo"] == loaded["path"]
    assert facts(host, "reload_text_encoder")["initial"] is True


def test_the_first_model_is_loaded_off_the_main_thread_without_the_queue_lock(host):
    assert facts(host, "load_sd3")["thread"] != "MainThread"
    assert host.run("from modules import call_queue; result = call_queue.queue_lock.locked()") is False


def test_the_absence_of_bitsandbytes_is_frozen_at_start(host):
    assert host.run("""
        import sys, diffusers.utils.import_utils as facts
        result = [facts._bitsandbytes_available, "bitsandbytes" in sys.modules]
    """) == [False, False]


def test_diffusers_and_transformers_are_loaded_before_scripts(host):
    assert host.run("""
        import sys
        found = [name for name in sys.modules if name in ("torch", "transformers", "diffusers", "sd3probe")]
        result = found[0], found[-1]
    """) == ["torch", "sd3probe"]
