"""The panel, the live hints and the messages as a person has them: Chromium, the mouse and the keyboard."""

from __future__ import annotations

import json
import os
import re
from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import Image

from tests.browser import UIS, answered, reading, until
from tests.contract.conftest import slow_disk
from tests.contract.screen import Screen, screen
from tests.contract.test_measuring import few_prompts
from tests.waiting import HANG

AXE_SERIOUS = ("serious", "critical")


@pytest.fixture(scope="module", params=UIS)
def host(request, tmp_path_factory):
    with screen(request.param, tmp_path_factory.mktemp("screen")) as found:
        found.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        yield found


@pytest.fixture(autouse=True)
def clean(host: Screen):
    """Each test begins with an empty corner, and leaves the settings as they were."""
    host.page.evaluate("document.querySelectorAll('dialog').forEach((dialog) => dialog.close())")
    host.dismiss()
    host.page.evaluate("localStorage.removeItem('sd3-quiet'); delete window.sd3hacked")
    yield
    host.host.set(sd3_guard_size="fix", sd3_guard_sampling="fix", sd3_memory="warn")
    host.dismiss()


def headline(host):
    return host.part("panel", ".sd3-headline").inner_text()


def metadata(path):
    return Image.open(path).info.get("parameters", "")


# The panel


def test_while_it_is_closed_its_head_says_model_encoder_and_whether_it_fits(host):
    host.ui.go(host.page, "Scripts")
    assert until(lambda: "tiny-sd3" in headline(host) and "fits" in headline(host)), headline(host)
    assert "Host default" in headline(host)


def test_what_will_happen_to_the_job_follows_the_fields(host):
    host.size(1000, 1000)
    assert until(lambda: "1000×1000 → 1008×1008" in host.chip()), host.chip()
    host.shot("hint")
    host.open()
    assert until(lambda: "1008×1008" in host.text(f"{host.panel}job .sd3-job")), host.text(f"{host.panel}job .sd3-job")
    host.ui.go(host.page, "Generate")
    host.bare()
    chip = host.page.locator(f"#sd3-chip-{host.ui.tab}")
    assert until(chip.locator(".sd3-chip-head").is_visible), chip.get_attribute("class")
    chip.locator(".sd3-chip-head").hover()
    chip.get_by_role("button", name="Use 1008×1008").click()  # the size that it will be is taken
    fields = [host.page.locator(f"#{host.ui.size}_{side} input[type=number]").first for side in ("width", "height")]
    assert until(lambda: [field.input_value() for field in fields] == ["1008", "1008"])
    assert until(lambda: host.chip() == ""), host.chip()
    host.size(2048, 2048)
    assert until(lambda: "4.2 MP" in host.chip()), host.chip()
    host.size(1024, 1024)
    assert until(lambda: host.chip() == ""), host.chip()


def test_what_mends_two_things_is_offered_once(host):
    host.size(1024, 1024)
    assert until(lambda: host.chip() == ""), host.chip()
    use = {"id": "use", "label": "Make it 512×512", "fields": {"width": 512, "height": 512}, "seconds": 0}
    found = [{"kind": kind, "severity": "refuse", "text": kind, "sentence": kind, "buttons": [use]} for kind in ("size", "memory")]
    host.page.evaluate("([tab, found]) => window.sd3deploy.chip(tab, found)", [host.ui.tab, found])
    more = host.page.locator(f"#sd3-chip-{host.ui.tab} .sd3-chip-more")
    assert more.locator(".sd3-chip-row").count() == 2
    assert more.locator("button").count() == 1
    host.page.evaluate("(tab) => window.sd3deploy.chip(tab, [])", host.ui.tab)


def test_of_a_long_prompt_it_is_said_while_it_is_typed_how_much_is_read(host):
    host.size(1024, 1024)
    box = host.page.locator(f"#{host.ui.tab}_prompt textarea").first
    before = box.input_value()
    box.fill("a word " * 300 + "the end of it")
    try:
        assert until(lambda: "256 are read" in host.chip()), host.chip()
        assert "What it does not read" in host.chip()  # what is cut
        host.shot("tokens")
    finally:
        box.fill(before)
    assert until(lambda: host.chip() == ""), host.chip()


def test_the_panels_modes_hold_for_the_jobs_of_the_page_and_are_foreseen(host):
    host.size(1000, 256)
    host.open()
    host.unfold("page")
    host.part("size", "input[value=block]").check()
    assert until(lambda: "1000×256" in host.text(f"{host.panel}job .sd3-refuse")), host.text(f"{host.panel}job")
    assert host.generate() is None
    assert "1000×256" in host.toast("Nothing was generated").inner_text()
    host.dismiss()
    host.part("size", "input[value=warn]").check()
    made = host.generate()
    assert made
    assert Image.open(made).size == (992, 256)  # as the host itself cuts it
    assert "SD3 size guard: warn" in metadata(made)
    host.part("size", "input").first.check()
    made = host.generate()
    assert made
    assert Image.open(made).size == (1008, 256)
    assert host.setting("sd3_guard_size") in ("fix", None)


