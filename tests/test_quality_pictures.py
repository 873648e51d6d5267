"""Pictures with each text encoder: they are what diffusers' pipeline makes with it, the numbers are of them, and the page shows them."""

from __future__ import annotations

import base64
import gc
import io
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import torch
import transformers
from diffusers import StableDiffusion3Pipeline
from PIL import Image

from sd3deploy import messages, pipeline, tiny_sd3, tiny_tokenizers
from sd3deploy.__main__ import main
from sd3deploy.commands import progress
from sd3deploy.commands.quantize import find_source
from sd3deploy.device import Device
from sd3deploy.encoders import load
from sd3deploy.encoders.choices import NONE, find
from sd3deploy.encoders.weights import open_weights
from sd3deploy.quality import beside, likeness, measuring, painting, prompts
from sd3deploy.quality.pictures import Setting, Shown
from tests.browser import chromium

ROOT = Path(__file__).parent.parent
CPU = Device("cpu", "cpu", "CPU")
SETTING = Setting(128, 2)
TEXTS = ["a photo of a cat", 'the red sign that says "hello world" & <b>']
BF16, Q4 = find("bf16"), find("q4")


@pytest.fixture(scope="module")
def model():
    return tiny_sd3.ensure()


@pytest.fixture(scope="module")
def place(model):
    return find_source(str(model))


@pytest.fixture(scope="module")
def weights(place):
    return open_weights(place)


@pytest.fixture(scope="module")
def asked(weights):
    return prompts.tokenized(["", *TEXTS], measuring.tokenizer(weights, []))


@pytest.fixture
def make(model, weights, asked):
    def make(*choices, count=1, **words):
        empty, *texts = asked
        return painting.make(model, weights, choices, texts[:count], empty, SETTING, CPU, **words)

    return make


@pytest.fixture(scope="module")
def measures():
    pytest.importorskip("torchmetrics", reason="PSNR and SSIM need it")
    return likeness.measures()[0]


# What they are


@pytest.mark.parametrize("choice", [BF16, Q4, NONE], ids=lambda choice: choice.id)
def test_it_is_the_picture_that_the_pipeline_makes_with_that_encoder(model, place, make, choice):
    made = make(*([] if choice is NONE else [choice]))
    encoder = {"text_encoder_3": load.load(choice, place, CPU) if choice is not NONE else None}
    whole = StableDiffusion3Pipeline.from_pretrained(str(model), torch_dtype=torch.bfloat16, **encoder)
    whole.set_progress_bar_config(disable=True)
    words = {"width": 128, "height": 128, "num_inference_steps": 2, "guidance_scale": 7.0, "output_type": "np"}
    pixels = whole(TEXTS[0], generator=torch.Generator().manual_seed(0), **words).images[0]
    shown = next(one for one in made.shown if one.choice is choice)
    assert numpy.array_equal(shown.pictures[0], (pixels * 255).round().astype("uint8"))


def test_the_same_encoder_gives_the_same_picture_and_another_one_another(make, measures):
    made, again = make(BF16, Q4), make(BF16, Q4)
    assert [one.choice for one in made.shown] == [BF16, Q4, NONE]
    assert numpy.array_equal(made.reference, again.reference)
    for one, other in zip(made.shown, again.shown, strict=True):
        assert numpy.array_equal(one.pictures, other.pictures)
    columns = [made.reference[0], *(one.pictures[0] for one in made.shown)]
    assert len({picture.tobytes() for picture in columns}) == 4
    bf16, q4, none = (one.scores[0] for one in made.shown)
    assert math.inf > bf16["psnr"] > q4["psnr"] > none["psnr"] > 0
    assert 1 > bf16["ssim"] > none["ssim"]
    assert painting._scores(measures, made.reference, made.reference) == [{"psnr": math.inf, "ssim": pytest.approx(1)}]


def test_the_numbers_are_those_of_the_definition(measures):
    random = numpy.random.default_rng(0)
    one = random.integers(0, 256, (64, 64, 3), dtype="uint8")
    other = (one.astype(int) + random.integers(-9, 10, one.shape)).clip(0, 255).astype("uint8")
    (scores,) = painting._scores(measures, [other], [one])
    assert scores["psnr"] == pytest.approx(10 * math.log10(255**2 / ((one.astype(float) - other) ** 2).mean()), abs=1e-4)
    assert 0.9 < scores["ssim"] < 1
    shown = Shown(Q4, [one] * 2, [{"psnr": math.inf, "lpips": 0.0}, {"psnr": 20.0, "lpips": 0.5}])
    assert (shown.mean("psnr"), shown.worst("psnr")) == (pytest.approx(20 + 10 * math.log10(2)), 20.0)
    assert (shown.mean("lpips"), shown.worst("lpips")) == (0.25, 0.5)


