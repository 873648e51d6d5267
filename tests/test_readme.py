"""The README in both languages: what it says about the code is what the code says, and nothing is left out."""

from __future__ import annotations

import argparse
import ast
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import dev
from demo import pictures
from sd3deploy import commands, messages
from sd3deploy.encoders.choices import CHOICES
from sd3deploy.encoders.forms import FORMS

ROOT = Path(__file__).parent.parent
READMES = {"en": ROOT / "README.md", "zh": ROOT / "README.zh.md"}
WORDS = {language: path.read_text(encoding="utf-8") for language, path in READMES.items()}
CODE = [ROOT / "extension.py", *ROOT.glob("sd3deploy/**/*.py")]

# Families of sentences whose number grows and whose remedy says all: one row for each of them.
FAMILIES = {"advice.*", "bundle.*", "checks.*", "foreign.*", "form.*", "gguf.*", "hub.*", "identity.*", "log.*", "pickle.*"}
FAMILIES |= {"quality.*", "rule.*"}

SAYS = {"en": "It says", "zh": "提示"}  # the head of the tables of messages

both = pytest.mark.parametrize("language", READMES)


def tables(language: str) -> list[list[list[str]]]:
    """Tables → rows without the head → cells."""
    return [rows[2:] for rows in with_heads(language)]