def test_an_encoder_for_the_jobs_of_the_page_is_in_the_metadata(host):
    host.size(128, 128)
    host.open()
    host.choose("None (CLIP only)")
    made = host.generate()
    assert made
    assert "T5: None (CLIP only)" in metadata(made)
    assert "T5 state: off" in metadata(made)
    assert until(lambda: "None (CLIP only)" in headline(host)), headline(host)
    host.choose("As in Settings")
    assert host.generate()
    assert host.host.get("/sdapi/v1/sd3/status")["encoder"] == "Host default"


@pytest.fixture
def offline(host):
    """Nothing can be installed, and bitsandbytes is not there."""
    host.host.set(offline_mode=True)
    host.page.evaluate("window.sd3deploy.follow(true)")
    yield
    host.host.set(offline_mode=False)


@pytest.mark.usefixtures("offline")
def test_what_can_not_come_is_no_tick_in_the_list_and_its_failure_is_explained_until_it_is_over(host):
    host.size(128, 128)
    host.open()
    host.part("encoder", "input").click()
    entry = host.page.locator(f'{host.panel}encoder li[data-value="T5 FP4"]')
    wanted = "✗ needs bitsandbytes, which can not be installed offline"
    assert until(lambda: (entry.get_attribute("data-sd3") or "").endswith(wanted)), entry.get_attribute("data-sd3")
    host.leave()
    host.choose("T5 FP4")
    head, state = host.part("panel", ".sd3-headline"), f"{host.panel}state .sd3-state"
    assert until(lambda: wanted.removeprefix("✗ ") in head.inner_text()), head.inner_text()  # before it is tried
    assert host.generate()
    assert until(lambda: "T5 FP4 could not be loaded" in head.inner_text()), head.inner_text()
    assert "Host default" in head.inner_text()
    for name in ("T5 FP4", "As in Settings"):  # whatever is looked at afterwards, what is red is explained
        host.choose(name)
        assert "sd3-failed" in head.get_attribute("class")
        assert "T5 FP4 could not be loaded" in head.inner_text()
        for told in (head.get_attribute("title"), host.text(state)):
            assert "bitsandbytes is needed, but the server is in offline mode. Host default is still in use." in told
        assert until(lambda: ("This page has chosen T5 FP4." in host.text(state)) == (name == "T5 FP4")), host.text(state)  # noqa: B023
    message = host.page.locator(".sd3-toast.sd3-error", has_text="Host default is still in use.")
    assert message.count() == 1
    host.shot("failed")
    host.part("diagnose").click()
    assert until(lambda: "bitsandbytes is needed, but the server is in offline mode." in host.text(f"{host.panel}found"))
    assert until(lambda: host.page.evaluate(SEEN, f"{host.panel}found [role=status]"))
    assert host.generate()  # as it is set
    assert until(lambda: "sd3-fits" in head.get_attribute("class")), head.inner_text()
    assert until(lambda: not host.text(state))
    assert "could not" not in head.inner_text() + (head.get_attribute("title") or "")
    assert until(lambda: message.count() == 0)  # it would say what is no longer so


@pytest.mark.usefixtures("offline")
def test_the_checks_of_an_encoder_that_can_not_come_say_so(host):
    host.host.post("/sdapi/v1/sd3/verify", {"encoder": "T5 FP4"})
    assert until(lambda: host.host.get("/sdapi/v1/sd3/verify")["state"] == "done")
    job = host.host.get("/sdapi/v1/sd3/verify")
    found = {one["id"]: one for one in job["results"]}
    assert not job["healthy"]
    assert "bitsandbytes is not installed" in found["packages"]["message"]
    assert "Nothing to do" not in found["device"]["remedy"]
    assert "see what “Packages on disk” and “Graphics card” say" in found["encoder"]["remedy"]


def test_the_text_of_a_picture_brings_the_panel_back_as_it_was(host):
    host.ui.go(host.page, "Generate")
    box = host.page.locator(f"#{host.ui.tab}_prompt textarea").first
    before = box.input_value()
    box.fill(
        "a cat\nSteps: 2, Size: 128x128, Seed: 1, App: SD.Next, T5: T5 NF4, T5 state: 2.7 GB, SD3 size guard: block, "
        "SD3 memory check: nonsense, SD3 sampling check: off"
    )
    host.page.evaluate(f"document.querySelector('#{host.ui.tab}_paste').click()")
    host.open()
    assert until(lambda: host.part("encoder", "input").input_value() == "T5 NF4")
    assert host.part("size", "input[value=block]").is_checked()
    assert host.part("sampling", "input[value=off]").is_checked()
    assert host.part("memory", "input").first.is_checked()  # what means nothing changes nothing
    host.choose("As in Settings")
    host.unfold("page")
    for name in ("size", "sampling"):
        host.part(name, "input").first.check()
    host.ui.go(host.page, "Generate")
    box.fill(before)


