"""A server and its page, for the tests that look at the screen."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from demo import server
from tests.browser import Ui, answered, opened, press, until, usable
from tests.contract.conftest import AUTH, PROBE, ProbedHost, start

__all__ = ["Screen", "screen"]


@dataclass
class Screen:
    """`panel` is how the ids of the panel's components begin."""

    ui: Ui
    host: ProbedHost
    page: Any

    @property
    def panel(self) -> str:
        return f"#script_{self.ui.tab}_sd3_deploy_"

    def part(self, name: str, inside: str = "") -> Any:
        """A component of the panel, or something inside of it. gradio gives some ids to a frame as well."""
        return self.page.locator(f"{self.panel}{name} {inside}".strip()).first

    def text(self, selector: str) -> str:
        found = self.page.locator(selector)
        return found.first.inner_text() if found.count() else ""

    def chip(self) -> str:
        """What the chip near Generate has to say, seen or not; "" where there is none."""
        return self.page.evaluate("(id) => (document.getElementById(id) || {}).textContent || ''", f"sd3-chip-{self.ui.tab}")

    def open(self) -> None:
        """The panel, as a person opens it."""
        self.ui.go(self.page, "Scripts")
        head = self.part("panel", ".label-wrap")
        until(head.is_visible)
        if "open" not in (head.get_attribute("class") or "").split():
            head.click()
        self.part("apply").wait_for(state="visible")

    def unfold(self, name: str) -> None:
        """A part of the panel that is folded."""
        head = self.part(name, ".label-wrap")
        if "open" not in (head.get_attribute("class") or "").split():
            head.click()

    def choose(self, name: str) -> None:
        """Take a text encoder for the jobs of the page: the stored name of an entry of the drop-down."""
        field = self.part("encoder", "input")
        assert until(lambda: not self.page.locator(f"{self.panel}encoder li[data-value]").count())  # gradio's list fades, and takes clicks
        field.click()
        self.page.locator(f'{self.panel}encoder li[data-value="{name}"]').click()
        field.blur()

    def bare(self) -> None:
        """Nothing beside the tab: ModernUI of 2025 shows its networks at first, and pushes Generate behind them."""
        if self.page.locator(self.ui.panel_of_networks[1]).count():  # the stand-in has none
            self.ui.networks(self.page, False)

    def leave(self) -> None:
        """Close the drop-down of the text encoder without a choice."""
        self.leave_field(f"{self.panel}encoder input")

    def leave_field(self, selector: str) -> None:
        """The same with any drop-down."""
        self.page.keyboard.press("Escape")
        self.page.locator(selector).first.blur()

    def size(self, width: int, height: int) -> None:
        self.ui.go(self.page, "Generate")
        self.ui.write(self.page, width=width, height=height)

    def pictures(self) -> list[Path]:
        return sorted((self.host.data / "outputs").rglob("*.png"), key=lambda path: path.stat().st_mtime_ns)

    def generate(self) -> Path | None:
        """Press the button and wait for a picture, or for a message that there will be none."""
        before, shown = self.pictures(), self.page.locator(".sd3-toast.sd3-error").count()
        press(self.page, self.ui.tab)
        over = until(lambda: len(self.pictures()) > len(before) or self.page.locator(".sd3-toast.sd3-error").count() > shown)
        assert over, self.host.log()[-3000:]
        answered(self.page)
        return self.pictures()[-1] if len(self.pictures()) > len(before) else None

    def setting(self, name: str) -> Any:
        """What the server has stored, None where that is the default. SD.Next before 2026 tells nothing of an extension's over its API."""
        return self.host.run(f"from modules import shared; result = shared.opts.data.get({name!r})")

    def reload(self) -> None:
        """The page anew, until ours is there again: a real SD.Next needs half a minute."""
        self.page.reload()
        self.ready()

    def ready(self) -> None:
        self.ui.ready(self.page)
        assert until(self.page.locator(f"{self.panel}panel .sd3-headline").count)

    def tell(self, severity: str, id: str, message: str, remedy: str = "", action: str = "", buttons: str = "()") -> None:
        """Something that the extension says, through its own events; and the page looks for news. buttons: as Python."""
        self.host.run(f"""
            import gc
            from sd3deploy import button
            events = next(one for one in gc.get_objects() if type(one).__name__ == "Events" and type(one).__module__ == "sd3deploy.events")
            events.add({severity!r}, {id!r}, {message!r}, {remedy!r}, job=True, action={action!r}, buttons={buttons})
        """)
        self.page.evaluate("window.sd3deploy.wake()")

    def toast(self, *words: str) -> Any:
        """The message that has all the words."""
        found = self.page.locator(".sd3-toast")
        for word in words:
            found = found.filter(has_text=word)
        assert until(found.count), self.page.locator("#sd3-toasts").inner_text()
        return found.last

    def dismiss(self) -> None:
        self.page.evaluate("document.querySelectorAll('.sd3-toast .sd3-dismiss').forEach((button) => button.click())")

    def shot(self, name: str) -> None:
        """A picture, for whoever wants to look: SD3_SCREENSHOTS is a folder."""
        if folder := os.environ.get("SD3_SCREENSHOTS"):
            self.page.screenshot(path=str(Path(folder) / f"{self.ui.name}-{name}.png"))


@contextmanager
def screen(ui: Ui, folder: Path, **words: Any) -> Iterator[Screen]:
    """Start a server with the probe inside and open its page. words: for the browser's page."""
    data = server.data_folder(folder / "data", **dict(usable(ui).options))
    shutil.copytree(PROBE, data / "extensions" / "sd3-probe", ignore=shutil.ignore_patterns("__pycache__"))
    started = start(folder, "data", "--theme", ui.theme, auth=AUTH)
    host = ProbedHost(started.data, started.url, started.process, started.auth)
    try:
        with opened(host, **words) as page:
            found = Screen(ui, host, page)
            found.ready()
            yield found
    finally:
        started.stop()
