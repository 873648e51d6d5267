"""What an open page asks of the server when nothing happens: the browser's clock is turned, the requests are counted."""

from __future__ import annotations

import pytest

from tests.browser import UIS, until
from tests.contract.screen import screen

MINUTES = 10


@pytest.fixture(scope="module", params=UIS)
def host(request, tmp_path_factory):
    with screen(request.param, tmp_path_factory.mktemp("idle")) as found:
        asked: list[str] = []
        ours = "/sdapi/v1/sd3/"
        found.page.on("request", lambda request: asked.extend([request.url.partition(ours)[2]] if ours in request.url else []))
        found.asked = asked
        found.page.clock.install()
        yield found


def minutes(host, count):
    """Let the page believe that so many minutes go by. A minute at a time: it waits for the answers of the server, which take real time."""
    host.asked.clear()
    for _ in range(count):
        host.page.clock.run_for(60_000)
        host.page.wait_for_timeout(300)
    return list(host.asked)


def names(asked):
    return {one.partition("?")[0] for one in asked}


def test_an_idle_page_asks_twice_a_minute_at_most(host):
    assert until(lambda: names(minutes(host, 1)) == {"events"})  # whatever was being shown is over
    asked = minutes(host, MINUTES)
    assert 1 <= len(asked) <= 2 * MINUTES, asked
    assert names(asked) == {"events"}


def test_a_hidden_page_asks_nothing_and_catches_up_when_it_is_shown(host):
    hide = """(hidden) => {
        Object.defineProperty(document, 'hidden', {value: hidden, configurable: true});
        document.dispatchEvent(new Event('visibilitychange'));
    }"""
    host.page.evaluate(hide, True)
    minutes(host, 1)  # a question that was due is not asked, an answer that was due comes
    assert minutes(host, MINUTES) == []
    host.tell("warning", "size.snapped", "While you were away.")
    assert minutes(host, 2) == []
    host.page.evaluate(hide, False)
    host.page.clock.run_for(2000)
    assert until(lambda: host.page.locator(".sd3-toast", has_text="While you were away.").count())


def test_a_message_on_a_page_that_rests_costs_nothing(host):
    """Room for it is looked for where something has changed: on a page of SD.Next that takes a third of a second."""
    host.tell("warning", "size.snapped", "This one stays.")
    host.page.clock.run_for(60_000)
    assert until(lambda: host.page.locator(".sd3-toast", has_text="This one stays.").count())
    minutes(host, 1)
    host.page.evaluate("""() => {
        const sd3 = window.sd3deploy;
        const room = sd3.room;
        window.sd3counted = { looked: 0, changed: 0 };
        sd3.room = (...words) => { window.sd3counted.looked += 1; return room(...words); };
        const ours = ({ target }) => target.closest && target.closest('[id^="sd3-"]');
        new MutationObserver((records) => { window.sd3counted.changed += records.filter((one) => !ours(one)).length; })
            .observe(document.documentElement, { subtree: true, childList: true, attributeFilter: ['class', 'style', 'hidden', 'open'] });
    }""")
    host.page.wait_for_timeout(5000)  # of the real clock: by that the page looks, every second at most
    counted = host.page.evaluate("window.sd3counted")
    assert counted["looked"] <= counted["changed"] + 1, counted  # one may be owed to what was before
