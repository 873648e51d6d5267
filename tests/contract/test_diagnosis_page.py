"""Diagnosis as a person sees it: Chromium on the page, a failure explained in a toast and in the panel, the checks, the report."""

from __future__ import annotations

import os
import shutil
import zipfile
from pathlib import Path

import pytest

from demo import server
from tests.browser import opened, until
from tests.contract.conftest import AUTH, PROBE, ProbedHost, start
from tests.contract.test_diagnosis import MEND, MISFIT

PANEL = "#script_txt2img_sd3_deploy_"


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    folder = tmp_path_factory.mktemp("diagnosis-page")
    data = server.data_folder(folder / "data", server_rate_limit=0, sd3_guard_attention="off")
    shutil.copytree(PROBE, data / "extensions" / "sd3-probe", ignore=shutil.ignore_patterns("__pycache__"))
    started = start(folder, "data", auth=AUTH)
    yield ProbedHost(started.data, started.url, started.process, started.auth)
    started.stop()


@pytest.fixture(scope="module")
def page(host):
    with opened(host) as found:
        found.locator("button").filter(has_text="Text").first.click()
        head = found.locator(f"{PANEL}panel .label-wrap").first
        assert until(lambda: head.count() and head.is_visible())
        if "open" not in (head.get_attribute("class") or "").split():
            head.click()
        for side in ("width", "height"):
            box = found.locator(f"#txt2img_{side} input[type=number]").first
            box.fill("128")
            box.blur()
        yield found


def shot(page, name):
    """A picture of the panel, for whoever wants to look: SD3_SCREENSHOTS is a folder."""
    if folder := os.environ.get("SD3_SCREENSHOTS"):
        page.screenshot(path=str(Path(folder) / f"{name}.png"), full_page=True)


def press(page, name):
    page.evaluate("(name) => document.querySelector(name).click()", f"{PANEL}{name}")


def test_a_failed_job_is_explained_in_a_toast_and_in_the_panel(host, page):
    host.run(MISFIT)
    try:
        page.evaluate("document.querySelector('#txt2img_generate').click()")
        assert until(lambda: page.locator(".sd3-toast.sd3-error").count() == 1)
        toast = page.locator(".sd3-toast.sd3-error")
        assert "processor" in toast.inner_text()
        assert toast.locator(".sd3-remedy").inner_text()
        found = page.locator(f"{PANEL}diagnosis .sd3-finding")
        assert until(lambda: found.count() == 1)
        assert "processor" in found.locator("summary").inner_text()
        found.locator("summary").click()
        assert "Error" in found.locator("pre").inner_text()
        shot(page, "finding")
    finally:
        host.run(MEND)
        page.evaluate("document.querySelectorAll('.sd3-toast .sd3-dismiss').forEach((button) => button.click())")


def test_the_checks_are_shown_one_by_one_with_a_bar(page):
    press(page, "verify")
    area = page.locator(f"{PANEL}diagnosis .sd3-checks")
    assert until(lambda: area.locator("progress").count() == 1)
    seen = set()

    def over():
        seen.add(area.locator(".sd3-check").count())
        return area.locator(".sd3-check").count() == 8 and area.locator("progress").count() == 0

    assert until(over)
    assert len(seen) >= 4
    assert area.locator(".sd3-failed").count() == 0
    shot(page, "checks")


def test_checks_can_be_cancelled(page):
    press(page, "verify")
    area = page.locator(f"{PANEL}diagnosis .sd3-checks")
    assert until(lambda: area.locator("progress").count() == 1)
    press(page, "cancel")
    assert until(lambda: area.locator("progress").count() == 0)
    assert area.locator(".sd3-cancelled").count() >= 3


def test_the_report_is_shown_before_the_bundle_is_written(host, page):
    save = page.locator(f"{PANEL}save")
    assert save.is_disabled()
    press(page, "report")
    text = page.locator(f"{PANEL}report_text textarea")
    assert until(lambda: text.count() and "report.json" in text.input_value())
    assert "diffusers" in text.input_value()
    shot(page, "report")
    assert until(lambda: not save.is_disabled())
    assert list(host.data.glob("sd3-deploy-bundle-*.zip")) == []
    press(page, "save")
    assert until(lambda: list(host.data.glob("sd3-deploy-bundle-*.zip")) != [])
    (made,) = host.data.glob("sd3-deploy-bundle-*.zip")
    with zipfile.ZipFile(made) as archive:
        assert archive.testzip() is None
        assert archive.read("report.txt").decode() in text.input_value()
    assert until(lambda: page.locator(f"{PANEL}bundle a").count() >= 1)
