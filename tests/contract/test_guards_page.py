"""The guards as a person sees them: Chromium on the page, the size typed, Generate pressed."""

from __future__ import annotations

import pytest
from PIL import Image

from demo import server
from tests.browser import opened, press, reading, until
from tests.contract.conftest import AUTH, start

PREFIX = {"txt2img": "txt2img", "control": "control_before_resize"}


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    server.data_folder(folder / "data")
    started = start(folder, "data", auth=AUTH)
    yield started
    started.stop()


@pytest.fixture(scope="module")
def page(host):
    with opened(host) as found, reading(found):
        yield found


def pictures(host):
    return sorted((path for path in (host.data / "outputs").rglob("*.png")), key=lambda path: path.stat().st_mtime_ns)


def generate(host, page, tab="txt2img", **fields):
    """Type into the fields, press the button, and wait for a picture or a refusal. Returns the size of the picture, or None."""
    page.locator("button").filter(has_text={"txt2img": "Text", "control": "Control"}[tab]).first.click()
    for name, value in fields.items():
        box = page.locator(f"#{PREFIX[tab]}_{name} input[type=number]").first
        if not box.is_visible():  # SD.Next's Control keeps the size behind a button
            page.get_by_text("Size", exact=True).locator("visible=true").first.click()
        box.fill("")
        box.press_sequentially(str(value))
        box.blur()
    before, shown = pictures(host), page.locator(".sd3-toast.sd3-error").count()
    press(page, tab)

    def new():
        for path in pictures(host):
            if path not in before:
                try:
                    return Image.open(path).size
                except OSError:  # it is still being written
                    return None
        return None

    assert until(lambda: new() or page.locator(".sd3-toast.sd3-error").count() > shown), host.log()[-3000:]
    return new()


def said(page, *words):
    """Whether all the words are in the text under the gallery, which some hosts bring seconds after the picture."""
    return until(lambda: all(word in page.locator("#html_log_txt2img").last.inner_text() for word in words))


def toasts(page, severity):
    page.wait_for_selector(f".sd3-toast.sd3-{severity}")
    return [toast.inner_text() for toast in page.locator(f".sd3-toast.sd3-{severity}").all()]


def up_to_date(host, page):
    """Wait until the page has all that the server has said."""
    told = host.get("/sdapi/v1/sd3/events")["events"]
    page.evaluate("window.sd3deploy.wake()")
    assert until(lambda: not told or page.evaluate("Number(sessionStorage.getItem('sd3-seen'))") >= told[-1]["seq"])


def dismiss(host, page):
    """Close every message, once the page has all that there are."""
    up_to_date(host, page)
    page.evaluate("document.querySelectorAll('.sd3-toast .sd3-dismiss').forEach((button) => button.click())")


@pytest.mark.parametrize(
    ("asked", "made"),
    [
        ((1000, 1000), (1008, 1008)),
        ((250, 250), (256, 256)),
        ((3200, 256), (3072, 240)),
        ((64, 4096), (48, 3072)),
    ],
)
def test_a_size_that_does_not_fit(host, page, asked, made):
    dismiss(host, page)
    assert generate(host, page, width=asked[0], height=asked[1]) == made
    announced = f"{asked[0]}×{asked[1]}", f"{made[0]}×{made[1]}"
    assert said(page, *announced)
    assert any(all(one in toast for one in announced) for toast in toasts(page, "info"))


@pytest.mark.parametrize("typed", [0, -1, "abc"])
def test_what_is_no_size_can_not_even_be_typed(host, page, typed):
    """The field of the page corrects it to its least value, which it then shows."""
    size = generate(host, page, width=typed, height=typed)
    shown = [page.locator(f"#txt2img_{side} input[type=number]").input_value() for side in ("width", "height")]
    assert shown == [str(side) for side in size] == ["64", "64"]


def test_a_refusal_is_said_under_the_gallery_and_on_top_each_time_anew(host, page):
    host.set(sd3_guard_size="block")
    try:
        for asked in (1000, 1032):
            dismiss(host, page)
            assert generate(host, page, width=asked, height=asked) is None
            assert said(page, f"{asked}×{asked}", "Nothing was generated")
            (toast,) = toasts(page, "error")
            assert f"{asked}×{asked}" in toast
    finally:
        host.set(sd3_guard_size="fix")
    assert generate(host, page, width=128, height=128) == (128, 128)


def test_the_same_message_is_there_once(host, page):
    dismiss(host, page)
    for _ in range(2):
        generate(host, page, width=200, height=200)
    up_to_date(host, page)  # a second one would be there
    assert len([toast for toast in toasts(page, "info") if "200×200" in toast and "multiples" in toast]) == 1


def test_the_control_tab_has_its_size_mended_and_its_refusals_said_too(host, page):
    """It shows no text of a script: what is on top of the page has to do."""
    dismiss(host, page)
    assert generate(host, page, "control", width=1000, height=250) == (1008, 256)
    assert any("1000×250" in toast and "1008×256" in toast for toast in toasts(page, "info"))
    host.set(sd3_guard_size="block")
    try:
        dismiss(host, page)
        assert generate(host, page, "control", width=1000, height=250) is None
        (toast,) = toasts(page, "error")
        assert "Nothing was generated" in toast
    finally:
        host.set(sd3_guard_size="fix")
