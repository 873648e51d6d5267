"""Entries out of logs as programs write them: SD.Next's file and console, boxed and broken at the edge of a window, A1111's, ComfyUI's."""

from __future__ import annotations

import textwrap

import pytest

from sd3deploy.diagnosis import record
from sd3deploy.diagnosis.record import bounded, from_text, records

FILE = "2026-07-23 19:21:20,419 | pc | sd | {} | modelloader | {}\n"
TRACEBACK = """Traceback (most recent call last):
  File "/sdnext/modules/sd_models.py", line 12, in load
    import bitsandbytes
ModuleNotFoundError: No module named 'bitsandbytes'
"""


def texts(log):
    return [entry.text for entry in from_text(textwrap.dedent(log))]


def test_quiet_levels_are_passed_over_unless_they_explain_something():
    log = FILE.format("INFO", "an error? no") + FILE.format("DEBUG", "failed on purpose") + FILE.format("INFO", 'Install: package="x==1"')
    assert [(entry.line, entry.level) for entry in from_text(log)] == [(3, "INFO")]


def test_what_belongs_to_a_quiet_entry_is_passed_over_too():
    assert from_text(FILE.format("DEBUG", "Args: {") + '    "error": 1,\n    "fail": 2\n}\n') == []


@pytest.mark.parametrize("level", ["WARNING", "ERROR", "CRITICAL"])
def test_an_entry_goes_on_until_the_next(level):
    log = FILE.format(level, "/sdnext/x.py:27 in load") + "\n❱ 27 │   │   load()\n\nRuntimeError: broken\n" + FILE.format("INFO", "go on")
    (entry,) = from_text(log)
    assert (entry.line, entry.level, len(entry.lines)) == (1, level, 5)
    assert entry.text.endswith("in load 27 load() RuntimeError: broken")


@pytest.mark.parametrize(
    "head",
    [
        "12:05:07-412896 ERROR    {}",  # SD.Next's console
        "12:05:07 ERROR    {}",
        "2024-06-13 09:00:00,120 | sd | ERROR | errors | {}",  # SD.Next's file before it named the machine
        "2024-06-13 09:00:00,120 - ControlNet - ERROR - {}",  # A1111's extensions
        "[2024-06-13 09:00:00.120] [ERROR] {}",
        "[ERROR] {}",  # ComfyUI
        "ERROR: {}",
        "ERROR:root:{}",
        "\x1b[31m12:05:07-412896\x1b[0m \x1b[1;31mERROR   \x1b[0m {}",
    ],
)
def test_levels_of_many_programs(head):
    (entry,) = from_text(head.format("CUDA out of memory") + "\n")
    assert entry.level == "ERROR"
    assert entry.text.endswith("CUDA out of memory")


def test_a_message_wrapped_in_a_console_is_whole_again():
    log = """\
        12:05:07-412896 ERROR    Load diffusers: Using `bitsandbytes` 4-bit quantization requires the latest version of
                                 bitsandbytes: `pip install -U bitsandbytes`
        12:05:07-412897 INFO     Done
        """
    assert texts(log) == [
        "12:05:07-412896 ERROR Load diffusers: Using `bitsandbytes` 4-bit quantization requires the latest version of bitsandbytes:"
        " `pip install -U bitsandbytes`"
    ]


def test_words_cut_by_a_window_of_fixed_width_are_mended():
    whole = "12:05:07-412896 ERROR    Processing: ValueError: too many values to unpack (expected 2) in the joint attention of it"
    (entry,) = from_text("\n".join(whole[start : start + 61] for start in range(0, len(whole), 61)) + "\n")
    assert "too many va lues" in entry.text or "too many values" not in entry.text
    assert "too many values to unpack (expected 2)" in entry.rejoined


def test_a_plain_traceback_ends_with_its_error_and_what_follows_stands_alone():
    found = from_text(f"Loading\n{TRACEBACK}Loading again\n{TRACEBACK}\nKilled\n")
    assert [entry.line for entry in found] == [2, 7, 12]
    assert found[0].text.endswith("No module named 'bitsandbytes'")


def test_chained_tracebacks_are_one_entry():
    word = "\nThe above exception was the direct cause of the following exception:\n\n"
    (entry,) = from_text(TRACEBACK + word + TRACEBACK.replace("bitsandbytes", "diffusers"))
    assert "'bitsandbytes'" in entry.text
    assert "'diffusers'" in entry.text


def test_an_error_of_several_lines_and_a_boxed_traceback():
    log = """\
        ╭───────────── Traceback (most recent call last) ─────────────╮
        │ /sdnext/modules/sd_models.py:1067 in load                   │
        │ ❱ 1067 │   raise ImportError()                              │
        ╰─────────────────────────────────────────────────────────────╯
        ImportError: Using `bitsandbytes` 4-bit quantization requires `pip install
        -U bitsandbytes>=0.46.1`
        Something else
        """
    (entry,) = from_text(textwrap.dedent(log))[:1]
    assert entry.text.endswith("requires `pip install -U bitsandbytes>=0.46.1`")


