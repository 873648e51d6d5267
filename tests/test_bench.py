"""The benchmarks that take seconds with `--small`: they run, and their results have the keys that are read elsewhere.

Not here, because of the time they take: install (20 whole processes), refresh (a real install), screen (a server and a browser), memory
(pictures), calibrate, diagnosis (logs of 300 MB), guards and startup (a whole host in each process), soak (a server for minutes).
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from bench import _memory, _weights, encoders, forms, hub, load, soak, startup
from bench.__main__ import names
from demo.server import ROOT

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process's own memory from the files that it has mapped")


def test_each_has_one_line_that_says_what_it_measures():
    done = subprocess.run([sys.executable, "-m", "bench", "--list"], cwd=ROOT, capture_output=True, text=True, check=True)
    lines = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    assert list(lines) == names()
    assert {"encoders", "load", "startup"} <= set(lines)
    assert all(len(line) > 20 for line in lines.values())


# load


@pytest.fixture(scope="module")
def loaded():
    return load.run(small=True, four_bit=("fp4",))


@pytest.mark.xdist_group("bench-load")
def test_load_measures_ours_and_the_others_from_the_source_and_from_the_cache(loaded):
    others = {"transformers + bitsandbytes fp4", "SDNQ uint4", "from_pretrained bf16"}
    assert others | {"ours fp4", "ours, written behind fp4", "ours q5"} <= set(loaded["from_source"])
    for row in loaded["from_source"].values():
        assert {"processes", "s", "bytes", "peak", "peak_above_resident", "peak_anonymous_above_resident"} <= set(row)
        assert row["s"] > 0
    assert loaded["from_source"]["ours, written behind fp4"]["on_disk_s"] >= loaded["from_source"]["ours, written behind fp4"]["s"]
    assert not loaded["from_source"]["ours fp4"]["cached"]
    for state in ("warm", "cold"):
        assert list(loaded["from_cache"][state]) == list(load.FROM_CACHE)
        assert loaded["from_cache"][state][load.FROM_CACHE[0]]["cached"]
        assert loaded["from_cache"][state]["raw read"]["bytes"] == loaded["from_cache"]["bytes_of_the_file"]
    json.dumps(loaded)


@pytest.mark.xdist_group("bench-load")
def test_load_says_of_each_promise_whether_it_is_kept(loaded):
    assert loaded["wanted"]["fp4_resident"]["met"] is True
    assert loaded["wanted"]["q5_resident_vs_sdnq"]["met"] is True
    cached = loaded["from_cache"]["warm"][load.FROM_CACHE[0]]
    assert all(isinstance(line["met"], bool) for line in loaded["wanted"].values())
    sdnq = loaded["from_source"]["SDNQ uint4"]["s"]
    for seconds, met in ((sdnq / 11, True), (sdnq / 9, False)):
        cached["touched_s"] = seconds
        assert load.judged(loaded)["from_cache_vs_sdnq"]["met"] is met


def test_of_several_processes_the_median_counts_and_the_highest_peak():
    rows = [{"s": s, "bytes": 10, "peak": peak, "peak_anonymous": 0, "cached": True} for s, peak in ((3.0, 12), (1.0, 11), (2.0, 19))]
    found = load.medians(rows)
    assert (found["processes"], found["s"], found["peak_above_resident"], found["peak_anonymous_above_resident"]) == (3, 2.0, 9, -10)


# encoders


def test_encoders_measures_errors_latency_and_bytes_of_both_scales():
    rows = [encoders.Row("nf4", "absmax"), encoders.Row("nf4", "best")]
    found = encoders.run(small=True, rows=rows, kinds=("outliers",), times=1)
    measured = found["rows"]["outliers"]
    assert list(measured) == ["nf4 absmax", "nf4 best"]
    for row in measured.values():
        assert row["wo_quantized"]
        assert row["linear4bit"] == row["linears"]
        assert len(row["output_errors"]) == 3
        assert 0.05 < row["weight_error"] < 0.12
        assert 0.1 < row["output_error"] < 0.4
        assert row["encode_vs_bf16"] > 0
    assert set(found["wanted"]) == {"nf4_best_scale_is_better_everywhere", "nf4_best_scale_costs"}
    assert found["choices"]["nf4"].startswith(f"{measured['nf4 best']['bytes']:_}, 0.")
    json.dumps(found)


def test_encoders_measures_those_of_others_beside_ours():
    others = [row for row in encoders.ROWS if row.way]
    found = encoders.run(small=True, rows=[encoders.Row("q5"), *others], kinds=("outliers",), times=1)
    measured = found["rows"]["outliers"]
    assert list(measured) == ["q5", "SDNQ uint4", "SDNQ uint4 Hadamard", "transformers + bitsandbytes nf4"]
    assert [row["wo_quantized"] for row in measured.values()] == [True, False, False, False]
    assert measured["q5"]["weight_error"] < measured["SDNQ uint4 Hadamard"]["weight_error"] < measured["SDNQ uint4"]["weight_error"] < 0.12
    assert {name: line["met"] for name, line in found["wanted"].items()} == {
        "q5_vs_sdnq_outliers": True,
        "recommended_on_the_pareto_front_outliers": True,
    }
    assert list(found["choices"]) == ["q5"]


@pytest.mark.parametrize(
    ("other", "beaten"),
    [((9, 0.2), True), ((10, 0.1), True), ((10, 0.2), False), ((9, 0.21), False), ((11, 0.1), False), ((9, 0.1), True)],
)
def test_what_another_beats_at_no_more_bytes_is_not_on_the_front(other, beaten):
    rows = {name: {"bytes": size, "output_error": error} for name, (size, error) in {"q4": (10, 0.2), "SDNQ": other}.items()}
    line = encoders.judged({"rows": {"outliers": rows}, "cost_of_the_best_scale": {}})["recommended_on_the_pareto_front_outliers"]
    assert (line["beaten"], line["met"]) == ({"q4": ["SDNQ"]} if beaten else {}, not beaten)


def test_a_scale_that_is_worse_in_one_case_is_not_better_everywhere():
    def row(*errors: float) -> dict:
        return {"weight_error": 0.1, "output_errors": errors, "bytes": 1}

    worse = {"outliers": {"fp4 best": row(0.2, 0.2) | {"weight_error": 0.09}, "fp4 absmax": row(0.3, 0.19)}}
    better = {"outliers": {"fp4 best": row(0.2, 0.18) | {"weight_error": 0.09}, "fp4 absmax": row(0.3, 0.19)}}
    for rows, met in ((worse, False), (better, True)):
        lines = encoders.judged({"rows": rows, "cost_of_the_best_scale": {}})
        assert lines["fp4_best_scale_is_better_everywhere"]["met"] is met


# What they are made of


@pytest.mark.parametrize("kind", _weights.KINDS)
def test_weights_are_gone_afterwards_whatever_happens(kind):
    made = []
    with suppress(KeyboardInterrupt), _weights.weights(_weights.SMALL, kind) as folder:
        assert (folder / "text_encoder_3" / "config.json").is_file()
        made.append(folder)
        raise KeyboardInterrupt
    assert made
    assert not made[0].exists()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows ends processes without asking them")
def test_a_process_that_is_told_to_end_takes_its_weights_along():
    code = "from bench._weights import *; import signal\nwith weights(SMALL) as folder:\n print(folder, flush=True)\n signal.pause()"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    folder = Path(process.stdout.readline().strip())
    assert folder.is_dir()
    process.terminate()
    assert process.wait() == 128 + signal.SIGTERM
    assert not folder.exists()


def test_a_folder_that_is_there_is_used_as_it_is_and_stays(tmp_path, monkeypatch):
    monkeypatch.setenv(_weights.T5, str(tmp_path))
    with suppress(KeyboardInterrupt), _weights.weights(_weights.FULL) as folder:
        assert folder == tmp_path
        raise KeyboardInterrupt
    assert tmp_path.is_dir()


def test_blocks_that_are_read_when_they_are_called_give_what_the_whole_encoder_gives(tmp_path):
    import transformers

    _weights.make(tmp_path, _weights.SMALL)
    whole = transformers.T5EncoderModel.from_pretrained(tmp_path, subfolder="text_encoder_3", dtype=torch.float32)
    tokens = _weights.prompts(_weights.SMALL["vocab_size"])
    with torch.no_grad():
        expected = whole(tokens)[0]
        assert torch.equal(_weights.streamed(tmp_path, torch.float32, "cpu")(tokens)[0], expected)
        cut = _weights.streamed(tmp_path, torch.float32, "cpu", blocks=2)
        whole.encoder.block = whole.encoder.block[:2]
        assert torch.equal(cut(tokens)[0], whole(tokens)[0])


def test_heavy_tailed_weights_have_heavier_tails_at_the_same_scale(tmp_path):
    from safetensors import safe_open

    found = {}
    for kind in _weights.KINDS:
        _weights.make(tmp_path / kind, _weights.SMALL, kind)
        with safe_open(tmp_path / kind / "text_encoder_3" / "model-00000.safetensors", "pt") as file:
            found[kind] = file.get_tensor("shared.weight").float()
    heavy = found["student-t"]
    assert abs(float(heavy.std()) - 1) < 0.02
    assert 2 < float((heavy**4).mean()) - 3 < 20  # the excess kurtosis of five degrees of freedom is 6, and a sample's is anything near


@LINUX
def test_the_peak_is_that_of_the_block_even_where_python_sleeps_meanwhile():
    with _memory.Peak() as peak:
        bytearray(200 * 2**20)  # in one call, which lets no other thread run
    assert 190 * 2**20 < peak.resident < 220 * 2**20
    with _memory.Peak() as peak:
        memory = torch.ones(50 * 2**20, dtype=torch.uint8)
        memory += 1
    assert 45 * 2**20 < peak.anonymous < 70 * 2**20


@LINUX
def test_mapped_files_are_resident_and_not_anonymous(tmp_path):
    from safetensors.torch import load_file, save_file

    file = tmp_path / "x.safetensors"
    save_file({"x": torch.ones(50 * 2**20, dtype=torch.uint8)}, file)
    with _memory.Peak() as peak:
        assert int(load_file(file)["x"][::4096].sum()) == 50 * 2**8
    assert peak.resident > 45 * 2**20  # what the process had freed before may go back to the system meanwhile
    assert peak.anonymous < 10 * 2**20


@LINUX
def test_a_file_can_be_taken_out_of_memory_and_read_back(tmp_path):
    file = tmp_path / "x"
    file.write_bytes(bytes(3 * _memory.PIECE + 5))
    assert _memory.cached([file]) == 1
    dropped = _memory.drop([file])
    assert dropped == (_memory.cached([file]) < 0.01)  # some file systems keep their files in memory whatever they are asked
    assert _memory.read_through([file]) == 3 * _memory.PIECE + 5
    assert _memory.cached([file]) == 1
    memory = bytearray(3 * _memory.PIECE + 5)
    file.write_bytes(bytes(range(256)) * 10)
    assert _memory.read_through([file], memoryview(memory)) == 2560
    assert memory[:2560] == file.read_bytes()


def test_startup_says_of_each_promise_whether_it_is_kept():
    def result(start: float, contract: float, hooks: float, libraries: list[str], idle: float) -> dict:
        return {
            "start_total_s": start,
            "contract_ms": contract,
            "hooks_ms": {"together": hooks},
            "brought_in": {"libraries": libraries},
            "idle": {"percent_of_a_core": idle},
        }

    assert all(line["met"] for line in startup.judged(result(0.14, 5, 0.9, [], 0.0)).values())
    assert not any(line["met"] for line in startup.judged(result(0.16, 21, 1.1, ["pandas"], 1.0)).values())


# soak


def test_soak_tells_what_grows_from_what_only_varies():
    level = [100.0, 104, 99, 101, 98, 103, 100, 102]
    assert soak.trend(level)["flat"] is True
    grown = soak.trend([value + 5 * number for number, value in enumerate(level)])
    assert grown["flat"] is False
    assert grown["growth"] == pytest.approx(35, abs=3)
    assert soak.trend([3.0, 3, 3, 3, 3])["flat"] is True
    assert soak.trend(level[:3])["flat"] is None  # too few to show anything


def test_forms_reads_each_form_that_it_writes():
    rows = forms.run(small=True)
    assert rows.keys() == forms.WRITERS.keys()
    sizes = [row["result"] for row in rows.values()]  # of T5 FP4, whatever it was made from; numbers in its words differ in length
    assert max(sizes) - min(sizes) < 1000
    assert all(row["s"] > 0 for row in rows.values())
    assert {form for form, row in rows.items() if "library_s" in row} == {form for form in rows if form.startswith("GGUF")}


def test_hub_reads_from_a_server_of_its_own_and_counts_what_is_written():
    row = hub.run(small=True)
    assert {"bytes", "least_s", "s", "factor", "result", "written", "above_result", "met"} <= row.keys()
    assert not row["cached"]
    assert row["s"] > 0.9 * row["least_s"]  # the limit is one
    assert row["written"] >= row["result"] > 0
