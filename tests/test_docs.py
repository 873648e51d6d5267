"""The pages in both languages: what they say about the code is what the code says, and nothing is left out."""

from __future__ import annotations

import argparse
import ast
import io
import json
import os
import re
import subprocess
import sys

import pytest
import yaml
from PIL import Image

import dev
from demo import pictures
from publish import messages as explanations
from publish import pages
from sd3deploy import commands, messages
from tests.pages import ALL, LANGUAGES, ROOT, page

CODE = [ROOT / "extension.py", *ROOT.glob("sd3deploy/**/*.py")]

both = pytest.mark.parametrize("language", LANGUAGES)
every = pytest.mark.parametrize("shown", ALL, ids=lambda one: f"{one.name}-{one.language}")


def calls() -> list[tuple[str, list[ast.expr]]]:
    """Every call in the code: the last part of its name, its arguments."""
    found = []
    for path in CODE:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                found.append((getattr(node.func, "attr", getattr(node.func, "id", "")), node.args))
    return found


def strings(node: ast.AST) -> set[str]:
    return {part.value for part in ast.walk(node) if isinstance(part, ast.Constant) and isinstance(part.value, str)}


# Messages


def told() -> set[str]:
    """The ids of all sentences that are a warning or an error: those that have a remedy, and those that the code tells as one."""
    english = messages.catalogue("en")
    found = {id.removesuffix(".remedy") for id in english if id.endswith(".remedy")}
    for name, args in calls():
        if len(args) > 1 and (name == "finding" or (name in ("tell", "add") and strings(args[0]) & {"warning", "error"})):
            found |= strings(args[1])
        elif (name.endswith("Error") or name in ("RestartRequired", "JobRefused")) and args:
            found |= strings(args[0])
    return {id for id in found if id in english}


def test_every_sentence_is_explained():
    """Add its id to a row of docs/messages.json, or a row for it."""
    assert len(explanations.ids()) > 500
    assert [id for id in explanations.ids() if explanations.row_of(id) is None] == []


def test_every_warning_and_error_says_what_to_do():
    """Labels and progress have a sentence on what they are; what asks something of the user has a row with what to do."""
    words = {id for row in explanations.source()["words"] for id in row["ids"]}
    assert sorted(id for id in told() if explanations.row_of(id) in words) == []


def test_every_explanation_is_of_a_sentence_and_stands_once():
    rows = explanations.explained()
    assert len(rows) == len(set(rows))
    explained = {explanations.row_of(id) for id in explanations.ids()}
    assert [row for row in rows if row not in explained] == []


def test_explanations_are_there_in_each_language():
    source = explanations.source()
    rows = [row for section in source["sections"] for row in section["rows"]]
    assert all(set(row["means"]) == set(row["do"]) == set(LANGUAGES) for row in rows)
    assert all(set(row["means"]) == set(LANGUAGES) and set(row) == {"ids", "means"} for row in source["words"])
    assert all(text.strip() for row in [*rows, *source["words"]] for key in ("means", "do") for text in row.get(key, {}).values())


@both
def test_every_sentence_is_found_on_the_page_by_its_id(language):
    words = page("docs/messages", language).words
    assert [id for id in explanations.ids() if f"`{id}`" not in words] == []


@both
def test_sentences_of_the_page_of_messages_are_those_of_the_code(language):
    """An ellipsis stands for what is filled in, or left out."""
    shown = page("docs/messages", language)
    sentences = [part for rows in shown.tables for row in rows for part in row[0].split("<br>")]
    pairs = [match.groups() for part in sentences if (match := re.fullmatch(r"([^\[`].*?) `([a-z0-9._-]+)`", part))]
    assert len(pairs) > 100
    for text, id in pairs:
        sentence = re.sub(r"{\w+}", "…", messages.catalogue(language).get(id) or messages.catalogue("en")[id])
        for piece in filter(None, map(str.strip, text.replace("&lt;", "<").replace("\\*", "*").split("…"))):
            assert piece in sentence, (id, piece, sentence)
            sentence = sentence.partition(piece)[2]


# Tables that are made


def test_the_tables_that_are_made_are_current():
    """Else: python3 dev.py docs"""
    assert [path.name for path, _ in pages.stale()] == []


def test_a_table_is_made_anew_and_all_else_is_left_alone():
    before = "# Text\n\n<!-- generated: loading -->\n| old |\n<!-- end -->\n\n| by hand |\n"
    after = pages.filled(before, "en")
    assert after.startswith("# Text\n\n<!-- generated: loading -->\n| T5 ")
    assert after.endswith("|\n<!-- end -->\n\n| by hand |\n")
    assert "| old |" not in after
    assert pages.filled(after, "en") == after
    with pytest.raises(KeyError):
        pages.filled("<!-- generated: nothing -->\n<!-- end -->", "en")


