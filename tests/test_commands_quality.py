"""`quality`: what it says, what it refuses, Ctrl-C, and that `recommend` goes by what it has measured."""

from __future__ import annotations

import json
import re
import shutil
import signal
import sys
from pathlib import Path

import pytest

from sd3deploy import messages, tiny_sd3, tiny_tokenizers
from sd3deploy.__main__ import main
from sd3deploy.commands import progress
from sd3deploy.device import Device
from sd3deploy.encoders import choices, source
from sd3deploy.encoders.cache import Cache, folder_for
from sd3deploy.encoders.weights import open_weights
from sd3deploy.quality import running
from sd3deploy.quality.beside import Measured
from sd3deploy.quality.kept import Kept
from tests import t5
from tests.browser import chromium

STAND_IN = Path(__file__).parent.parent / "demo" / "host"
WORDS = "a photo of a cat\n\n<svg onload=alert(1)>\nthe red sign that says hello world\n"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "mine"
    t5.make(folder)
    tiny_tokenizers.t5(folder / "tokenizer_3")
    return folder


@pytest.fixture
def host(tmp_path, monkeypatch):
    """Options that name an SD.Next with a data folder of its own, whose Python is this one."""
    monkeypatch.delenv("SD_MODELSDIR", raising=False)
    (tmp_path / "data").mkdir()
    return ["--sdnext", str(STAND_IN), "--data", str(tmp_path / "data")]


@pytest.fixture
def run(host, tmp_path, capsys):
    """Run it on a CPU with four prompts; its exit code, what it printed and what it said beside that."""
    (tmp_path / "prompts.txt").write_text(WORDS, encoding="utf-8")

    def run(*words):
        given = ["--device", "cpu", "--python", sys.executable, "--prompts", str(tmp_path / "prompts.txt"), *map(str, words)]
        code, (out, err) = main(["quality", *host, *given]), capsys.readouterr()
        return code, out, beside_progress(err)

    return run


def beside_progress(err):
    """What was said beside how far it is."""
    return "".join(line for line in err.splitlines(keepends=True) if not line.startswith("["))


def test_all_that_this_machine_can_run(run, model, tmp_path):
    code, out, err = run(model, "--json", tmp_path / "found.json", "--html", tmp_path / "found.html")
    assert (code, err.splitlines()) == (0, [messages.text("quality.written", file=tmp_path / f"found.{kind}") for kind in ("json", "html")])
    found = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    assert set(found["choices"]) == {choice.id for choice in choices.CHOICES if choice.bytes}
    assert [prompt["text"] for prompt in found["prompts"]] == WORDS.removesuffix("\n").split("\n")
    assert (found["left_out"], found["length"], found["form"], found["device"]["compute"]) == ({}, 256, "FP32", "bfloat16")
    errors = [one["error"]["mean"] for one in found["choices"].values()]
    assert errors == sorted(errors)
    for id, one in found["choices"].items():
        assert one["name"] == choices.find(id).name
        assert one["error"]["worst"] == max(each["error"] for each in one["prompts"])
        assert one["cosine"]["worst"] == min(each["cosine"] for each in one["prompts"])
        assert len(one["prompts"]) == 4
        line = next(line for line in out.splitlines() if re.match(rf"{re.escape(one['name'])}  ", line))
        assert f"{one['error']['mean']:.4f}" in line
    assert out.startswith("T5 of mine (FP32) with 4 prompts of 256 tokens each")


def test_those_that_are_named_and_nothing_is_measured_twice(run, model, tmp_path, monkeypatch):
    code, _, _ = run(model, "--encoders", "T5 NF4, fp8,nf4", "--json", tmp_path / "found.json")
    first = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    assert (code, list(first["choices"])) == (0, ["fp8", "nf4"])
    monkeypatch.setattr(running, "measure", None)
    run(model, "--encoders", "nf4,fp8", "--json", tmp_path / "again.json")
    assert json.loads((tmp_path / "again.json").read_text(encoding="utf-8")) == first


