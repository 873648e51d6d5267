# ruff: noqa: E501 (long fixtures)
from __future__ import annotations

import dataclasses
import json
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sd3deploy.redact import Redactor
from sd3deploy.report import Report

FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
TOKEN = "hf_AbCdEfGhIjKlMnOpQrStUvWxYz012345"
NAMES = ("rule", "cause", "package", "message", "remedy", "evidence", "line")


def made(**parts):
    return Report(**{"generated": "2026-11-26T00:00:00+00:00", "redactor": Redactor(["open sesame"], ["jane"]), **parts})


def finding(**parts):
    return {
        "rule": "stale", "cause": "stale-availability", "action": "refresh", "package": "bitsandbytes",
        "message": "bitsandbytes was installed too late.", "remedy": "Choose the text encoder again.", "evidence": ["ImportError: requires bitsandbytes"],
        "line": 12, "count": 3, "source": "https://github.com/vladmandic/sdnext/issues/3281", **parts,
    }  # fmt: skip


def check(state="ok", **parts):
    return {
        "id": "python",
        "title": "Python",
        "state": state,
        "message": "3.11.7 fits.",
        "remedy": "",
        "seconds": 0.01,
        "findings": [],
        "facts": {},
        **parts,
    }


FULL = {
    "extension": "1.2.3",
    "host": {"root": "sdnext", "version": "2026-11-20", "commit": "a1b2c3d4"},
    "python": {"version": "3.11.7", "platform": "Linux x86_64", "executable": "/home/jane/sdnext/venv/bin/python"},
    "device": {"name": "NVIDIA GeForce RTX 3060", "backend": "cuda", "capability": [8, 6], "memory": 12_622_168_064},
    "packages": {"torch": "2.9.1+cu128", "diffusers": "0.36.0", "transformers": "4.57.1", "bitsandbytes": None, "google-auth": "2.23.0"},
    "model": {"name": "stable-diffusion-3.5-medium", "encoder": "T5 FP4"},
    "checks": [
        check(),
        check("failed", id="proof", title="bitsandbytes", message="It does not quantize.", remedy="Install it again.", seconds=2.34),
        check("warning", id="memory", title="Memory", message="Little is free."),
    ],
    "findings": [finding()],
}
GOLDEN = """\
SD3 Deploy 1.2.3 2026-11-26T00:00:00+00:00
SD.Next   sdnext, 2026-11-20, commit a1b2c3d4
Python    3.11.7, platform Linux x86_64, executable /home/<user>/sdnext/venv/bin/python
Device    NVIDIA GeForce RTX 3060, backend cuda, capability 8, 6, memory 12.6 GB
Model     stable-diffusion-3.5-medium, encoder T5 FP4
Packages  torch 2.9.1+cu128, diffusers 0.36.0, transformers 4.57.1, bitsandbytes not installed

✓ ok       Python: 3.11.7 fits.
✗ failed   bitsandbytes: It does not quantize. (2.3 s)
           → Install it again.
! warning  Memory: Little is free.

Wrong or worth knowing: 1. Of 3 checks 1 failed and 1 warned.

• bitsandbytes was installed too late.
  → Choose the text encoder again.
    | ImportError: requires bitsandbytes
    line 12 of the log, seen 3 times
    Read more: https://github.com/vladmandic/sdnext/issues/3281
"""


def test_what_doctor_prints():
    assert made(**FULL).text() == GOLDEN


def test_json_has_the_findings():
    data = json.loads(made(**FULL).json())
    assert [{name: one[name] for name in NAMES} for one in data["findings"]] == [{name: finding()[name] for name in NAMES}]
    assert data["packages"]["google-auth"] == "2.23.0"
    assert data["packages"]["bitsandbytes"] is None
    assert "redactor" not in data


def test_findings_of_checks_are_findings():
    report = made(checks=[check("failed", findings=[finding(), finding(rule="other")])], findings=[finding()])
    assert [one["rule"] for one in report.data()["findings"]] == ["stale", "other"]


def test_every_part_is_optional():
    empty = Report()
    assert json.loads(empty.json())["findings"] == []
    assert "Nothing was found that is wrong." in empty.text()
    assert "Nothing was found that is wrong." in empty.markdown()
    assert "{" not in made(findings=[{"message": "x"}], checks=[{}]).text()


