"""Chromium, as a person has it in front of them, for the tests that look at the page."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

__all__ = ["chromium", "opened", "until"]


def chromium() -> str:
    """The path of the browser. Skips the test where there is none; `python3 dev.py test` installs it where CI=true."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
    if found is None:
        pytest.skip("no Chromium: install the package chromium of the operating system")
    return found


@contextmanager
def opened(host: Any) -> Iterator[Any]:
    """The page of a host in a fresh browser, logged in and ready."""
    from playwright.sync_api import sync_playwright

    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=flags)
        try:
            page = browser.new_page(viewport={"width": 1400, "height": 1000})
            if host.auth:
                user, password = host.auth
                page.request.post(f"{host.url}/login", form={"username": user, "password": password})
            page.goto(host.url)
            page.wait_for_selector("#txt2img_generate", state="attached", timeout=120_000)
            page.wait_for_function("window.gradioApp && window.opts && Object.keys(window.opts).length > 0", timeout=120_000)
            yield page
        finally:
            browser.close()


def until(done: Callable[[], Any], seconds: float = 20) -> Any:
    """What `done` gives as soon as that is something; None when it is nothing for so long."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := done():
            return found
        time.sleep(0.1)
    return None
