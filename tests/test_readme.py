"""The README in both languages: short, what matters first, and true."""

from __future__ import annotations

import re

import pytest

from sd3deploy import messages
from tests.pages import ALL, LANGUAGES, ROOT, page

both = pytest.mark.parametrize("language", LANGUAGES)


@both
def test_it_is_read_in_three_minutes(language):
    assert len(page("README", language).words.splitlines()) <= 160


@both
def test_the_first_screen_says_what_it_is_shows_it_and_has_all_that_is_needed_to_begin(language):
    lines = page("README", language).words.splitlines()
    screen = "\n".join(lines[:33])
    parts = ("# ", "SD.Next](https", "pictures/apply-", "\n1. ", "\n2. ", "\n3. ", "python3 dev.py demo", "python3 dev.py test")
    places = [screen.find(part) for part in parts]
    assert -1 not in places
    assert places == sorted(places)
    assert "\n4. " not in page("README", language).words


@both
def test_the_buttons_and_parts_of_the_panel_are_called_as_on_the_page(language):
    said = {text for id, text in messages.catalogue(language).items() if id.startswith(("panel.", "page.", "action."))}
    cells = [row[0] for row in page("README", language).table({"en": "**Verify**", "zh": "**全面检查**"}[language])]
    names = [name for cell in cells for name in re.findall(r"\*\*(.+?)\*\*", cell)]
    assert len(names) > 10
    assert [name for name in names if name not in said] == []


@both
def test_what_it_promises_is_a_message_of_the_page(language):
    ready = messages.catalogue(language)["encoder.ready-smaller"]
    assert ready.format(name="T5 Q4", size="2.7 GB", full="9.5 GB").rstrip("。.") in page("README", language).words


@both
def test_every_page_is_one_click_away(language):
    readme = page("README", language)
    of_this_language = {link.partition("#")[0] for link in readme.links}
    others = [one.path.relative_to(ROOT).as_posix() for one in ALL if one.language == language and one.name != "README"]
    assert [name for name in others if name not in of_this_language] == []