def test_the_settings_have_a_sentence_for_every_option_and_the_same_line_of_state(host):
    host.ui.go(host.page, "Settings")
    host.ui.settings(host.page)
    options = host.page.locator("[id^='setting_sd3_']")
    names = {one.get_attribute("id").removeprefix("setting_") for one in options.all()}
    assert {"sd3_text_encoder", "sd3_weights", "sd3_guard_size", "sd3_memory", "sd3_memory_retry", "sd3_auto_install"} <= names
    host.page.evaluate("document.querySelector('.sd3-advanced').open = true")
    for name in names - {"sd3_choices", "sd3_sources", "sd3_pointer"}:
        assert host.page.locator(f"#setting_{name}").last.inner_text().strip(), name
    line = host.text("#setting_sd3_choices .sd3-state")
    assert "tiny-sd3" in line
    assert "Host default" in line
    assert until(lambda: "recommended" in host.text("#setting_sd3_choices .sd3-choices"))
    host.shot("settings")


def test_the_settings_list_says_of_each_encoder_what_the_panels_does(host):
    said = """(where) => Object.fromEntries([...document.querySelectorAll(`${where} li[data-value]`)]
                 .map((el) => [el.dataset.value, el.dataset.sd3]))"""
    host.size(1024, 1024)
    host.open()
    field = host.part("encoder", "input")
    field.click()
    assert until(lambda: any("recommended" in text for text in host.page.evaluate(said, f"{host.panel}encoder").values()))
    panel = host.page.evaluate(said, f"{host.panel}encoder")
    host.leave()
    del panel["As in Settings"]
    host.ui.go(host.page, "Settings")
    host.ui.settings(host.page)
    host.page.locator("#setting_sd3_text_encoder input").first.click()
    assert until(lambda: host.page.evaluate(said, "#setting_sd3_text_encoder") == panel), panel
    assert {"T5 Q4", "None (CLIP only)"} <= set(panel)
    host.shot("settings-entries")
    host.leave_field("#setting_sd3_text_encoder input")


def test_the_settings_say_what_a_source_is_before_it_is_applied(host):
    host.ui.go(host.page, "Settings")
    host.ui.settings(host.page)
    rows = host.page.locator(".sd3-sources li")
    assert until(lambda: rows.count() == 5), host.text("#setting_sd3_sources")
    assert "small T5 for tests, " in rows.nth(0).inner_text()
    assert ", complete." in rows.nth(0).inner_text()
    assert "None is named" in rows.nth(3).inner_text()
    box = host.page.locator("#setting_sd3_weights_file :is(input, textarea)").first
    box.fill("/nowhere/t5.safetensors")
    assert until(lambda: "is not there" in rows.nth(3).inner_text()), rows.nth(3).inner_text()
    assert not host.setting("sd3_weights_file")
    rows.nth(4).scroll_into_view_if_needed()
    host.shot("sources")
    box.fill("")


@pytest.mark.parametrize("place", ["the panel", "the settings"])
def test_a_load_shows_how_far_it_is_and_a_button_ends_it(host, place):
    if place == "the panel":
        host.open()
        bar, button = host.page.locator(f"{host.panel}diagnosis .sd3-load-work progress"), host.part("cancel")
    else:
        host.ui.go(host.page, "Settings")
        host.ui.settings(host.page)
        bar, button = (host.page.locator(f"#setting_sd3_choices {part}") for part in (".sd3-loading progress", ".sd3-end"))
    assert not button.is_visible()
    with slow_disk(host.host), ThreadPoolExecutor() as pool:
        change = pool.submit(host.host.set, sd3_text_encoder="T5 FP8")
        host.page.evaluate("window.sd3deploy.wake()")
        assert until(lambda: bar.count() and 0 < float(bar.get_attribute("value") or 0) < 1), host.text(".sd3-loading")
        assert " of " in bar.locator("xpath=following-sibling::p").inner_text()
        assert "Loading T5 FP8…" in host.text(".sd3-under-way")
        assert until(lambda: " of " in host.text(".sd3-under-way"))
        assert host.page.locator(".sd3-toast", has_text="Loading T5 FP8…").count() == 1  # it is said once
        host.shot(f"load-{place.split()[-1]}")
        button.click()
        assert change.result(HANG) == {"sd3_text_encoder": False}
    host.toast("Loading T5 FP8 was cancelled.", "Host default is still in use.")
    assert until(lambda: bar.count() == 0 and not button.is_visible())
    assert host.page.locator(".sd3-under-way").count() == 0
    assert host.host.get("/sdapi/v1/sd3/status")["encoder"] == "Host default"


