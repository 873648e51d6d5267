from __future__ import annotations

import ast
import re
import threading
from pathlib import Path

import pytest

from sd3deploy import messages
from sd3deploy.diagnosis.checks import STEPS
from sd3deploy.diagnosis.checks.rules import SEEN
from sd3deploy.diagnosis.families import KINDS
from sd3deploy.diagnosis.knowledge import RULES
from sd3deploy.diagnosis.unknown import UNKNOWN
from sd3deploy.encoders import source
from sd3deploy.encoders.choices import CHOICES
from sd3deploy.errors import JobRefused
from sd3deploy.guards import check, request
from sd3deploy.guards.job import MODELS
from sd3deploy.hints import hints
from tests.pages import page

ROOT = Path(__file__).parent.parent
SOURCES = [*ROOT.glob("sd3deploy/**/*.py"), ROOT / "extension.py", ROOT / "install.py"]
_ID = re.compile(r"[a-z][a-z0-9_]*(\.[a-z0-9_-]+)+|unexpected")


def strings() -> set[str]:
    """Every string constant of the package, and of what runs in the page, that is written like the id of a sentence."""
    found = set()
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and _ID.fullmatch(node.value):
                found.add(node.value)
    for path in ROOT.glob("javascript/*.js"):
        found |= set(re.findall(r"text\('([a-z.-]+)'", path.read_text(encoding="utf-8")))
    return found


PLURALS = {id.removesuffix(".one") for id in messages.catalogue("en") if id.endswith(".one")}


def bare(id: str) -> str:
    """Without the endings of remedies and plurals."""
    id = id.removesuffix(".remedy")
    return next((one for one in PLURALS if id in (f"{one}.one", f"{one}.other")), id)


def test_every_sentence_is_used():
    used = strings() | {f"rule.{rule.id}" for rule in (*RULES, *KINDS.values(), UNKNOWN)}
    used |= {f"checks.rule.{id}" for id in SEEN} | {f"checks.{step.id}.title" for step in STEPS}
    # ids made of a row's id, an action, a key, the name of a part
    composed = ("action.", "button.use.", "encoder.", "feature.", "guard.", "page.hint.", "page.run.", "panel.", "quality.column.")
    composed += ("setting.sd3_", "size.side.", "source.kind.", "rule.unknown.during.")
    composed += tuple(f"memory.{kind}." for kind in ("verdict", "short", "where", "phase", "part", "change", "plot", "why"))
    unused = [id for id in messages.catalogue("en") if bare(id) not in used and id not in used and not id.startswith(composed)]
    assert unused == []


def test_every_sentence_of_the_page_is_there():
    used = {id for path in ROOT.glob("javascript/*.js") for id in re.findall(r"text\('([a-z.-]+)'", path.read_text(encoding="utf-8"))}
    assert len(used) > 10
    assert used <= {bare(id) for id in messages.catalogue("en")}
    assert all(id.startswith("page.") for id in used)  # no other is sent to the page


def test_every_remedy_has_its_sentence():
    catalogue = messages.catalogue("en")
    assert [id for id in catalogue if id.endswith(".remedy") and id.removesuffix(".remedy") not in catalogue] == []


LANGUAGES = [language for language in messages.languages() if language != "en"]


def test_there_are_two_languages():
    assert {"en", "zh"} <= set(messages.languages())


@pytest.mark.parametrize("language", LANGUAGES)
def test_languages_have_the_same_sentences(language):
    """All of them; of plurals at least the general form."""
    english, other = messages.catalogue("en"), messages.catalogue(language)
    assert set(other) <= set(english)
    assert [id for id in english if id not in other and id.removesuffix(".one") not in PLURALS] == []


@pytest.mark.parametrize("language", messages.languages())
def test_a_plural_counts_and_has_a_general_form(language):
    catalogue = messages.catalogue(language)
    assert PLURALS  # else nothing is looked at
    for id in PLURALS:
        assert f"{id}.other" in catalogue
        assert "{count}" in catalogue[f"{id}.other"]
        assert id not in catalogue


@pytest.mark.parametrize("language", messages.languages())
def test_languages_agree_on_placeholders(language):
    english = messages.catalogue("en")
    for id, sentence in messages.catalogue(language).items():
        assert sorted(re.findall(r"{(\w+)", sentence)) == sorted(re.findall(r"{(\w+)", english[id])), id
        assert "{" not in sentence.format_map(dict.fromkeys(re.findall(r"{(\w+)", sentence), 1)).replace("{names}", ""), id


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_sentence_is_not_left_in_english(language):
    """What is the same in both is made of names, numbers and commands alone."""
    english, other = messages.catalogue("en"), messages.catalogue(language)
    same = [id for id in other if other[id] == english[id] and len(re.findall(r"\b[a-z]{3,}\b", re.sub(r"{\w+}", "", other[id]))) > 2]
    assert same == []


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_form_of_a_plural_is_left_in_english(language):
    english = messages.catalogue("en")
    with messages.speaking(language):
        for id in PLURALS:
            assert {messages.sentence(id, 1), messages.sentence(f"{id}.one"), messages.sentence(id, 2)}.isdisjoint(
                {english[f"{id}.one"], english[f"{id}.other"]}
            ), id


@pytest.mark.parametrize("language", LANGUAGES)
def test_sentences_name_a_choice_as_the_screen_does(language):
    """An English name that the screen does not show can not be found there."""
    with messages.speaking(language):
        shown = {choice.name: choice.shown for choice in CHOICES} | {f"“{kind}”": f"“{source.shown(kind)}”" for kind in source.KINDS}
    replaced = [name for name, said in shown.items() if name != said]
    assert {"Host default", "None (CLIP only)", "“Local file”"} <= set(replaced)
    host = ("rule.vae-channels.remedy",)  # the host has an “Automatic” of its own
    assert [id for id, text in messages.catalogue(language).items() if id not in host and any(name in text for name in replaced)] == []


