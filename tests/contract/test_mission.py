"""What this extension is for, in a browser, in both pages of SD.Next: from the Extensions tab to a picture. The tests run in this order."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from demo import environment, server
from tests.browser import UIS, Ui, opened, reading, until, usable
from tests.contract.conftest import start
from tests.contract.repository import served, work_tree

NAME = "sd-extension-sd3"


@dataclass
class Site:
    """A server, the way through its page, and what the tests need to know of it."""

    ui: Ui
    host: server.Host
    packages: Path
    page: Any = None

    @property
    def extension(self) -> Path:
        return self.host.data / "extensions" / NAME

    def status(self) -> dict[str, Any]:
        return self.host.get("/sdapi/v1/sd3/status")

    def pictures(self) -> set[Path]:
        return set((self.host.data / "outputs").rglob("*.png"))

    def toast(self, severity: str, *words: str) -> str:
        """The text of the message of that kind which has all the words, "" when none comes."""

        def found() -> str:
            texts = self.page.locator(f".sd3-toast.sd3-{severity}").all_inner_texts()
            return next((text for text in texts if all(word in text for word in words)), "")

        return until(found) or ""

    def dismiss(self) -> None:
        """Close the messages, as a person does before going on to what is under them."""
        self.page.evaluate("document.querySelectorAll('.sd3-toast .sd3-dismiss').forEach((button) => button.click())")

    def restarted(self, ask: Callable[[], None]) -> None:
        """Ask for a restart and wait until the page has come back by itself."""
        starts = self.host.starts()
        ask()
        assert until(lambda: self.host.starts() > starts), self.host.log()[-3000:]
        self.ui.ready(self.page)

    def picture(self) -> Image.Image:
        """Press Generate and wait for the picture."""
        before = self.pictures()
        self.ui.generate(self.page)

        def made() -> Image.Image | None:
            for path in self.pictures() - before:
                try:
                    image = Image.open(path)
                    image.load()
                    return image
                except (OSError, SyntaxError):  # it is still being written: Pillow has a word of its own for half a chunk
                    return None
            return None

        found = until(made)
        assert found, self.host.log()[-3000:]
        return found


@pytest.fixture(scope="module", params=UIS)
def host(request, tmp_path_factory):
    """A server as it is before anybody has heard of this extension, with its page open."""
    ui = usable(request.param)
    folder = tmp_path_factory.mktemp("mission")
    server.data_folder(folder / "data", extension=None, **dict(ui.options))
    started = start(folder, "data", "--theme", ui.theme)
    site = Site(ui, started, environment.site_of(folder / "venv-data"))
    try:
        with opened(started) as site.page:
            errors: list[Any] = []
            site.page.on("pageerror", lambda error: errors.append(error))  # a builtin method is no handler for playwright
            ui.ready(site.page)
            yield site
            assert not [error for error in errors if NAME in (error.stack or "")]
    finally:
        started.stop()


@pytest.fixture(autouse=True)
def shot(host, request):
    """A picture after each test, for whoever wants to look: SD3_SCREENSHOTS is a folder."""
    yield
    if folder := os.environ.get("SD3_SCREENSHOTS"):
        host.page.screenshot(path=str(Path(folder) / f"{host.ui.name}-{request.function.__name__[5:]}.png"))


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """This extension, as it lies here, to be cloned."""
    folder = tmp_path_factory.mktemp("repositories")
    work_tree(folder / NAME)
    with served(folder) as found:
        yield f"{found}/{NAME}.git"


def test_it_is_installed_from_the_extensions_tab(host, address):
    ui, page = host.ui, host.page
    assert not (host.packages / "bitsandbytes").exists()
    ui.go(page, "Extensions")
    page.locator("button").get_by_text("Manual install", exact=True).click()
    page.get_by_label("Extension GIT repository URL").fill(address)
    page.get_by_role("button", name="Install", exact=True).click()
    info = page.locator("#extension_info").last  # gradio gives the id to the frame around it too
    assert until(lambda: info.inner_text().strip()), host.host.log()[-3000:]
    assert f"Extension installed: {host.extension} | Restart required" in info.inner_text()
    assert (host.extension / ".git").is_dir()
    assert (host.packages / "bitsandbytes").is_dir()  # its install.py has run
    assert "Extension installer error" not in host.host.log()
    assert page.locator("#setting_sd3_text_encoder").count() == 0  # nothing of it is loaded before the restart


def test_the_hosts_own_button_restarts_it_and_everything_is_there(host):
    ui, page = host.ui, host.page
    ui.go(page, "System")
    host.restarted(page.locator("#restart_submit").click)
    assert host.status()["pid"] == host.host.process.pid
    assert host.status()["model"] == server.MODEL
    ui.go(page, "Scripts")
    panel = page.locator(f"#script_{ui.tab}_sd3_deploy_panel")
    panel.scroll_into_view_if_needed()
    assert panel.is_visible()
    ui.settings(page)
    assert page.locator("#setting_sd3_text_encoder").is_visible()


def test_fp4_is_chosen_in_the_settings_and_nothing_is_restarted(host):
    ui, page = host.ui, host.page
    pid, starts = host.status()["pid"], host.host.starts()
    ui.settings(page)
    ui.choose(page, "sd3_text_encoder", "T5 FP4")
    ui.submit(page)
    assert host.toast("success", "T5 FP4 ready"), host.host.get("/sdapi/v1/sd3/events")
    now = host.status()
    assert (now["encoder"], now["pid"], now["last_error"]) == ("T5 FP4", pid, None)
    assert now["linear4bit"] > 0
    assert host.host.starts() == starts
    assert page.locator("#setting_sd3_text_encoder input").input_value() == "T5 FP4"


def test_a_picture_from_the_page_says_which_t5_made_it(host):
    host.ui.go(host.page, "Generate")
    host.ui.write(host.page, width=128, height=128)
    image = host.picture()
    assert image.size == (128, 128)
    assert "T5: T5 FP4" in image.info["parameters"]


def test_what_will_happen_to_a_size_is_said_before_anything_is_pressed(host):
    ui, page = host.ui, host.page
    ui.go(page, "Generate")
    ui.write(page, width=1000, height=1000)
    chip = page.locator(f"#sd3-chip-{ui.tab} .sd3-chip-head").filter(has_text="1008×1008")
    assert until(lambda: chip.count() and chip.first.is_visible()), page.locator(f"#sd3-chip-{ui.tab}").all_inner_texts()


def test_a_size_that_does_not_fit_is_mended_and_the_page_says_so(host):
    with reading(host.page):
        assert host.picture().size == (1008, 1008)
        assert host.toast("info", "1000×1000", "1008×1008")


def test_a_size_that_is_not_to_be_mended_is_refused_with_the_remedy(host):
    ui, page = host.ui, host.page
    host.dismiss()
    ui.settings(page)
    page.locator(".sd3-advanced summary").click()
    page.locator("#setting_sd3_guard_size label").filter(has_text="block").click()
    ui.submit(page)
    assert until(lambda: host.host.get("/sdapi/v1/sd3/report")["settings"].get("sd3_guard_size") == "block")
    ui.go(page, "Generate")
    before = host.pictures()
    ui.generate(page)
    toast = host.toast("error", "1000×1000", "Nothing was generated")
    assert toast
    assert "1008×1008" in toast  # the remedy names a size that works
    assert host.pictures() == before
    ui.write(page, width=1008, height=1008)
    assert host.picture().size == (1008, 1008)


def test_it_is_switched_off_in_the_extensions_tab_and_the_host_is_as_it_was(host):
    ui, page = host.ui, host.page
    host.dismiss()
    ui.go(page, "Extensions")
    page.locator("button").get_by_text("Manage extensions", exact=True).click()
    page.locator(f'#extensions input[name="enable_{NAME}"]').uncheck()
    host.restarted(page.get_by_role("button", name="Apply changes").click)
    assert page.locator("[id*=sd3_deploy], [id^=setting_sd3_]").count() == 0
    assert host.host.client.get("/sdapi/v1/sd3/status").status_code == 404
    ui.go(page, "Generate")
    ui.write(page, width=128, height=128)
    assert "T5:" not in host.picture().info["parameters"]