def test_quality_says_how_long_it_takes_and_shows_its_numbers(host, tmp_path):
    few_prompts(host.host, tmp_path)
    host.open()
    host.unfold("last")
    assert until(lambda: "minutes" in (host.part("quality").get_attribute("title") or ""))
    host.part("quality").click()
    work = f"{host.panel}diagnosis .sd3-quality-work"
    assert until(lambda: host.page.locator(f"{work} progress").count())
    assert until(host.part("cancel").is_visible)
    assert until(lambda: host.page.locator(f"{work} tbody tr").count()), host.text(work)
    assert "T5 Q4" in host.text(f"{work} tbody")
    host.toast("nearest to float32")
    host.page.locator(f"{work} a").scroll_into_view_if_needed()
    host.shot("quality")


def test_install_shows_the_plan_and_asks(host):
    host.open()
    host.part("install").click()
    dialog = host.page.locator("dialog.sd3-dialog")
    dialog.wait_for()
    assert "bitsandbytes" in dialog.inner_text()  # the environment of the test is without it
    assert "pip install" in dialog.inner_text()
    host.shot("install")
    host.page.keyboard.press("Escape")
    assert until(lambda: dialog.count() == 0)
    assert host.host.get("/sdapi/v1/sd3/status")["packages"]["bitsandbytes"] is None
    host.part("install").click()
    dialog.locator(".sd3-action").click()
    work = f"{host.panel}diagnosis .sd3-install-work"
    assert until(lambda: host.page.locator(f"{work} progress, {work} .sd3-ok").count())  # a bar, unless it is over already
    assert until(lambda: host.page.locator(f"{work} .sd3-ok").count())
    assert host.host.get("/sdapi/v1/sd3/status")["packages"]["bitsandbytes"]
    host.part("install").click()
    assert until(lambda: "Everything that is needed is installed" in dialog.inner_text())
    dialog.locator(".sd3-close").click()


# Whether something is in sight.
SEEN = """(selector) => {
  const box = document.querySelector(selector).getBoundingClientRect();
  return box.height > 0 && box.top >= 0 && box.bottom <= innerHeight;
}"""


@pytest.mark.parametrize(("name", "meant"), [("T5 Q8", "T5 Q8"), ("As in Settings", "Host default")])
def test_verify_checks_the_encoder_of_the_page_and_says_so(host, name, meant):
    host.open()
    host.choose(name)
    host.part("verify").click()
    answered(host.page)
    assert until(lambda: host.host.get("/sdapi/v1/sd3/verify")["state"] == "done")
    assert host.host.get("/sdapi/v1/sd3/verify")["encoder"] == meant
    work = f"{host.panel}diagnosis .sd3-verify-work"
    assert until(lambda: host.page.locator(f"{work} .sd3-check").count() == 8 and host.text(f"{work} .sd3-outcome"))
    assert until(lambda: re.search(f"Text encoder of this check: {meant}. (Everything|Something)", host.text(f"{work} .sd3-outcome")))
    assert until(lambda: host.page.evaluate(SEEN, f"{work} .sd3-outcome"))  # without anybody scrolling
    more = '<p class="sd3probe" style="height: 50rem"></p>'
    host.page.evaluate(f"document.querySelector('{host.panel}state').insertAdjacentHTML('beforeend', '{more}')")
    assert until(lambda: host.page.evaluate(SEEN, f"{work} .sd3-outcome"))  # it stays there while the panel grows above it
    host.page.mouse.wheel(0, -3000)
    assert until(lambda: not host.page.evaluate(SEEN, f"{work} .sd3-outcome"))
    host.page.evaluate("document.querySelector('.sd3probe').style.height = '60rem'")
    host.page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")  # the page has seen that
    assert not host.page.evaluate(SEEN, f"{work} .sd3-outcome")  # its reader has moved on
    host.page.evaluate("document.querySelector('.sd3probe').remove()")
    assert not host.text(f"{host.panel}diagnosis_done").strip()
    step = host.page.locator(f"{work} .sd3-check", has_text="Load the quantized T5").inner_text()
    assert (f"{meant} is loaded by SD.Next itself, so this check takes" in step) == (meant == "Host default"), step
    host.shot(f"verify-{meant}")


def test_a_pasted_error_is_explained_and_nothing_of_it_is_html(host):
    host.open()
    host.unfold("help")
    host.part("pasted", "textarea").fill(
        "<img src=x onerror=window.sd3hacked=1> RuntimeError: too many values to unpack (expected 2)\n"
        'File "diffusers/models/attention_processor.py"\nValueError: too many values to unpack (expected 2) StableDiffusion3'
    )
    host.part("diagnose").click()
    found = host.page.locator(f"{host.panel}found .sd3-finding")
    assert until(lambda: found.count() >= 1), host.text(f"{host.panel}found")
    assert found.first.locator(".sd3-remedy").inner_text()
    assert host.page.locator(f"{host.panel}found img").count() == 0
    assert host.page.evaluate("window.sd3hacked") is None
    host.part("pasted", "textarea").fill("")
    host.part("diagnose").click()
    assert until(lambda: "Verify" in host.text(f"{host.panel}found")), host.text(f"{host.panel}found")