def test_a_long_sentence_is_wrapped_and_a_long_path_is_not():
    path = "/opt/" + "x" * 120
    lines = made(findings=[finding(message="word " * 60, remedy=f"Look at {path}.", evidence=["y" * 300])]).text(60).splitlines()
    assert any(path in line for line in lines)
    assert any("y" * 300 in line for line in lines)
    assert all(len(line) <= 62 for line in lines if "word" in line)


def outputs(report):
    return {
        "text": report.text(),
        "json": report.json(),
        "markdown": report.markdown(),
        "data": json.dumps(report.data()),
        "repr": repr(report),
    }


SPOILED = [
    "open sesame",
    TOKEN,
    "/home/jane/x",
    "jane@example.org",
    "password=hunter22",
    "https://joe:hunter22@x.org",
    f"\x1b[1m{TOKEN[:9]}\x1b[0m{TOKEN[9:]}",
]


@pytest.mark.parametrize("name", [one.name for one in dataclasses.fields(Report) if one.name != "redactor"])
@pytest.mark.parametrize("spoiled", SPOILED)
def test_there_is_no_way_to_an_unredacted_report(name, spoiled):
    inner = {
        "message": spoiled,
        "title": spoiled,
        "evidence": [spoiled],
        "facts": {spoiled: [spoiled]},
        "source": spoiled,
        "hf_token": "hunter22",
    }
    value = {"findings": [inner], "checks": [inner], "runs": [inner], "events": [inner], "generated": spoiled, "extension": spoiled}.get(
        name, {spoiled: spoiled}
    )
    report = made(**{name: value})
    for kind, text in outputs(report).items():
        for secret in ("open sesame", TOKEN, "jane", "hunter22"):
            assert secret not in text, kind
    assert outputs(dataclasses.replace(report)) == outputs(report)


def unfenced(markdown):
    """What a renderer looks at: without code."""
    lines, fence = [], ""
    for line in markdown.splitlines():
        if fence:
            fence = "" if line.startswith(fence) and not line.strip("`") else fence
        elif found := re.match(r"`{3,}", line):
            fence = found[0]
        else:
            lines.append(re.sub(r"(?<!`)(`+)(?!`).*?(?<!`)\1(?!`)", "", line))
    assert not fence, "a fence is open"
    return "\n".join(lines)


NASTY = ["```\n</details><script>x</script>", "`" * 9, "<img src=x onerror=y>", "@vladmandic", "#3281", "vladmandic/sdnext#3281", "[x](javascript:y)", "| a | b |",
         "![x](http://y)", "https://evil.example/x", "www.evil.example", "~~~", "- a\n- b", "1. x", "# head", "**b** _i_", "\\", "&lt;b&gt;", "GH-12", "$x$", "\u202eabc"]  # fmt: skip


@FUZZ
@given(st.lists(st.sampled_from(NASTY) | st.text("`~<>@#[]()!*_|\\&a1 \n\r\u2028-+=.", max_size=20), min_size=1, max_size=6).map("".join))
def test_nothing_in_markdown_is_more_than_text(nasty):
    one = finding(message=nasty, remedy=nasty, evidence=[nasty, nasty], rule=nasty, source=nasty)
    markdown = made(
        host={"root": nasty, nasty: nasty},
        findings=[one],
        checks=[check("failed", message=nasty)],
        settings={"x": nasty},
        packages={nasty: nasty},
    ).markdown()
    shown = unfenced(markdown).replace("\n<details><summary>", "\n").replace("</summary>", "").replace("\n</details>", "\n")
    assert not re.search(r"[<>@`\[\]|~\\$_]", shown), shown
    assert not re.search(r"#[0-9]", shown.replace("&#", "")), shown
    assert not re.search(r"://|(?i:www\.|gh-\d)", shown), shown
    assert "\r" not in markdown
    assert markdown.count("<details>") == markdown.count("</details>") or "details" in nasty


def test_text_has_no_commands_for_a_terminal():
    report = made(findings=[finding(message="a\x1b[2Jb\x07", evidence=["c\x1b]0;x\x07d\x9b1me"])])
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", report.text() + report.markdown())


@FUZZ
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
        max_leaves=8,
    )
)
def test_whatever_the_parts_are_it_can_be_written(value):
    one = {
        "message": value,
        "remedy": value,
        "evidence": [value],
        "line": value,
        "count": value,
        "state": value,
        "seconds": value,
        "title": value,
        "findings": [],
        "rule": value,
    }
    report = made(findings=[one], checks=[one], host={"x": value}, settings={"x": value}, runs=[one], events=[one])
    json.loads(report.json())
    assert report.text()
    assert report.markdown()
