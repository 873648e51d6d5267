"""The page in Chinese, because the browser or the host says so; and in a small window."""

from __future__ import annotations

import re

import pytest

from tests.browser import UIS, reading, until, visit
from tests.contract.screen import screen

HAN = re.compile(r"[一-鿿]")


@pytest.fixture(scope="module", params=UIS)
def host(request, tmp_path_factory):
    with screen(request.param, tmp_path_factory.mktemp("languages"), locale="zh-CN") as found:
        yield found


def test_a_chinese_browser_has_a_chinese_panel(host):
    host.open()
    assert until(lambda: HAN.search(host.part("apply").inner_text())), host.part("apply").inner_text()
    host.unfold("page")
    for name in ("encoder", "defaults", "size", "memory", "sampling", "install", "verify"):
        text = host.part(name).inner_text()
        assert HAN.search(text), text
    assert until(lambda: HAN.search(host.text(f"{host.panel}memory .sd3-memory")))
    assert until(lambda: HAN.search(host.part("panel", ".sd3-headline").inner_text()))
    assert host.part("encoder", "input").input_value() == "与设置一致"  # stored in English
    assert "T5 FP4" in host.part("entries").text_content()
    host.shot("zh-panel")


def test_hints_and_messages_are_chinese_too(host):
    host.size(2048, 2048)
    assert until(lambda: HAN.search(host.chip())), host.chip()
    host.size(1000, 256)
    with reading(host.page):
        assert host.generate()
        toast = host.toast("1008×256")
        assert HAN.search(toast.inner_text())
        assert "。 " not in toast.inner_text()
        assert HAN.search(toast.get_by_role("button").first.get_attribute("aria-label"))
        host.shot("zh-toast")
    host.open()
    assert "。 " not in host.part("panel").inner_text() + host.chip()
    host.dismiss()


def test_the_answer_of_a_button_is_chinese(host):
    host.open()
    host.part("install").click()
    dialog = host.page.locator("dialog.sd3-dialog")
    dialog.wait_for()
    assert HAN.search(dialog.inner_text())
    host.page.keyboard.press("Escape")
    host.unfold("last")
    host.part("forget").click()
    assert until(lambda: HAN.search(host.text(f"{host.panel}last_done"))), host.text(f"{host.panel}last_done")


def test_the_settings_are_chinese(host):
    host.ui.go(host.page, "Settings")
    host.ui.settings(host.page)
    label = host.page.locator("#setting_sd3_text_encoder label, #setting_sd3_text_encoder span").first
    assert until(lambda: HAN.search(label.inner_text())), label.inner_text()
    assert HAN.search(host.text("#setting_sd3_choices") or host.text(".sd3-choices"))
    assert "Host default" not in host.text("#setting_sd3_choices") + host.text(".sd3-choices")


def test_choices_are_shown_in_chinese_and_stored_as_ever(host):
    """The drop-down of gradio has values and no words for them; what it says, on top and in its list, is put there by the page."""
    host.ui.settings(host.page)
    field = host.page.locator("#setting_sd3_text_encoder input").first
    assert until(lambda: field.input_value() == "SD.Next 默认"), field.input_value()
    field.click()
    entry = host.page.locator("#setting_sd3_text_encoder li").get_by_text("无（仅 CLIP）").first
    entry.wait_for()
    host.shot("zh-choices")
    entry.click()
    field.blur()
    assert until(lambda: field.input_value() == "无（仅 CLIP）"), field.input_value()
    host.ui.submit(host.page)
    try:
        assert until(lambda: host.setting("sd3_text_encoder") == "None (CLIP only)")
        assert until(lambda: host.host.get("/sdapi/v1/sd3/status")["encoder"] == "None (CLIP only)")
    finally:
        host.host.set(sd3_text_encoder="Host default")
    assert until(lambda: host.page.locator("#setting_sd3_weights input").first.input_value() == "自动")


def test_checks_speak_the_language_of_whoever_began_them_in_their_own_processes_too(host):
    host.host.post("/sdapi/v1/sd3/verify", headers={"Accept-Language": "zh-CN"})
    assert until(lambda: host.host.get("/sdapi/v1/sd3/verify")["state"] == "done")
    results = host.host.get("/sdapi/v1/sd3/verify")["results"]
    assert len(results) == 8
    assert [one for one in results if not HAN.search(one["title"] + one["message"])] == []