def test_the_report_goes_to_the_clipboard(host):
    host.open()
    host.page.evaluate(f"document.querySelector('{host.panel}copy').click()")
    host.toast("clipboard")
    assert "transformers" in host.page.evaluate("navigator.clipboard.readText()")


def test_the_report_that_is_to_be_saved_is_shown_from_its_beginning(host):
    host.open()
    host.unfold("help")
    host.part("report").click()
    text = host.part("report_text", "textarea")
    assert until(lambda: text.count() and text.evaluate("(el) => el.scrollHeight > el.clientHeight"))
    assert until(lambda: text.evaluate("(el) => el.scrollTop") == 0)
    assert until(lambda: host.page.evaluate(SEEN, f"{host.panel}report_text textarea"))
    host.shot("report")
    host.part("report").click()
    answered(host.page)
    assert until(lambda: text.evaluate("(el) => el.scrollTop") == 0)


def test_without_the_clipboard_the_report_is_shown_from_its_beginning(host):
    host.open()
    host.page.evaluate("() => { navigator.clipboard.writeText = () => Promise.reject(new Error('asked and refused')); }")
    try:
        host.part("copy").click()
        text = host.page.locator("dialog textarea")
        text.wait_for()
        assert text.evaluate("(el) => [el.selectionStart, el.selectionEnd - el.value.length, el.scrollTop]") == [0, 0, 0]
        assert text.bounding_box()["height"] > 200
        host.shot("report-shown")
    finally:
        host.page.evaluate("() => { delete navigator.clipboard.writeText; }")
        host.page.keyboard.press("Escape")


# Messages


def test_messages_are_stacked_with_their_severity_and_stay_until_they_are_dismissed(host):
    host.tell("warning", "size.snapped", "The first thing.", "What to do.")
    host.tell("error", "memory.exhausted", "The second thing.", "Something else.")
    first, second = host.toast("The first thing."), host.toast("The second thing.")
    assert (first.get_attribute("role"), second.get_attribute("role")) == ("status", "alert")
    assert first.bounding_box()["y"] + first.bounding_box()["height"] <= second.bounding_box()["y"]
    assert "What to do." in first.inner_text()
    host.shot("toasts")
    host.page.clock.install()
    host.page.clock.run_for(60_000)
    assert host.page.locator(".sd3-toast").count() == 2
    first.locator(".sd3-dismiss").click()
    assert host.page.locator(".sd3-toast").count() == 1


def test_an_advice_goes_by_itself_but_not_while_it_is_being_read(host):
    host.page.clock.install()
    host.tell("info", "memory.verdict.tight", "Only an advice.")
    toast = host.toast("Only an advice.")
    toast.hover()
    host.page.clock.run_for(60_000)
    assert toast.count() == 1
    host.page.mouse.move(5, 5)
    host.page.clock.run_for(6000)
    assert until(lambda: host.page.locator(".sd3-toast").count() == 0)


def test_what_was_not_dismissed_survives_a_reload(host):
    host.tell("warning", "size.snapped", "Still there.")
    host.tell("error", "memory.exhausted", "Dismissed.")
    host.toast("Dismissed.").locator(".sd3-dismiss").click()
    host.toast("Still there.")
    host.reload()
    host.toast("Still there.")
    assert host.page.locator(".sd3-toast").count() == 1


def test_what_another_process_of_the_server_has_failed_at_goes_but_not_while_it_is_used(host):
    told = {"severity": "error", "remedy": "", "buttons": [], "seq": 1000, "server": "another", "time": 0}
    counts = host.page.evaluate(  # at one moment: the page itself looks, too
        """(told) => {
          const { toast, settle } = window.sd3deploy;
          const count = (text) => [...document.querySelectorAll('.sd3-toast')].filter((box) => box.dataset.message === text).length;
          toast({ ...told, id: 'x', message: 'Old.', job: false });
          toast({ ...told, id: 'y', message: 'Of a picture.', job: true });
          const close = document.querySelector('.sd3-toast[data-message="Old."] .sd3-dismiss');
          close.focus();
          settle([], 'this');
          const used = count('Old.');
          close.blur();
          settle([], 'this');
          return [used, count('Old.'), count('Of a picture.')];
        }""",
        told,
    )
    assert counts == [1, 0, 1]


def test_a_kind_of_message_can_be_switched_off_and_on_again(host):
    host.tell("warning", "size.snapped", "Once.")
    host.toast("Once.").get_by_role("button", name="Do not show again").click()
    assert host.page.locator(".sd3-toast").count() == 0
    host.tell("warning", "size.snapped", "Not seen.")
    host.tell("warning", "memory.verdict.no", "Another kind.")
    host.toast("Another kind.")
    assert host.page.locator(".sd3-toast", has_text="Not seen.").count() == 0
    host.open()
    host.page.locator(f"{host.panel}diagnosis .sd3-again").click()
    host.tell("warning", "size.snapped", "Seen again.")
    host.toast("Seen again.")