def test_a_changed_number_makes_a_page_stale(monkeypatch, tmp_path):
    numbers = json.loads((ROOT / "docs" / "numbers.json").read_text(encoding="utf-8"))
    numbers["encode"][0]["relative"]["fp4"] = 99.5
    (tmp_path / "numbers.json").write_text(json.dumps(numbers), encoding="utf-8")
    (tmp_path / "recommendations.txt").write_bytes((ROOT / "docs" / "recommendations.txt").read_bytes())
    monkeypatch.setattr("publish.encoders._DOCS", tmp_path)
    assert {path.name for path, text in pages.stale() if "99.5" in text} == {"encoders.md", "encoders.zh.md"}


def test_every_table_that_is_made_is_used():
    used = {name for one in ALL for name in re.findall(r"<!-- generated: ([\w-]+) -->", one.words)}
    assert used == set(pages.BLOCKS)


def test_models_that_would_want_different_tables_are_noticed(monkeypatch, tmp_path):
    table = (ROOT / "docs" / "recommendations.txt").read_text(encoding="utf-8")
    place = table.index("balanced           none")
    (tmp_path / "recommendations.txt").write_text(table[:place] + table[place:].replace("none", "q4  ", 1), encoding="utf-8")
    monkeypatch.setattr("publish.encoders._DOCS", tmp_path)
    with pytest.raises(ValueError, match="differ"):
        pages.BLOCKS["gpus"]("en")


# Scripts and settings


def routes() -> set[str]:
    """What the API declares, such as "GET status"."""
    declared = [args for name, args in calls() if name == "Route" and all(isinstance(one, ast.Constant) for one in args[:2])]
    return {f"{ast.literal_eval(args[0])} {ast.literal_eval(args[1])}" for args in declared}


@both
def test_every_request_is_there(language):
    cells = [row[0] for row in page("docs/api", language).table("`GET /sdapi/v1/sd3/status")]
    assert all(cell.count("/sdapi/v1/sd3/") == 1 for cell in cells)
    assert len(routes()) == len(cells)
    assert {re.sub(r"^`(\w+) /sdapi/v1/sd3/([\w/]+).*$", r"\1 \2", cell) for cell in cells} == routes()


@both
def test_every_setting_is_there(language):
    there = {id.removeprefix("setting.") for id in messages.catalogue("en") if id.startswith("setting.sd3_")}
    named = {key for row in page("docs/settings", language).table("`sd3_text_encoder`") for key in re.findall(r"`(sd3_\w+)`", row[0])}
    assert named == there - {"sd3_choices", "sd3_sources", "sd3_pointer"}  # nothing is set there


# Commands


def options() -> dict[str, set[str]]:
    """Command → its options."""
    subparsers = argparse.ArgumentParser().add_subparsers()
    for command in commands.COMMANDS:
        command.add(subparsers)
    return {name: set(parser._option_string_actions) for name, parser in subparsers.choices.items()}


@both
def test_the_commands_and_their_options_exist(language):
    known, named = options(), set()
    words = "\n".join(one.words for one in ALL if one.language == language)
    for command, rest in re.findall(r"python -m sd3deploy (\w+)(.*)", words):
        named.add(command)
        for option in re.findall(r"(?<![\w-])--[a-z-]+", rest.split("  ")[0].split("`")[0].split("”")[0]):
            assert option in known[command], (command, option)
    assert named == set(known)


@both
def test_the_commands_of_a_developer_exist(language, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["dev.py", "--help"])
    with pytest.raises(SystemExit):
        dev.main()
    (known,) = re.findall(r"{([\w,]+)}", capsys.readouterr().out.split("\n\n")[0])
    assert set(re.findall(r"python3 dev\.py (\w+)", page("docs/contributing", language).words)) == set(known.split(","))
    others = {command for one in ALL for command in re.findall(r"dev\.py (\w+)", one.words)}
    assert others <= set(known.split(","))


@pytest.mark.parametrize(("language", "locale"), [("en", "C"), ("zh", "zh_CN.UTF-8")])
def test_the_doctor_says_what_is_shown(language, locale):
    command = [sys.executable, "-m", "sd3deploy", "doctor", "--log", "tests/logs/bitsandbytes-boxed.log"]
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "SD3DEPLOY_"))}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8", env=environ | {"LANG": locale, "PYTHONUTF8": "1"})
    found = done.stdout[done.stdout.index("•") :].strip()
    assert "\n".join(f"    {line}" for line in found.splitlines()) in page("docs/doctor", language).words


# The pages themselves


@every
def test_links_lead_somewhere(shown):
    others = {one.path: one for one in ALL}
    assert shown.links
    for target in shown.links:
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        path = (shown.path.parent / name).resolve() if name else shown.path
        assert path.exists(), target
        assert path.is_relative_to(ROOT)
        assert not anchor or anchor in others[path].anchors, target


