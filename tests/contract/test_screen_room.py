"""What the page says about the next job takes no room from the host's own controls, and lies over none of them."""

from __future__ import annotations

import re

import pytest

from tests.browser import UIS, until
from tests.contract.screen import Screen, screen

WIDTHS = [1920, 1280, 768, 420]  # px; the widest first: once it was narrow, ModernUI keeps the stacked page
LITTLE = "from sd3deploy.memory import capacity; sd3probe.ram = capacity._ram; capacity._ram = lambda: (64 * 10**9, 10**6)"

# The controls of the host that can be seen, as [name, left, top, width, height] in px. What lies behind something else, or has been
# scrolled out of the area that it is in, can not be seen.
BOXES = """() => {
  const ours = (el) => el.closest('[id^="sd3-"], .sd3-panel');
  const found = [];
  const kinds = 'button, input:not([type=hidden]), textarea, select, label, [role=button], [role=tab], .label-wrap';
  const all = document.querySelectorAll(kinds);
  for (const el of all) {
    const box = el.getBoundingClientRect();
    if (ours(el) || box.width < 1 || box.height < 1 || !el.checkVisibility({ visibilityProperty: true })) continue;
    found.push([el.id || el.textContent.trim().slice(0, 30) || el.className, box.x, box.y, box.width, box.height]);
  }
  return found;
}"""
HIDE = "(hidden) => document.documentElement.classList.toggle('without-sd3', hidden)"
STYLE = ".without-sd3 [id^='sd3-'] { display: none !important; }"
# Of a box that is ours: the host's controls that could be pressed where it is.
UNDER = """(box) => {
  const found = new Set();
  const hidden = document.documentElement.classList;
  hidden.add('without-sd3');
  for (let x = box.x + 1; x < box.x + box.width; x += 4) {
    for (let y = box.y + 1; y < box.y + box.height; y += 4) {
      const el = document.elementFromPoint(x, y);
      const control = el && el.closest('button, input, textarea, select, label, [role=button], [role=tab], .label-wrap, img');
      if (control) found.add(control.id || control.outerHTML.slice(0, 120));
    }
  }
  hidden.remove('without-sd3');
  return [...found];
}"""


# Whether a button can be pressed.
REACHED = """(selector) => {
  const el = document.querySelector(selector);
  const box = el.getBoundingClientRect();
  const top = document.elementFromPoint(box.x + box.width / 2, box.y + box.height / 2);
  return Boolean(top) && (el.contains(top) || top.contains(el));
}"""


@pytest.fixture(scope="module", params=UIS)
def host(request, tmp_path_factory):
    with screen(request.param, tmp_path_factory.mktemp("room")) as found:
        found.page.add_style_tag(content=STYLE)
        found.size(1000, 1000)  # is mended
        found.host.run(LITTLE)  # and will not fit
        found.page.evaluate("window.sd3deploy.follow(true)")
        assert until(lambda: {"1000×1000", "Does not fit"} <= set(re.findall("1000×1000|Does not fit", found.chip())))
        yield found


def settled(host: Screen) -> list:
    """The boxes, once nothing moves any more."""
    before: list = []

    def still() -> bool:
        nonlocal before
        now = host.page.evaluate(BOXES)
        same, before = now == before, now
        return same

    assert until(still)
    return before


@pytest.mark.parametrize("networks", [pytest.param(True, marks=pytest.mark.real, id="networks"), pytest.param(False, id="no networks")])
@pytest.mark.parametrize("width", WIDTHS)
def test_no_control_of_the_host_is_moved_or_covered(host, width, networks):
    host.page.set_viewport_size({"width": width, "height": 1000})
    if host.page.locator(host.ui.panel_of_networks[1]).count():
        host.ui.networks(host.page, networks)
    host.page.mouse.move(width - 3, 997)
    with_ours = settled(host)
    host.page.evaluate(HIDE, True)
    without = settled(host)
    host.page.evaluate(HIDE, False)
    assert with_ours == without
    chip = host.page.locator(f"#sd3-chip-{host.ui.tab} .sd3-chip-head")
    reached = lambda: host.page.evaluate(REACHED, f"#{host.ui.tab}_generate")  # noqa: E731
    assert until(lambda: chip.is_visible() == reached())
    if not chip.is_visible():  # SD.Next has put another panel over all that the chip is about
        return
    host.shot(f"room-{width}-{'networks' if networks else 'alone'}")

    def well_placed() -> bool:
        box = chip.bounding_box() or {"x": -1, "y": -1, "width": 0, "height": 0}
        inside = 0 <= box["x"] <= width - box["width"] and 0 <= box["y"] <= 1000 - box["height"]
        return inside and host.page.evaluate(UNDER, box) == []

    assert until(well_placed), (chip.bounding_box(), host.page.evaluate(UNDER, chip.bounding_box()))


def test_where_all_fits_nothing_is_said(host):
    host.page.set_viewport_size({"width": 1400, "height": 1000})
    host.host.run("from sd3deploy.memory import capacity; little = capacity._ram; capacity._ram = sd3probe.ram; sd3probe.ram = little")
    try:
        host.size(1024, 1024)
        assert until(lambda: host.page.locator("[id^='sd3-']:visible").count() == 0)
    finally:
        host.host.run("from sd3deploy.memory import capacity; enough = capacity._ram; capacity._ram = sd3probe.ram; sd3probe.ram = enough")
        host.size(1000, 1000)


def test_the_rest_is_said_while_the_chip_has_the_focus_and_what_can_be_taken_is_a_button(host):
    chip = host.page.locator(f"#sd3-chip-{host.ui.tab}")
    more = chip.locator(".sd3-chip-more")
    assert until(lambda: "1000×1000" in host.chip())
    assert not more.is_visible()
    chip.locator(".sd3-chip-head").focus()
    assert until(more.is_visible)
    assert "multiples of 16" in more.inner_text()
    assert "Does not fit" in more.inner_text()
    job = host.page.locator(f"{host.panel}job .sd3-job").first.text_content()
    assert "1008×1008" in job  # what will happen to it
    assert "Does not fit" in job
    host.shot("chip-open")
    host.page.keyboard.press("Escape")
    assert until(lambda: not more.is_visible())
    chip.locator(".sd3-chip-head").hover()
    assert until(more.is_visible)
    more.get_by_role("button", name="Use 1008×1008").click()
    fields = [host.page.locator(f"#{host.ui.size}_{side} input[type=number]").first for side in ("width", "height")]
    assert until(lambda: [field.input_value() for field in fields] == ["1008", "1008"])
    assert until(lambda: "multiples of 16" not in host.chip())