def test_the_button_of_a_message_does_what_it_says(host):
    change = "button.change({'encoder': 'T5 BF16'}, 'take T5 BF16 as text encoder')"
    host.tell("error", "memory.verdict.no", "Does not fit.", buttons=change)
    toast = host.toast("Does not fit.")
    assert toast.locator(".sd3-action").inner_text() == "Apply: take T5 BF16 as text encoder"
    toast.locator(".sd3-action").click()
    assert until(lambda: host.host.get("/sdapi/v1/sd3/status")["encoder"] == "T5 BF16")
    host.toast("T5 BF16")
    host.host.set(sd3_text_encoder="Host default")
    host.dismiss()
    host.tell("error", "rule.stale-availability", "It was not seen.", action="refresh")
    toast = host.toast("It was not seen.")
    assert toast.locator(".sd3-action").inner_text() == "Reload the model"
    toast.locator(".sd3-action").click()
    host.toast("The model is loaded again.")
    assert until(lambda: host.host.get("/sdapi/v1/sd3/status")["model"])


def test_an_encoder_that_a_message_offers_counts_for_the_page_too(host):
    """Where the page has a choice of its own, the settings alone would change nothing."""
    host.open()
    host.choose("T5 Q8")
    host.ui.go(host.page, "Generate")
    host.tell("error", "encoder.unsuitable", "T5 Q8 does not run here.", buttons="button.change({'encoder': 'T5 Q4'}, 'take T5 Q4')")
    try:
        host.toast("does not run here").get_by_role("button", name="Apply: take T5 Q4").click()
        host.toast("Done: take T5 Q4 as text encoder.")
        assert host.host.get("/sdapi/v1/sd3/status")["wanted"] == "T5 Q4"
        host.open()
        assert host.part("encoder", "input").input_value() == "As in Settings"
        assert until(lambda: "T5 Q4" in headline(host)), headline(host)
    finally:
        host.host.set(sd3_text_encoder="Host default")


def test_a_size_of_a_message_can_be_taken_and_where_nothing_can_be_changed_there_is_no_button(host):
    host.size(1024, 1024)
    host.tell("error", "memory.exhausted", "There was too little.", buttons="button.change({'width': 608, 'height': 608}, '')")
    host.tell("error", "memory.verdict.no", "Nothing helps.", buttons="button.change({}, '')")
    assert host.toast("Nothing helps.").locator(".sd3-action").count() == 0
    host.toast("There was too little.").get_by_role("button", name="Make it 608×608").click()
    fields = [host.page.locator(f"#{host.ui.size}_{side} input[type=number]").first for side in ("width", "height")]
    assert until(lambda: [field.input_value() for field in fields] == ["608", "608"])
    host.size(1024, 1024)


def test_what_was_mended_is_an_advice_that_orders_nothing_and_offers_the_value(host):
    host.size(1000, 256)
    with reading(host.page):
        assert host.generate()
        toast = host.toast("1000×256", "1008×256")
        assert "sd3-info" in toast.get_attribute("class")
        assert "Set the size" not in toast.inner_text()
        toast.get_by_role("button", name="Use 1008×256").click()
    assert until(lambda: host.page.locator(f"#{host.ui.size}_width input[type=number]").first.input_value() == "1008")


def test_only_what_was_on_its_way_goes_when_something_else_is_said(host):
    host.tell("info", "size.small", "An offer.", buttons="button.change({'width': 1024, 'height': 1024}, '')")
    host.tell("info", "cache.written", "No offer.")
    host.tell("info", "encoder.waiting", "A step.")
    for text in ("An offer.", "No offer.", "A step."):
        host.toast(text)
    host.tell("error", "unexpected", "Something else.")
    host.toast("Something else.")
    assert host.toast("An offer.").locator(".sd3-action").is_visible()
    assert host.page.locator(".sd3-toast", has_text="No offer.").count() == 1
    assert host.page.locator(".sd3-toast", has_text="A step.").count() == 0


def test_a_size_that_is_only_advised_can_be_taken_too(host):
    host.size(272, 256)
    with reading(host.page):
        assert host.generate()
        host.toast("272×256", "Generate at 1056×992").get_by_role("button", name="Use 1056×992").click()
    fields = [host.page.locator(f"#{host.ui.size}_{side} input[type=number]").first for side in ("width", "height")]
    assert until(lambda: [field.input_value() for field in fields] == ["1056", "992"])


