"""The panel by its numbers: how high it is in a narrow column, its bars, its drop-down, its plot, and the order of the settings."""

from __future__ import annotations

import re

import pytest

from sd3deploy import units
from sd3deploy.encoders.choices import CHOICES
from tests.browser import UIS, until
from tests.contract.screen import Screen, screen

NARROW, HIGHEST = 216, 700  # px: ModernUI's column of scripts, and what fits beside a picture
PHASES = ("load", "encode", "denoise", "decode")
RAM = 24 * 10**9  # bytes: of the encoders of a published model some fit, some are tight, and one does not


@pytest.fixture(scope="module", params=UIS)
def host(request, tmp_path_factory):
    """On a machine whose memory is always the same, whatever else runs on the one that tests."""
    with screen(request.param, tmp_path_factory.mktemp("panel")) as found:
        found.host.run(f"""
            from sd3deploy.memory.capacity import Capacity
            from sd3deploy.webui.jobs import forecast
            forecast.free_memory = lambda host: Capacity("cpu", ram_total={RAM}, ram_usable={RAM})
        """)
        yield found


@pytest.fixture
def published(host: Screen):
    """The page asks about a published model: of the tiny one no bar could be seen."""
    ours = re.compile(r".*/sd3/memory\?.*")
    host.page.route(ours, lambda route: route.continue_(url=f"{route.request.url}&model=sd3.5-medium"))
    host.page.evaluate("window.sd3deploy.follow(true)")
    assert until(lambda: caption_of(host) and bars(host)[2]["segments"].get("transformer", 0) > 1e9)
    yield
    host.page.unroute(ours)
    host.leave()  # while an entry is looked at, the bars are those of it
    host.page.evaluate("window.sd3deploy.follow(true)")
    assert until(lambda: bars(host)[2]["segments"].get("transformer", 0) < 1e9)  # or the next one takes these for its own


def asked(host, **more):
    return host.host.get("/sdapi/v1/sd3/memory", params={"model": "sd3.5-medium", "width": 1024, "height": 1024} | more)


def bars(host):
    """What each bar says and how wide its parts are, relative to the whole width."""
    return host.page.evaluate(
        """(where) => [...document.querySelectorAll(where)].map((bar) => {
             const track = bar.querySelector('.sd3-track').clientWidth;
             const parts = [...bar.querySelectorAll('.sd3-segment')];
             const limit = bar.querySelector('.sd3-limit');
             return {
               phase: bar.dataset.phase, role: bar.getAttribute('role'), label: bar.getAttribute('aria-label'), text: bar.innerText,
               segments: Object.fromEntries(parts.map((el) => [el.className.match(/sd3-part-(\\w+)/)[1], Number(el.dataset.bytes)])),
               widths: parts.map((el) => el.getBoundingClientRect().width / track),
               limit: limit ? limit.offsetLeft / track : null, answer: bar.className };
           })""",
        f"{host.panel}memory .sd3-bar",
    )


def caption_of(host):
    return host.text(f"{host.panel}memory .sd3-caption")


def test_with_all_folded_it_is_short_in_a_narrow_column(host):
    host.size(1024, 1024)
    host.open()
    panel = host.part("panel")
    panel.evaluate("(el, width) => { el.style.width = el.style.minWidth = el.style.maxWidth = `${width}px`; }", NARROW)
    try:
        assert until(lambda: len(bars(host)) == 4)
        assert host.page.locator(f"{host.panel}panel .label-wrap.open").count() == 1  # its own
        assert until(lambda: panel.bounding_box()["height"] <= HIGHEST), panel.bounding_box()
        host.shot("narrow")
        boxes = host.page.evaluate(
            """(where) => [...document.querySelectorAll(`${where} button`)].filter((el) => el.offsetParent && el.closest('.sd3-row'))
                 .map((el) => el.getBoundingClientRect().top)""",
            f"{host.panel}panel",
        )
        assert len(boxes) == 4  # Install, Verify, Diagnose, Report
        assert len(set(boxes)) == 1
    finally:
        panel.evaluate("(el) => { el.style.width = el.style.minWidth = el.style.maxWidth = ''; }")


def test_what_will_happen_comes_first(host):
    host.open()
    order = [host.part(name).bounding_box()["y"] for name in ("job", "memory", "encoder", "install", "page", "last", "help")]
    assert order == sorted(order)