def test_without_a_source_it_is_the_first_model_that_has_one(run, tmp_path, model):
    code, _, err = run("--encoders", "fp8")
    assert (code, err.startswith(messages.text("quality.no-model"))) == (2, True)
    place = tmp_path / "data" / "models" / "Diffusers" / "tiny"
    shutil.copytree(tiny_sd3.ensure(), place)
    code, out, _ = run("--encoders", "fp8")
    assert (code, "T5 of tiny" in out) == (0, True)


def test_ctrl_c_keeps_what_was_measured(run, model, tmp_path, monkeypatch):
    shown, before = [], {}

    def fill(bar, fraction, text):
        shown.append(text)
        if not before and " 2 of " in text:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(running, "_ON_CPU", 2)
    monkeypatch.setattr(progress.Bar, "fill", fill)
    code, out, err = run(model, "--encoders", "fp8")
    assert (code, out, err.strip()) == (1, "", messages.text("quality.stopped"))
    (file,) = folder_for(tmp_path / "data" / "models").glob("quality-*.json")

    def numbers():
        (device,) = json.loads(file.read_text())["devices"].values()
        return device["fp8"]["prompts"]

    before |= numbers()
    assert len(before) == 2
    shown.clear()
    code, _, _ = run(model, "--encoders", "fp8")
    after = numbers()
    assert (code, len(after)) == (0, 4)
    assert before.items() <= after.items()
    assert all(" 2 of 4 prompts" in text for text in shown)  # it goes on from there


def test_a_folder_that_can_not_be_written_any_longer_costs_no_result(run, model, tmp_path, monkeypatch):
    real = running.measure

    def measure(*given):
        (folder,) = (tmp_path / "kept").parent.glob("kept")
        shutil.rmtree(folder)
        folder.write_text("a file")
        return real(*given)

    monkeypatch.setattr(running, "measure", measure)
    files = ["--json", tmp_path / "found.json", "--html", tmp_path / "found.html"]
    code, out, err = run(model, "--encoders", "q8", "--folder", tmp_path / "kept", *files)
    assert (code, "T5 Q8" in out) == (0, True)
    assert err.startswith(messages.sentence("quality.lost").split("{")[0])
    assert str(tmp_path / "kept") in err
    assert list(json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))["choices"]) == ["q8"]
    page = (tmp_path / "found.html").read_text(encoding="utf-8")
    assert "T5 Q8" in page
    assert str(tmp_path) not in page  # it is to be posted
    monkeypatch.setattr(running, "measure", None)
    code, out, err = run(model, "--encoders", "q8", "--folder", tmp_path / "kept", *files)  # seen before anything is measured
    assert (code, out, str(tmp_path / "kept") in err) == (2, "", True)


def test_where_there_is_no_host_it_is_said_that_nothing_is_kept(capsys, model, tmp_path):
    (tmp_path / "prompts.txt").write_text("a cat")
    words = ["quality", str(model), "--encoders", "fp8", "--device", "cpu", "--prompts", str(tmp_path / "prompts.txt")]
    assert main(words) == 0
    err = capsys.readouterr().err
    assert beside_progress(err).strip() == messages.text("quality.not-kept")
    assert " 0.0 %, 0 of 1 prompts done, " in err  # a line now and then, where nobody sees a bar
    assert 2 <= err.count("\n[") <= 10
    assert "\r" not in err
    assert main([*words, "--folder", str(tmp_path / "kept")]) == 0
    assert beside_progress(capsys.readouterr().err) == ""
    assert len(list((tmp_path / "kept").glob("quality-*.json"))) == 1