# What the messages lie over that could be pressed.
COVERED = """() => {
  const all = document.getElementById('sd3-toasts');
  const box = all.getBoundingClientRect();
  const found = new Set();
  all.style.visibility = 'hidden';
  for (let x = box.left + 1; x < box.right; x += 4) {
    for (let y = box.top + 1; y < box.bottom; y += 4) {
      const el = document.elementFromPoint(x, y);
      const one = el && el.closest('button, input, textarea, select, label, [role=button], [role=tab], [onclick], .label-wrap');
      if (one) found.add(one.id || one.outerHTML.slice(0, 120));
    }
  }
  all.style.visibility = '';
  return [...found];
}"""


@pytest.mark.parametrize("width", [420, 768, 1280])
def test_messages_cover_nothing_that_can_be_pressed_and_are_one_line_where_the_page_is_narrow(host, width):
    size = host.page.viewport_size
    host.ui.go(host.page, "Generate")
    host.page.set_viewport_size({"width": width, "height": 1000})
    try:
        host.tell("warning", "restart.needed", "The first thing.", "What to do.")
        host.tell("error", "memory.exhausted", "The second thing.", "Something else.")
        assert until(host.page.locator(".sd3-toast", has_text="The second thing.").count)
        assert until(lambda: not host.page.evaluate(COVERED)), host.page.evaluate(COVERED)
        host.shot(f"toasts-{width}")
        line = host.page.locator(".sd3-fold")
        assert line.is_visible() or width > 420
        if line.is_visible():
            assert "2 messages" in line.get_attribute("aria-label")
            assert "The second thing." in line.get_attribute("aria-label")
            assert not host.toast("The first thing.").is_visible()
            line.click()
        assert host.toast("The first thing.").is_visible()
    finally:
        host.page.set_viewport_size(size)


@pytest.mark.real
def test_messages_lie_beside_what_the_panel_says_where_there_is_room(host):
    covered = COVERED.replace(".label-wrap", ".label-wrap, .sd3-panel")
    host.reload()  # without a picture: SD.Next has a button as large as the place for it
    host.ui.networks(host.page, True)
    try:
        host.open()
        host.tell("warning", "restart.needed", "The first thing.", "What to do.")
        host.tell("error", "memory.exhausted", "The second thing.", "Something else.")
        host.toast("The second thing.")
        assert until(lambda: not host.page.evaluate(covered)), host.page.evaluate(covered)
        assert host.toast("The first thing.").is_visible()
        host.shot("toasts-networks")
    finally:
        host.ui.networks(host.page, False)


def test_messages_make_way_for_a_generate_that_is_back_after_a_job(host):
    """ModernUI has it at the bottom of a narrow page; nothing tells when the host shows it again."""
    host.tell("warning", "restart.needed", "In the way.", "What to do.")
    host.toast("In the way.")
    host.page.evaluate("""() => {
      const box = document.querySelector('.sd3-toast:last-of-type').getBoundingClientRect();
      const back = document.createElement('button');
      back.id = 'other_generate';
      back.style.cssText = `position: fixed; z-index: 1; left: ${box.left}px; top: ${box.top}px; width: 60px; height: 30px`;
      document.body.append(back);
    }""")
    try:
        assert until(lambda: not host.page.evaluate(COVERED))
        assert host.toast("In the way.").is_visible()
    finally:
        host.page.evaluate("document.getElementById('other_generate').remove()")


PAYLOADS = ["<img src=x onerror=window.sd3hacked=1>", "<script>window.sd3hacked=1</script>", "\"><svg onload=window.sd3hacked=1>"]


@pytest.mark.parametrize("payload", PAYLOADS)
def test_nothing_in_a_message_is_html(host, payload):
    host.tell("error", "unexpected", f"A name: {payload}", f"A file: {payload}")
    assert payload in host.toast("A name").inner_text()
    host.reload()
    assert payload in host.toast("A name").inner_text()
    assert host.page.evaluate("window.sd3hacked") is None
    assert host.page.locator("#sd3-toasts img, #sd3-toasts script, #sd3-toasts svg").count() == 0


def test_nothing_in_a_prompt_is_html(host):
    """A prompt that is cut is spoken about in messages and in the panel."""
    host.ui.go(host.page, "Generate")
    host.size(128, 128)
    box = host.page.locator(f"#{host.ui.tab}_prompt textarea").first
    before = box.input_value()
    box.fill("a word " * 300 + " ".join(PAYLOADS))
    try:
        assert host.generate()
        host.toast("token")
        # What the host itself makes of a prompt is its own affair: a real SD.Next does take some of it for HTML.
        made = host.page.locator("img[src='x'], svg[onload]")
        assert not [one for one in made.all() if one.evaluate("(el) => Boolean(el.closest('[id^=sd3-], .sd3-panel'))")]
    finally:
        box.fill(before)