def test_how_a1111_and_comfyui_announce_tracebacks():
    log = """\
        *** Error completing request
        *** Arguments: ('task(x)', 'a cat', '', [], 20) {}
            Traceback (most recent call last):
              File "/a1111/modules/call_queue.py", line 57, in f
                res = list(func(*args, **kwargs))
            RuntimeError: mat1 and mat2 must have the same dtype

        ---
        !!! Exception during processing !!! Allocation on device
        Traceback (most recent call last):
          File "/comfy/execution.py", line 1, in go
            go()
        torch.OutOfMemoryError: Allocation on device

        Prompt executed in 1.00 seconds
        """
    first, second = texts(log)
    assert first.startswith("*** Error completing request")
    assert first.endswith("must have the same dtype")
    assert second.startswith("!!! Exception during processing")
    assert second.endswith("torch.OutOfMemoryError: Allocation on device")


def test_a_progress_bar_writes_over_itself():
    (entry,) = from_text("  0%|    | 0/20\r 50%|##  | 10/20\rRuntimeError: CUDA error\n")
    assert entry.lines == ("RuntimeError: CUDA error",)


def test_windows_line_ends_do_not_matter():
    assert [entry.lines for entry in from_text(TRACEBACK.replace("\n", "\r\n"))] == [entry.lines for entry in from_text(TRACEBACK)]


def test_an_entry_without_an_end_is_bounded():
    found = list(
        records(
            "".join(FILE.format("ERROR", "begin") if not number else f"line {number} {'x' * 9000}\n" for number in range(n))
            for n in (5000,)
        )
    )
    assert max(sum(map(len, entry.lines)) for entry in found) < 130 * 4001
    assert max(len(entry.lines) for entry in found) <= 120


def test_lines_are_counted_across_blocks():
    log = FILE.format("INFO", "x") * 7 + FILE.format("ERROR", "here")
    for size in (1, 3, 8):
        lines = log.splitlines(keepends=True)
        parts = ["".join(lines[start : start + size]) for start in range(0, len(lines), size)]
        assert [entry.line for entry in records(parts)] == [8]


# What somebody pastes, or a disk that was full of it: bounded


@pytest.mark.parametrize("before", ["", "error: x\n", FILE.format("ERROR", "it failed"), "Traceback (most recent call last):\n"])
def test_empty_lines_are_passed_over_without_a_look(monkeypatch, before):
    """Five megabytes of them took 25 seconds: each was compared with every word that tells of something."""
    looked = []
    monkeypatch.setattr(record._Entry, "_append", lambda self, *values: looked.append(values) or real(self, *values))
    tells = record._tells
    monkeypatch.setattr(record, "_tells", lambda line: looked.append(line) or tells(line))
    found = from_text(before + "\n" * 100_000 + "ValueError: no\n")
    assert [entry.lines[0] for entry in found][-1:] == ["ValueError: no"] or "ValueError: no" in found[-1].lines
    assert len(looked) < 10


real = record._Entry._append


@pytest.mark.parametrize("head", ["Traceback (most recent call last):\n", FILE.format("ERROR", "it failed"), "error: it failed\n"])
def test_an_entry_is_no_larger_than_what_rules_can_search(head):
    """Each of 138 rules searches all of it: wide lines made it half a million characters."""
    wide = "".join(f"  {number} " + "a." * 1990 + "\n" for number in range(118))
    found = from_text(head + wide + "  the end of it\nModuleNotFoundError: No module named 'bitsandbytes'\n")
    assert found[0].lines[0] == head.rstrip("\n")
    assert max(len(entry.text) for entry in found) <= 2 * record._LARGEST + 2 * 60
    assert any("No module named" in entry.lines[-1] for entry in found)
    assert any("the end of it" in line for entry in found for line in entry.lines)


def test_a_text_that_is_not_long_is_read_as_it_is():
    text = "ä" * record.PASTED
    assert bounded(text) == (text, 0)


@pytest.mark.parametrize("unit", ["a line\n", "no line at all ", "\n", "x" * 70_000 + "\n"])
def test_of_a_long_text_the_beginning_and_the_end_are_read(unit):
    text = "Starting SD.Next\n" + unit * (1_000_000 // len(unit)) + "\nModuleNotFoundError: No module named 'bitsandbytes'\n"
    kept, left_out = bounded(text)
    assert len(kept) <= record.PASTED
    assert left_out >= len(text) - record.PASTED > 0
    assert kept.startswith("Starting SD.Next\n")
    assert kept.endswith("\nModuleNotFoundError: No module named 'bitsandbytes'\n")
    assert any(entry.lines[-1].startswith("ModuleNotFoundError") for entry in from_text(kept))