def test_t5_and_transformer_are_never_held_together(monkeypatch, make):
    real, encoders = pipeline.load, []

    def alive():
        return [one for one in gc.get_objects() if issubclass(type(one), transformers.T5EncoderModel)]

    def loading(*given):
        gc.collect()
        encoders.append(alive())
        return real(*given)

    monkeypatch.setattr(pipeline, "load", loading)
    gc.collect()
    before = alive()
    make(Q4)
    assert [len(found) for found in encoders] == [len(before)]


def test_an_encoder_that_fails_is_left_out_and_said(monkeypatch, make):
    real = beside.assemble

    def assemble(encoded, device):
        if encoded.recipe.choice.id == "q4":
            raise RuntimeError("no kernel")
        encoder = real(encoded, device)
        if encoded.recipe.choice.id == "q8" and encoder.config.num_layers:
            encoder.encoder.final_layer_norm.weight.fill_(torch.nan)
        return encoder

    monkeypatch.setattr(beside, "assemble", assemble)
    made = make(BF16, Q4, find("q8"))
    assert [one.choice for one in made.shown] == [BF16, NONE]
    assert "RuntimeError: no kernel" in made.notes[0]
    assert messages.text("quality.no-numbers") in made.notes[1]


def test_prompts_of_different_kinds():
    own = [prompts.Prompt(text, (number,), len(text.split())) for number, text in enumerate(prompts.read())]
    first = [prompt.text for prompt in prompts.varied(own, 4)]
    assert first[0] == "a photo of a cat"
    assert "FRESH BREAD DAILY" in first[1]
    assert first[2].startswith("霓虹灯")
    assert first[3].startswith("An elderly watchmaker")
    all = prompts.varied(own, 1000)
    assert sorted(prompt.text for prompt in all) == sorted(prompt.text for prompt in own)
    assert not any(prompt.text == "" for prompt in all[:-1])


# What can be computed

STAND_INS = {
    "lpips.py": "class LPIPS:\n    def __init__(self, net, verbose): assert net == 'alex'\n    def eval(self): return self\n"
    "    def __call__(self, one, other): return (one - other).abs().mean()\n",
    "torchvision/__init__.py": "",
    "torchvision/models.py": "class AlexNet_Weights:\n    class IMAGENET1K_V1: url = 'https://example.org/alexnet-owt-7be5be79.pth'\n",
    "open_clip.py": "import os, numpy, torch\n"
    "class Network:\n    def eval(self): return self\n    def encode_image(self, one): return one\n"
    "def create_model_and_transforms(name, pretrained):\n    assert name == 'ViT-B-32' and os.path.isfile(pretrained), pretrained\n"
    "    return Network(), None, lambda one: torch.tensor(numpy.array(one)).float().flatten()\n",
}
ASK = """
import json, torch
from sd3deploy.quality import likeness
found, notes = likeness.measures()
one = torch.full((1, 3, 32, 32), 0.5)
print(json.dumps([{name: measure(one, one) for name, measure in found.items()}, notes]))
"""