def test_nothing_in_the_name_of_a_model_or_in_a_line_of_a_log_is_html(host):
    host.host.run(f"""
        import gc
        from modules import modeldata
        info = modeldata.model_data.sd_model.sd_checkpoint_info
        sd3probe.name, info.name = info.name, {PAYLOADS[0]!r}
        diagnosing = next(one for one in gc.get_objects() if type(one).__name__ == "Diagnosing")
        result = diagnosing.explain({PAYLOADS[0]!r} + " ModuleNotFoundError: No module named 'bitsandbytes'").rule
    """)
    try:
        host.tell("warning", "size.snapped", "Something has happened.")
        host.toast("Something has happened.")
        host.open()
        assert until(lambda: PAYLOADS[0] in headline(host)), headline(host)  # it has no slash
        found = host.page.locator(f"{host.panel}diagnosis .sd3-finding").first
        found.locator("summary").click()
        assert until(lambda: PAYLOADS[0] in found.inner_text())
        assert host.page.evaluate("window.sd3hacked") is None
        assert host.page.locator(".sd3-panel .sd3-finding img, .sd3-panel .sd3-headline img, .sd3-panel .sd3-state img").count() == 0
    finally:
        host.host.run("from modules import modeldata; modeldata.model_data.sd_model.sd_checkpoint_info.name = sd3probe.name")


# The keyboard


def test_a_message_can_be_reached_and_dismissed_by_keys_alone(host):
    host.tell("warning", "size.snapped", "The first.")
    host.tell("error", "memory.exhausted", "The second.")
    host.toast("The second.")
    host.reload()
    host.toast("The second.")
    host.page.keyboard.press("Tab")
    assert host.page.evaluate("document.activeElement.closest('.sd3-toast').textContent").startswith("The first.")
    outline = host.page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline != "none"
    host.page.keyboard.press("Escape")
    assert until(lambda: host.page.locator(".sd3-toast").count() == 1)
    assert host.page.evaluate("document.activeElement.closest('.sd3-toast').textContent").startswith("The second.")
    host.page.keyboard.press("Enter")  # it stands on Dismiss
    assert until(lambda: host.page.locator(".sd3-toast").count() == 0)


def test_the_panel_can_be_used_by_keys_alone(host):
    host.open()
    host.unfold("page")
    first = host.part("size", "input")
    first.focus()
    host.page.keyboard.press("ArrowRight")
    assert until(lambda: host.page.evaluate("document.activeElement.value") == "off")
    assert host.part("size", "input[value=off]").is_checked()
    host.page.keyboard.press("ArrowLeft")
    assert until(lambda: host.part("size", "input").is_checked())
    host.part("install").focus()
    host.page.keyboard.press("Enter")
    dialog = host.page.locator("dialog.sd3-dialog")
    dialog.wait_for()
    for _ in range(6):
        host.page.keyboard.press("Tab")
        assert host.page.evaluate("document.activeElement === document.body || Boolean(document.activeElement.closest('dialog'))")
    host.page.keyboard.press("Escape")
    assert until(lambda: dialog.count() == 0)
    assert host.page.evaluate("document.activeElement.id") == f"{host.panel[1:]}install"


# What a machine can say about it


# ModernUI's themes are style sheets beside each other.
THEME = """async (name) => {
  const link = [...document.querySelectorAll('link[rel=stylesheet]')].find((el) => el.href.includes('/themes/'));
  const address = link.href.replace(/themes\\/[^.]+/, `themes/${name}`);
  if (address === link.href) return;
  await new Promise((done) => { link.onload = done; link.href = address; });
}"""


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_axe_finds_nothing_serious(host, dark):
    from axe_playwright_python.sync_playwright import Axe

    if host.ui.name == "standard":
        host.page.evaluate("(dark) => document.body.classList.toggle('dark', dark)", dark)
    else:
        host.page.evaluate(THEME, "Default" if dark else "Eoan-Light")
    host.size(1000, 1000)
    host.open()
    host.tell("warning", "size.snapped", "A message.", "Its remedy.")
    host.tell("error", "memory.exhausted", "Another one.", "Its remedy.")
    host.toast("Another one.")
    host.page.evaluate("document.querySelectorAll('.sd3-panel .label-wrap:not(.open)').forEach((head) => head.click())")
    assert until(lambda: host.page.locator(".sd3-panel .label-wrap:not(.open)").count() == 0)
    result = Axe().run(host.page, context={"include": [[f"{host.panel}panel"], ["#sd3-toasts"], [f"#sd3-chip-{host.ui.tab}"]]})
    serious = [one for one in result.response["violations"] if one["impact"] in AXE_SERIOUS]
    ours = [(one["id"], node["html"][:200], node.get("failureSummary", "")[:300]) for one in serious for node in one["nodes"]]
    if folder := os.environ.get("SD3_SCREENSHOTS"):
        host.shot(f"axe-{'dark' if dark else 'light'}")
        with open(os.path.join(folder, f"axe-{host.ui.name}-{dark}.json"), "w") as file:
            json.dump(serious, file, indent=1)
    assert result.response["passes"]
    assert ours == []