@pytest.mark.usefixtures("published")
def test_each_phase_has_a_bar_of_its_parts(host):
    host.open()
    host.size(1024, 1024)
    host.open()
    expected = asked(host)["bars"]
    parts = [{part["part"]: part["bytes"] for part in one["segments"]} for one in expected]
    assert until(lambda: [one["segments"] for one in bars(host)] == parts), (bars(host), parts)  # the answer for this size
    found = bars(host)
    assert [one["phase"] for one in found] == [one["phase"] for one in expected] == list(PHASES)
    most = max(1.12, *(one["need"] / one["usable"] for one in expected))
    for shown, one in zip(found, expected, strict=True):
        assert sum(shown["segments"].values()) == one["need"]
        assert f"sd3-{one['answer']}" in shown["answer"].split()
        assert sum(shown["widths"]) == pytest.approx(one["need"] / one["usable"] / most, abs=0.01)
        assert shown["limit"] == pytest.approx(1 / most, abs=0.01)
        assert f" {one['need'] / 1e9:.1f} of " in shown["text"]
        assert (shown["role"], shown["label"].partition(" of ")[0]) == ("img", one["sentence"].partition(" of ")[0])
    host.shot("bars")


@pytest.mark.usefixtures("published")
def test_what_the_bars_show_is_explained_below_them(host):
    host.size(1024, 1024)
    host.open()
    where = f"{host.panel}memory"
    assert until(lambda: len(bars(host)) == 4)
    legend = host.page.locator(f"{where} .sd3-legend")
    assert {"Transformer", "T5", "can be used"} <= set(legend.inner_text().splitlines())
    assert "Green fits" in host.text(f"{where} .sd3-bars-hint")
    assert host.page.locator(f"{where} .sd3-limit").first.get_attribute("title") == "can be used"
    colour = "(el) => getComputedStyle(el).getPropertyValue('--sd3-ink')"
    answers = {one["answer"] for one in bars(host)}
    if len(answers) == 1:
        assert legend.evaluate(colour) == host.page.locator(f"{where} .sd3-bar").first.evaluate(colour)


@pytest.mark.parametrize("height", [1000, 640])
def test_the_list_of_encoders_opens_below_the_bars_and_what_is_not_seen_of_it_can_be_scrolled_to(host, height):
    size = host.page.viewport_size
    host.page.set_viewport_size({"width": 1400, "height": height})
    try:
        host.size(1024, 1024)
        host.open()
        host.part("encoder").scroll_into_view_if_needed()
        host.part("encoder", "input").click()
        where = [f"{host.panel}encoder li[data-value]", f"{host.panel}memory .sd3-bar"]
        assert until(lambda: host.page.locator(where[0]).count() == len(CHOICES) + 1)
        measure = """([entry, bar]) => {
          const list = document.querySelector(entry).parentElement;
          const [box, first] = [list.getBoundingClientRect(), document.querySelector(bar).getBoundingClientRect()];
          const style = getComputedStyle(list);
          return { top: box.top, bottom: box.bottom, bars: first.top, scrolls: list.scrollHeight > list.clientHeight + 1,
                   overflow: style.overflowY, bar: style.scrollbarWidth };
        }"""

        def placed() -> bool:
            found = host.page.evaluate(measure, where)
            below = host.part("encoder", "input").bounding_box()["y"] < found["top"] and found["bottom"] <= height
            return below and found["bars"] >= 0 and found["overflow"] == "auto" and found["bar"] != "none"

        assert until(placed), host.page.evaluate(measure, where)
        host.shot(f"list-{height}")
        last = """(entry) => {
          const list = document.querySelector(entry).parentElement;
          list.scrollTop = list.scrollHeight;
          const box = list.lastElementChild.getBoundingClientRect();
          return list.contains(document.elementFromPoint(box.x + box.width / 2, box.bottom - 3));
        }"""
        assert until(lambda: host.page.evaluate(last, where[0]))
        host.leave()
    finally:
        host.page.set_viewport_size(size)


def test_bars_are_in_one_unit_however_little_one_of_them_takes(host):
    host.size(1024, 1024)
    host.open()
    usable = units.size(RAM)
    assert until(lambda: bars(host) and bars(host)[0]["text"].strip().endswith(usable)), bars(host)
    for one in bars(host):
        need = one["text"].split(" of ")[0].split()[-1]
        assert need in ("<0.1", f"{sum(one['segments'].values()) / 1e9:.1f}")
        assert "MB" not in one["text"] + one["label"]


