"""Memory as a person sees it: Chromium on the page, the verdict beside Generate, the second press, the panel and the settings."""

from __future__ import annotations

import shutil

import pytest

from demo import server
from sd3deploy.encoders.choices import CHOICES
from tests.browser import answered, opened, press, until
from tests.contract.conftest import AUTH, PROBE, ProbedHost, start

LITTLE = "from sd3deploy.memory import capacity; capacity._ram = lambda: (64 * 10**9, 10**6)"
PANEL = "#script_txt2img_sd3_deploy_"


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    folder = tmp_path_factory.mktemp("memory-page")
    data = server.data_folder(folder / "data")
    shutil.copytree(PROBE, data / "extensions" / "sd3-probe", ignore=shutil.ignore_patterns("__pycache__"))
    started = start(folder, "data", auth=AUTH)
    yield ProbedHost(started.data, started.url, started.process, started.auth)
    started.stop()


@pytest.fixture(scope="module")
def page(host):
    with opened(host) as found:
        found.locator("button").filter(has_text="Text").first.click()
        for side in ("width", "height"):
            write(found, side, 256)
        yield found


@pytest.fixture
def little(host, page):
    """Next to no memory, as far as the extension can tell; the page asks anew because something has happened."""
    host.run("from sd3deploy.memory import capacity; sd3probe.ram = capacity._ram")
    host.run(LITTLE)
    write(page, "width", 320)
    yield
    host.run("from sd3deploy.memory import capacity; capacity._ram = sd3probe.ram")
    write(page, "width", 256)


def write(page, name, value):
    box = page.locator(f"#txt2img_{name} input[type=number]").first
    box.fill(str(value))
    box.blur()


def chip(page):
    """What the chip near Generate has to say; "" where there is none."""
    found = page.locator("#sd3-chip-txt2img")
    return found.text_content() if found.count() else ""


def pictures(host):
    return len(list((host.data / "outputs").rglob("*.*")))


def errors(page):
    return page.locator(".sd3-toast.sd3-error").count()


def dismiss(page):
    page.evaluate("document.querySelectorAll('.sd3-toast .sd3-dismiss').forEach((button) => button.click())")


def opened_panel(page):
    head = page.locator(f"{PANEL}panel .label-wrap").first
    if not page.locator(f"{PANEL}apply").is_visible():
        head.scroll_into_view_if_needed()
        head.click()
    page.locator(f"{PANEL}apply").wait_for(state="visible")


def test_the_verdict_is_said_where_it_does_not_fit_and_follows_the_size(host, page, little):
    for width in (1024, 512):
        write(page, "width", width)
        expected = host.get("/sdapi/v1/sd3/memory", params={"width": width, "height": 256})["line"].partition(" of ")[0]
        assert expected.startswith("Does not fit: needs")
        assert until(lambda expected=expected: expected in chip(page)), (chip(page), expected)
    host.run("from sd3deploy.memory import capacity; capacity._ram = sd3probe.ram")
    write(page, "width", 1024)
    assert until(lambda: "needs" not in chip(page)), chip(page)


def test_in_mode_warn_what_does_not_fit_is_said_and_made(host, page, little):
    dismiss(page)
    before = pictures(host)
    press(page)
    assert until(lambda: pictures(host) > before, 60)
    toast = page.locator(".sd3-toast.sd3-warning").last
    assert until(lambda: toast.count() == 1 and "Does not fit" in toast.inner_text())
    assert errors(page) == 0
    dismiss(page)


@pytest.fixture
def ask(host):
    host.set(sd3_memory="ask")
    yield
    host.set(sd3_memory="warn")


@pytest.mark.usefixtures("ask")
def test_in_mode_ask_what_does_not_fit_is_held_back_until_the_second_press(host, page, little):
    assert until(lambda: "Does not fit" in chip(page)), chip(page)
    assert "sd3-refuse" in page.locator("#sd3-chip-txt2img").get_attribute("class")
    dismiss(page)
    before, shown = pictures(host), errors(page)
    press(page)
    assert until(lambda: errors(page) > shown)
    toast = page.locator(".sd3-toast.sd3-error").last.inner_text()
    anyway = page.locator(".sd3-toast.sd3-error").last.get_by_role("button", name="Generate anyway")
    assert "Does not fit" in toast
    assert "Press Generate again within 30 seconds" in toast
    assert until(lambda: "Press Generate again" in page.locator("#html_log_txt2img").last.inner_text())
    assert pictures(host) == before
    answered(page)
    anyway.click()
    assert until(lambda: pictures(host) > before)
    dismiss(page)


def test_in_mode_block_no_press_goes_on(host, page, little):
    host.set(sd3_memory="block")
    try:
        before = pictures(host)
        for _ in range(2):
            dismiss(page)
            press(page)
            assert until(lambda: errors(page) > 0)
        host.run("from modules import call_queue\nwith call_queue.queue_lock: result = True")  # the last press has had its answer
        assert pictures(host) == before
        assert "Press Generate again" not in page.locator(".sd3-toast.sd3-error").last.inner_text()
    finally:
        host.set(sd3_memory="warn")
        dismiss(page)


def test_one_click_takes_what_is_recommended(host, page):
    opened_panel(page)
    page.locator(f"{PANEL}apply").click()
    assert until(lambda: host.get("/sdapi/v1/sd3/status")["encoder"] == "T5 BF16")
    assert until(lambda: "T5 BF16" in page.locator(f"{PANEL}done").last.inner_text())
    host.set(sd3_text_encoder="Host default")


def test_the_settings_say_for_each_choice_whether_it_fits(page):
    def cells(place):
        return page.evaluate(f"[...document.querySelectorAll('.sd3-choices tr {place}')].map((cell) => cell.textContent)")

    assert until(lambda: cells(".sd3-verdict").count("fits, recommended") == 1), cells(".sd3-verdict")
    fits = [said for said in cells(".sd3-verdict") if said.startswith("fits")]  # those of bitsandbytes may have to be installed
    assert len(fits) == len([choice for choice in CHOICES if choice.bytes]) + 1, fits  # and none
    sizes = cells("td:nth-child(2)")
    assert [size.endswith(" GB") and size != "0.0 GB" for size in sizes] == [bool(choice.bytes) for choice in CHOICES]


def test_nothing_of_a_name_is_taken_for_html(host, page):
    """The plot's title and the messages hold names that a user or a file has given."""
    host.run("""
        import gc
        watching = next(one for one in gc.get_objects() if type(one).__name__ == "Watching")
        watching.events.add("error", "memory.verdict.no", "<img src=x onerror=window.sd3hacked=1>", "<b>bold</b>", job=True)
    """)
    press(page)  # the page looks for news
    assert until(lambda: page.locator(".sd3-toast", has_text="<img").count() == 1)
    assert page.evaluate("window.sd3hacked") is None
    dismiss(page)
