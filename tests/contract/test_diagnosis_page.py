"""Diagnosis as a person sees it: Chromium on the page, a failure explained in a toast and in the panel, the checks, the report."""

from __future__ import annotations

import os
import shutil
import zipfile
from pathlib import Path

import pytest

from demo import server
from sd3deploy import messages
from tests.browser import opened, until
from tests.contract.conftest import AUTH, PROBE, ProbedHost, start
from tests.contract.test_diagnosis import MEND, MISFIT
from tests.contract.test_measuring import few_prompts

PANEL = "#script_txt2img_sd3_deploy_"


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    folder = tmp_path_factory.mktemp("diagnosis-page")
    data = server.data_folder(folder / "data", sd3_guard_attention="off")
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


def test_quality_is_measured_and_its_numbers_are_shown(host, page, tmp_path):
    few_prompts(host, tmp_path)
    button, area = page.locator(f"{PANEL}quality"), page.locator(f"{PANEL}diagnosis .sd3-quality-work")
    assert until(lambda: "minutes" in (button.get_attribute("title") or ""))
    assert area.locator("table").count() == 0
    host.run("from modules import call_queue; call_queue.queue_lock.acquire()")  # as a picture does
    try:
        press(page, "quality")
        assert until(lambda: area.locator("progress").count() == 1)
        assert until(page.locator(f"{PANEL}cancel").is_visible)
        press(page, "cancel")
        assert until(lambda: area.locator(".sd3-cancelled").count() == 1)
        assert messages.text("quality.stopped") in area.inner_text()
    finally:
        host.run("from modules import call_queue; call_queue.queue_lock.release()")
    press(page, "quality")
    assert until(lambda: float(area.locator("progress").get_attribute("value") or 0) > 0 if area.locator("progress").count() else False)
    shot(page, "quality-running")
    table = area.locator("table")
    assert until(lambda: table.count() == 1 and area.locator("progress").count() == 0)
    rows = host.get("/sdapi/v1/sd3/quality")["rows"]
    shown = [line.split("\t") for line in table.inner_text().splitlines()]
    assert shown[0] == ["text encoder", "size", "error"]
    assert [(name, error) for name, _, error in shown[1:]] == [(row["name"], f"{row['error']['mean']:.4f}") for row in rows]
    assert all(size.endswith((" MB", " GB")) for _, size, _ in shown[1:])
    assert "Not measured: T5 FP4, T5 NF4, T5 INT8: bitsandbytes is needed" in area.inner_text()
    assert until(lambda: "measured on these weights" in (page.locator(f"{PANEL}memory .sd3-why").get_attribute("title") or ""))
    shot(page, "quality")
    with page.context.expect_page() as opening:
        page.evaluate("(where) => document.querySelector(where).click()", f"{PANEL}diagnosis .sd3-quality-work a")
    opened = opening.value
    opened.wait_for_load_state()
    assert opened.locator("table").first.locator("tbody tr").count() == len(rows)  # without the password
    shot(opened, "quality-page")
    opened.close()


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