def ask(folder: Path, *without: str):
    """What a Python with those stand-ins can compute, of a picture and itself, and what it says of the rest."""
    code = "".join(f"import sys; sys.modules[{name!r}] = None\n" for name in without) + ASK
    paths = os.pathsep.join([str(folder), str(ROOT), os.environ.get("PYTHONPATH", "")])
    environ = os.environ | {"PYTHONPATH": paths, "TORCH_HOME": str(folder / "torch"), "HF_HUB_CACHE": str(folder / "hub")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environ, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_what_is_not_there_is_said_and_nothing_is_downloaded(tmp_path):
    missing = messages.text("quality.likeness.no-package", names="PSNR, SSIM", package="torchmetrics")
    assert ask(tmp_path, "torchmetrics", "lpips", "open_clip") == [{}, [missing]]
    for name, text in STAND_INS.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    found, notes = ask(tmp_path, "torchmetrics")
    assert (found, len(notes), notes[0]) == ({}, 3, missing)
    assert "alexnet-owt-7be5be79.pth" in notes[1]
    assert "CLIP-ViT-B-32" in notes[2]
    (tmp_path / "torch" / "hub" / "checkpoints").mkdir(parents=True)
    (tmp_path / "torch" / "hub" / "checkpoints" / "alexnet-owt-7be5be79.pth").write_text("")
    cached = tmp_path / "hub" / "models--laion--CLIP-ViT-B-32-laion2B-s34B-b79K"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("abc")
    (cached / "snapshots" / "abc").mkdir(parents=True)
    (cached / "snapshots" / "abc" / "open_clip_pytorch_model.bin").write_text("")
    assert ask(tmp_path, "torchmetrics") == [{"lpips": 0.0, "clip": pytest.approx(1)}, [missing]]
    (tmp_path / "lpips.py").write_text("raise RuntimeError('in /home/someone')")
    _, notes = ask(tmp_path, "torchmetrics")
    assert notes == [missing, messages.text("quality.likeness.failed", names="LPIPS", package="lpips", error="RuntimeError")]


# The command and the page


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Run it on a CPU with two prompts; its exit code, and the folder with what it wrote."""
    folder = tmp_path_factory.mktemp("command")
    (folder / "prompts.txt").write_text("\n".join(TEXTS), encoding="utf-8")

    def run(source, *more):
        given = ["--encoders", "q4", "--device", "cpu", "--prompts", str(folder / "prompts.txt"), "--folder", str(folder / "kept")]
        return main(["quality", str(source), *given, "--steps", "1", "--size", "128", *map(str, more)]), folder

    return run


@pytest.fixture(scope="module")
def found(run, model):
    code, folder = run(model, "--pictures", "--html", run(model)[1] / "page.html", "--json", run(model)[1] / "found.json")
    assert code == 0
    return folder


def test_the_numbers_are_in_the_json(found, measures):
    report = json.loads((found / "found.json").read_text(encoding="utf-8"))
    pictures = report["pictures"]
    assert list(report["choices"]) == ["q4"]
    assert (pictures["size"], pictures["steps"], pictures["seed"], pictures["guidance"]) == (128, 1, 0, 7.0)
    assert (pictures["reference"], pictures["dtype"], pictures["prompts"], pictures["notes"]) == ("float32", "bfloat16", TEXTS, [])
    assert list(pictures["choices"]) == ["q4", "none"]
    for one in pictures["choices"].values():
        assert [set(scores) for scores in one["prompts"]] == [set(measures)] * 2
        assert one["psnr"]["worst"] == min(scores["psnr"] for scores in one["prompts"])
        assert one["psnr"]["worst"] <= one["psnr"]["mean"]
        assert one["ssim"]["mean"] == pytest.approx(sum(scores["ssim"] for scores in one["prompts"]) / 2)


def test_the_pictures_are_on_the_page_and_it_needs_nothing_else(found):
    text = (found / "page.html").read_text(encoding="utf-8")
    pictures = re.findall(r'src="data:image/webp;base64,([^"]+)"', text)
    assert len(pictures) == text.count("<img ") == 2 * 3
    assert {Image.open(io.BytesIO(base64.b64decode(one))).size for one in pictures} == {(128, 128)}
    assert "<b>" not in text
    assert not re.search(r"<script|<link|href=|url\(|https?://", text)
    assert str(found) not in text  # it is to be posted
    assert len(text) < 200_000


def test_the_pictures_in_a_browser(found):
    from playwright.sync_api import sync_playwright

    path = chromium()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        try:
            for width, scheme in ((1400, "dark"), (400, "light")):
                page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
                said = []
                page.on("console", lambda message, said=said: said.append(message.text))
                page.goto((found / "page.html").as_uri())
                assert page.locator(".pictures img").evaluate_all("all => all.map(one => one.naturalWidth)") == [128] * 6
                assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
                section, first = page.locator(".wide:has(.pictures)"), page.locator(".pictures td").first
                left = first.bounding_box()["x"]
                section.evaluate("one => one.scrollLeft = 99")
                assert first.bounding_box()["x"] == pytest.approx(left)  # the reference stays
                assert (section.evaluate("one => one.scrollLeft") > 0) == (width == 400)
                assert said == []
        finally:
            browser.close()


def test_ctrl_c_keeps_what_was_measured_and_says_that_the_pictures_are_not(run, model, monkeypatch, capsys, tmp_path):
    def fill(bar, fraction, text):
        if "1 of 3 pictures" in text:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(progress.Bar, "fill", fill)
    kept = tmp_path / "kept"
    code, _ = run(model, "--pictures", "1", "--html", tmp_path / "page.html", "--folder", kept)
    assert (code, *capsys.readouterr()) == (1, "", messages.text("quality.stopped-pictures") + "\n")
    assert not (tmp_path / "page.html").exists()
    assert len(list(kept.glob("quality-*.json"))) == 1


def test_what_is_no_whole_model_is_refused_before_anything_is_measured(run, model, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(measuring, "measured", None)
    lonely = tmp_path / "t5" / "model.safetensors"
    shutil.copytree(model / "text_encoder_3", lonely.parent)
    tiny_tokenizers.t5(lonely.parent)
    part = tmp_path / "part"
    shutil.copytree(model, part)
    shutil.rmtree(part / "transformer")
    for source in (lonely, lonely.parent, part):
        code, _ = run(source, "--pictures", "--html", tmp_path / "page.html")
        said = capsys.readouterr().err
        assert (code, messages.remedy("quality.pictures.no-model") in said) == (2, True), said
    assert "transformer" in said
    assert run(model, "--pictures")[0] == 2
    assert capsys.readouterr().err.startswith(messages.text("quality.pictures.no-page"))
    for words in (["--pictures", "0"], ["--pictures", "9"], ["--size", "500"], ["--steps", "0"]):
        with pytest.raises(SystemExit):
            run(model, *words)