@pytest.mark.parametrize(
    ("sentences", "expected"),
    [
        (("Too large.", "Set 1024."), "Too large. Set 1024."),
        (("太大。", "请设为 1024。"), "太大。请设为 1024。"),
        (("太大。", "Set 1024."), "太大。Set 1024."),
        (("正在加载…", "0.4 GB"), "正在加载… 0.4 GB"),
        (("", "One.", "", "Two.", ""), "One. Two."),
        ((), ""),
    ],
)
def test_sentences_are_joined_as_their_script_wants_it(sentences, expected):
    assert messages.joined(*sentences) == expected


@pytest.mark.parametrize("language", messages.languages())
def test_no_sentence_is_joined_by_a_space_behind_a_full_stop_that_needs_none(language):
    assert [id for id, text in messages.catalogue(language).items() if re.search("[。！？；] ", text)] == []
    with messages.speaking(language):
        large = request.job(MODELS["sd3.5-large"], "1000", "1000", sampler="DDIM", guidance="1e9", steps="0")
        for mode in ("warn", "fix", "block"):
            outcome = check(large, dict.fromkeys(("size", "sampling"), mode))
            said = [one.sentence for one in hints(large, outcome)] + [found.told(done) for found, done in outcome.told]
            said += [str(JobRefused(found.id, found.message, found.remedy)) for _, found in outcome.decided]
            assert [text for text in said if re.search("[。！？；] ", text)] == []


GUARDS = ("size", "sampling", "attention", "prompt")
SETTINGS = {**{f"setting.sd3_guard_{name}": name for name in GUARDS}, "setting.sd3_memory": "memory"}


@pytest.mark.parametrize("language", messages.languages())
def test_a_guard_has_one_name_in_panel_settings_sentences_and_pages(language):
    """What a sentence quotes has to be found on the screen."""
    catalogue, settings, readme = messages.catalogue(language), page("docs/settings", language).words, page("README", language).words
    names = {name: re.split("[:：]", catalogue[id])[0] for id, name in SETTINGS.items()}
    for name in ("size", "memory", "sampling"):
        assert names[name] == catalogue[f"panel.{name}"]
        assert f"**{names[name]}**" in readme
        assert names[name].lower() in catalogue["page.defaults"].lower()
    for id, name in SETTINGS.items():
        assert f"**{names[name]}** `{id.removeprefix('setting.')}`" in settings
    quoted = {word for text in catalogue.values() for word in re.findall("“([^”]*(?:[Gg]uard|防护)[^”]*)”", text)}
    assert quoted
    assert quoted <= set(names.values())
    assert [id for id, text in catalogue.items() if re.search("[Gg]uards? of|VRAM check|size check", text)] == []


def test_texts_of_the_page_that_are_said_again_in_another_language_are_told_apart():
    """The page finds what gradio has built by the sentence: the same one must not have two translations."""
    for first in messages.languages():
        for second in messages.languages():
            found: dict[str, str] = {}
            for id in messages.catalogue("en"):
                if id.startswith(("panel.", "quality.column.", "setting.sd3_", "encoder.", "action.")) and bare(id) == id:
                    before, after = messages.catalogue(first)[id], messages.catalogue(second)[id]
                    assert found.setdefault(before, after) == after, id


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, None),
        ("", None),
        ("fr-FR,fr;q=0.9", None),
        ("zh-CN,zh;q=0.9,en;q=0.8", "zh"),
        ("fr, en;q=0.3, zh-TW;q=0.7", "zh"),
        ("en;q=0.7, zh;q=0.7", "en"),
        ("zh;q=0, en;q=0.1", "en"),
        ("zh;q=high, en", "en"),
        ("*", None),
        (",;q=,;;,zh" + "," * 5000, "zh"),
    ],
)
def test_what_a_browser_prefers(header, expected):
    assert messages.preferred(header) == expected


def test_another_language_is_spoken_inside_and_on_this_thread_alone():
    heard = []
    with messages.speaking("zh_CN"):
        thread = threading.Thread(target=lambda: heard.append(messages.language()))
        thread.start()
        thread.join()
        assert messages.language() == "zh"
        assert messages.text("panel.cancel") == messages.catalogue("zh")["panel.cancel"]
        with messages.speaking("xx"):
            assert messages.language() == "en"
    assert heard == ["en"]
    assert messages.language() == "en"


def test_a_plural_follows_the_count():
    assert messages.text("page.findings", count=1) == "1 finding"
    assert messages.text("page.findings", count=2) == "2 findings"
    with messages.speaking("zh"):
        assert "1" in messages.text("page.findings", count=1)


def test_an_unknown_language_is_english():
    messages.set_language("xx_YY")
    assert messages.text("panel.as-set") == messages.catalogue("en")["panel.as-set"]


def test_a_value_from_outside_is_cut_and_can_be_written():
    told = messages.text("verify.no-model", path="\ud800" + "x" * 10_000_000)
    assert "\\ud800xx" in told
    assert "10,000,001" in told
    assert len(told.encode("utf-8")) < 3000


@pytest.mark.parametrize("language", ["en", "zh"])
def test_no_remedy_names_a_flag_that_a_host_of_today_does_not_know(language):
    """With --use-directml in its launch line SD.Next does not start since 2026-08-22: a sentence that names it says so."""
    for id, text in messages.catalogue(language).items():
        assert "--use-directml" not in text or "2026-08-22" in text, id
