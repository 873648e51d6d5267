"""`quantize` and `cache`: what they make is what a server finds, what they refuse has a remedy, Ctrl-C leaves nothing behind."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers

from demo.environment import linked
from sd3deploy import messages
from sd3deploy.__main__ import main
from sd3deploy.commands import progress, quantize
from sd3deploy.encoders import choices, source
from sd3deploy.encoders.cache import Cache, folder_for
from sd3deploy.encoders.recipe import Recipe
from sd3deploy.encoders.weights import open_weights
from sd3deploy.errors import EncoderError
from tests import t5

ROOT = Path(__file__).parent.parent
STAND_IN = ROOT / "demo" / "host"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "mine"
    t5.make(folder)
    return folder


@pytest.fixture
def host(tmp_path, monkeypatch):
    """Options that name an SD.Next with a data folder of its own, whose Python is this one."""
    monkeypatch.delenv("SD_MODELSDIR", raising=False)
    (tmp_path / "data").mkdir()
    return ["--sdnext", str(STAND_IN), "--data", str(tmp_path / "data")]


@pytest.fixture
def run(capsys):
    """Run a command; its exit code, its answer as JSON (None where it failed) and what it said beside that."""

    def run(*words):
        code = main([str(word) for word in (*words, "--json")])
        out, err = capsys.readouterr()
        return code, json.loads(out) if out else None, err

    return run


def here(words):
    """With the Python of the tests in place of the one that the stand-in does not have."""
    return [*words, "--python", sys.executable]


def settings(tmp_path, **values):
    (tmp_path / "data" / "config.json").write_text(json.dumps(values), encoding="utf-8")


# quantize


def test_into_a_folder_that_transformers_reads(run, model, tmp_path):
    code, made, _ = run("quantize", model, "--encoder", "T5 NF4", "--stock", "--out", tmp_path / "out")
    assert (code, made["encoder"], made["new"], made["folder"]) == (0, "T5 NF4", True, str(tmp_path / "out"))
    encoder = transformers.T5EncoderModel.from_pretrained(tmp_path / "out").eval()
    full = transformers.T5EncoderModel.from_pretrained(model / "text_encoder_3").eval()
    with torch.no_grad():
        assert t5.cosine(encoder(t5.tokens())[0], full(t5.tokens())[0]) > 0.95
    assert made["bytes"] == sum(file.stat().st_size for file in (tmp_path / "out").iterdir())


def test_what_is_made_ahead_is_what_a_server_finds(run, model, tmp_path, host):
    code, made, _ = run("quantize", model, *here(host))
    assert (code, made["new"]) == (0, True)
    cache = Cache(folder_for(tmp_path / "data" / "models"))
    assert Path(made["folder"]).parent == cache.folder
    weights = open_weights(source.find("Model", source.Facts(str(model))))
    assert cache.find(weights, Recipe(choices.find("q4")))
    code, again, _ = run("quantize", model, *here(host), "--device", "cpu")
    assert (code, again) == (0, {**made, "new": False})


def test_it_is_said_in_words(capsys, model, host):
    for id in ("quantize.made", "quantize.there"):
        assert main(["quantize", str(model), *here(host)]) == 0
        out, err = capsys.readouterr()
        assert out.startswith(messages.text(id, name="T5 Q4", size="0.4 MB", full="2.2 MB", folder=""))
        assert out.count("\n") == 1
        assert "\r" not in err  # no bar where nobody looks


@pytest.mark.parametrize("kind", ["encoder", "file", "repository"])
def test_kinds_of_sources(run, model, tmp_path, kind):
    place = {"encoder": model / "text_encoder_3", "file": model / "t5.safetensors", "repository": tmp_path / "models--mine"}[kind]
    if kind == "repository":
        for number, commit in enumerate(("older", "current", "newer")):
            (place / "snapshots" / commit).mkdir(parents=True)
            os.utime(place / "snapshots" / commit, (0, number))
        (place / "refs").mkdir()
        (place / "refs" / "main").write_text("current")
        shutil.copytree(model / "text_encoder_3", place / "snapshots" / "current" / "text_encoder_3")
    code, made, _ = run("quantize", place, "--encoder", "fp8", "--out", tmp_path / "out")
    assert (code, made["encoder"]) == (0, "T5 FP8")
    assert json.loads((tmp_path / "out" / "manifest.json").read_text(encoding="utf-8"))["source"] == place.name


@pytest.mark.parametrize(
    ("values", "folder"),
    [
        ({"sd3_cache_folder": "elsewhere"}, "data/models/elsewhere"),
        ({"models_dir": "other", "sd3_cache_folder": ""}, "data/other/SD3 Deploy"),
        ({"sd3_cache_folder": 7, "sd3_cache_limit": "much"}, "data/models/SD3 Deploy"),
    ],
)
def test_the_settings_of_that_host(run, model, tmp_path, host, values, folder):
    settings(tmp_path, **values)
    _, made, _ = run("quantize", model, *here(host))
    assert Path(made["folder"]).parent == tmp_path / folder
    code, listed, _ = run("cache", "list", *host)
    assert (code, listed["folder"]) == (0, str(tmp_path / folder))
    assert [entry["name"] for entry in listed["entries"]] == [Path(made["folder"]).name]


def test_the_models_folder_in_the_environment(run, tmp_path, host, monkeypatch):
    settings(tmp_path, models_dir="other")
    monkeypatch.setenv("SD_MODELSDIR", str(tmp_path / "elsewhere"))
    assert run("cache", "list", *host)[1]["folder"] == str(tmp_path / "elsewhere" / "SD3 Deploy")


def test_the_limit_of_that_host(run, model, tmp_path, host):
    settings(tmp_path, sd3_cache_limit=0.0001)
    code, _, said = run("quantize", model, *here(host))
    assert code == 2
    assert said.strip().endswith(messages.remedy("cache.over-limit"))


@pytest.mark.parametrize(
    ("words", "id"),
    [
        (["--encoder", "bf16", "--out", "OUT"], "quantize.not-ours"),
        (["--encoder", "none", "--out", "OUT"], "quantize.not-ours"),
        (["--encoder", "fp8", "--stock", "--out", "OUT"], "quantize.stock-never"),
        (["--encoder", "nf4", "--stock"], "quantize.stock-out"),
        (["--device", "nothing", "--out", "OUT"], "quantize.device"),
        (["--out", "FULL"], "cache.out-taken"),
        (["--out", "FULL/file/below"], "cache.unwritable"),
        (["--encoder", "fp5", "--out", "OUT"], "setting.encoder-unknown"),
        (["--encoder", "uint4", "--out", "OUT"], "setting.encoder-gone"),
        ([], "cache.no-place"),
    ],
)
def test_what_can_not_be_done_has_a_remedy(run, model, tmp_path, words, id):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    code, made, said = run(
        "quantize", model, *(word.replace("OUT", f"{tmp_path}/out").replace("FULL", f"{tmp_path}/full") for word in words)
    )
    assert (code, made) == (2, None)
    remedy = messages.catalogue("en")[f"{id}.remedy"]
    assert remedy.partition("{")[0] in said
    assert sorted(os.listdir(tmp_path)) == ["full"]
    assert (tmp_path / "full" / "file").read_text() == "mine"


def test_sources_without_t5(run, model, tmp_path):
    clip = tmp_path / "clip"
    shutil.copytree(model / "text_encoder_3", clip)
    (tmp_path / "cut.safetensors").write_bytes((model / "t5.safetensors").read_bytes()[:500])
    torch_file = {"weight": torch.zeros(3)}
    from safetensors.torch import save_file

    save_file(torch_file, clip / "model.safetensors")
    (tmp_path / "empty").mkdir()
    ids = {tmp_path / "empty": "source.folder-empty", tmp_path / "no": "quantize.no-source", clip: "source.file-no-t5"}
    for place, id in {**ids, tmp_path / "cut.safetensors": "source.file-damaged"}.items():
        code, _, said = run("quantize", place, "--out", tmp_path / "out")
        assert code == 2
        assert messages.remedy(id) in said
        assert "Traceback" not in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("where", ["quantize.reading", "quantize.writing"])
@pytest.mark.parametrize("target", ["out", "cache"])
def test_ctrl_c(monkeypatch, capsys, model, tmp_path, host, where, target):
    def count(bar, title, done, total):
        if title == messages.text(where) and done:
            signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(progress.Bar, "count", count)
    words = here(host) if target == "cache" else ["--out", str(tmp_path / "out" / "one")]
    assert main(["quantize", str(model), *words]) == 1
    out, err = capsys.readouterr()
    assert (out, err.strip()) == ("", messages.text("quantize.stopped"))
    left = [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()]
    assert [name for name in left if not name.endswith(".sd3-lock")] == []
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.skipif(sys.platform == "win32", reason="a terminal of POSIX")
def test_a_terminal_has_a_bar_in_bytes(monkeypatch, model, tmp_path):
    import pty

    outer, inner = pty.openpty()
    with open(inner, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        assert main(["quantize", str(model), "--out", str(tmp_path / "out")]) == 0
        shown = ""
        while select.select([outer], [], [], 0)[0]:
            shown += os.read(outer, 65536).decode()
    os.close(outer)
    assert "2.2 MB / 2.2 MB quantizing" in shown
    assert "0.4 MB / 0.4 MB writing" in shown
    assert shown.endswith("\r\x1b[K")  # gone when it is done


def test_the_bar():
    assert progress.counted("writing", 0, 0) == f"[{'.' * 24}] 0 GB / 0 GB writing"
    assert progress.counted("writing", 5 * 10**9, 10**10) == f"[{'#' * 12}{'.' * 12}] 5.0 GB / 10.0 GB writing"


def test_a_python_without_the_packages(model, tmp_path, host):
    python = linked(tmp_path / "venv", without=["bitsandbytes"])
    command = [sys.executable, "-m", "sd3deploy", "quantize", str(model), *host, "--encoder", "fp4", "--python", str(python)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert messages.text("quantize.packages", names="bitsandbytes", executable=python) in done.stderr


# cache


@pytest.fixture
def stored(run, model, host):
    """Two encoders in the cache of the host; the words that lead to it, and their folders."""
    folders = [Path(run("quantize", model, *here(host), "--encoder", id)[1]["folder"]) for id in ("fp4", "nf4")]
    return host, folders


def test_list(run, capsys, stored):
    words, folders = stored
    code, answer, _ = run("cache", "list", *words)
    assert code == 0
    assert [(entry["name"], entry["choice"], entry["source"]) for entry in answer["entries"]] == [
        (folders[1].name, "nf4", "mine"),
        (folders[0].name, "fp4", "mine"),
    ]
    assert answer["bytes"] == sum(entry["bytes"] for entry in answer["entries"])
    assert answer["limit"] == 20 * 10**9
    assert main(["cache", "list", *words]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert "T5 NF4" in lines[0]
    assert lines[2] == messages.text("cache.sum", size="0.9 MB", limit="20.0 GB", folder=folders[0].parent)


def test_verify_finds_what_is_damaged_and_removes_it(run, capsys, stored):
    words, (bad, good) = stored
    code, answer, _ = run("cache", "verify", *words)
    assert (code, answer["whole"], len(answer["entries"])) == (0, True, 2)
    content = bytearray((bad / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (bad / "model.safetensors").write_bytes(content)
    code, answer, said = run("cache", "verify", *words)
    assert (code, answer["whole"]) == (1, False)
    assert {entry["name"]: entry["whole"] for entry in answer["entries"]} == {bad.name: False, good.name: True}
    assert messages.text("cache.damaged", name="T5 FP4", file="model.safetensors", folder=bad) in said
    assert messages.remedy("cache.damaged") in said
    assert not bad.exists()
    assert main(["cache", "verify", *words]) == 0
    assert messages.text("cache.intact", count=1) in capsys.readouterr().out


def test_a_damaged_manifest_is_listed(capsys, stored):
    words, (bad, _) = stored
    (bad / "manifest.json").write_text("{")
    assert main(["cache", "list", *words]) == 0
    out = capsys.readouterr().out
    assert [messages.text("cache.entry-damaged") in line for line in out.splitlines() if bad.name in line] == [True]
    assert main(["cache", "verify", *words]) == 1
    out, err = capsys.readouterr()
    assert messages.text("cache.some-damaged", count=1, all=2) in out
    assert messages.text("cache.damaged", name="T5 FP4", file="manifest.json", folder=bad) in err


def test_clear(run, capsys, stored):
    words, folders = stored
    _, listed, _ = run("cache", "list", *words)
    code, answer, _ = run("cache", "clear", "--folder", folders[0].parent)
    assert (code, answer["freed"]) == (0, listed["bytes"])
    for action in ("clear", "list", "verify"):
        assert main(["cache", action, *words]) == 0
        assert capsys.readouterr().out.strip() == messages.text("cache.none", folder=folders[0].parent)


def test_no_cache_is_known(run):
    code, answer, said = run("cache", "list")
    assert (code, answer) == (2, None)
    assert messages.remedy("cache.no-place") in said


def test_it_needs_no_library(stored):
    """With any Python: to look and to tidy up nothing heavy is imported."""
    words, folders = stored
    code = f"import sys; from sd3deploy.__main__ import main; main(['cache', 'verify', *{words!r}]); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert folders[0].name in done.stdout


def test_words_that_nobody_has_foreseen_are_refused_with_a_remedy():
    with pytest.raises(EncoderError) as caught:
        quantize.find_source("~nobody-of-that-name/t5.safetensors")
    assert caught.value.id == "source.unusable"
    assert caught.value.remedy
