"""Chromium, as a person has it in front of them, for the tests that look at the page."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.waiting import HANG, until

__all__ = ["MODERN", "STANDARD", "UIS", "Ui", "answered", "chromium", "opened", "press", "reading", "until", "usable", "visit"]

# In the page: window.asking counts what gradio has asked through its queue and has no answer to yet.
ASKING = """{
  const Real = WebSocket;
  window.asking = 0;
  window.WebSocket = class extends Real {
    constructor(...args) {
      super(...args);
      if (!String(args[0]).endsWith('/queue/join')) return;
      window.asking += 1;
      this.addEventListener('close', () => { window.asking -= 1; });
    }
  };
}"""


def chromium() -> str:
    """The path of the browser. Skips the test where there is none; `python3 dev.py test` installs it where CI=true."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
    if found is None:
        pytest.skip("no Chromium: install the package chromium of the operating system")
    return found


def visit(browser: Any, host: Any, **words: Any) -> Any:
    """A page of a browser that shows a host, logged in and ready. words: for playwright's new_page, such as locale="zh-CN"."""
    page = browser.new_page(**{"viewport": {"width": 1400, "height": 1000}} | words)
    page.set_default_timeout(HANG * 1000)
    page.add_init_script(ASKING)
    if host.auth:
        user, password = host.auth
        page.request.post(f"{host.url}/login", form={"username": user, "password": password})
    page.goto(host.url)
    page.wait_for_selector("#txt2img_generate", state="attached")
    page.wait_for_function("window.gradioApp && window.opts && Object.keys(window.opts).length > 0")
    return page


@contextmanager
def opened(host: Any, **words: Any) -> Iterator[Any]:
    """The page of a host in a fresh browser, as by `visit`."""
    from playwright.sync_api import sync_playwright

    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=flags)
        try:
            yield visit(browser, host, **words)
        finally:
            browser.close()


def answered(page: Any) -> None:
    """Wait until the page has the answer to all that it has asked. A picture is on the disk before that."""
    page.wait_for_function("window.asking === 0")


def press(page: Any, tab: str = "txt2img") -> None:
    """Press Generate, as soon as the page can: gradio drops a press while the answer to the last one is not there."""
    answered(page)
    page.evaluate(f"document.querySelector('#{tab}_generate').click()")


READING = """() => {
  const read = () => {
    for (const el of document.querySelectorAll('.sd3-toast:not([data-read])')) {
      el.dataset.read = '';
      el.dispatchEvent(new MouseEvent('mouseenter'));
    }
  };
  window.reading = new MutationObserver(read);
  window.reading.observe(document.body, { childList: true, subtree: true });
}"""


@contextmanager
def reading(page: Any) -> Iterator[None]:
    """Somebody reads each message as it comes, so that none goes by itself, however long the picture takes of which it speaks."""
    page.evaluate(READING)
    try:
        yield
    finally:
        page.evaluate("window.reading.disconnect()")


@dataclass(frozen=True)
class Ui:
    """One of the two pages that SD.Next has, and the way through it.

    name: as a test calls it. theme: the flag. options: settings that go with it. tab: the one in which pictures are made. size: how the
    fields of its size are called.
    """

    name: str
    theme: str
    tab: str
    size: str
    options: tuple[tuple[str, str], ...] = ()

    def ready(self, page: Any) -> None:
        """Wait until the page has put itself together: ModernUI moves everything to its place when the rest is there."""
        page.wait_for_selector(f"#{self.tab}_generate", state="attached")
        page.evaluate("window.waitForUiReady ? window.waitForUiReady() : null")
        page.wait_for_selector(f"#{self.tab}_generate")

    def go(self, page: Any, place: str) -> None:
        """Open a place: "Generate", "Extensions", "System", "Settings" or "Scripts"."""
        if self.name == "modern":
            ids = {"Generate": "control_prompts", "Scripts": "control_scripts"}
            button = page.locator(f"#{ids.get(place, f'btn_{place.lower()}')}")
            if not page.locator(button.get_attribute("tabitemid").split(",")[-1]).is_visible():  # the button of what is open would close it
                button.click()
        else:
            names = {"Generate": "Text", "Scripts": "Text", "Settings": "System"}
            name, tabs = names.get(place, place), page.locator("#tabs > .tab-nav > button")
            translated = tabs.and_(page.locator(f"[data-original*='{name}']"))  # SD.Next keeps the English word there
            tabs.get_by_text(name, exact=True).or_(translated).first.click()
        page.mouse.move(700, 990)  # off whatever shows a hint over its neighbours

    def settings(self, page: Any, section: str = "SD3 Deploy") -> None:
        """Open a section of the settings."""
        self.go(page, "Settings")
        place = "#layout-settings" if self.name == "modern" else "#settings"
        page.locator(f"{place} .tab-nav button").get_by_text(section, exact=True).first.click()

    def networks(self, page: Any, shown: bool) -> None:
        """Open or close SD.Next's panel of networks, which lies beside or over everything else."""
        panel, button = self.panel_of_networks
        if page.locator(panel).is_visible() != shown:
            page.locator(button).click()
        assert until(lambda: page.locator(panel).is_visible() == shown)

    @property
    def panel_of_networks(self) -> tuple[str, str]:
        """Selectors of the panel of networks, and of the button that opens and closes it."""
        if self.name == "modern":
            return "#layout-extra-networks", "#btn_extra_networks"
        return f"#{self.tab}_extra_networks", f"#{self.tab}_extra_networks_btn"

    def choose(self, page: Any, setting: str, value: str) -> None:
        """Take `value` in the drop-down of a setting whose section is open."""
        page.locator(f"#setting_{setting} input").click()
        page.locator(f'#setting_{setting} li[data-value="{value}"]').click()

    def submit(self, page: Any) -> None:
        """Apply settings."""
        page.locator("#settings_submit").click()

    def write(self, page: Any, **fields: object) -> None:
        """Type into the fields of a job: width, height, steps. The size may lie behind a button that has to be opened first."""
        for name, value in fields.items():
            prefix = self.size if name in ("width", "height") else self.tab
            box = page.locator(f"#{prefix}_{name} input[type=number]").first
            if not box.is_visible():
                page.get_by_text("Size", exact=True).locator("visible=true").first.click()
            box.fill("")
            box.press_sequentially(str(value))
            box.blur()

    def generate(self, page: Any) -> None:
        """Press the button."""
        page.locator(f"#{self.tab}_generate").click()


def usable(ui: Ui) -> Ui:
    """The page, where the SD.Next under test has it. Skips the test else."""
    modern = Path(os.environ.get("SDNEXT_ROOT", "")) / "extensions-builtin" / "sdnext-modernui"
    if ui is MODERN and not (modern.is_dir() and any(modern.iterdir())):
        pytest.skip("this SD.Next has no ModernUI: fill its submodule extensions-builtin/sdnext-modernui")
    return ui


STANDARD = Ui("standard", "standard/black-teal", "txt2img", "txt2img")
MODERN = Ui("modern", "modern/Default", "control", "control_before_resize", (("theme_type", "Modern"),))

# The stand-in has one page; a real SD.Next has two.
UIS = [pytest.param(STANDARD, id="standard"), pytest.param(MODERN, id="modern", marks=pytest.mark.real)]