def with_heads(language: str) -> list[list[list[str]]]:
    found: list[list[list[str]]] = []
    before = ""
    for line in WORDS[language].splitlines():
        if line.startswith("|"):
            if not before.startswith("|"):
                found.append([])
            found[-1].append([cell.strip().replace(r"\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
        before = line
    return found


def table(language: str, first: str) -> list[list[str]]:
    """The one in which that stands at the beginning of a row."""
    (found,) = [rows for rows in tables(language) if any(row[0].startswith(first) for row in rows)]
    return found


def headings(language: str) -> list[str]:
    return re.findall(r"^(#+ .+)$", WORDS[language], re.MULTILINE)


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


def explained(language: str) -> dict[str, str]:
    """Id → what the tables of messages say that it says. A family ends in "*"."""
    found: dict[str, str] = {}
    for head, _, *rows in with_heads(language):
        for part in (part for row in rows for part in row[0].split("<br>")) if head[0] == SAYS[language] else ():
            match = re.fullmatch(r"(.*?) ?`([a-z0-9._*-]+)`", part)
            assert match, part
            assert match[2] not in found, f"{match[2]} stands there twice"
            found[match[2]] = match[1]
    return found


@both
def test_every_warning_and_error_is_explained(language):
    known = explained(language)
    families = tuple(id.removesuffix("*") for id in known if id.endswith("*"))
    assert {f"{family}*" for family in families} == FAMILIES
    assert sorted(id for id in told() if id not in known and not id.startswith(families)) == []


@both
def test_the_forms_are_those_that_there_are(language):
    words = {"en": ("read", "refused by name"), "zh": ("可读取", "按名称拒绝")}[language]
    rows = table(language, FORMS[1].title)
    assert rows == [[form.title, words[0] if form.read else words[1], form.example] for form in FORMS]


@both
def test_what_is_explained_is_what_the_page_says(language):
    """An ellipsis stands for what is filled in, or left out."""
    sentences = messages.catalogue(language)
    for id, text in explained(language).items():
        if id.endswith("*"):
            assert any(other.startswith(id.removesuffix("*")) for other in sentences), id
            continue
        if id not in sentences:  # another language may lack some
            assert id in messages.catalogue("en"), id
            continue
        sentence = re.sub(r"{\w+}", "…", sentences[id])
        for piece in filter(None, map(str.strip, text.split("…"))):
            assert piece in sentence, (id, piece, sentence)
            sentence = sentence.partition(piece)[2]
        filled_in = ("encoder.unsuitable", "refresh.unusable", "restart.needed")  # their sentence is nothing but what is filled in
        assert text or id in filled_in, id


@both
def test_the_buttons_and_parts_of_the_panel_are_called_as_on_the_page(language):
    said = {text for id, text in messages.catalogue(language).items() if id.startswith(("panel.", "page.", "action."))}
    cells = [row[0] for row in table(language, {"en": "**Verify**", "zh": "**全面检查**"}[language])]
    names = [name for cell in cells for name in re.findall(r"\*\*(.+?)\*\*", cell)]
    assert len(names) > 10
    assert [name for name in names if name not in said] == []


# Numbers


@both
def test_the_text_encoders_have_the_sizes_and_errors_of_the_code(language):
    rows = {row[0]: row for row in table(language, "T5 Q4")}
    assert list(rows) == [choice.name for choice in CHOICES]
    for choice in CHOICES:
        _, size, exact, error, _, needs = rows[choice.name]
        if choice.bytes:
            assert size == f"{choice.bytes / 1e9:.1f} GB"
        assert exact == (f"{choice.bytes:,}" if choice.bytes is not None else "")
        assert error == (f"{choice.error:.3f}" if choice.error is not None else "")
        assert ("bitsandbytes" in needs) == ("bitsandbytes" in choice.groups)
        if choice.capability:
            assert ".".join(map(str, choice.capability)) in needs


@both
def test_the_encoder_for_each_gpu_is_the_one_that_recommend_takes(language):
    lines = (ROOT / "tests" / "recommendations.txt").read_text(encoding="utf-8").splitlines()
    names = {choice.id: choice.name for choice in CHOICES}
    (chosen,) = [rows[0] for rows in tables(language) if len(rows) == 1]
    (head,) = [line for line in WORDS[language].splitlines() if line.startswith("|") and "| 4 GB |" in line]
    gpus = [cell.strip() for cell in head.split("|")[2:-1]]
    for number, line in enumerate(lines):
        if "24 GB" in line:  # of a model
            sizes = re.findall(r"\d+ GB", line)
            taken = re.split(r" {2,}", next(later for later in lines[number:] if later.startswith("balanced")))[1:]
            assert [names[taken[sizes.index(gpu)]] for gpu in gpus] == chosen[1:], line


# Scripts and settings


def routes() -> set[str]:
    """What the API declares, such as "GET status"."""
    declared = [args for name, args in calls() if name == "Route" and all(isinstance(one, ast.Constant) for one in args[:2])]
    return {f"{ast.literal_eval(args[0])} {ast.literal_eval(args[1])}" for args in declared}


@both
def test_every_request_is_there(language):
    cells = [row[0] for row in table(language, "`GET /sdapi/v1/sd3/status")]
    assert all(cell.count("/sdapi/v1/sd3/") == 1 for cell in cells)
    assert len(routes()) == len(cells)
    assert {re.sub(r"^`(\w+) /sdapi/v1/sd3/([\w/]+).*$", r"\1 \2", cell) for cell in cells} == routes()


@both
def test_every_setting_is_there(language):
    there = {id.removeprefix("setting.") for id in messages.catalogue("en") if id.startswith("setting.sd3_")}
    named = {key for row in table(language, "`sd3_text_encoder`") for key in re.findall(r"`(sd3_\w+)`", row[0])}
    assert named == there - {"sd3_choices", "sd3_sources"}  # what text encoders and sources take: nothing is set there


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
    for command, rest in re.findall(r"python -m sd3deploy (\w+)(.*)", WORDS[language]):
        named.add(command)
        for option in re.findall(r"(?<![\w-])--[a-z-]+", rest.split("  ")[0].split("`")[0]):
            assert option in known[command], (command, option)
    assert named == set(known)


@both
def test_the_commands_of_a_developer_exist(language, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["dev.py", "--help"])
    with pytest.raises(SystemExit):
        dev.main()
    (known,) = re.findall(r"{([\w,]+)}", capsys.readouterr().out.split("\n\n")[0])
    assert set(re.findall(r"python3 dev\.py (\w+)", WORDS[language])) == set(known.split(","))


@pytest.mark.parametrize(("language", "locale"), [("en", "C"), ("zh", "zh_CN.UTF-8")])
def test_the_doctor_says_what_is_shown(language, locale):
    command = [sys.executable, "-m", "sd3deploy", "doctor", "--log", "tests/logs/bitsandbytes-boxed.log"]
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "SD3DEPLOY_"))}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8", env=environ | {"LANG": locale, "PYTHONUTF8": "1"})
    found = done.stdout[done.stdout.index("•") :].strip()
    assert "\n".join(f"    {line}" for line in found.splitlines()) in WORDS[language]