def test_another_browser_of_the_same_server_is_english(host):
    chinese, english = (host.host.get("/sdapi/v1/sd3/status", headers={"Accept-Language": one})["line"] for one in ("zh-CN,zh;q=0.9", "en"))
    assert HAN.search(chinese)
    assert not HAN.search(english)
    assert not HAN.search(host.host.get("/sdapi/v1/sd3/status")["line"])  # a script names none, whatever page was open before


@pytest.mark.parametrize(("setting", "browser", "chinese"), [("zh: Chinese", "en-US", True), ("en: English", "zh-CN", False)])
def test_the_setting_of_the_host_comes_before_the_browser(host, setting, browser, chinese):
    host.host.set(ui_locale=setting)
    page = visit(host.page.context.browser, host.host, locale=browser)
    try:
        line = page.locator(f"{host.panel}panel .sd3-headline")
        assert until(line.count)
        label = page.locator(f"{host.panel}apply").first
        assert until(lambda: bool(HAN.search(label.text_content())) is chinese), label.text_content()
        assert bool(HAN.search(host.host.get("/sdapi/v1/sd3/status", headers={"Accept-Language": browser})["line"])) is chinese
    finally:
        page.context.close()
        host.host.set(ui_locale="Auto")


# What of the panel lies to the right of it, as [px, what]. A table may, it scrolls; the arrow of a gradio head is turned, with a box
# that is higher than wide.
BEYOND = """(selector) => {
  const edge = document.querySelector(selector).getBoundingClientRect().right + 2;
  const other = 'pre, table, .label-wrap > .icon';
  const all = [...document.querySelectorAll(`${selector} *`)].filter((el) => el.offsetParent && !el.closest(other));
  const boxes = all.map((el) => [el.getBoundingClientRect(), el]).filter(([box]) => box.width > 0 && box.right > edge);
  return boxes.map(([box, el]) => [box.right - edge, el.outerHTML.slice(0, 300)]);
}"""


@pytest.mark.parametrize("size", [(390, 844), (1920, 1080)], ids=["phone", "desktop"])
def test_it_fits_into_the_window(host, size):
    if host.ui.name == "modern" and size[0] < 400:
        pytest.skip("ModernUI has a page of its own for phones, which shows no panels of scripts")
    host.size(1000, 1000)
    host.open()
    host.page.set_viewport_size({"width": size[0], "height": size[1]})
    host.tell("error", "unexpected", "A long word: " + "x" * 200, "C:\\" + "folder\\" * 40)
    toast = host.toast("A long word")
    folded = host.page.locator("#sd3-toasts .sd3-fold")
    assert folded.is_visible() is (size[0] < 400)
    if folded.is_visible():
        line = folded.bounding_box()
        assert 0 <= line["x"] < line["x"] + line["width"] <= size[0]
        folded.click()
    toast = toast.bounding_box()
    assert toast["x"] >= 0
    assert toast["x"] + toast["width"] <= size[0]
    assert toast["y"] >= 0
    assert toast["y"] + toast["height"] <= size[1]
    panel = host.part("panel").bounding_box()
    assert panel["x"] + panel["width"] <= size[0] + 1
    assert host.page.evaluate(BEYOND, f"{host.panel}panel") == []
    host.shot(f"viewport-{size[0]}")
    host.page.set_viewport_size({"width": 1400, "height": 1000})
    host.dismiss()


def test_modes_wrap_in_a_narrow_column_though_the_host_makes_them_as_wide_as_their_words(host):
    """So the Standard UI does, and its column is 215 px on a telephone: what was too wide, the last mode among it, was cut off."""
    host.open()
    host.unfold("page")
    rule = f"{host.panel}panel {{ width: 215px; min-width: 0 !important }} fieldset {{ width: max-content !important }}"
    style = host.page.add_style_tag(content=rule)
    try:
        assert host.part("size", "input[value=block]").is_visible()
        assert host.page.evaluate(BEYOND, f"{host.panel}panel") == []
    finally:
        style.evaluate("(el) => el.remove()")