def test_every_picture_is_shown_in_the_light_and_in_the_dark_and_in_each_language():
    pattern = r'<source media="\(prefers-color-scheme: dark\)" srcset="(.+?)">\n\s*'
    pattern += r'<img alt="(.+?)" src="(.+?)" width="\d+"(?: align="(?:top|right)")?>'
    for language in LANGUAGES:
        shown = [
            ((one.path.parent / dark).resolve(), (one.path.parent / light).resolve(), alt)
            for one in ALL
            if one.language == language
            for dark, alt, light in re.findall(pattern, one.words)
        ]
        expected = [tuple(pictures.file(pictures.DOCS, name, language, theme) for theme in ("dark", "light")) for name in pictures.PICTURES]
        assert sorted((dark, light) for dark, light, _ in shown) == sorted(expected)
        assert all(len(alt) > 15 for *_, alt in shown)


def test_there_are_those_pictures_and_they_are_small():
    assert set(pictures.DOCS.iterdir()) == pictures.files()
    assert {path.name: path.stat().st_size for path in pictures.files() if path.stat().st_size > pictures.MOST} == {}


def test_docs_holds_pages_pictures_and_their_data_alone():
    data = {"messages.json", "numbers.json", "recommendations.txt"}
    there = {path.name for path in (ROOT / "docs").iterdir()} - {"pictures"} - data
    assert there == {one.path.name for one in ALL if one.name != "README"}


def test_a_picture_that_is_too_large_for_a_page_is_not_written(tmp_path):
    def png(image: Image.Image) -> bytes:
        image.save(data := io.BytesIO(), "png")
        return data.getvalue()

    path = tmp_path / "noise.png"
    with pytest.raises(SystemExit, match="show less on it"):
        pictures.written(png(Image.effect_noise((800, 800), 100)), path)
    assert not path.exists()
    pictures.written(png(Image.new("RGB", (800, 800), "#1d4ed8")), path)
    assert Image.open(path).convert("RGB").getpixel((400, 400)) == (0x1D, 0x4E, 0xD8)


def test_there_are_pictures_for_each_language():
    assert set(LANGUAGES) == set(pictures.LANGUAGES)


@pytest.mark.parametrize("name", pages.PAGES)
def test_the_languages_say_the_same(name):
    """As far as that can be counted, so that they do not drift apart."""
    first, second = (page(name, language) for language in LANGUAGES)
    assert [heading.split()[0] for heading in first.headings] == [heading.split()[0] for heading in second.headings]
    assert [[len(row) for row in rows] for rows in first.tables] == [[len(row) for row in rows] for rows in second.tables]
    for what in (r"<picture>", r"^    \S", r"^\d+\. ", r"^- ", r"^#", r"^```", r"^<!-- "):
        assert len(re.findall(what, first.words, re.MULTILINE)) == len(re.findall(what, second.words, re.MULTILINE)), what
    prose = [re.sub(r"^```.*?^```", "", one.words, flags=re.DOTALL | re.MULTILINE) for one in (first, second)]
    codes = [set(re.findall(r"`([^`\n]+)`", words)) for words in prose]
    if name != "docs/messages":  # a sentence may need a code that its translation does without
        assert codes[0] == codes[1]


@every
def test_the_other_language_is_at_the_top(shown):
    (other,) = set(LANGUAGES) - {shown.language}
    assert f"]({page(shown.name, other).path.name})" in shown.words.splitlines()[2]


@both
def test_the_architecture_names_what_there_is(language):
    words = page("docs/architecture", language).words
    named = set(re.findall(r"`([\w./-]+(?:\.py|/))`", words))
    assert len(named) > 40
    roots = [ROOT, ROOT / "sd3deploy", ROOT / "sd3deploy" / "webui", ROOT / "sd3deploy" / "webui" / "host"]
    assert [one for one in named if not any((root / one).exists() for root in roots)] == []
    rooms = {path.name for path in (ROOT / "sd3deploy").iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert {room for room in rooms if f"sd3deploy/{room}/" not in words} == set()


# What GitHub shows


FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))


@pytest.mark.parametrize("path", [path for path in FORMS if path.name != "config.yml"], ids=lambda path: path.stem)
def test_a_form_for_issues_asks_for_the_report(path):
    form = yaml.safe_load(path.read_text(encoding="utf-8"))
    fields = {part.get("id"): part for part in form["body"]}
    assert "report" in fields
    if path.stem == "bug":
        assert fields["report"]["validations"]["required"] is True
    words = path.read_text(encoding="utf-8")
    assert all(messages.catalogue(language)["panel.copy"] in words for language in LANGUAGES)
    commands_named = re.findall(r"python -m sd3deploy (\w+)", words)
    assert set(commands_named) <= set(options())


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "SECURITY.md"])
def test_what_github_links_to_is_there_and_its_links_lead_somewhere(name):
    words = (ROOT / name).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)]+)\)", words):
        assert target.startswith("https://") or (ROOT / target).is_file(), target
    assert set(re.findall(r"python -m sd3deploy (\w+)", words)) <= set(options())
