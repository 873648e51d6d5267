"""From entries to findings: what comes first, what is said once, and what is known about what was installed."""

from __future__ import annotations

import pytest

from sd3deploy.deps import host_packages
from sd3deploy.diagnosis import matcher
from sd3deploy.diagnosis.installed import Installed

MISSING = "ModuleNotFoundError: No module named '{}'\n"


def entry(second, level, text):
    return f"2026-07-23 19:21:{second:02},419 | pc | sd | {level} | modelloader | {text}\n"


def installed(**versions):
    return Installed(versions, host=host_packages(), executable="/sd/venv/bin/python")


def names(findings):
    return [(found.rule, found.package) for found in findings]


def test_an_error_object_with_its_chain():
    try:
        try:
            import sd3_no_such_module  # noqa: F401
        except ImportError as error:
            raise ValueError("no model") from ImportError(str(error).replace("sd3_no_such_module", "bitsandbytes"))
    except ValueError as error:
        (found,) = matcher.diagnose(error)
    assert (found.rule, found.cause, found.package) == ("module-missing", "missing-package", "bitsandbytes")
    assert any("No module named 'bitsandbytes'" in line for line in found.evidence)


def test_what_is_installed_is_only_asked_for_when_a_rule_wants_to_know_and_only_once():
    asked = []

    def look():
        asked.append(1)
        return installed(accelerate="1.0")

    assert matcher.diagnose("Everything is fine", look) == []
    assert asked == []
    matcher.read([entry(1, "ERROR", MISSING.format("bitsandbytes")), entry(2, "ERROR", MISSING.format("peft"))], look)
    assert asked == [1]


def test_the_latest_comes_first_and_the_same_only_once_with_its_last_lines():
    log = "".join(
        entry(second, "ERROR", MISSING.format(name)) for second, name in enumerate(["peft", "bitsandbytes", "peft", "gguf", "bitsandbytes"])
    )
    found = matcher.read([log])
    assert [(one.package, one.line, one.count) for one in found] == [("bitsandbytes", 9, 2), ("gguf", 7, 1), ("peft", 5, 2)]
    assert found[0].evidence[0].startswith("2026-07-23 19:21:04")


def test_more_kinds_of_entries_than_are_remembered_are_counted_rightly():
    others = "".join(entry(1, "WARNING", f"unrelated {chr(97 + number % 26) * (number + 1)}") for number in range(400))
    log = entry(1, "ERROR", MISSING.format("peft")) + others + entry(2, "ERROR", MISSING.format("peft"))
    (found,) = matcher.read([log])
    assert (found.count, found.line) == (2, 403)


def test_what_was_before_the_last_start_is_over():
    log = entry(1, "ERROR", MISSING.format("peft")) + entry(2, "INFO", "Starting SD.Next") + entry(3, "ERROR", MISSING.format("gguf"))
    assert names(matcher.read([log], since_start=True)) == [("module-missing", "gguf")]
    assert len(matcher.read([log])) == 2


@pytest.mark.parametrize(
    "line", ['Install: package="bitsandbytes==0.50.2"', "Installing package: bitsandbytes", "Successfully installed bitsandbytes-0.50.2"]
)
def test_an_install_in_the_log_explains_what_is_missing_afterwards(line):
    log = [entry(1, "INFO", line), entry(2, "ERROR", MISSING.format("bitsandbytes"))]
    assert matcher.read(log)[0].cause == "stale-availability"
    assert matcher.read(log[1:])[0].cause == "missing-package"
    assert matcher.read([log[0], entry(2, "INFO", "Starting SD.Next"), log[1]])[0].cause == "missing-package"


def test_a_package_of_the_host_is_never_moved_in_silence():
    facts = Installed({"diffusers": "0.39.0"}, pins={"peft": "0.19.1"}, host=host_packages(), executable="/sd/venv/bin/python")
    (found,) = matcher.diagnose(MISSING.format("peft"), lambda: facts)
    assert "belongs to SD.Next" in found.remedy
    assert "0.19.1" in found.remedy
    (found,) = matcher.diagnose(MISSING.format("bitsandbytes"), lambda: facts)
    assert "belongs to SD.Next" not in found.remedy


def test_an_error_that_no_rule_knows_is_mentioned_last_whoever_raised_it():
    frame = '  File "/venv/lib/python3.11/site-packages/{}/x.py", line 1, in f\n'
    trace = "Traceback (most recent call last):\n" + frame.format("diffusers") + "    f()\nArithmeticError: {} is odd\n"
    log = [entry(1, "ERROR", MISSING.format("peft")), *(trace.format(name) + "\n" for name in "abcdef")]
    found = matcher.read(log)
    assert [one.rule for one in found] == ["module-missing", "unknown", "unknown", "unknown"]
    assert "ArithmeticError: f is odd" in found[1].message
    assert matcher.diagnose(trace.format("x")) == []
    (stranger,) = matcher.read([trace.format("x").replace("diffusers", "pygame")])
    assert "pygame (x.py:1, f)" in stranger.message


def test_our_own_lines_are_no_failures():
    assert (
        matcher.read([entry(1, "ERROR", f"SD3 Deploy: id=rule.module-missing The package is missing: {MISSING.format('bitsandbytes')}")])
        == []
    )


def test_the_evidence_of_a_long_entry_is_about_the_error():
    middle = "".join(f"  {number} │ code\n" for number in range(100))
    log = entry(1, "ERROR", "begin") + middle[:-1] + f"\n{MISSING.format('bitsandbytes')}" + "after\n" * 3
    (found,) = matcher.read([log])
    assert len(found.evidence) <= 12
    assert found.evidence[0].endswith("begin")
    assert any("No module named" in line for line in found.evidence)