# The page itself


@both
def test_links_lead_somewhere(language):
    words = WORDS[language]
    anchors = {re.sub(r"[^\w\- ]", "", heading.lstrip("# ").lower()).replace(" ", "-") for heading in headings(language)}
    targets = re.findall(r"\]\(([^)]+)\)", words) + re.findall(r'(?:src|srcset)="([^"]+)"', words)
    assert len(targets) > 15
    for target in targets:
        if target.startswith("#"):
            assert target[1:] in anchors, target
        elif not target.startswith("https://"):
            assert (ROOT / target).is_file(), target


@both
def test_every_picture_is_shown_in_the_light_and_in_the_dark(language):
    dark = r'<source media="\(prefers-color-scheme: dark\)" srcset="(.+?)">'
    shown = re.findall(dark + r'\n\s*<img alt="(.+?)" src="(.+?)" width="\d+"(?: align="top")?>', WORDS[language])
    expected = [[pictures.file(Path("docs"), name, language, theme) for theme in ("dark", "light")] for name in pictures.PICTURES]
    assert sorted([Path(dark), Path(light)] for dark, _, light in shown) == sorted(expected)
    assert all(len(alt) > 15 for _, alt, _ in shown)


def test_docs_holds_those_pictures_and_they_are_small():
    assert set((ROOT / "docs").glob("*.png")) == pictures.files()
    assert {path.name: path.stat().st_size for path in pictures.files() if path.stat().st_size > pictures.MOST} == {}


def test_a_picture_that_is_too_large_for_a_readme_is_not_written(tmp_path):
    def png(image: Image.Image) -> bytes:
        image.save(data := io.BytesIO(), "png")
        return data.getvalue()

    path = tmp_path / "noise.png"
    with pytest.raises(SystemExit, match="show less on it"):
        pictures.written(png(Image.effect_noise((800, 800), 100)), path)
    assert not path.exists()
    pictures.written(png(Image.new("RGB", (800, 800), "#1d4ed8")), path)
    assert Image.open(path).convert("RGB").getpixel((400, 400)) == (0x1D, 0x4E, 0xD8)


def test_there_is_a_readme_for_each_language():
    assert set(READMES) == set(messages.languages()) == set(pictures.LANGUAGES)


def test_the_languages_say_the_same():
    """As far as that can be counted: they must not drift apart."""
    english, chinese = WORDS["en"], WORDS["zh"]
    assert [heading.split()[0] for heading in headings("en")] == [heading.split()[0] for heading in headings("zh")]
    assert [[len(row) for row in rows] for rows in tables("en")] == [[len(row) for row in rows] for rows in tables("zh")]
    assert list(explained("en")) == list(explained("zh"))
    for what in (r"<picture>", r"^    \S", r"^\d\. ", r"^#"):
        assert len(re.findall(what, english, re.MULTILINE)) == len(re.findall(what, chinese, re.MULTILINE)), what
    codes = {language: set(re.findall(r"`([^`\n]+)`", words)) for language, words in WORDS.items()}
    assert codes["en"] == codes["zh"]


@pytest.mark.parametrize("language", READMES)
def test_the_other_language_is_at_the_top(language):
    (other,) = set(READMES) - {language}
    assert f"]({READMES[other].name})" in WORDS[language].splitlines()[2]