@pytest.mark.parametrize(
    ("words", "id"),
    [
        (["--encoders", "fp8,default"], "quality.not-ours"),
        (["--encoders", "none"], "quality.not-ours"),
        (["--encoders", "q99"], "setting.encoder-unknown"),
        (["--prompts", "{}/none.txt"], "quality.prompts-unreadable"),
        (["--json", "{}/none/found.json"], "quality.unwritable"),
        (["--html", "{}"], "quality.unwritable"),
        (["--device", "nonsense"], "quantize.device"),
    ],
)
def test_what_is_refused_before_anything_is_measured(run, model, tmp_path, monkeypatch, words, id):
    monkeypatch.setattr(running, "measure", None)
    code, out, err = run(model, *(word.format(tmp_path) for word in words))
    assert (code, out) == (2, "")
    sentence = ".*".join(map(re.escape, re.split(r"{\w+}", messages.sentence(id))))
    assert re.match(sentence, err, re.DOTALL), err


def test_a_model_without_a_tokenizer(run, tmp_path, model):
    (tmp_path / "lonely").mkdir()
    shutil.copy(model / "t5.safetensors", tmp_path / "lonely")
    code, _, err = run(tmp_path / "lonely" / "t5.safetensors", "--sdnext", str(STAND_IN))
    assert (code, messages.text("quality.no-tokenizer") in err) == (2, True)


# The page


@pytest.fixture(scope="module")
def page(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    (folder / "prompts.txt").write_text(WORDS, encoding="utf-8")
    words = ["--encoders", "bf16,fp8,nf4", "--device", "cpu", "--prompts", str(folder / "prompts.txt"), "--html", str(folder / "page.html")]
    assert main(["quality", str(model), *words]) == 0
    return folder / "page.html"


def test_the_page_needs_nothing_else(page):
    text = page.read_text(encoding="utf-8")
    assert "<svg" not in text
    assert "&lt;svg onload" in text
    assert not re.search(r"<script|<link|<img|src=|href=|url\(|https?://", text)
    assert "(empty)" in text


def test_the_page_in_a_browser(page, tmp_path):
    from playwright.sync_api import sync_playwright

    path = chromium()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        try:
            for width in (1200, 400):
                one = browser.new_page(viewport={"width": width, "height": 900})
                said = []
                one.on("console", lambda message, said=said: said.append(message.text))
                one.goto(page.as_uri())
                one.locator("summary").click()
                assert one.locator("table").first.locator("tbody tr").count() == 3
                assert one.locator("details tbody tr").count() == 4
                widths = one.locator("td.bar").evaluate_all("all => all.map(one => getComputedStyle(one, '::after').backgroundSize)")
                assert any(size.startswith("100%") for size in widths)
                assert one.evaluate("document.documentElement.scrollWidth <= innerWidth")
                assert said == []
        finally:
            browser.close()


# What recommend takes


def test_recommend_goes_by_what_was_measured_on_that_model(capsys, host, tmp_path):
    model = tiny_sd3.ensure()
    words = ["recommend", "--vram", "24", "--model", str(model), *host]

    def answer(*more):
        main([*words, *more, "--json"])
        return json.loads(capsys.readouterr().out)

    assert (answer()["choice"], answer()["basis"]) == ("T5 BF16", messages.text("memory.by-table"))
    weights = open_weights(source.find("Model", source.Facts(str(model))))
    kept = Kept(Cache(folder_for(tmp_path / "data" / "models")), weights.fingerprint(), Device("cpu", "cpu", "CPU"))
    ours = [choice for choice in choices.CHOICES if choice.bytes]
    kept.add({choice.id: {"a": Measured(0.5, 0.9, 1.0)} for choice in ours[1:]})
    assert answer()["basis"] == messages.text("memory.by-table")  # not of all
    kept.add({ours[0].id: {"a": Measured(0.25, 0.9, 1.0)}})
    found = answer()
    assert (found["choice"], found["basis"]) == (ours[0].name, messages.text("memory.by-measured", count=1))
    assert next(iter(found["considered"])) == ours[0].id
    main(words)
    assert capsys.readouterr().out.rstrip().endswith(messages.text("memory.by-measured", count=1))
    other = ["recommend", "--vram", "24", "--model", "sd3-medium", *host, "--json"]
    main(other)
    assert json.loads(capsys.readouterr().out)["basis"] == messages.text("memory.by-table")
