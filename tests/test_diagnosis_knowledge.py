"""Every rule knows the failures that people have reported, and keeps quiet about what only looks like them.

tests/knowledge/<rule id>/match-*.log and near-*.log: short excerpts. Lines at their beginning that start with "# " say where they are from
(`source:`), what has to come out (`expect: cause package`), and what is installed there (`installed: name version, …`, `pins: …`,
`system: Linux`, `device: cuda`); without `installed` nobody knows.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from sd3deploy import messages
from sd3deploy.deps import host_packages
from sd3deploy.diagnosis import families, matcher
from sd3deploy.diagnosis.installed import Installed
from sd3deploy.diagnosis.knowledge import RULES
from sd3deploy.diagnosis.rule import CAUSES
from sd3deploy.vendored import canonicalize_name

FOLDER = Path(__file__).parent / "knowledge"
EXCERPTS = sorted(path for path in FOLDER.glob("*/*") if path.is_file())


def parsed(path):
    """(facts of the head, the excerpt)"""
    facts, lines = {}, path.read_text(encoding="utf-8").splitlines(keepends=True)
    while lines and lines[0].startswith("# "):
        name, _, value = lines.pop(0)[2:].partition(":")
        facts[name.strip()] = value.strip()
    return facts, "".join(lines)


def installed(facts):
    """What is installed where the excerpt is from, None where nobody knows."""
    if "installed" not in facts:
        return None
    pairs = lambda text: dict(part.split() for part in text.split(",") if part.strip())  # noqa: E731
    versions = {canonicalize_name(name): one for name, one in pairs(facts["installed"]).items()}
    pins = {canonicalize_name(name): one for name, one in pairs(facts.get("pins", "")).items()}
    requires = {}
    for line in filter(None, facts.get("requires", "").split(";")):  # "transformers: tokenizers>=0.22; …"
        by, _, need = line.partition(":")
        requires.setdefault(canonicalize_name(by.strip()), []).append(need.strip())
    return Installed(
        versions, {by: tuple(needs) for by, needs in requires.items()}, pins, host_packages(), "3.11.7", "/sd/venv/bin/python",
        facts.get("system", ""), "", facts.get("device", ""),
    )  # fmt: skip


def found(path):
    facts, text = parsed(path)
    return facts, matcher.read([text], lambda: installed(facts))


@pytest.mark.parametrize(
    "path", [path for path in EXCERPTS if path.name.startswith("match")], ids=lambda path: f"{path.parent.name}/{path.stem}"
)
def test_a_reported_failure_is_known(path):
    facts, findings = found(path)
    mine = [one for one in findings if one.rule == path.parent.name]
    assert mine, [(one.rule, one.message) for one in findings]
    assert mine[0].message
    assert mine[0].remedy
    assert "{" not in mine[0].message + mine[0].remedy
    if "expect" in facts:
        cause, _, package = facts["expect"].partition(" ")
        assert mine[0].cause == cause
        assert canonicalize_name(mine[0].package) == canonicalize_name(package)


@pytest.mark.parametrize(
    "path", [path for path in EXCERPTS if path.name.startswith("near")], ids=lambda path: f"{path.parent.name}/{path.stem}"
)
def test_what_only_looks_like_it_is_left_alone(path):
    _, findings = found(path)
    assert path.parent.name not in [one.rule for one in findings]


KNOWN = (*RULES, *families.KINDS.values())


@pytest.mark.parametrize("rule", KNOWN, ids=lambda rule: rule.id)
def test_each_rule_has_excerpts_sentences_and_a_source(rule):
    names = [path.name for path in (FOLDER / rule.id).glob("*")]
    assert any(name.startswith("match") for name in names)
    assert any(name.startswith("near") for name in names)
    assert f"rule.{rule.id}" in messages.catalogue("en")
    assert f"rule.{rule.id}.remedy" in messages.catalogue("en")
    assert rule.cause in CAUSES
    assert rule.source.startswith("https://")


def test_ids_are_unique_and_every_excerpt_has_its_rule():
    assert [id for id, count in Counter(rule.id for rule in KNOWN).items() if count > 1] == []
    assert {path.parent.name for path in EXCERPTS} <= {rule.id for rule in KNOWN}


@pytest.mark.parametrize("path", EXCERPTS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_excerpt_says_where_it_is_from(path):
    assert parsed(path)[0]["source"].startswith("https://")