@pytest.mark.usefixtures("published")
def test_the_bars_are_those_of_the_entry_that_is_looked_at_before_it_is_chosen(host):
    host.size(1024, 1024)
    host.open()
    before = bars(host)[2]["segments"]
    host.part("encoder", "input").click()
    entries = host.page.locator(f"{host.panel}encoder li[data-value]")
    assert until(lambda: entries.count() == len(CHOICES) + 1)
    answer = asked(host)
    found = {one["name"]: one for one in answer["choices"].values()}
    assert {one["answer"] for one in found.values()} == {"fits", "tight", "no"}

    def said() -> dict[str, str]:
        return {one.get_attribute("data-value"): one.get_attribute("data-sd3") for one in entries.all()}

    assert until(lambda: all(said()[name].endswith(one["short"]) for name, one in found.items())), (said(), found)
    for choice in CHOICES:
        assert (f"{(choice.bytes or 0) / 1e9:.1f} GB" in said()[choice.name]) == bool(choice.bytes), said()
    assert [name for name, text in said().items() if "recommended" in text] == [answer["recommendation"]]
    host.shot("entries")
    entry = host.page.locator(f"{host.panel}encoder li[data-value='T5 Q4']")
    entry.hover()
    expected = {part["part"]: part["bytes"] for part in asked(host, encoder="T5 Q4")["bars"][2]["segments"]}
    assert expected != before
    assert until(lambda: bars(host)[2]["segments"] == expected), (bars(host)[2], expected)
    assert "T5 Q4" in caption_of(host)
    assert host.host.get("/sdapi/v1/sd3/status")["encoder"] == "Host default"
    opened, drawn = host.page.evaluate(  # at one moment: bars are drawn anew whenever the memory has changed
        """([entry, bars]) => [document.querySelector(entry).parentElement.getBoundingClientRect().top,
                              document.querySelector(bars).getBoundingClientRect().bottom]""",
        [f"{host.panel}encoder li[data-value]", f"{host.panel}memory .sd3-bars"],
    )
    assert opened >= drawn
    assert entry.is_visible()
    host.shot("looking")
    host.leave()
    assert until(lambda: bars(host)[2]["segments"] == before), (before, bars(host)[2], caption_of(host))


def test_keys_alone_look_at_an_entry_and_choose_it(host):
    host.open()
    field = host.part("encoder", "input")
    field.focus()
    field.fill("T5 Q8")
    host.page.keyboard.press("ArrowDown")
    assert until(lambda: "T5 Q8" in caption_of(host)), caption_of(host)
    host.page.keyboard.press("Enter")
    assert until(lambda: field.input_value() == "T5 Q8")
    field.blur()
    assert until(lambda: "T5 Q8" in caption_of(host))
    host.choose("As in Settings")
    assert until(lambda: "Host default" in caption_of(host)), caption_of(host)


def test_the_recommendation_counts_for_the_page_that_has_taken_it(host):
    host.open()
    host.choose("T5 Q8")
    assert until(lambda: "T5 Q8" in caption_of(host)), caption_of(host)
    wanted = asked(host)["recommendation"]
    try:
        host.part("apply").click()
        assert until(lambda: host.part("encoder", "input").input_value() == "As in Settings")
        assert until(lambda: host.host.get("/sdapi/v1/sd3/status")["wanted"] == host.host.get("/sdapi/v1/sd3/status")["encoder"])
        assert until(lambda: host.host.get("/sdapi/v1/sd3/status")["wanted"] in caption_of(host)), (wanted, caption_of(host))
    finally:
        host.choose("As in Settings")
        host.host.set(sd3_text_encoder="Host default")


def test_the_recommendation_says_in_a_sentence_why_it_is_this_one(host):
    host.open()
    assert until(lambda: "the closest to the original" in host.text(f"{host.panel}memory .sd3-why")), host.text(f"{host.panel}memory")


def test_the_modes_are_folded_and_say_what_holds_else(host):
    host.open()
    assert not host.part("size", "input").is_visible()
    host.unfold("page")
    assert "size guard fix, memory check warn, sampler guard fix" in host.text(f"{host.panel}defaults .sd3-defaults")
    host.host.set(sd3_guard_size="block")
    try:
        host.reload()
        host.open()
        host.unfold("page")
        assert until(lambda: "size guard block" in host.text(f"{host.panel}defaults .sd3-defaults"))
    finally:
        host.host.set(sd3_guard_size="fix")


