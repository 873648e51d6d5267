"""How settings are stored, refused and forgotten."""

import json

import httpx
import pytest

from tests.waiting import until


@pytest.fixture(autouse=True)
def first(host):
    """Each test starts from the default of the probe's own setting, and leaves it there."""
    yield
    host.set(sd3probe_choice="first")


def stored(host):
    return host.run("from modules import shared; result = shared.opts.data.get('sd3probe_choice')")


def changes(host, start):
    return [facts["value"] for name, facts in host.events(start) if name == "onchange"]


def test_set_stores_first_and_then_calls_back(host):
    start = host.count()
    assert host.set(sd3probe_choice="second") == {"sd3probe_choice": True}
    assert changes(host, start) == ["second"]  # the callback finds the new value in place
    assert host.set(sd3probe_choice="second") == {"sd3probe_choice": False}


def test_an_exception_in_the_callback_brings_the_old_value_back(host):
    assert host.set(sd3probe_choice="refused") == {"sd3probe_choice": False}
    assert stored(host) == "first"
    assert "refused on purpose" in host.log()


def test_the_api_accepts_any_value_of_any_type(host):
    assert host.set(sd3probe_choice="no such choice") == {"sd3probe_choice": True}
    assert host.set(sd3probe_choice=["a", "list"]) == {"sd3probe_choice": True}
    assert stored(host) == ["a", "list"]


def test_the_settings_page_applies_through_the_same_callback(host):
    host.login()
    start = host.count()
    assert "sd3probe_choice" in host.apply(sd3probe_choice="second")
    assert changes(host, start) == ["second"]


def test_the_settings_page_counts_a_refused_value_as_unchanged(host):
    host.login()
    assert "sd3probe_choice" not in host.apply(sd3probe_choice="refused")
    assert stored(host) == "first"


def test_stored_values_of_extensions_are_never_checked(host):
    assert dict(host.events())["on_ui_settings"]["stored"] == 5  # the setting is a text


def test_values_of_unknown_keys_survive_a_save_and_defaults_are_not_written(host):
    host.set(sd3probe_choice="second")
    assert saved(host, lambda values: values.get("sd3probe_choice") == "second")["sd3probe_orphan"] == "kept"
    host.set(sd3probe_choice="first")
    assert "sd3probe_choice" not in saved(host, lambda values: "sd3probe_choice" not in values)


def saved(host, wanted):
    """config.json as saved now. Threads of earlier saves may still write over it, so it is saved until they are done."""

    def values():
        host.run("from modules import shared; shared.opts.save_atomic(silent=True)")
        try:
            found = json.loads((host.data / "config.json").read_text())
        except ValueError:
            return None
        return found if found and wanted(found) else None

    found = until(values)
    assert found
    return found


def test_settings_of_a_request_are_set_without_the_callback_and_put_back(host):
    start = host.count()
    host.txt2img(override_settings={"sd3probe_choice": "second"})
    assert changes(host, start) == []
    assert stored(host) == "first"


def test_asking_for_an_unknown_setting_raises(host):
    assert host.run("""
        from modules import shared
        try:
            shared.opts.sd3probe_nothing
            result = "found"
        except AttributeError:
            result = "raised"
    """) == "raised"


def test_the_callback_runs_without_the_queue_lock(host):
    assert host.run("""
        from modules import call_queue, shared
        seen = []
        info = shared.opts.data_labels["sd3probe_choice"]
        original, info.onchange = info.onchange, lambda: seen.append(call_queue.queue_lock.locked())
        shared.opts.set("sd3probe_choice", "second")
        info.onchange = original
        result = seen
    """) == [False]


def test_the_queue_lock_can_not_be_taken_twice(host):
    assert host.run("""
        from modules import call_queue
        with call_queue.queue_lock:
            result = call_queue.queue_lock.acquire(blocking=False)
    """) is False


def test_the_host_has_the_settings_that_decide_how_sd3_is_loaded(host):
    values = host.get("/sdapi/v1/options")
    for key in ("sd_model_checkpoint", "sd_text_encoder", "diffusers_offload_mode", "te_shared_te", "model_sd3_disable_te5"):
        known = host.run(f"from modules import shared; result = hasattr(shared.opts, {key!r})")
        assert known, key
    assert values["sd_model_checkpoint"].startswith("Diffusers/tiny-sd3") or "tiny-sd3" in values["sd_model_checkpoint"]


def test_a_wrong_password_is_refused(host):
    with httpx.Client(base_url=host.url, trust_env=False) as stranger:
        assert stranger.get("/sdapi/v1/options").status_code == 401
        assert stranger.get("/sdapi/v1/options", auth=("probe", "wrong")).status_code == 401
