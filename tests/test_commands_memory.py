"""`estimate` and `recommend`, as a user calls them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sd3deploy import tiny_sd3
from sd3deploy.__main__ import main
from sd3deploy.encoders.choices import CHOICES, HOST_DEFAULT, find
from sd3deploy.memory import sizes
from sd3deploy.memory.estimate import OFFLOADS, PHASES

ROOT = Path(__file__).parent.parent
PICTURE = "--model sd3-medium --width 1024 --height 1024"


def run(capsys, words):
    """Exit code and what was printed."""
    code = main(words.split())
    out, err = capsys.readouterr()
    assert err == ""
    return code, out


def answer(capsys, words):
    code, out = run(capsys, f"{words} --json")
    return code, json.loads(out)


def refused(capsys, words):
    """The last line on stderr of a call that is refused."""
    try:
        code = main(words)
    except SystemExit as end:  # argparse's own way
        code = end.code
    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    assert "Traceback" not in err
    return err.strip().splitlines()[-1]


def process(*words):
    return subprocess.run([sys.executable, "-m", "sd3deploy", *words], cwd=ROOT, capture_output=True, text=True)


# estimate


@pytest.mark.parametrize("choice", [one for one in CHOICES if one is not HOST_DEFAULT], ids=lambda choice: choice.id)
def test_each_choice(capsys, choice):
    code, found = answer(capsys, f"estimate {PICTURE} --encoder {choice.id} --offload none")
    assert code == 0
    assert found["parts"]["text_encoder_3"] == choice.bytes
    assert found["total"] == sum(found["parts"].values())
    assert tuple(found["parts"]) == sizes.PARTS
    assert (found["model"], found["encoder"], found["offload"]) == ("sd3-medium", choice.name, "none")
    assert set(found["phases"]) == set(PHASES)
    for phase in PHASES[1:]:  # without offload all of it is on the device
        assert found["phases"][phase]["gpu"] == found["total"] + found["phases"][phase]["activation"]
    assert found["gpu"] == max(need["gpu"] for need in found["phases"].values())
    assert (found["verdict"]["answer"], found["change"]) == ("unknown", None)


def test_the_hosts_own_t5_is_the_default(capsys):
    _, found = answer(capsys, "estimate")
    assert (found["model"], found["encoder"], found["offload"]) == ("sd3-medium", "Host default", "balanced")
    assert found["parts"]["text_encoder_3"] == find("bf16").bytes


def test_too_small_a_card(capsys):
    code, found = answer(capsys, f"estimate {PICTURE} --encoder bf16 --offload none --vram 16")
    assert code == 1
    assert found["verdict"]["answer"] == "no"
    assert found["verdict"]["missing"] == found["verdict"]["need"] - found["verdict"]["usable"] > 0
    instead = re.fullmatch(r"To make it fit: take (T5 .*) as text encoder\.", found["change"])[1]
    code, again = answer(capsys, f"estimate {PICTURE} --encoder {find(instead).id} --offload none --vram 16")
    assert (code, again["change"]) == (0, None)
    assert again["verdict"]["answer"] in ("fits", "tight")
    code, out = run(capsys, f"estimate {PICTURE} --encoder bf16 --offload none --vram 16")
    lines = out.splitlines()
    assert (code, lines[-1]) == (1, found["change"])
    assert lines[-2].startswith("Does not fit: needs ")


def test_nothing_helps(capsys):
    code, out = run(capsys, "estimate --model sd3.5-large --vram 0.7")
    assert code == 1
    assert out.splitlines()[-1].startswith("No setting makes it fit:")
    assert answer(capsys, "estimate --model sd3.5-large --vram 0.7")[1]["change"] is None


def test_too_little_ram(capsys):
    code, found = answer(capsys, f"estimate {PICTURE} --encoder bf16 --vram 24 --ram 8")
    assert code == 1
    assert (found["verdict"]["where"], found["verdict"]["usable"]) == ("ram", 8 * 2**30)


def test_a_cpu(capsys):
    code, found = answer(capsys, f"estimate {PICTURE} --encoder nf4 --device cpu --ram 64")
    assert (code, found["gpu"], found["verdict"]["where"]) == (0, 0, "ram")
    assert found["ram"] >= found["total"]
    assert answer(capsys, f"estimate {PICTURE} --encoder nf4 --device cpu --ram 4")[0] == 1


@pytest.mark.parametrize(
    ("more", "phase"),
    [
        ("--batch 4", "denoise"),
        ("--batch 2", "encode"),
        ("--width 2048", "denoise"),
        ("--height 1536", "decode"),
        ("--dtype float32", "denoise"),
    ],
)
def test_what_takes_more(capsys, more, phase):
    plain, found = (answer(capsys, f"estimate {PICTURE} --offload model {words}")[1] for words in ("", more))
    assert found["phases"][phase]["activation"] > plain["phases"][phase]["activation"]


@pytest.mark.parametrize(
    ("less", "phase"), [("--guidance 1", "denoise"), ("--tiling --width 2048", "decode"), ("--offload sequential", "denoise")]
)
def test_what_takes_less(capsys, less, phase):
    same = "--width 2048" if "2048" in less else ""
    plain, found = (answer(capsys, f"estimate --encoder fp8 --offload model {words}")[1] for words in (same, less))
    assert found["phases"][phase]["gpu"] < plain["phases"][phase]["gpu"]


def test_float16_decodes_in_float32(capsys):
    wide, narrow = (answer(capsys, f"estimate --dtype {dtype}")[1]["phases"]["decode"]["activation"] for dtype in ("float16", "bfloat16"))
    assert 1.9 < wide / narrow < 2.1


def test_for_a_person(capsys):
    code, out = run(capsys, f"estimate {PICTURE} --encoder nf4 --offload model --vram 16")
    assert code == 0
    lines = out.splitlines()
    parts = {line.split()[0]: line.split()[1:] for line in lines[:6]}
    assert parts["T5"] == ["2.7", "GB"]
    assert parts["Transformer"] == ["4.2", "GB"]
    assert list(parts) == ["Transformer", "CLIP-L", "CLIP-G", "T5", "VAE", "Together"]
    phases = [line.split(" GPU ")[0].strip() for line in lines[7:11]]
    assert phases == ["loading", "encoding the prompt", "denoising", "decoding the picture"]
    assert lines[-1].startswith("Fits: needs ")
    without = run(capsys, f"estimate {PICTURE} --encoder nf4 --offload model")[1]
    assert "fit" not in without.lower()  # of a card that is not named nothing is said


def test_a_model_at_a_path(capsys):
    folder = tiny_sd3.ensure()
    code, found = answer(capsys, f"estimate --model {folder} --encoder fp8 --dtype bfloat16")
    assert (code, found["model"]) == (0, folder.name)
    assert found["parts"] == sizes.read_model(folder).bytes(find("fp8"), "bfloat16")
    assert found["total"] < 10**8
    assert answer(capsys, f"recommend --model {folder} --vram 4")[1]["choice"] == "T5 BF16"


# recommend


def test_16_gb_get_a_t5_with_reasons(capsys):
    code, out = run(capsys, "recommend --vram 16")
    assert code == 0
    first, _, *reasons, _, basis = out.splitlines()
    assert "random weights" in basis
    taken = find(first.removeprefix("Take ").removesuffix("."))
    assert taken.error <= find("fp4").error
    best_first = ["bf16", "q8", "q6", "int8", "fp8", "q5", "q4", "nf4", "fp4", "none"]
    assert [reason.split(": ")[0] for reason in reasons] == [find(id).name for id in best_first]
    assert all(" GB " in reason for reason in reasons)
    assert answer(capsys, "recommend --vram 16")[1]["choice"] == taken.name


@pytest.mark.parametrize("mode", OFFLOADS)
def test_16_gb_in_every_mode(capsys, mode):
    code, found = answer(capsys, f"recommend --vram 16 --offload {mode}")
    assert (code, found["change"]) == (0, None)
    assert found["considered"][find(found["choice"]).id] in ("fits", "tight")


def test_where_nothing_fits_the_change_is_told(capsys):
    code, found = answer(capsys, "recommend --vram 6 --offload none")
    assert (code, found["choice"]) == (1, None)
    assert set(found["considered"].values()) == {"no"}
    steps = re.fullmatch(r"To make it fit: take (T5 .*) as text encoder, and set the model offload mode to “balanced”\.", found["change"])
    code, out = run(capsys, "recommend --vram 6 --offload none")
    assert (code, out.splitlines()[:2]) == (1, ["No text encoder fits, and CLIP alone does not either.", found["change"]])
    assert answer(capsys, f"estimate --vram 6 --encoder {find(steps[1]).id} --offload balanced")[0] == 0


def test_recommend_for_a_cpu(capsys):
    assert answer(capsys, "recommend --vram 1 --device cpu --ram 64")[1]["choice"] == "T5 BF16"
    assert answer(capsys, "recommend --vram 1 --device cpu --ram 12")[1]["considered"]["bf16"] == "no"


# Words that mean nothing


@pytest.mark.parametrize("command", ["estimate", "recommend --vram 16"])
@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--model sd35-large", "“sd3.5-large” comes nearest"),
        ("--model /nowhere/at/all", "is not a published Stable Diffusion 3 model"),
        ("--width 0", "0×1024 px, 1 at a time, is no picture. Give whole numbers from 1."),
        ("--height -1024", "1024×-1024 px"),
        ("--batch 0", "0 at a time, is no picture"),
        ("--width 1" + 300 * "0", "is no picture"),
        ("--width 1e3", "argument --width: invalid int value: '1e3'"),
        ("--offload sometimes", "argument --offload: invalid choice: 'sometimes'"),
        ("--dtype int4", "argument --dtype: invalid choice"),
        ("--device tpu", "argument --device: invalid choice"),
        ("--ram nan", "argument --ram: invalid gigabytes value: 'nan'"),
        ("--vram inf", "argument --vram: invalid gigabytes value: 'inf'"),
        ("--vram -8", "argument --vram: invalid gigabytes value: '-8'"),
        ("--vram 0", "argument --vram: invalid gigabytes value: '0'"),
        ("--vram much", "argument --vram: invalid gigabytes value: 'much'"),
    ],
)
def test_words_that_mean_nothing(capsys, command, words, sentence):
    assert sentence in refused(capsys, f"{command} {words}".split())


def test_an_encoder_that_there_is_not(capsys):
    assert "T5 FP8" in refused(capsys, ["estimate", "--encoder", "T5 FP5"])


def test_recommend_needs_a_card(capsys):
    assert refused(capsys, ["recommend"]).endswith("the following arguments are required: --vram")


def test_a_place_that_is_no_model(capsys, tmp_path):
    assert "is no Stable Diffusion 3 model" in refused(capsys, ["estimate", "--model", str(tmp_path)])
    (tmp_path / "model.safetensors").write_bytes(b"broken")
    assert "could not be read" in refused(capsys, ["estimate", "--model", str(tmp_path / "model.safetensors")])


@pytest.mark.parametrize("words", [["estimate", "--model", "sd4"], ["recommend", "--vram", "16", "--model", "sd4"]])
def test_a_refusal_is_one_sentence_and_no_traceback(words):
    done = process(*words)
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("'sd4' is not a published Stable Diffusion 3 model.")


@pytest.mark.parametrize("words", ["estimate --vram 2 --offload none --json", "recommend --vram 16 --json"])
def test_they_run_without_any_heavy_package(words):
    done = subprocess.run([sys.executable, "-X", "importtime", "-m", "sd3deploy", *words.split()], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == int("estimate" in words), done.stderr
    assert isinstance(json.loads(done.stdout), dict)
    assert " torch" not in done.stderr
    assert " numpy" not in done.stderr