def test_the_last_run_is_drawn_with_its_estimate_and_read_by_pointing(host):
    host.size(256, 256)
    assert host.generate()
    host.open()
    host.unfold("last")
    picture = host.page.locator(f"{host.panel}plot svg[role=img]")
    assert until(picture.count)
    assert until(lambda: host.page.locator(f"{host.panel}plot td").count() >= 6)
    run = host.host.get("/sdapi/v1/sd3/memory/runs")[-1]
    rows = host.page.locator(f"{host.panel}plot tbody tr").all_inner_texts()
    assert len(rows) == len(run["compared"]) >= 2
    drawn = [*run["expected"].values(), *(bytes - run["base"] for bytes in run["readings"]["ram"])]
    most = max(1e6, *drawn)
    for row, one in zip(rows, run["compared"].values(), strict=True):
        for size in (one["expected"], one["measured"]):
            assert (units.size(size, most) if size else "–") in row
    axis = [text for text in host.page.locator(f"{host.panel}plot svg text").all_text_contents() if text in ("GB", "MB", "kB")]
    assert axis == [units.size(1, most)[-2:]]
    words = host.text(f"{host.panel}plot .sd3-legend")
    assert "estimate" in words
    assert "can be used" in words
    box = picture.bounding_box()
    panel = host.part("panel").bounding_box()
    assert box["width"] > 150
    assert box["x"] + box["width"] <= panel["x"] + panel["width"]
    picture.scroll_into_view_if_needed()
    picture.hover(position={"x": box["width"] / 2, "y": box["height"] / 2})
    assert until(lambda: " s · " in host.text(f"{host.panel}plot .sd3-read")), host.text(f"{host.panel}plot .sd3-read")
    host.shot("run")
    first = host.text(f"{host.panel}plot .sd3-run-title")
    host.size(320, 256)
    host.open()
    assert host.generate()
    host.open()
    assert until(lambda: host.text(f"{host.panel}plot .sd3-run-title") not in ("", first))


def test_the_settings_begin_with_the_encoder_and_fold_the_rest(host):
    host.ui.go(host.page, "Settings")
    host.ui.settings(host.page)
    names = ("text_encoder", "choices", "weights", "weights_file", "weights_repository", "sources")
    places = [host.page.locator(f"#setting_sd3_{name}").first.bounding_box()["y"] for name in names]
    assert places == sorted(places)
    rest = host.page.locator("#setting_sd3_auto_install").first
    assert not rest.is_visible()
    host.page.locator(".sd3-advanced summary").click()
    assert until(rest.is_visible)
    assert rest.bounding_box()["y"] > host.page.locator("#setting_sd3_sources").first.bounding_box()["y"]
    host.page.locator("#setting_sd3_auto_install input").click()  # what was moved is still applied
    host.ui.submit(host.page)
    try:
        assert until(lambda: host.host.run("from modules import shared; result = shared.opts.sd3_auto_install") is False)
    finally:
        host.host.set(sd3_auto_install=True)
    host.shot("settings-open")


def test_the_hosts_own_section_points_to_ours(host):
    host.ui.go(host.page, "Settings")
    host.ui.settings(host.page, "Text Encoder")
    line = host.page.locator("#setting_sd3_pointer").first
    assert until(line.is_visible)
    assert "SD3 Deploy" in line.inner_text()


def test_what_is_read_has_the_colour_of_the_ui_that_is_there(host):
    """ModernUI brings its colours, for dark pages, also where the Standard one is used."""
    host.open()
    host.page.add_style_tag(content=":root { --sd-label-color: rgb(1, 2, 3); }")
    colour = host.page.evaluate("(selector) => getComputedStyle(document.querySelector(selector)).color", f"{host.panel}job .sd3-job")
    assert (colour == "rgb(1, 2, 3)") == (host.ui.name == "modern")


def test_what_is_chosen_is_not_called_looked_at(host):
    host.open()
    host.part("encoder", "input").click()
    looking = host.page.locator(f"{host.panel}memory .sd3-looking")
    for name, count in (("T5 Q4", 1), ("As in Settings", 0)):
        host.page.locator(f'{host.panel}encoder li[data-value="{name}"]').hover()
        assert until(lambda: looking.count() == count)  # noqa: B023
    host.leave()
